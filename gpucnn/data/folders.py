"""Pictures in folders that are named after their classes, as torchvision's ImageFolder has them.

train/cat/1.png  train/dog/2.jpg  val/cat/3.png  …      or      cat/1.png  dog/2.jpg  …
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np

from gpucnn.data import pictures
from gpucnn.data.dataset import Dataset, Splits, draw_part
from gpucnn.threads import get_num_threads

_SUFFIXES = (".png", ".jpg", ".jpeg")
_TEST_PARTS = ("test", "val")  # in ImageNet's test/ there are no classes, so that val/ is taken
_TEST_FRACTION, _TEST_SEED = 0.2, 0  # of the pictures, where the folders are not parted

_MAX_SIDE = 256  # pixels, where no size is asked for: photos of 12 megapixels would fill the memory
_MAX_THREADS = 4  # each may hold a picture of pictures.MAX_PIXELS, unpacked

Labelled = list[tuple[Path, int]]  # pictures and their labels


def has_class_folders(directory: Path) -> bool:
    """Whether a folder of the directory has PNG or JPEG files in it, at any depth."""
    return any(_has_picture(folder) for folder in _folders(directory))


def load_class_folders(directory: Path, image_size: tuple[int, int] | None = None, keep_aspect: bool = False) -> Splits:
    """The pictures in train/CLASS/ and test/CLASS/ (or val/CLASS/), or in CLASS/, of which a fifth is kept for testing.

    Classes are the folders' names, sorted; pictures lie in them at any depth. Each is turned upright, put on white
    where it is transparent, and scaled to one size; there is 1 channel where all of them are grey, otherwise 3. Threads
    unpack them, 4 at most. The fifth is drawn from every class alike, the same each time.

    image_size: (height, width) in pixels; None takes that of the first training picture, scaled down where its longer
        side has more than 256. The N pictures take N · 3 · height · width bytes of memory, 197 KB each at 256 × 256
    keep_aspect: scale the largest centred part that has the aspect of the size, instead of stretching whole pictures

    Raises ValueError or OSError naming the folder or file that is not as it should be.
    """
    classes, training, test = _list_parts(directory)
    with pictures.strict_warnings():
        size = image_size or _default_size(training[0][0])
        parts = [_read_all([path for path, _ in part], size, keep_aspect) for part in (training, test)]
    if all(grey for _, grey in parts):
        parts = [(np.ascontiguousarray(images[:, :1]), grey) for images, grey in parts]
    name = directory.resolve().name
    return Splits(
        *(
            Dataset(name, images, np.array([label for _, label in part]), classes)
            for (images, _), part in zip(parts, (training, test), strict=True)
        )
    )


def _list_parts(directory: Path) -> tuple[tuple[str, ...], Labelled, Labelled]:
    """(classes, training pictures, test pictures)."""
    if not (directory / "train").is_dir() or not has_class_folders(directory / "train"):
        classes = _class_folders(directory)
        found = _list_pictures(directory, classes)
        if len(found) < 2:
            raise ValueError(f"load: {str(directory)!r} has 1 picture; a part for training and one for testing need 2")
        drawn = draw_part(np.array([label for _, label in found]), _TEST_FRACTION, _TEST_SEED).tolist()
        parts = [[each for each, test in zip(found, drawn, strict=True) if test is wanted] for wanted in (False, True)]
        return classes, parts[0], parts[1]
    for part in _TEST_PARTS:
        if (directory / part).is_dir() and has_class_folders(directory / part):
            classes = _class_folders(directory / "train")
            return classes, _list_pictures(directory / "train", classes), _list_pictures(directory / part, classes)
    raise ValueError(
        f"load: {str(directory)!r} has class folders in train, but none in {' or '.join(_TEST_PARTS)}; make one of "
        f"them, or give {str(directory / 'train')!r}, of which a part is then kept for testing"
    )


def _class_folders(directory: Path) -> tuple[str, ...]:
    """The names of the folders, sorted; ValueError where there is only one."""
    names = tuple(folder.name for folder in _folders(directory))
    if len(names) < 2:
        raise ValueError(f"load: {str(directory)!r} has one class folder, {names[0]!r}; there must be two or more")
    return names


def _list_pictures(directory: Path, classes: tuple[str, ...]) -> Labelled:
    """Every picture in the directory's class folders, by class and path; a folder must be a class and hold one."""
    found: Labelled = []
    for folder in _folders(directory):
        if folder.name not in classes:
            raise ValueError(f"load: {str(folder)!r} is no class of the training pictures ({', '.join(classes):.200})")
        paths = sorted(_pictures(folder))
        if not paths:
            raise ValueError(f"load: {str(folder)!r} holds no picture ({', '.join(_SUFFIXES)}); add some or remove it")
        found += [(path, classes.index(folder.name)) for path in paths]
    return found


def _folders(directory: Path) -> list[Path]:
    """The folders in the directory, sorted; hidden ones left out."""
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: Path) -> Iterator[Path]:
    """The regular files with a picture's suffix, at any depth; hidden ones left out, links to folders not followed."""
    for parent, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            if name.lower().endswith(_SUFFIXES) and not name.startswith(".") and Path(parent, name).is_file():
                yield Path(parent, name)


def _has_picture(folder: Path) -> bool:
    return next(_pictures(folder), None) is not None


def _raise(error: OSError) -> NoReturn:
    raise error


def _default_size(path: Path) -> tuple[int, int]:
    """(height, width) of the picture, scaled down where a side is longer than _MAX_SIDE."""
    picture, _ = pictures.open_upright(path, "L")
    scale = min(1.0, _MAX_SIDE / max(picture.size))
    return max(1, round(picture.height * scale)), max(1, round(picture.width * scale))


def _read_all(paths: list[Path], size: tuple[int, int], keep_aspect: bool = False) -> tuple[np.ndarray, bool]:
    """(images, grey): uint8 (N, 3, height, width), and whether all pictures are grey.

    The first wrong one in the list raises its error, which names the file; those not yet begun are then left.
    """
    images = np.empty((len(paths), 3, *size), dtype=np.uint8)

    def read(index: int) -> bool:
        picture, grey = pictures.open_upright(paths[index], "RGB")
        images[index] = pictures.resized(picture, size, keep_aspect)
        return grey

    with ThreadPoolExecutor(min(_MAX_THREADS, get_num_threads()), "gpucnn-pictures") as pool:
        greys = list(pool.map(read, range(len(paths))))
    return images, all(greys)
