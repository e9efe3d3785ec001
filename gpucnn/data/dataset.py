"""Labelled images in memory: the one form in which every reader hands data to the loader."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gpucnn.data.checks import check_integer, check_size
from gpucnn.data.pictures import resized

# Images per step of statistics(): bounds the wider copies it makes to a few MB for small images.
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images: images[i] shows an object of the class named classes[labels[i]].

    name: what messages call it
    images: uint8 (N, C, H, W), every extent at least 1
    labels: (N,) of any integer type, 0 <= label < len(classes); kept as int64
    classes: the class names, label 0 first

    Raises TypeError for a wrong type or dtype, ValueError for a wrong shape, an empty set or a label that has
    no class.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        where = f"Dataset {self.name!r}"
        _check_images(where, self.images)
        labels = np.asarray(self.labels)
        _check_labels(where, labels, len(self.images), self.classes)
        object.__setattr__(self, "images", np.ascontiguousarray(self.images))
        object.__setattr__(self, "labels", np.ascontiguousarray(labels, dtype=np.int64))
        object.__setattr__(self, "classes", tuple(self.classes))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, images={self.images.shape}, classes={len(self.classes)})"

    @property
    def channels(self) -> int:
        """C, the number of values per pixel."""
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of every image in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def take(self, indices: ArrayLike) -> "Dataset":
        """The images and labels at indices, in that order: (M,), at least one, each from 0 to len - 1.

        Raises TypeError for other than integers, ValueError for one outside the set or none at all.
        """
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or chosen.size == 0:
            raise ValueError(f"take: indices must be a list of at least one, not of shape {chosen.shape}")
        if chosen.dtype.kind not in "iu":
            raise TypeError(f"take: indices must be integers, not {chosen.dtype}")
        wrong = chosen[(chosen < 0) | (chosen >= len(self))]
        if wrong.size:
            rule = f"it must lie in 0 to {len(self) - 1}"
            raise ValueError(f"take: index {wrong[0]} is outside {self.name!r}; {rule}")
        return Dataset(self.name, self.images[chosen], self.labels[chosen], self.classes)

    def limit(self, count: int) -> "Dataset":
        """The first count images, or all where there are fewer; raises ValueError for a count below 1."""
        count = check_integer("limit", "count", count, 1)
        return Dataset(self.name, self.images[:count], self.labels[:count], self.classes)

    def resize(self, size: int | tuple[int, int], *, keep_aspect: bool = False) -> "Dataset":
        """The images scaled to size, a side or (height, width) in pixels; bilinear, antialiased (Pillow).

        keep_aspect: scale the largest centred part that has the aspect of size, instead of stretching whole images

        Images that have the size already are returned as they are.
        Raises TypeError or ValueError for a size that is not one or two integers of at least 1.
        """
        height, width = check_size("resize", "size", size)
        if (height, width) == self.image_size:
            return self
        from PIL import Image

        scaled = np.empty((len(self), self.channels, height, width), dtype=np.uint8)
        planes = self.images.reshape(-1, *self.image_size)
        for plane, target in zip(planes, scaled.reshape(-1, height, width), strict=True):
            target[...] = resized(Image.fromarray(plane), (height, width), keep_aspect)[0]
        return Dataset(self.name, scaled, self.labels, self.classes)

    def statistics(self) -> tuple[list[float], list[float]]:
        """(mean, standard deviation) of each channel's pixels scaled to [0, 1]: two lists of C floats.

        The sums are exact integers, so the result does not depend on the order of the images.
        """
        sums = np.zeros((2, self.channels), dtype=np.uint64)  # of the pixels and of their squares
        for start in range(0, len(self), _BLOCK):
            pixels = self.images[start : start + _BLOCK].astype(np.uint32)
            sums[0] += pixels.sum(axis=(0, 2, 3), dtype=np.uint64)
            sums[1] += (pixels * pixels).sum(axis=(0, 2, 3), dtype=np.uint64)
        count = self.images.size // self.channels
        totals, squares = sums.tolist()
        mean = [total / (255 * count) for total in totals]
        # count² times the variance, an exact Python integer: nothing cancels where the mean is large
        spread = [count * square - total**2 for total, square in zip(totals, squares, strict=True)]
        return mean, [math.sqrt(value) / (255 * count) for value in spread]


def _check_images(where: str, images: object) -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"{where}: images must be a uint8 array of pixel values 0 to 255, not {kind}")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{where}: images must have the shape (N, C, H, W), every extent at least 1, not {images.shape}"
        )


def _check_labels(where: str, labels: np.ndarray, count: int, classes: object) -> None:
    if not isinstance(classes, (tuple, list)) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"{where}: classes must be a tuple of names, not {classes!r}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{where}: labels must be integers, not {labels.dtype}")
    if labels.shape != (count,):
        raise ValueError(f"{where}: labels must have the shape ({count},), one per image, not {labels.shape}")
    wrong = labels[(labels < 0) | (labels >= len(classes))]
    if wrong.size:
        rule = f"the labels of {len(classes)} classes lie in 0 to {len(classes) - 1}"
        raise ValueError(f"{where}: label {wrong[0]} has no class; {rule}")


class Splits(NamedTuple):
    """The two parts in which every source of data comes."""

    train: Dataset
    test: Dataset


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """(training, validation): a seeded draw of this fraction of every class, as evenly as whole images allow.

    The validation part holds V = round(fraction · N) images, at least 1 and at most N - 1. Class k, of n_k
    images, gives the whole part of its share n_k · V / N; those still lacking come from the largest
    remainders. Both parts keep the order of the data set; seed is an integer >= 0.
    Raises ValueError unless 0 < fraction < 1, seed >= 0 and N >= 2.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"split: fraction must lie between 0 and 1, both excluded, not {fraction!r}")
    seed = check_integer("split", "seed", seed, 0)
    if len(dataset) < 2:
        raise ValueError(f"split: {dataset.name!r} has 1 image; two parts need at least 2")
    validation = draw_part(dataset.labels, fraction, seed)
    return dataset.take(np.flatnonzero(~validation)), dataset.take(np.flatnonzero(validation))


def draw_part(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which of these labels, (N,) with N >= 2, split() draws for the second part: bool (N,)."""
    total = min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    generator = np.random.default_rng(seed)
    drawn = np.zeros(len(labels), dtype=bool)
    for label, share in enumerate(_shares(np.bincount(labels).tolist(), total)):
        members = np.flatnonzero(labels == label)
        drawn[generator.permutation(members)[:share]] = True
    return drawn


def _shares(counts: list[int], total: int) -> list[int]:
    """total seats for classes of these counts by the largest remainder; of equal ones, lower labels first."""
    everyone = sum(counts)
    shares = [count * total // everyone for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda label: -(counts[label] * total % everyone))
    for label in by_remainder[: total - sum(shares)]:
        shares[label] += 1
    return shares
