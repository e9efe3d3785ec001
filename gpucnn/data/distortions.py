"""Functions for the loader's transform=: rotation, brightness, contrast, saturation, sharpness, drawn for every image.

Each takes images, float32 (B, C, H, W) in [0, 1], and a NumPy Generator, and returns new ones of the same shape.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpucnn.data.checks import check_images

# Shares of red, green and blue in what the eye takes for lightness (ITU-R BT.601), as in Pillow and torchvision.
_LIGHTNESS = np.array([0.299, 0.587, 0.114], np.float32)


class Compose:
    """Several transforms as one: Compose(Rotate(10), Brightness(0.2)); each has f(images, generator) -> images.

    Raises TypeError for one that cannot be called.
    """

    def __init__(self, *transforms: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> None:
        for transform in transforms:
            if not callable(transform):
                raise TypeError(f"Compose: {transform!r} is no function f(images, generator)")
        self.transforms = transforms

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"

    def __call__(self, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        for transform in self.transforms:
            images = transform(images, generator)
        return images


@dataclass(frozen=True)
class Rotate:
    """Turns each image around its centre by an angle in [-degrees, degrees], every one equally likely; bilinear.

    degrees: from 0 to 180; fill: the value outside the image, in [0, 1]; ValueError otherwise
    """

    degrees: float
    fill: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180:
            raise ValueError(f"Rotate: degrees must lie in [0, 180], not {self.degrees!r}")
        if not 0 <= self.fill <= 1:
            raise ValueError(f"Rotate: fill must lie in [0, 1], not {self.fill!r}")

    def __call__(self, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        check_images("Rotate", images)
        angles = np.deg2rad(generator.uniform(-self.degrees, self.degrees, (len(images), 1, 1)))
        height, width = images.shape[2:]
        centre = np.array([(height - 1) / 2, (width - 1) / 2]).reshape(2, 1, 1)
        rows, columns = np.mgrid[0:height, 0:width] - centre
        cosine, sine = np.cos(angles), np.sin(angles)
        return _sample(
            images, cosine * rows + sine * columns + centre[0], cosine * columns - sine * rows + centre[1], self.fill
        )


@dataclass(frozen=True)
class _Blend:
    """factor · image + (1 - factor) · reference, within [0, 1]; factor in [1 - amount, 1 + amount], not below 0.

    amount: a finite number >= 0; ValueError otherwise
    """

    amount: float

    def __post_init__(self) -> None:
        if not 0 <= self.amount < math.inf:
            raise ValueError(f"{type(self).__name__}: amount must be finite and at least 0, not {self.amount!r}")

    def __call__(self, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        check_images(type(self).__name__, images)
        factors = generator.uniform(max(0.0, 1 - self.amount), 1 + self.amount, (len(images), 1, 1, 1))
        factors = factors.astype(np.float32)
        return np.clip(factors * images + (1 - factors) * self._reference(images), 0, 1)

    def _reference(self, images: np.ndarray) -> np.ndarray:
        """Black: the blend is a multiple of the image."""
        return np.zeros((1, 1, 1, 1), np.float32)


class Brightness(_Blend):
    """Multiplies each image by a factor in [1 - amount, 1 + amount], not below 0; amount: finite, >= 0."""


class Contrast(_Blend):
    """Blends each image with its mean lightness: factors below 1 take contrast away; amount as in Brightness."""

    def _reference(self, images: np.ndarray) -> np.ndarray:
        return _lightness(images).mean(axis=(1, 2, 3), keepdims=True)


class Saturation(_Blend):
    """Blends each image with itself in grey: factors below 1 take colour away; amount as in Brightness.

    Images of one channel stay as they are.
    """

    def _reference(self, images: np.ndarray) -> np.ndarray:
        return _lightness(images)


class Sharpness(_Blend):
    """Blends each image with itself smoothed: factors below 1 blur, above 1 sharpen; amount as in Brightness.

    Smooth is the mean of a pixel, counted five times, and its eight neighbours; pixels at the border stay as they are.
    As Pillow's ImageEnhance.Sharpness and torchvision's adjust_sharpness.
    """

    def _reference(self, images: np.ndarray) -> np.ndarray:
        height, width = images.shape[2:]
        smooth = images.copy()
        if min(height, width) > 2:
            inner = smooth[:, :, 1:-1, 1:-1]
            inner *= 4
            for row, column in np.ndindex(3, 3):
                inner += images[:, :, row : row + height - 2, column : column + width - 2]
            inner /= 13
        return smooth


def _lightness(images: np.ndarray) -> np.ndarray:
    """The images in grey, (B, 1, H, W); of one or three channels."""
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        raise ValueError(
            f"images have {images.shape[1]} channels; only grey (1) and red, green, blue (3) have lightness"
        )
    return np.einsum("c,bchw->bhw", _LIGHTNESS, images)[:, None]


def _sample(images: np.ndarray, rows: np.ndarray, columns: np.ndarray, fill: float) -> np.ndarray:
    """Every image at the points (rows, columns), (B, H, W) in pixels, by bilinear interpolation; fill lies outside."""
    count, channels, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=fill).reshape(count, channels, -1)
    rows, columns = np.clip(rows + 1, 0, height + 1), np.clip(columns + 1, 0, width + 1)
    top, left = np.minimum(rows.astype(np.int64), height), np.minimum(columns.astype(np.int64), width)
    down, right = ((rows - top)[:, None].astype(np.float32), (columns - left)[:, None].astype(np.float32))

    def at(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        places = (row * (width + 2) + column).reshape(count, 1, -1)
        return np.take_along_axis(padded, places, axis=2).reshape(images.shape)

    upper = at(top, left) * (1 - right) + at(top, left + 1) * right
    lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return upper * (1 - down) + lower * down
