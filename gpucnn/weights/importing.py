"""Weights that other programs trained, made a checkpoint of this one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import checkpoint, models, tensorfile
from gpucnn.models import Network
from gpucnn.nn import init
from gpucnn.optim import SGD
from gpucnn.train.config import check_choice
from gpucnn.train.folder import PICTURES, RunFolder
from gpucnn.weights import archive, npz, pth

ZIP_START = b"PK\3\4"
MAX_CLASSES_FILE = 1 << 20  # bytes

# Of ImageNet's training images, as torchvision's networks expect them; other channels stay in [0, 1].
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
COUNTER = ".num_batches_tracked"  # of batch normalisation; files from before PyTorch 0.4.1 lack it


def import_weights(
    model: str,
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    classes: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    **arguments: Any,
) -> Path:
    """Write weights as a checkpoint that `evaluate` and `predict` take; return its path.

    - model: a name of `models.names()`; path: what `read_weights` takes, with the network's names and shapes
      (AlexNet's and VGG's are torchvision's)
    - out: the folder for checkpoint.safetensors; one that holds a run is refused without overwrite
    - classes: a text file with a class name a line, in the order of the outputs; "0", "1", … by default
    - arguments: of the network, such as image_size; num_classes and in_channels follow from the weights
    Images are normalised as ImageNet's where they have three channels. Raises ValueError or OSError naming the file.
    """
    check_choice("model", model, models.names())
    folder = RunFolder(out)
    folder.check(False, overwrite)
    state = read_weights(path)
    network = _build(model, path, state, {name: value for name, value in arguments.items() if value is not None})
    channels, count = network.input_shape[0], network.arguments["num_classes"]
    extra = {
        "classes": [str(label) for label in range(count)] if classes is None else _read_classes(classes, count),
        "normalization": IMAGENET if channels == 3 else {"mean": [0.0] * channels, "std": [1.0] * channels},
        "data": "imported weights",
    }
    with folder.locked():
        checkpoint.save(folder.checkpoint, *checkpoint.pack(network, SGD(network.parameters()), extra))
        for name in (folder.best.name, folder.metrics.name, *PICTURES):  # of a run that this replaces
            (folder.path / name).unlink(missing_ok=True)
    return folder.checkpoint


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """name → array of a .npz, .safetensors or .pth file (a state dict), told apart by what they hold.

    Nothing that the file says is run and no more memory is taken than it honestly holds.
    Raises OSError for a file that cannot be read, ValueError for one that is damaged or of another kind; both name it.
    """
    path = os.fspath(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of weights; check the path")
    with open(path, "rb") as file:
        start = file.read(len(pth.LEGACY_START))
    if start == pth.LEGACY_START:
        raise ValueError(
            f"{path}: a file of PyTorch before 1.6; write it anew with torch.save(torch.load(FILE, weights_only=True), "
            "FILE)"
        )
    if not start.startswith(ZIP_START):
        return tensorfile.load_weights(path)
    try:
        with archive.open_archive(path) as found:
            return pth.read_pth(found) if pth.is_pth(found) else npz.read_npz(found)
    except (*archive.DAMAGED, TypeError, AttributeError, pth.Refused) as error:
        raise ValueError(f"{path}: it is damaged or no file of weights: {error}; use another copy") from error


def _build(model: str, path: Any, state: dict[str, np.ndarray], arguments: dict[str, Any]) -> Network:
    """The network with these weights; nothing larger than they are is made."""
    values = sum(array.size for array in state.values())
    try:
        with init.skipped(limit=2 * values + 1):  # some networks set their weights a second time
            network = models.create(model, **{**_inferred(state), **arguments})
        counters = {name: np.zeros((), np.int64) for name in network.state_dict() if name.endswith(COUNTER)}
        network.load_state_dict({**counters, **state})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its weights do not make a {model} ({error}); name the right MODEL") from error
    for name, array in network.state_dict().items():
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has values that are not finite; use another copy")
    return network


def _inferred(state: dict[str, np.ndarray]) -> dict[str, int]:
    """Channels and classes, as the first convolution's and the last linear layer's weights tell them."""
    arrays = [state[name] for name in sorted(state)]
    filters = [array.shape[1] for array in arrays if array.ndim == 4]
    rows = [array.shape[0] for array in arrays if array.ndim == 2]
    if not filters or not rows:
        raise ValueError("it holds no weights of a convolution, or none of a linear layer")
    return {"in_channels": filters[0], "num_classes": rows[-1]}


def _read_classes(path: str | os.PathLike[str], count: int) -> list[str]:
    """The lines of the file, of which there must be count, empty ones aside."""
    with open(path, "rb") as file:
        content = file.read(MAX_CLASSES_FILE + 1)
    try:
        names = [line.strip() for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: class names must be text in UTF-8 ({error})") from error
    if len(names) != count or len(content) > MAX_CLASSES_FILE:
        raise ValueError(f"{path}: it must name the network's {count} classes, one a line, not {len(names)}")
    return names
