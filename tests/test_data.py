"""Data sets: checks, choosing, resizing, statistics, stratified splits, the bundled digits, load()."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucnn import data
from gpucnn.data.dataset import _shares

TEN = tuple("0123456789")


def make(count: int = 12, channels: int = 1, size: tuple[int, int] = (4, 5), classes: int = 3) -> data.Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, channels, *size), dtype=np.uint8)
    return data.Dataset("made", images, np.arange(count) % classes, TEN[:classes])


# ---- the bundled digits


def test_digits_shapes_and_counts():
    train, test = data.load("digits")
    assert train.images.shape == (4000, 1, 28, 28) and test.images.shape == (1000, 1, 28, 28)
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert train.classes == test.classes == TEN
    assert (train.name, train.channels, train.image_size, len(train)) == ("digits", 1, (28, 28), 4000)


def test_digits_first_256_are_mixed():
    counts = np.bincount(data.load("digits").train.limit(256).labels, minlength=10)
    assert counts.min() >= 19 and counts.max() <= 31


def test_digits_statistics_are_numpys():
    train = data.load("digits").train
    mean, std = train.statistics()
    scaled = train.images.astype(np.float64) / 255
    assert abs(mean[0] - scaled.mean()) <= 1e-12 and abs(std[0] - scaled.std()) <= 1e-12
    assert 0.12 < mean[0] < 0.14 and 0.30 < std[0] < 0.32  # MNIST's are 0.1307 and 0.3081


# ---- Dataset


def test_labels_become_int64_and_images_stay():
    images = np.zeros((2, 1, 3, 3), np.uint8)
    dataset = data.Dataset("two", images, np.array([1, 0], np.uint8), ["a", "b"])
    assert dataset.labels.dtype == np.int64 and dataset.labels.tolist() == [1, 0]
    assert dataset.images is images and dataset.classes == ("a", "b")
    assert repr(dataset) == "Dataset('two', images=(2, 1, 3, 3), classes=2)"


def test_strided_images_are_made_contiguous():
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5, 3).transpose(0, 3, 1, 2)
    dataset = data.Dataset("strided", images, [0, 0], ("a",))
    assert dataset.images.flags.c_contiguous and (dataset.images == images).all()


IMAGES = np.zeros((2, 1, 3, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "error", "text"),
    [
        ([[0]], [0], ("a",), TypeError, "images must be a uint8 array of pixel values 0 to 255, not list"),
        (IMAGES.astype(np.float32), [0, 0], ("a",), TypeError, "not float32"),
        (IMAGES[0], [0], ("a",), ValueError, r"shape \(N, C, H, W\), every extent at least 1, not \(1, 3, 3\)"),
        (IMAGES[:0], [], ("a",), ValueError, r"not \(0, 1, 3, 3\)"),
        (IMAGES[:, :, :0], [0, 0], ("a",), ValueError, r"not \(2, 1, 0, 3\)"),
        (IMAGES, [0.0, 1.0], ("a",), TypeError, "labels must be integers, not float64"),
        (IMAGES, [0], ("a",), ValueError, r"labels must have the shape \(2,\), one per image, not \(1,\)"),
        (IMAGES, [0, 1], ("a",), ValueError, "label 1 has no class; the labels of 1 classes lie in 0 to 0"),
        (IMAGES, [-1, 0], ("a",), ValueError, "label -1 has no class"),
        (IMAGES, [0, 0], "a", TypeError, "classes must be a tuple of names, not 'a'"),
        (IMAGES, [0, 0], (0, 1), TypeError, r"classes must be a tuple of names, not \(0, 1\)"),
    ],
)
def test_dataset_refuses(images, labels, classes, error, text):
    with pytest.raises(error, match="Dataset 'bad': .*" + text):
        data.Dataset("bad", images, labels, classes)


def test_take_and_limit():
    dataset = make()
    taken = dataset.take([3, 0, 3])
    assert (taken.images == dataset.images[[3, 0, 3]]).all() and taken.labels.tolist() == [0, 0, 0]
    assert (dataset.limit(5).images == dataset.images[:5]).all() and len(dataset.limit(1000)) == 12


@pytest.mark.parametrize(
    ("indices", "error", "text"),
    [
        ([], ValueError, r"list of at least one, not of shape \(0,\)"),
        ([[0]], ValueError, r"not of shape \(1, 1\)"),
        ([0.5], TypeError, "indices must be integers, not float64"),
        ([True, False], TypeError, "not bool"),
        ([0, 12], ValueError, "index 12 is outside 'made'; it must lie in 0 to 11"),
        ([-1], ValueError, "index -1 is outside"),
    ],
)
def test_take_refuses(indices, error, text):
    with pytest.raises(error, match=text):
        make().take(indices)


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-3, ValueError), (1.5, TypeError), (True, TypeError)])
def test_limit_refuses(count, error):
    with pytest.raises(error, match=f"limit: count must be .*{count}"):
        make().limit(count)


# ---- resizing and statistics


def test_resize_to_its_own_size_is_itself():
    dataset = make()
    assert dataset.resize((4, 5)) is dataset


def test_resize_halves_with_the_antialiasing_triangle():
    # Output 1 of 4 has its centre at 3.0 input pixels and a triangle of half-width 2: weights 1, 3, 3, 1 over 8.
    row = np.array([0, 8, 16, 80, 160, 240, 8, 0], np.uint8)
    dataset = data.Dataset("row", np.tile(row, (1, 2, 8, 1)), [0], ("a",))
    small = dataset.resize(4)
    assert small.images.shape == (1, 2, 4, 4) and small.labels.tolist() == [0]
    assert (small.images[..., 1] == (8 + 3 * 16 + 3 * 80 + 160) // 8).all()


def test_resize_keeps_channels_and_images_apart():
    dataset = make(count=3, channels=4)
    large = dataset.resize((9, 7))
    assert large.images.shape == (3, 4, 9, 7) and large.image_size == (9, 7)
    alone = data.Dataset("one", dataset.images[1:2, 2:3], [0], TEN[:3]).resize((9, 7))
    assert (large.images[1, 2] == alone.images[0, 0]).all()


@pytest.mark.parametrize("size", [0, (4, 0), (1, 2, 3), 2.5, "8"])
def test_resize_refuses(size):
    with pytest.raises((ValueError, TypeError), match="resize: size must be"):
        make().resize(size)


def test_statistics_per_channel():
    images = np.stack([np.full((600, 2, 2), 255), np.zeros((600, 2, 2)), np.zeros((600, 2, 2))], axis=1)
    images[300:, 2] = 255
    mean, std = data.Dataset("flat", images.astype(np.uint8), np.zeros(600, int), ("a",)).statistics()
    assert mean == [1.0, 0.0, 0.5] and std == [0.0, 0.0, 0.5]


# ---- split


@given(
    labels=st.lists(st.integers(0, 5), min_size=2, max_size=60),
    fraction=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**64),
)
@settings(max_examples=200, deadline=None)
def test_split_is_a_stratified_partition(labels, fraction, seed):
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    dataset = data.Dataset("numbers", images, labels, TEN[:6])
    train, validation = data.split(dataset, fraction, seed)
    first, second = train.images.ravel().tolist(), validation.images.ravel().tolist()
    assert first and second and sorted(first + second) == list(range(len(labels)))
    assert first == sorted(first) and second == sorted(second)
    assert len(second) == min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    assert (train.labels == np.array(labels)[first]).all() and (validation.labels == np.array(labels)[second]).all()
    ideal = np.bincount(labels, minlength=6) * len(second) / len(labels)
    shares = np.bincount(validation.labels, minlength=6)
    assert (np.abs(shares - ideal) < 1).all(), (shares, ideal)


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(sum), share=st.floats(0, 1))
def test_shares_are_within_one_of_the_ideal(counts, share):
    total = round(share * sum(counts))
    shares = _shares(counts, total)
    assert sum(shares) == total
    for got, count in zip(shares, counts, strict=True):  # less than one seat from count · total / everyone
        assert 0 <= got <= count and abs(got * sum(counts) - count * total) < sum(counts)


def test_shares_by_hand():
    # Ideal 2.5, 1.5, 1.0 for five of ten: the whole parts leave one seat, of equal remainders the lower label's.
    assert _shares([5, 3, 2], 5) == [3, 1, 1]
    assert _shares([1, 1, 1, 97], 10) == [0, 0, 0, 10]  # 0.1 each against 9.7


def test_split_follows_the_seed():
    digits = data.load("digits").train
    first, second = data.split(digits, 0.1, 7)[1], data.split(digits, 0.1, 7)[1]
    assert (first.images == second.images).all() and np.bincount(first.labels).tolist() == [40] * 10
    assert not (first.images == data.split(digits, 0.1, 8)[1].images).all()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_fractions(fraction):
    with pytest.raises(ValueError, match=f"split: fraction must lie between 0 and 1, both excluded, not {fraction}"):
        data.split(make(), fraction, 0)


def test_split_refuses_a_single_image_and_bad_seeds():
    with pytest.raises(ValueError, match="'made' has 1 image; two parts need at least 2"):
        data.split(make(count=1), 0.5, 0)
    with pytest.raises(ValueError, match="split: seed must be at least 0, not -1"):
        data.split(make(), 0.5, -1)


# ---- load


def test_load_refuses_what_is_not_there(tmp_path):
    text = r"load: 'digit' is no directory and no bundled data set \(digits, shapes\)"
    with pytest.raises(FileNotFoundError, match=text):
        data.load("digit")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="load: 'a.x00b'"):
        data.load("a\0b")


def test_load_refuses_a_file_and_an_unknown_directory(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="photo.png' is a file; give the directory it is in, or digits"):
        data.load(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="holds no data set in a known format; looked for MNIST's train-images-idx3-u"):
        data.load(tmp_path)


def test_a_directory_called_digits_is_reached_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(data.load("digits").train) == 4000
    with pytest.raises(ValueError, match="known format"):
        data.load(os.path.join(".", "digits"))
