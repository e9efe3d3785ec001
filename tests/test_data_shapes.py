"""Drawn shapes: what is drawn, from which seed, and that a network can be trained on them."""

import math

import numpy as np
import pytest

from gpucnn import data
from gpucnn.cli import main
from gpucnn.data.shapes import CLASSES, _distance, _draw

SIDE = 200
PIXEL = 1 / SIDE


def area(shape: str) -> float:
    """Share of a large image's pixels that the shape of radius 0.4 sides covers."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] * PIXEL + PIXEL / 2 - 0.5
    return float((_distance(shape, x, y, 0.4) < 0).mean())


def test_areas_are_those_of_geometry():
    radius = 0.4
    arm, half = 0.95 * radius, 0.25 * radius
    wanted = {
        "circle": math.pi * radius**2,
        "cross": 8 * arm * half - 4 * half**2,
        "ring": math.pi * (radius**2 - (radius / 2) ** 2),
        "square": 2 * radius**2,
        "triangle": 3 * math.sqrt(3) / 4 * radius**2,
    }
    assert set(wanted) == set(CLASSES)
    for shape, value in wanted.items():
        assert abs(area(shape) - value) <= 0.01, shape


@pytest.mark.parametrize("shape", CLASSES)
def test_a_shape_lies_within_its_circle(shape):
    """So that none is cut off at the image's border."""
    angles = np.linspace(0, 2 * math.pi, 1000)
    assert (_distance(shape, 1.01 * np.cos(angles), 1.01 * np.sin(angles), 1.0) > 0).all()


@pytest.mark.parametrize("shape", CLASSES)
def test_shape_and_ground_differ(shape):
    image = _draw(shape, 32, np.random.default_rng(3)).astype(float)
    assert image.std(axis=(1, 2)).max() > 15  # the noise alone has 8


def test_bundled_set():
    train, test = data.load("shapes")
    assert train.images.shape == (2000, 3, 32, 32) and test.images.shape == (500, 3, 32, 32)
    assert train.classes == test.classes == ("circle", "cross", "ring", "square", "triangle")
    assert np.bincount(train.labels).tolist() == [400] * 5 and train.labels[:6].tolist() == [0, 1, 2, 3, 4, 0]
    assert not (train.images[:500] == test.images).all(axis=(1, 2, 3)).any()


def test_images_follow_the_seed():
    first, again, other = (data.make_shapes(10, image_size=16, seed=seed) for seed in (4, 4, 5))
    assert first.images.shape == (10, 3, 16, 16)
    assert (first.images == again.images).all() and not (first.images == other.images).all(axis=(1, 2, 3)).any()
    assert (data.make_shapes(3, image_size=16, seed=4).images == first.images[:3]).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"count": 0}, "make_shapes: count must be at least 1, not 0"),
        ({"count": 1, "image_size": 7}, "make_shapes: image_size must be at least 8, not 7"),
        ({"count": 1, "seed": -1}, "make_shapes: seed must be at least 0, not -1"),
        ({"count": 1.5}, "make_shapes: count must be an integer, not 1.5"),
    ],
)
def test_refused(settings, text):
    with pytest.raises((ValueError, TypeError), match=text):
        data.make_shapes(**settings)


def test_command_line(tmp_path, capsys):
    options = ["--epochs", "1", "--limit", "40", "--out", str(tmp_path)]
    assert main(["train", "lenet5", "--data", "shapes", *options]) == 0
    printed = capsys.readouterr().out
    assert "3×28×28 images" in printed and "40 training and 40 test images of 5 classes" in printed
