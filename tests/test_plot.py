"""Pictures, read back pixel by pixel where their content is known."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpucnn import nn, plot

GAP, SLATE = plot.GAP, plot.SLATE


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB")).astype(int)


def conv(weight: Any) -> nn.Conv2d:
    """A convolution with this weight (K, C, R, S)."""
    weight = np.array(weight, np.float32)
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=False)
    layer.weight.data[...] = weight
    return layer


def tile(picture: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    top, left = row * (side + GAP) + GAP, column * (side + GAP) + GAP
    return picture[top : top + side, left : left + side]


def test_grey_filters_are_scaled_to_their_own_range(tmp_path: Path) -> None:
    plot.save_filters(conv([[[[-1, 0], [1, 3]]], [[[10, 20], [20, 10]]], [[[7, 7], [7, 7]]]]), tmp_path / "f.png")
    picture = pixels(tmp_path / "f.png")
    side = plot.FILTER_PIXELS
    assert picture.shape == (2 * (side + GAP) + GAP, 2 * (side + GAP) + GAP, 3)
    half = side // 2
    for (row, column), grey in {
        (0, 0): [[0, 64], [128, 255]],
        (0, 1): [[0, 255], [255, 0]],
        (1, 0): [[128] * 2] * 2,
    }.items():
        expected = np.kron(np.array(grey), np.ones((half, half), int))
        assert np.array_equal(tile(picture, row, column, side), np.repeat(expected[:, :, None], 3, axis=2))
    assert (tile(picture, 1, 1, side) == SLATE).all()
    assert (picture[:GAP] == SLATE).all()


def test_filters_on_three_channels_are_colours(tmp_path: Path) -> None:
    weight = np.zeros((1, 3, 1, 2))
    weight[0, :, 0, 0], weight[0, :, 0, 1] = (1, 0, 0.2), (0, 1, 0.2)
    plot.save_filters(conv(weight), tmp_path / "f.png")
    picture = pixels(tmp_path / "f.png")
    assert picture[GAP, GAP].tolist() == [255, 0, 51]
    assert picture[GAP, -GAP - 1].tolist() == [0, 255, 51]


def test_filters_on_other_channel_counts_have_a_row_each(tmp_path: Path) -> None:
    plot.save_filters(conv(np.arange(2 * 5 * 4).reshape(2, 5, 2, 2)), tmp_path / "f.png")
    side = plot.FILTER_PIXELS
    assert pixels(tmp_path / "f.png").shape == (2 * (side + GAP) + GAP, 5 * (side + GAP) + GAP, 3)


def test_many_filters_stay_within_the_width_of_a_picture(tmp_path: Path) -> None:
    plot.save_filters(nn.Conv2d(48, 4, 5), tmp_path / "f.png")
    assert pixels(tmp_path / "f.png").shape[1] <= plot.PICTURE_PIXELS + 49 * GAP


def test_the_first_convolution_of_a_network_is_drawn(tmp_path: Path) -> None:
    first = conv(np.eye(3)[None, None])
    plot.save_filters(nn.Sequential(nn.ReLU(), nn.Sequential(first), nn.Conv2d(1, 9, 3)), tmp_path / "network.png")
    plot.save_filters(first, tmp_path / "layer.png")
    assert (tmp_path / "network.png").read_bytes() == (tmp_path / "layer.png").read_bytes()


def test_models_without_convolutions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_filters: Linear has no Conv2d layer"):
        plot.save_filters(nn.Linear(2, 2), tmp_path / "f.png")
    assert not (tmp_path / "f.png").exists()


def test_scale_to_bytes_of_values_that_are_not_finite() -> None:
    assert plot.scale_to_bytes(np.array([np.nan, 1, 3, np.inf, -np.inf])).tolist() == [0, 0, 255, 0, 0]
    assert plot.scale_to_bytes(np.array([np.nan, np.nan])).tolist() == [0, 0]
    assert plot.scale_to_bytes(np.array([2.0, 2.0, np.nan])).tolist() == [128, 128, 0]
    assert plot.scale_to_bytes(np.array([-3e38, 3e38], np.float32)).tolist() == [0, 255]


def samples(count: int, shape: tuple[int, int, int] = (1, 28, 28)) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, *shape), dtype=np.uint8)


def is_reddish(picture: np.ndarray) -> np.ndarray:
    """Where text in plot.RED was drawn; the samples in these tests are grey."""
    return picture[..., 0] - picture[..., 1] > 100


def test_predictions_show_the_images_and_mark_the_wrong_ones(tmp_path: Path) -> None:
    images = samples(3)
    plot.save_predictions(images, [1, 0, 2], [1, 2, 2], [0.9, 0.5, 0.25], ["zero", "one", "two"], tmp_path / "p.png")
    picture = pixels(tmp_path / "p.png")
    cell_width, cell_height = plot.SAMPLE_PIXELS + 2 * GAP, plot.SAMPLE_PIXELS + 2 * GAP + 2 * plot.LINE_PIXELS
    assert picture.shape == (2 * cell_height, 2 * cell_width, 3)
    for position, image in enumerate(images):
        top, left = position // 2 * cell_height, position % 2 * cell_width
        cell = picture[top : top + cell_height, left : left + cell_width]
        drawn = cell[GAP : GAP + plot.SAMPLE_PIXELS, GAP : GAP + plot.SAMPLE_PIXELS]
        assert np.array_equal(drawn, np.kron(image[0], np.ones((4, 4), int))[:, :, None].repeat(3, axis=2))
        text = cell[GAP + plot.SAMPLE_PIXELS :]
        assert is_reddish(text).any() == (position == 1)
        second_line = text[plot.LINE_PIXELS + 4 :]
        assert (second_line.min() < 255) == (position == 1)  # only the wrong one names its true class


def test_predictions_take_the_probability_of_the_predicted_class(tmp_path: Path) -> None:
    images, classes = samples(2), ["a", "b"]
    plot.save_predictions(images, [0, 1], [0, 0], np.array([[0.75, 0.25], [0.5, 0.5]]), classes, tmp_path / "2d.png")
    plot.save_predictions(images, [0, 1], [0, 0], np.array([0.75, 0.5]), classes, tmp_path / "1d.png")
    assert (tmp_path / "2d.png").read_bytes() == (tmp_path / "1d.png").read_bytes()


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 150, 300), (2, 28, 28), (1, 5, 200), (4, 1, 1)])
def test_predictions_of_any_image_size(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    plot.save_predictions(samples(7, shape), [0] * 7, [0] * 7, [1.0] * 7, ["class"], tmp_path / "p.png")
    assert (pixels(tmp_path / "p.png") != 255).any()


def test_colour_images_keep_their_colours(tmp_path: Path) -> None:
    image = np.zeros((1, 3, 56, 56), np.uint8)
    image[0, 0], image[0, 2] = 200, 30
    plot.save_predictions(image, [0], [0], [1.0], ["red"], tmp_path / "p.png")
    assert pixels(tmp_path / "p.png")[GAP + 5, GAP + 5].tolist() == [200, 0, 30]


def test_long_class_names_stay_within_their_cell(tmp_path: Path) -> None:
    names = [
        "great white shark, white shark, man-eater, man-eating shark",
        "electric ray, crampfish, numbfish, torpedo",
    ]
    plot.save_predictions(samples(2), [1, 1], [0, 0], [1.0, 1.0], names, tmp_path / "p.png")
    picture = pixels(tmp_path / "p.png")
    middle = plot.SAMPLE_PIXELS + 2 * GAP
    assert (picture[GAP + plot.SAMPLE_PIXELS :, middle - 2 : middle + 2] == 255).all()


@pytest.mark.parametrize("lengths", [(0, 0, 0, 0), (2, 1, 2, 2), (2, 2, 3, 2), (2, 2, 2, 1)])
def test_predictions_of_different_lengths_are_refused(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    images, labels, predictions, probabilities = (np.zeros(n, int) for n in lengths)
    with pytest.raises(ValueError, match="save_predictions: lengths"):
        plot.save_predictions(
            samples(len(images)), labels, predictions, probabilities.astype(float), ["a"], tmp_path / "p.png"
        )


HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.4, "lr": 0.1},
    {"epoch": 2, "train_loss": 1.0, "train_accuracy": 0.7, "lr": 0.1},
]


@pytest.mark.parametrize("validation", [{}, {"validation_loss": 1.5, "validation_accuracy": 0.5}])
@pytest.mark.parametrize("epochs", [1, 2])
def test_curves(tmp_path: Path, validation: dict[str, float], epochs: int) -> None:
    assert plot.save_curves([entry | validation for entry in HISTORY[:epochs]], tmp_path / "curves.png")
    picture = pixels(tmp_path / "curves.png")
    blue = (picture[..., 2] - picture[..., 0] > 100).any()
    orange = (picture[..., 0] - picture[..., 2] > 150).any()
    assert (blue, orange) == (True, bool(validation))


def test_no_curves_without_epochs(tmp_path: Path) -> None:
    assert not plot.save_curves([], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_without_matplotlib_nothing_is_drawn_and_the_fix_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not plot.save_curves(HISTORY, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
    assert "pip install 'gpucnn[viz]'" in plot.NO_MATPLOTLIB


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*missing/f\.png"):
        plot.save_filters(nn.Conv2d(1, 1, 3), tmp_path / "missing" / "f.png")


def test_importing_plot_loads_no_drawing_library() -> None:
    command = "import sys, gpucnn.plot; print(sorted({'PIL', 'matplotlib'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
