"""CIFAR-10 and CIFAR-100, the binary version (Krizhevsky 2009; https://www.cs.toronto.edu/~kriz/cifar.html).

    one record an image: 1 label byte (CIFAR-100: 2, the coarse and the fine one), then 3 · 32 · 32 bytes of pixels,
    red, green and blue plane, each row after row

The Python version of these sets is pickled and never read. A file is not trusted: its size is checked before memory
is taken, and all that is wrong is a ValueError that names the file.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpucnn.data.dataset import Dataset, Splits

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_MAX_FILE = 2**30  # bytes; the largest real one, train.bin, has 154 MB
_MAX_NAMES = 2**16  # bytes of a file of class names; the real ones have less than 1 KB
_BATCH = re.compile(r"data_batch_([1-9]\d{0,2})\.bin")


class _Kind(NamedTuple):
    """One of the two sets: label bytes in front of the pixels (the last one counts), classes, file of their names."""

    label_bytes: int
    classes: int
    names: str


_CIFAR10 = _Kind(1, 10, "batches.meta.txt")
_CIFAR100 = _Kind(2, 100, "fine_label_names.txt")


def has_cifar10(directory: Path) -> bool:
    """Whether a file of the directory has a name of CIFAR-10's kind."""
    return (directory / "test_batch.bin").is_file() or bool(_batches(directory))


def load_cifar10(directory: Path) -> Splits:
    """The images of data_batch_1.bin, data_batch_2.bin, … for training and of test_batch.bin, uint8 (N, 3, 32, 32).

    The classes are the lines of batches.meta.txt, or "0" to "9" where there is no such file.
    Raises FileNotFoundError where a file is missing, ValueError where one is damaged, OSError where one cannot be read.
    """
    batches = _batches(directory)
    training = [directory / f"data_batch_{number}.bin" for number in range(1, max(batches, default=1) + 1)]
    return _load(directory, _CIFAR10, training, directory / "test_batch.bin")


def has_cifar100(directory: Path) -> bool:
    """Whether a file of the directory has a name of CIFAR-100's kind."""
    return (directory / "train.bin").is_file() or (directory / "test.bin").is_file()


def load_cifar100(directory: Path) -> Splits:
    """The images of train.bin and test.bin, uint8 (N, 3, 32, 32), with their fine labels.

    The classes are the lines of fine_label_names.txt, or "0" to "99" where there is no such file.
    Raises FileNotFoundError where a file is missing, ValueError where one is damaged, OSError where one cannot be read.
    """
    return _load(directory, _CIFAR100, [directory / "train.bin"], directory / "test.bin")


def _batches(directory: Path) -> list[int]:
    """The numbers of the files data_batch_<number>.bin."""
    matches = ((_BATCH.fullmatch(path.name), path) for path in directory.iterdir())
    return [int(match[1]) for match, path in matches if match and path.is_file()]


def _load(directory: Path, kind: _Kind, training: list[Path], test: Path) -> Splits:
    missing = [path.name for path in (*training, test) if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"load: {str(directory)!r} has files of CIFAR-{kind.classes}, but lacks {', '.join(missing)}; "
            "unpack the whole binary version"
        )
    classes = _class_names(directory / kind.names, kind.classes)
    name = directory.resolve().name
    parts = [_read_records(path, kind) for path in training]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Splits(Dataset(name, images, labels, classes), Dataset(name, *_read_records(test, kind), classes))


def _read_records(path: Path, kind: _Kind) -> tuple[np.ndarray, np.ndarray]:
    """images (N, 3, 32, 32) and labels (N,), uint8."""
    length = kind.label_bytes + _PIXELS
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0 or size % length or size > _MAX_FILE:
            raise ValueError(
                f"{path}: a file of CIFAR-{kind.classes} has {length} bytes an image, at least one and at most "
                f"{_MAX_FILE} bytes in all, but this one has {size}; it is incomplete or damaged, fetch it again"
            )
        content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{path}: only {len(content)} of {size} bytes could be read; it changed meanwhile")
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    labels = records[:, kind.label_bytes - 1]
    if labels.max() >= kind.classes:
        raise ValueError(
            f"{path}: image {labels.argmax()} has the label {labels.max()}; CIFAR-{kind.classes} has the labels 0 to "
            f"{kind.classes - 1}; it is damaged, or not the binary version"
        )
    return records[:, kind.label_bytes :].reshape(-1, *_SHAPE), labels


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    """The lines of the file, of which there must be count (empty ones aside), or numbers where there is no file."""
    if not path.is_file():
        return tuple(map(str, range(count)))
    with open(path, "rb") as file:
        content = file.read(_MAX_NAMES + 1)
    try:
        names = tuple(line.strip() for line in content.decode().splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: class names must be text in UTF-8 ({error}); delete or replace it") from error
    if len(names) != count or len(content) > _MAX_NAMES:
        raise ValueError(f"{path}: it must name {count} classes, one a line, not {len(names)}; delete or replace it")
    return names
