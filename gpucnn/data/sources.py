"""Where data come from: load() finds the data set behind a name or a directory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gpucnn.data import cifar, folders, mnist, shapes
from gpucnn.data.checks import check_size
from gpucnn.data.dataset import Splits

Size = tuple[int, int] | None  # height, width in pixels


class Format(NamedTuple):
    """A layout of files: what it looks like, in words; whether a directory has it; how it is read.

    load: takes the directory, the size of the images, and whether they keep their aspect
    """

    looked_for: str
    recognises: Callable[[Path], bool]
    load: Callable[[Path, Size, bool], Splits]


def _of_one_size(read: Callable[[Path], Splits]) -> Callable[[Path, Size, bool], Splits]:
    """The reader of a format whose images have one size already."""
    return lambda directory, size, keep_aspect: _resize(read(directory), size, keep_aspect)


def _resize(splits: Splits, size: Size, keep_aspect: bool) -> Splits:
    return splits if size is None else Splits(*(part.resize(size, keep_aspect=keep_aspect) for part in splits))


BUNDLED: dict[str, Callable[[], Splits]] = {"digits": mnist.load_digits, "shapes": shapes.load_shapes}
FORMATS = (
    Format(f"MNIST's {mnist.IDX_FILES} (or .gz)", mnist.has_idx_files, _of_one_size(mnist.load_idx_files)),
    Format("CIFAR-10's data_batch_1.bin … and test_batch.bin", cifar.has_cifar10, _of_one_size(cifar.load_cifar10)),
    Format("CIFAR-100's train.bin and test.bin", cifar.has_cifar100, _of_one_size(cifar.load_cifar100)),
    Format(
        "PNG or JPEG pictures in class folders, or in train/CLASS and test/CLASS or val/CLASS",
        folders.has_class_folders,
        folders.load_class_folders,
    ),
)


def load(
    source: str | os.PathLike, *, image_size: int | tuple[int, int] | None = None, keep_aspect: bool = False
) -> Splits:
    """(train, test), two Datasets: a bundled data set by its name, or a directory in a known format.

    source: "digits", "shapes", or a directory (one that is called digits is "./digits") with MNIST's four IDX files,
        the binary version of CIFAR-10 or CIFAR-100, or PNG and JPEG pictures in folders named after their classes
    image_size: a side or (height, width) in pixels that all images are scaled to; None leaves them as they are, and
        scales pictures in class folders to the size of the first training picture, 256 pixels a side at most. All are
        kept in memory, channels · height · width bytes each
    keep_aspect: scale the shorter side and cut out the centre, instead of stretching images of another aspect

    Raises FileNotFoundError or NotADirectoryError where there is no such name or directory, ValueError where
    it holds nothing known or a file is not what it should be, OSError where a file cannot be read, TypeError or
    ValueError for an image_size that is none.
    """
    if image_size is not None:
        image_size = check_size("load", "image_size", image_size)
    if source in BUNDLED:
        return _resize(BUNDLED[source](), image_size, keep_aspect)
    directory = Path(source)
    names = ", ".join(BUNDLED)
    if not directory.exists():
        raise FileNotFoundError(f"load: {str(source)!r} is no directory and no bundled data set ({names})")
    if not directory.is_dir():
        raise NotADirectoryError(f"load: {str(source)!r} is a file; give the directory it is in, or {names}")
    for known in FORMATS:
        if known.recognises(directory):
            return known.load(directory, image_size, keep_aspect)
    looked_for = "; ".join(known.looked_for for known in FORMATS)
    raise ValueError(f"load: {str(source)!r} holds no data set in a known format; looked for {looked_for}")
