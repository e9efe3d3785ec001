"""Drawn shapes: circles, crosses, rings, squares and triangles in colours, for tests and demonstrations.

A shape is given by the signed distance of a point from its edge, negative inside; half a pixel on either side of the
edge is blended, so that edges are smooth.
"""

import math

import numpy as np

from gpucnn.data.checks import check_integer
from gpucnn.data.dataset import Dataset, Splits

CLASSES = ("circle", "cross", "ring", "square", "triangle")

_SIDE = 32  # pixels of the bundled set
_TRAIN, _TEST = 2000, 500
_SMALLEST = 8  # pixels; in smaller images the classes look alike
_RADIUS = (0.25, 0.4)  # of the circle around a shape, in sides of the image
_CONTRAST = 64  # pixel values that shape and ground differ by in some channel, at least
_NOISE = 8.0  # pixel values, standard deviation


def load_shapes() -> Splits:
    """2,000 training and 500 test images, uint8 (N, 3, 32, 32), of five classes; the same ones each time."""
    return Splits(make_shapes(_TRAIN, seed=0), make_shapes(_TEST, seed=1))


def make_shapes(count: int, *, image_size: int = _SIDE, seed: int = 0) -> Dataset:
    """count images of shapes, uint8 (count, 3, image_size, image_size); image i is of class i mod 5.

    Place, size, turn and both colours of each are drawn from the seed, and noise is added.

    count: at least 1; image_size: a side in pixels, at least 8; seed: at least 0

    Raises TypeError or ValueError for other values.
    """
    count = check_integer("make_shapes", "count", count, 1)
    image_size = check_integer("make_shapes", "image_size", image_size, _SMALLEST)
    generator = np.random.default_rng(check_integer("make_shapes", "seed", seed, 0))
    labels = np.arange(count) % len(CLASSES)
    images = np.empty((count, 3, image_size, image_size), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[...] = _draw(CLASSES[label], image_size, generator)
    return Dataset("shapes", images, labels, CLASSES)


def _draw(shape: str, side: int, generator: np.random.Generator) -> np.ndarray:
    """One image, uint8 (3, side, side)."""
    radius = side * generator.uniform(*_RADIUS)
    centre = generator.uniform(radius, side - radius, 2)
    x, y = _turned(side, centre, generator.uniform(0, 2 * math.pi))
    cover = np.clip(0.5 - _distance(shape, x, y, radius), 0, 1)
    ground, colour = _colours(generator)
    image = ground + (colour - ground) * cover + generator.normal(0, _NOISE, (3, side, side))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _turned(side: int, centre: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the pixels' centres, (side, side) each, in axes that are turned around the shape's centre."""
    rows, columns = np.mgrid[0:side, 0:side] + 0.5 - centre[:, None, None]
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * columns + sine * rows, cosine * rows - sine * columns


def _colours(generator: np.random.Generator) -> np.ndarray:
    """Two colours, (2, 3, 1, 1), that can be told apart."""
    while True:
        colours = generator.uniform(0, 255, (2, 3, 1, 1))
        if np.abs(colours[0] - colours[1]).max() >= _CONTRAST:
            return colours


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """How far points are outside the shape in pixels; it has its corners, or its edge, on a circle of the radius."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.75 * radius) - 0.25 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - radius / math.sqrt(2)
    if shape == "triangle":
        sides = [x * math.cos(turn) + y * math.sin(turn) for turn in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
        return np.maximum.reduce(sides) - radius / 2
    x, y, arm, half_width = np.abs(x), np.abs(y), 0.95 * radius, 0.25 * radius
    return np.minimum(np.maximum(x - arm, y - half_width), np.maximum(y - arm, x - half_width))
