"""Where data come from: load() finds the data set behind a name or a directory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gpucnn.data import mnist
from gpucnn.data.dataset import Splits


class Format(NamedTuple):
    """A layout of files: what it looks like, in words; whether a directory has it; how it is read."""

    looked_for: str
    recognises: Callable[[Path], bool]
    load: Callable[[Path], Splits]


BUNDLED: dict[str, Callable[[], Splits]] = {"digits": mnist.load_digits}
FORMATS = (Format(f"MNIST's {mnist.IDX_FILES} (or .gz)", mnist.has_idx_files, mnist.load_idx_files),)


def load(source: str | os.PathLike) -> Splits:
    """(train, test), two Datasets: a bundled data set by its name, or a directory in a known format.

    source: "digits", or a directory with MNIST's four IDX files (one that is called digits is "./digits")

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
