"""Resizing and padding of batches against PyTorch, Pillow and NumPy; pictures and data sets that keep their aspect."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucnn import data
from gpucnn.data import pictures

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 24), st.integers(1, 24))


def batch(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).random(shape, dtype=np.float32)


# ---- Resize


@pytest.mark.parametrize(
    ("image_size", "size", "wanted"),
    [
        ((20, 30), 10, (10, 15)),
        ((30, 20), 10, (15, 10)),
        ((30, 20), 16, (24, 16)),
        ((7, 10), 5, (5, 7)),  # 5 · 10 / 7 = 7.14
        ((3, 5), 7, (7, 11)),
        ((8, 8), 8, (8, 8)),
        ((20, 30), (5, 9), (5, 9)),
    ],
)
def test_size_of_the_shorter_side(image_size, size, wanted):
    assert data.Resize(size)(batch((2, 3, *image_size))).shape == (2, 3, *wanted)


# PyTorch 2.13 takes the first rows as they are where the result is one pixel wide.
@given(shape=shapes, size=st.integers(2, 30) | st.tuples(st.integers(1, 30), st.integers(2, 30)))
@settings(max_examples=150)
def test_resize_is_pytorchs(torch, shape, size):
    images = batch(shape)
    shorter = min(shape[2:])
    wanted = size if isinstance(size, tuple) else tuple(int(size * side / shorter) for side in shape[2:])
    found = data.Resize(size)(images)
    assert found.dtype == np.float32 and found.shape[2:] == wanted
    oracle = torch.nn.functional.interpolate(torch.tensor(images), wanted, mode="bilinear", antialias=True)
    assert (np.abs(found - oracle.numpy()) <= 1e-5).all()


def test_one_pixel_of_all():
    images = batch((2, 3, 8, 6))
    assert (np.abs(data.Resize((1, 1))(images)[..., 0, 0] - images.mean(axis=(2, 3))) <= 0.1).all()
    assert (data.Resize(1)(np.full((1, 1, 4, 12), 0.25, np.float32)) == np.full((1, 1, 1, 3), 0.25)).all()


def test_images_of_the_size_are_left():
    images = batch((2, 1, 5, 9))
    assert data.Resize(5)(images) is images


# ---- Pad


@given(shape=shapes, sides=st.lists(st.integers(0, 6), min_size=4, max_size=4), fill=st.floats(0, 1))
@settings(max_examples=150)
def test_pad_is_pytorchs(torch, shape, sides, fill):
    left, top, right, bottom = sides
    images, margins = batch(shape), (left, right, top, bottom)
    found = data.Pad(sides, fill=fill)(images)
    assert found.dtype == np.float32
    assert (found == torch.nn.functional.pad(torch.tensor(images), margins, value=fill).numpy()).all()
    mirrored = data.Pad(sides, mode="reflect")
    if max(top, bottom) < shape[2] and max(left, right) < shape[3]:
        oracle = torch.nn.functional.pad(torch.tensor(images), margins, mode="reflect")
        assert (mirrored(images) == oracle.numpy()).all()
    else:
        with pytest.raises(ValueError, match="cannot mirror images of"):
            mirrored(images)


def test_sides_written_out():
    image = np.ones((1, 1, 2, 3), np.float32)
    for padding, shape in ((1, (4, 5)), ((2, 1), (4, 7)), ((0, 1, 2, 3), (6, 5))):
        found = data.Pad(padding)(image)
        assert found.shape[2:] == shape and found.sum() == 6
    assert data.Pad((0, 1, 2, 3))(image)[0, 0, 1].tolist() == [1, 1, 1, 0, 0]
    assert data.Pad((2, 0), mode="reflect")(np.arange(3, dtype=np.float32).reshape(1, 1, 1, 3)).tolist() == [
        [[[2, 1, 0, 1, 2, 1, 0]]]
    ]


# ---- in the loader, and what is refused


def test_in_the_loader():
    chain = data.Compose(data.Pad(2, mode="reflect"), data.Rotate(20), data.Resize(10))
    dataset = data.make_shapes(9, image_size=16)
    batches = [
        np.concatenate([images for images, _ in data.DataLoader(dataset, 4, transform=chain, seed=3, workers=workers)])
        for workers in (0, 2)
    ]
    assert batches[0].shape == (9, 3, 10, 10) and (batches[0] == batches[1]).all()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: data.Resize(0), ValueError, "Resize: size must be at least 1, not 0"),
        (lambda: data.Resize(2.5), TypeError, "Resize: size must be an integer, not 2.5"),
        (lambda: data.Pad(-1), ValueError, "Pad: padding must be at least 0, not -1"),
        (lambda: data.Pad((1, 2, 3)), ValueError, r"Pad: padding must be one, two or four integers, not \(1, 2, 3\)"),
        (lambda: data.Pad(1, fill=float("nan")), ValueError, "Pad: fill must be a finite number, not nan"),
        (lambda: data.Pad(1, mode="edge"), ValueError, "Pad: mode must be one of constant, reflect, not 'edge'"),
        (lambda: data.Pad(1)(np.ones((2, 2), np.float32)), ValueError, r"Pad: images must be float32 \(B, C, H, W\)"),
        (lambda: data.Resize(1)(np.ones((1, 1, 2, 2))), ValueError, "Resize: images must be float32"),
    ],
)
def test_what_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


# ---- keep_aspect


@given(extent=st.tuples(st.integers(1, 40), st.integers(1, 40)), size=st.tuples(st.integers(1, 20), st.integers(1, 20)))
@settings(max_examples=100)
def test_the_centre_is_pillows_fit(extent, size):
    from PIL import Image, ImageOps

    pixels = np.random.default_rng(sum(extent)).integers(0, 256, (*extent, 3), dtype=np.uint8)
    found = pictures.resized(Image.fromarray(pixels), size, keep_aspect=True)
    wanted = ImageOps.fit(Image.fromarray(pixels), size[::-1], Image.Resampling.BILINEAR)
    difference = found.transpose(1, 2, 0).astype(int) - np.asarray(wanted)
    assert found.shape == (3, *size) and (np.abs(difference) <= 1).all()


def test_a_data_set_keeps_its_aspect():
    images = np.zeros((2, 1, 4, 12), np.uint8)
    images[..., 4:8] = 200  # the centre is all that a square shows
    dataset = data.Dataset("wide", images, np.zeros(2, int), ("a",))
    assert (dataset.resize(4, keep_aspect=True).images == 200).all()
    assert not (dataset.resize(4).images == 200).all()


def test_a_strip_takes_no_memory_when_scaled():
    from PIL import Image

    assert pictures.resized(Image.new("L", (4_000_000, 1)), (64, 64), keep_aspect=True).shape == (1, 64, 64)


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_pictures_in_class_folders(tmp_path, keep_aspect):
    from PIL import Image

    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(3):
            picture = Image.new("L", (30, 10), 0)
            picture.paste(200, (10, 0, 20, 10))
            picture.save(tmp_path / name / f"{index}.png")
    train, test = data.load(tmp_path, image_size=10, keep_aspect=keep_aspect)
    assert train.images.shape[1:] == test.images.shape[1:] == (1, 10, 10)
    assert (train.images == 200).all() == (test.images == 200).all() == keep_aspect
