"""Training state in one file: save and resume with nothing lost, and build the network again from the file alone.

`pack` turns a network, its optimiser and the random state into tensors and metadata, `save` and `load` move these to
and from a file, `unpack` is the inverse of `pack`. Networks are built by name from a closed list, never imported.
"""

import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from gpucnn import device as devices
from gpucnn import models
from gpucnn.nn import Module, init
from gpucnn.optim import Optimizer
from gpucnn.random import default_generator
from gpucnn.tensorfile import Checkpoint as Checkpoint
from gpucnn.tensorfile import CheckpointError as CheckpointError
from gpucnn.tensorfile import load as load
from gpucnn.tensorfile import load_weights as load_weights
from gpucnn.tensorfile import save as save
from gpucnn.tensorfile import select as select
from gpucnn.threads import get_num_threads
from gpucnn.version import __version__

MAX_ARGUMENT = 1 << 31
MAX_IMAGE = 1 << 26  # values of one input, 256 MiB: nothing in a network's weights tells the size of its images

# What `pack` and `unpack` insist on; other entries may stand beside these. A list or a dictionary describes its items.
KINDS: dict[str, Any] = {
    "model": {"name": str, "arguments": dict},
    "input_shape": [int],  # channels, height, width
    "optimizer": {"name": str, "lr": float, "scales": [float], "steps": [int]},
    "random": {"seed": int, "offset": int, "host": dict},
    "environment": dict,
    "classes": [str],
    "normalization": {"mean": [float], "std": [float]},  # of each channel, for pixels from 0 to 1
    "data": str,
}


def pack(
    model: models.Network, optimizer: Optimizer, extra: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors, metadata) for `save`: network, optimiser, random state and environment.

    The arrays are the live ones, or copies of those on a GPU.

    Tensors are named "model/features.0.weight" and "optimizer/<parameter's index>/momentum_buffer".
    extra: further metadata, among it "classes" (names), "normalization" ({"mean", "std"}: a number a channel, for
    pixels from 0 to 1) and "data" (the name of the data set); as JSON can hold it.
    Raises CheckpointError for an entry that is missing or of the wrong kind.
    """
    state = optimizer.state_dict()
    tensors = {f"model/{name}": devices.to_numpy(array) for name, array in model.state_dict().items()}
    for index, entry in enumerate(state.pop("state")):
        tensors.update({f"optimizer/{index}/{name}": devices.to_numpy(array) for name, array in entry.items()})
    metadata = {
        **extra,
        "model": {"name": model.name, "arguments": model.arguments},
        "input_shape": list(model.input_shape),
        "optimizer": {"name": type(optimizer).__name__, **state},
        "random": default_generator.get_state(),
        "environment": environment(),
    }
    _check_kinds(metadata, KINDS, "pack: metadata")
    _check_image(model, "pack")
    return tensors, metadata


def unpack(checkpoint: Checkpoint, model: Module, optimizer: Optimizer) -> dict[str, Any]:
    """Put the saved state into `model`, `optimizer` and the random generator; return the metadata with `extra` in it.

    Raises CheckpointError if the state is another network's or optimiser's, or is damaged; use none of the three then.
    """
    metadata = checkpoint.metadata
    _check_kinds(metadata, KINDS, f"{checkpoint.path}: metadata")
    saved = metadata["optimizer"]
    if saved["name"] != type(optimizer).__name__:
        raise CheckpointError(
            f"{checkpoint.path}: the run used {saved['name']:.40}, not {type(optimizer).__name__}; "
            "continue with the same optimiser or start afresh"
        )
    try:
        model.load_state_dict(select(checkpoint, "model/"))
        optimizer.load_state_dict({**saved, "state": _optimizer_state(checkpoint)})
        default_generator.set_state(metadata["random"])
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{checkpoint.path}: its state does not fit ({error}); start afresh") from error
    return metadata


def _optimizer_state(checkpoint: Checkpoint) -> list[dict[str, np.ndarray]]:
    """The optimiser's arrays, one {name: array} a parameter."""
    steps = checkpoint.metadata["optimizer"]["steps"]
    if min(steps, default=0) < 0:
        raise ValueError(f"a parameter has made {min(steps)} steps")
    entries: dict[str, dict[str, np.ndarray]] = {str(index): {} for index in range(len(steps))}
    for path, array in select(checkpoint, "optimizer/").items():
        index, _, name = path.partition("/")
        if index not in entries:
            raise ValueError(f"tensor {'optimizer/' + path!r} is of no parameter")
        entries[index][name] = array
    return list(entries.values())


def build_model(checkpoint: Checkpoint) -> models.Network:
    """The network that was saved, with its weights, from the file alone; random numbers are not drawn.

    Raises CheckpointError for a name that is not in models.names(), for arguments out of range or that make a larger
    network than the file holds (before memory is taken), and for tensors that are not exactly the network's.
    """
    metadata = checkpoint.metadata
    _check_kinds(metadata, KINDS, f"{checkpoint.path}: metadata")
    weights = select(checkpoint, "model/")
    values = sum(array.size for array in weights.values())
    try:
        _check_arguments(metadata["model"]["arguments"])
        with init.skipped(limit=2 * values):  # some networks set their weights a second time
            model = models.create(metadata["model"]["name"], **metadata["model"]["arguments"])
        if {array.dtype for array in weights.values() if array.dtype.kind == "f"} == {np.dtype(np.float64)}:
            model.to(np.float64)
        model.load_state_dict(weights)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.path}: its network cannot be built ({error}); train again") from error
    _check_description(checkpoint, model)
    return model


def environment() -> dict[str, Any]:
    """What a run's bits depend on beside its settings: versions, threads, kind of machine."""
    return {
        "gpucnn": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
        "system": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": get_num_threads(),
    }


def _processor() -> str:
    """The processor's model, as Linux tells it; "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _check_kinds(value: Any, kind: Any, where: str) -> None:
    """Raise CheckpointError unless `value` is of the `kind` described as in KINDS; where: its name in the text."""
    if isinstance(kind, dict):
        _check_kinds(value, dict, where)
        for name, each in kind.items():
            if name not in value:
                raise CheckpointError(f"{where} lacks {name!r}; save it with checkpoint.pack")
            _check_kinds(value[name], each, f"{where}[{name!r}]")
    elif isinstance(kind, list):
        _check_kinds(value, list, where)
        for position, each in enumerate(value):
            _check_kinds(each, kind[0], f"{where}[{position}]")
    elif isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        found, wanted = type(value).__name__, kind.__name__
        raise CheckpointError(f"{where} is of type {found}, not {wanted}; save it with checkpoint.pack")


def _check_arguments(arguments: dict[str, Any]) -> None:
    """Keep numbers and images within what computes at all; the network itself checks the rest."""
    for name, value in arguments.items():
        if not isinstance(value, (str, int, float)) or (not isinstance(value, str) and abs(value) > MAX_ARGUMENT):
            raise ValueError(f"{name} is {value!r:.40}; it must be a text or a number of at most {MAX_ARGUMENT}")


def _check_image(model: models.Network, where: str) -> None:
    if math.prod(model.input_shape) > MAX_IMAGE:
        raise CheckpointError(
            f"{where}: the network takes images of shape {model.input_shape}; at most {MAX_IMAGE} values are allowed; "
            "use a smaller image_size"
        )


def _check_description(checkpoint: Checkpoint, model: models.Network) -> None:
    """Raise CheckpointError unless the metadata describe images and classes of this network."""
    metadata, normalization = checkpoint.metadata, checkpoint.metadata["normalization"]
    _check_image(model, checkpoint.path)
    channels = model.input_shape[0]
    for entry, found, wanted in (
        ("input_shape", tuple(metadata["input_shape"]), model.input_shape),
        ("number of classes", len(metadata["classes"]), model.arguments["num_classes"]),
        ("number of means", len(normalization["mean"]), channels),
        ("number of standard deviations", len(normalization["std"]), channels),
    ):
        if found != wanted:
            raise CheckpointError(f"{checkpoint.path}: its {entry} is {found}, the network's {wanted}; train again")
    if not min(normalization["std"]) > 0:
        raise CheckpointError(f"{checkpoint.path}: a standard deviation is not above 0; train again")
