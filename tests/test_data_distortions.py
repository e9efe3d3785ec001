"""Rotation, brightness, contrast, saturation and sharpness of batches, by hand and against PyTorch and Pillow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucnn import data
from gpucnn.data.distortions import _sample


class Fixed:
    """A generator that draws these values, one an image."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
        assert low <= min(self.values) and max(self.values) <= high and shape[0] == len(self.values)
        return np.array(self.values).reshape(shape)


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.random((2, 3, 6, 8), dtype=np.float32)


def test_quarter_turns_are_exact_transpositions(rng):
    square = rng.random((3, 2, 5, 5), dtype=np.float32)
    turned = data.Rotate(180)(square, Fixed(90, -90, 180))
    for index, quarters in enumerate((1, -1, 2)):
        wanted = np.rot90(square[index], quarters, axes=(1, 2))
        assert (np.abs(turned[index] - wanted) <= 1e-6).all()


def test_rotation_is_pytorchs(images, torch):
    angles = [33.0, -120.0]
    turned = data.Rotate(180)(images, Fixed(*angles))
    height, width = images.shape[2:]
    for image, angle, found in zip(images, np.deg2rad(angles), turned, strict=True):
        cosine, sine, aspect = np.cos(angle), np.sin(angle), width / height  # grids count in half sides
        theta = torch.tensor([[[cosine, -sine / aspect, 0], [sine * aspect, cosine, 0]]], dtype=torch.float64)
        grid = torch.nn.functional.affine_grid(theta, (1, 3, height, width), align_corners=False)
        wanted = torch.nn.functional.grid_sample(torch.tensor(image[None]).double(), grid, align_corners=False)[0]
        assert (np.abs(found - wanted.numpy()) <= 1e-5).all()


def test_outside_is_fill():
    white = np.ones((1, 1, 9, 9), np.float32)
    turned = data.Rotate(45, fill=0.25)(white, Fixed(45))
    assert turned[0, 0, 0, 0] == 0.25 and turned[0, 0, 4, 4] == 1
    far = np.full((1, 1, 1), 1e9)
    assert _sample(white[:, :, :1, :1], far, -far, 0.5).item() == 0.5


def test_blends_are_pillows(images):
    """ImageEnhance rounds to whole pixel values, so that 1.5 of 255 may lie between."""
    from PIL import Image, ImageEnhance

    pixels = np.rint(images * 255).astype(np.uint8)
    factors = (0.4, 1.7)
    for transform, enhance in (
        (data.Brightness(1), ImageEnhance.Brightness),
        (data.Contrast(1), ImageEnhance.Contrast),
        (data.Saturation(1), ImageEnhance.Color),
        (data.Sharpness(1), ImageEnhance.Sharpness),
    ):
        found = transform((pixels / 255).astype(np.float32), Fixed(*factors))
        for image, factor, each in zip(pixels, factors, found, strict=True):
            wanted = enhance(Image.fromarray(image.transpose(1, 2, 0))).enhance(factor)
            difference = each * 255 - np.asarray(wanted, np.float32).transpose(2, 0, 1)
            assert (np.abs(difference) <= 1.5).all(), transform


@given(shape=st.tuples(*(st.integers(1, high) for high in (3, 4, 9, 9))), factor=st.floats(0, 3))
@settings(max_examples=100)
def test_sharpness_by_definition(torch, shape, factor):
    """The border stays; within it, a convolution of every channel with [1 1 1; 1 5 1; 1 1 1] / 13."""
    images = np.random.default_rng(sum(shape)).random(shape, dtype=np.float32)
    smooth = images.astype(np.float64)
    if min(shape[2:]) > 2:
        kernel = torch.ones(1, 1, 3, 3, dtype=torch.float64)
        kernel[0, 0, 1, 1] = 5
        planes = torch.tensor(smooth).reshape(-1, 1, *shape[2:])
        inner = torch.nn.functional.conv2d(planes, kernel / 13)
        smooth[:, :, 1:-1, 1:-1] = inner.numpy().reshape(*shape[:2], *inner.shape[2:])
    found = data.Sharpness(2)(images, Fixed(*[factor] * shape[0]))
    assert found.dtype == np.float32
    assert (np.abs(found - np.clip(factor * images + (1 - factor) * smooth, 0, 1)) <= 1e-5).all()


def test_grey_images(rng):
    grey = rng.random((2, 1, 4, 4), dtype=np.float32)
    assert (np.abs(data.Saturation(0.5)(grey, rng) - grey) <= 1e-6).all()
    flat = data.Contrast(1)(grey, Fixed(0, 0))
    assert (np.abs(flat - grey.mean(axis=(1, 2, 3), keepdims=True)) <= 1e-6).all()


@pytest.mark.parametrize(
    "transform",
    [data.Rotate(0), data.Brightness(0), data.Contrast(0), data.Saturation(0), data.Sharpness(0), data.Compose()],
    ids=repr,
)
def test_nothing_changes_at_zero(images, rng, transform):
    found = transform(images, rng)
    assert found.dtype == np.float32 and (np.abs(found - images) <= 1e-6).all()


def test_every_image_has_its_own_draw_and_the_batch_is_kept(rng):
    same = np.repeat(rng.random((1, 3, 8, 8), dtype=np.float32), 4, axis=0)
    before = same.copy()
    kinds = (data.Brightness, data.Contrast, data.Saturation, data.Sharpness)
    for transform in (data.Rotate(90), *(kind(0.9) for kind in kinds)):
        found = transform(same, rng)
        assert len({image.tobytes() for image in found}) == 4
        assert found.min() >= 0 and found.max() <= 1
    assert (same == before).all()


def test_in_the_loader():
    chain = data.Compose(data.Rotate(20), data.Brightness(0.3), data.Saturation(0.3), data.Sharpness(2))
    shapes = data.make_shapes(20, image_size=16)
    batches = [
        np.concatenate([images for images, _ in data.DataLoader(shapes, 8, transform=chain, seed=3, workers=workers)])
        for workers in (0, 2)
    ]
    assert batches[0].shape == (20, 3, 16, 16) and (batches[0] == batches[1]).all()
    assert not (np.abs(batches[0] - shapes.images / 255) <= 1e-3).all()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: data.Rotate(-1), ValueError, r"Rotate: degrees must lie in \[0, 180\], not -1"),
        (lambda: data.Rotate(float("nan")), ValueError, "degrees must lie in"),
        (lambda: data.Rotate(1, fill=2), ValueError, r"Rotate: fill must lie in \[0, 1\], not 2"),
        (lambda: data.Contrast(-0.1), ValueError, "Contrast: amount must be finite and at least 0, not -0.1"),
        (lambda: data.Brightness(float("inf")), ValueError, "Brightness: amount must be finite"),
        (lambda: data.Compose(3), TypeError, "Compose: 3 is no function"),
    ],
)
def test_arguments_that_are_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_images_that_are_refused(images, rng):
    for transform in (data.Rotate(1), data.Brightness(1)):
        for wrong in (images[0], images.astype(np.float64)):
            with pytest.raises(ValueError, match=r"images must be float32 \(B, C, H, W\), not float"):
                transform(wrong, rng)
    with pytest.raises(ValueError, match="images have 2 channels; only grey"):
        data.Saturation(1)(images[:, :2], rng)
