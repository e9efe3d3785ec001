"""Where data come from: load() finds the data set behind a name or a directory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gpucnn.data import cifar, mnist
from gpucnn.data.dataset import Splits


class Format(NamedTuple):
    """A layout of files: what it looks like, in words; whether a directory has it; how it is read."""

    looked_for: str
    recognises: Callable[[Path], bool]
    load: Callable[[Path], Splits]


BUNDLED: dict[str, Callable[[], Splits]] = {"digits": mnist.load_digits}
FORMATS = (
    Format(f"MNIST's {mnist.IDX_FILES} (or .gz)", mnist.has_idx_files, mnist.load_idx_files),
    Format("CIFAR-10's data_batch_1.bin … and test_batch.bin", cifar.has_cifar10, cifar.load_cifar10),
    Format("CIFAR-100's train.bin and test.bin", cifar.has_cifar100, cifar.load_cifar100),
)


def load(source: str | os.PathLike) -> Splits:
    """(train, test), two Datasets: a bundled data set by its name, or a directory in a known format.

    source: "digits", or a directory (one that is called digits is "./digits") with MNIST's four IDX files or the
        binary version of CIFAR-10 or CIFAR-100

    Raises FileNotFoundError or NotADirectoryError where there is no such name or directory, ValueError where
    it holds nothing known or a file is not what it should be, OSError where a file cannot be read.
    """
    if source in BUNDLED:
        return BUNDLED[source]()
    directory = Path(source)
    names = ", ".join(BUNDLED)
    if not directory.exists():
        raise FileNotFoundError(f"load: {str(source)!r} is no directory and no bundled data set ({names})")
    if not directory.is_dir():
        raise NotADirectoryError(f"load: {str(source)!r} is a file; give the directory it is in, or {names}")
    for known in FORMATS:
        if known.recognises(directory):
            return known.load(directory)
    looked_for = "; ".join(known.looked_for for known in FORMATS)
    raise ValueError(f"load: {str(source)!r} holds no data set in a known format; looked for {looked_for}")
