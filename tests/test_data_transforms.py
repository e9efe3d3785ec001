"""Shift, Crop, Flip and Normalize: what they draw, and what the loader makes of it, against plain NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucnn import data

PIXEL = np.float32(1) / np.float32(255)


class Fixed:
    """A step that sets a plan, in place of drawing one."""

    def __init__(self, offsets, flips, size):
        self.plan = data.Plan(np.array(offsets, np.int64), np.array(flips, np.uint8), size)

    def draw(self, plan, generator):
        return self.plan


def gathered(images: np.ndarray, *steps, normalize=None, fill: int = 0) -> np.ndarray:
    dataset = data.Dataset("made", images, np.zeros(len(images), int), ("a",))
    loader = data.DataLoader(
        dataset, len(images), augment=data.Augment(*steps, fill=fill), normalize=normalize, workers=0
    )
    return next(loader.epoch(0))[0]


def by_numpy(images: np.ndarray, plan: data.Plan, fill: int) -> np.ndarray:
    """The plan carried out on padded images, as integers."""
    height, width = plan.size
    margin = int(np.abs(plan.offsets).max()) + max(height, width)
    padded = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)), constant_values=fill)
    windows = []
    for image, (down, right), flip in zip(padded, plan.offsets + margin, plan.flips, strict=True):
        window = image[:, down : down + height, right : right + width]
        windows.append(window[..., ::-1] if flip else window)
    return np.stack(windows)


def test_shift_and_mirror_written_out():
    image = np.array([[[[1, 2, 3], [4, 5, 6]]]], np.uint8).repeat(3, axis=0)
    plan = Fixed([[0, 1], [-1, 0], [0, 1]], [0, 0, 1], (2, 3))
    pixels = gathered(image, plan, fill=9, normalize=data.Normalize([0], [1 / 255]))[:, 0]
    assert pixels.tolist() == [[[2, 3, 9], [5, 6, 9]], [[9, 9, 9], [1, 2, 3]], [[9, 3, 2], [9, 6, 5]]]


@given(data_=st.data())
@settings(max_examples=150)
def test_gathering_is_numpys(data_):
    count, channels = data_.draw(st.integers(1, 3)), data_.draw(st.integers(1, 3))
    height, width, out_height, out_width = (data_.draw(st.integers(1, 7)) for _ in range(4))
    offsets = data_.draw(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=count, max_size=count))
    flips = data_.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    fill = data_.draw(st.integers(0, 255))
    images = np.random.default_rng(0).integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    step = Fixed(offsets, flips, (out_height, out_width))
    expected = by_numpy(images, step.plan, fill)
    assert (gathered(images, step, fill=fill) == expected * PIXEL).all()
    centred = data.Normalize([128 / 255] * channels, [1 / 255] * channels)  # scale 1, shift -128: integers again
    assert (gathered(images, step, fill=fill, normalize=centred) == expected.astype(int) - 128).all()


@pytest.mark.parametrize("size", [None, (5, 9), (12, 8)])
def test_drawn_plans_are_carried_out(size):
    images = np.random.default_rng(1).integers(0, 256, (40, 2, 10, 8), dtype=np.uint8)
    steps = (data.Shift(2), data.Crop(3, size), data.Flip(0.5))
    dataset = data.Dataset("made", images, np.zeros(40, int), ("a",))
    loader = data.DataLoader(dataset, 40, augment=data.Augment(*steps), seed=5, workers=0)
    (pixels, _), *_ = loader.epoch(2)
    plan = data.Augment(*steps).draw(40, (10, 8), loader._generator(1, 2, 0))
    assert plan.size == (size or (10, 8)) and 0 < plan.flips.sum() < 40
    assert (pixels == by_numpy(images, plan, 0) * PIXEL).all()


# ---- what is drawn


def drawn(*steps, count: int = 2000, size: tuple[int, int] = (10, 12)) -> data.Plan:
    return data.Augment(*steps).draw(count, size, np.random.default_rng(4))


def test_no_steps_leave_images_as_they_are():
    plan = drawn()
    assert not plan.offsets.any() and not plan.flips.any() and plan.size == (10, 12)
    assert plan.offsets.dtype == np.int64 and plan.flips.dtype == np.uint8


def test_shift_reaches_every_offset_evenly():
    plan = drawn(data.Shift(2))
    assert plan.offsets.dtype == np.int64 and plan.offsets.shape == (2000, 2)
    for axis in (0, 1):  # 400 each are expected; 100 are five standard deviations
        counts = np.bincount(plan.offsets[:, axis] + 2, minlength=5)
        assert len(counts) == 5 and np.abs(counts - 400).max() < 100
    assert len({tuple(pair) for pair in plan.offsets.tolist()}) == 25  # the axes are independent


def test_crop_reaches_every_position():
    plan = drawn(data.Crop(1, (10, 9)))
    assert plan.size == (10, 9)
    assert set(plan.offsets[:, 0].tolist()) == {-1, 0, 1}
    assert set(plan.offsets[:, 1].tolist()) == {-1, 0, 1, 2, 3, 4}  # the right edge of the last: 4 + 9 = 12 + 1


@pytest.mark.parametrize(("probability", "low", "high"), [(0, 0, 0), (0.5, 850, 1150), (1, 2000, 2000)])
def test_flip_follows_its_probability(probability, low, high):
    plan = drawn(data.Flip(probability))
    assert plan.flips.dtype == np.uint8 and low <= int(plan.flips.sum()) <= high


def test_steps_add_up():
    plan = drawn(data.Crop(0, 8), data.Shift(1), data.Flip(1), data.Flip(1))
    assert plan.size == (8, 8) and not plan.flips.any()
    assert (plan.offsets.min(axis=0) == [-1, -1]).all() and (plan.offsets.max(axis=0) == [3, 5]).all()


def test_same_generator_same_plan():
    steps = (data.Shift(3), data.Crop(2), data.Flip())
    first, second = drawn(*steps), drawn(*steps)
    assert (first.offsets == second.offsets).all() and (first.flips == second.flips).all()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: data.Shift(-1), ValueError, "Shift: pixels must be at least 0, not -1"),
        (lambda: data.Shift(1.5), TypeError, "Shift: pixels must be an integer, not 1.5"),
        (lambda: data.Crop(-1), ValueError, "Crop: padding must be at least 0, not -1"),
        (lambda: data.Crop(0, (3, 0)), ValueError, "Crop: size must be at least 1, not 0"),
        (lambda: data.Flip(1.1), ValueError, r"Flip: probability must lie in \[0, 1\], not 1.1"),
        (lambda: data.Flip(float("nan")), ValueError, "Flip: probability .* not nan"),
        (lambda: data.Augment(2), TypeError, r"Augment: 2 is not a step such as Shift\(2\)"),
        (lambda: data.Augment(fill=256), ValueError, "Augment: fill must be a pixel value from 0 to 255, not 256"),
        (lambda: data.Augment(fill=-1), ValueError, "Augment: fill must be at least 0, not -1"),
        (lambda: drawn(data.Crop(1, 13)), ValueError, r"window of \(13, 13\) pixels does not fit images of \(10, 12\)"),
    ],
)
def test_wrong_steps(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_repr_names_the_steps():
    steps = data.Augment(data.Shift(2), data.Flip(0.5), fill=7)
    assert repr(steps) == "Augment(Shift(pixels=2), Flip(probability=0.5), fill=7)"


# ---- Normalize


def test_normalize_gives_mean_0_and_deviation_1():
    digits = data.load("digits").train
    normalize = data.Normalize(*digits.statistics())
    loader = data.DataLoader(digits, 4000, normalize=normalize, workers=0)
    pixels = next(loader.epoch(0))[0].astype(np.float64)
    assert abs(pixels.mean()) <= 1e-6 and abs(pixels.std() - 1) <= 1e-6


def test_normalize_alone_and_in_the_loader_agree():
    images = np.random.default_rng(2).integers(0, 256, (4, 3, 5, 5), dtype=np.uint8)
    normalize = data.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    expected = (images / 255 - np.reshape(normalize.mean, (3, 1, 1))) / np.reshape(normalize.std, (3, 1, 1))
    # |x| <= 5 and some four roundings of 2^-24 each
    for pixels in (gathered(images, normalize=normalize), normalize((images / 255).astype(np.float32))):
        assert pixels.dtype == np.float32 and (np.abs(pixels - expected) <= 5 * 4 * 2.0**-24).all()


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        ([], [], "must have a number per channel"),
        ([0.5], [0.5, 0.5], "must have a number per channel"),
        ([0.5], [0.0], "std above 0, .*; a std of 0 comes from a channel whose pixels are all equal"),
        ([0.5], [-1.0], "std above 0"),
        ([float("nan")], [1.0], "mean must be finite"),
        ([0.5], [float("inf")], "must be finite"),
    ],
)
def test_normalize_refuses(mean, std, text):
    with pytest.raises(ValueError, match="Normalize: .*" + text):
        data.Normalize(mean, std)


def test_normalize_refuses_other_channels():
    with pytest.raises(ValueError, match=r"must have the shape \(N, 2, H, W\), not \(1, 3, 4, 4\)"):
        data.Normalize([0, 0], [1, 1])(np.zeros((1, 3, 4, 4), np.float32))
