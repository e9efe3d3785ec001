"""The bundled handwritten digits, and directories of IDX files: MNIST, EMNIST, Fashion-MNIST, ..."""

import re
from pathlib import Path

import numpy as np

from gpucnn.data.dataset import Dataset, Splits
from gpucnn.data.idx import read_idx

IDX_FILES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"

# Also train-images.idx3-ubyte.gz, test-labels-idx1-ubyte, emnist-letters-train-images-idx3-ubyte, ...
_IDX_NAME = re.compile(r"(?P<set>.*?)(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx\d-ubyte(\.gz)?")

_PARTS = ("train", "test")
_KINDS = ("images", "labels")


def load_digits() -> Splits:
    """The bundled 4,000 training and 1,000 test images of MNIST, uint8 (N, 1, 28, 28), ten classes."""
    with np.load(Path(__file__).with_name("digits5k.npz"), allow_pickle=False) as arrays:
        train = _dataset("digits", arrays["train_images"], arrays["train_labels"], 10)
        test = _dataset("digits", arrays["test_images"], arrays["test_labels"], 10)
    return Splits(train, test)


def has_idx_files(directory: Path) -> bool:
    """Whether any file of the directory has a name of MNIST's kind."""
    return bool(_idx_files(directory))


def load_idx_files(directory: Path) -> Splits:
    """The training and test images in a directory's four IDX files, uint8 (N, 1, H, W), and their labels.

    The classes are "0", "1", ... up to the largest label, ten at least.
    Raises FileNotFoundError where one of the four is missing, ValueError where one is damaged or they do not
    fit together, OSError where one cannot be read.
    """
    files = _idx_files(directory)
    sets = sorted({name for name, _, _ in files})
    if len(sets) > 1:
        raise ValueError(f"load: {str(directory)!r} has IDX files of several sets, {sets}; keep only one")
    missing = [f"{part} {kind}" for part in _PARTS for kind in _KINDS if (sets[0], part, kind) not in files]
    if missing:
        raise FileNotFoundError(
            f"load: {str(directory)!r} has IDX files, but none for the {', '.join(missing)}; "
            f"needed are {IDX_FILES}, each with or without .gz"
        )
    parts = [_read_pair(files[sets[0], part, "images"], files[sets[0], part, "labels"]) for part in _PARTS]
    sizes = [images.shape[1:] for images, _ in parts]
    if sizes[0] != sizes[1]:
        found = f"{sizes[0]} pixels for training, {sizes[1]} for testing"
        raise ValueError(f"load: the images in {str(directory)!r} must have one size, not {found}")
    classes = max(10, *(int(labels.max()) + 1 for _, labels in parts))
    name = directory.resolve().name
    return Splits(*(_dataset(name, images, labels, classes) for images, labels in parts))


def _dataset(name: str, images: np.ndarray, labels: np.ndarray, classes: int) -> Dataset:
    """images (N, H, W) and labels (N,), uint8, as a Dataset of one channel."""
    return Dataset(name, images[:, np.newaxis], labels, tuple(map(str, range(classes))))


def _idx_files(directory: Path) -> dict[tuple[str, str, str], Path]:
    """(set, part, kind) -> path, for every IDX file; an unpacked one goes before its .gz."""
    found = {}
    for path in sorted(directory.iterdir(), reverse=True):
        match = _IDX_NAME.fullmatch(path.name)
        if match and not path.is_dir():
            part = "train" if match["part"] == "train" else "test"
            found[match["set"], part, match["kind"]] = path
    return found


def _read_pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """images (N, H, W) and labels (N,), uint8; ValueError where the files hold other shapes."""
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3:
        raise ValueError(f"{images_path}: images must have the shape (N, H, W), not {images.shape}")
    if labels.shape != (len(images),):
        rule = f"({len(images)},), one for each image in {images_path.name}"
        raise ValueError(f"{labels_path}: labels must have the shape {rule}, not {labels.shape}")
    return images, labels
