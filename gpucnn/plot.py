"""Pictures of a run: first-layer filters, sample predictions, curves. Every file is wholly written or not at all."""

from __future__ import annotations

import importlib.util
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn import nn
from gpucnn.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image, ImageDraw

NO_MATPLOTLIB = "no curves were drawn: matplotlib is not installed; pip install 'gpucnn[viz]'"

FILTER_PIXELS = 80  # the least side of a drawn filter, unless the picture would be wider than PICTURE_PIXELS
PICTURE_PIXELS = 2048
SAMPLE_PIXELS = 112  # the longer side of a sample image
LINE_PIXELS = 18  # height of a line of text
GAP = 6
SLATE = (58, 84, 112)  # between filters, whose pixels may be black, white or grey
WHITE, INK, RED = (255, 255, 255), (32, 32, 32), (200, 0, 0)

Caption = tuple[str, str, tuple[int, int, int]]  # a name, which may be shortened, what follows it, and the colour


def save_filters(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Draw the filters of the first convolution as a PNG, each scaled to its own range from black to white.

    Filters on 1 channel are grey tiles, on 3 channels RGB tiles; others have a row each with a grey tile a channel.
    Raises ValueError for a model without Conv2d layers and WriteError for a path that cannot be written.
    """
    layer = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if layer is None:
        raise ValueError(f"save_filters: {type(model).__name__} has no Conv2d layer whose filters could be drawn")
    weight = layer.weight.numpy()
    count, channels, height, width = weight.shape
    if channels in (1, 3):
        tiles, columns = np.stack([scale_to_bytes(each) for each in weight]), math.ceil(math.sqrt(count))
    else:
        planes = weight.reshape(-1, 1, height, width)
        tiles, columns = np.stack([scale_to_bytes(each) for each in planes]), channels
    room = max(1, PICTURE_PIXELS // (columns * max(height, width)))
    zoom = min(room, math.ceil(FILTER_PIXELS / max(height, width)))
    _save_png(grid(tiles.repeat(zoom, axis=2).repeat(zoom, axis=3), columns), path)


def scale_to_bytes(values: np.ndarray) -> np.ndarray:
    """values as uint8, the smallest finite one 0 and the largest 255; where all are equal 128, not finite 0."""
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    if not high > low:
        return np.where(finite, 128, 0).astype(np.uint8)
    share = (np.where(finite, values, low).astype(np.float64) - low) / (float(high) - float(low))
    return np.rint(share * 255).astype(np.uint8)


def grid(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles uint8 (N, 1 or 3, H, W), row by row, as one picture (height, width, 3) with slate gaps around them."""
    count, _, height, width = tiles.shape
    rows = math.ceil(count / columns)
    picture = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), SLATE, np.uint8)
    for position, tile in enumerate(tiles):
        row, column = divmod(position, columns)
        top, left = row * (height + GAP) + GAP, column * (width + GAP) + GAP
        picture[top : top + height, left : left + width] = tile.transpose(1, 2, 0)
    return picture


def save_predictions(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    path: str | os.PathLike[str],
) -> None:
    """Draw images as a PNG, each over its predicted class and the probability; wrong ones in red, with the true class.

    - images: uint8 (N, C, H, W) of 1 or 3 channels (of others the mean is drawn)
    - labels, predictions: (N,) class numbers; probabilities: (N,) of the predicted class, or (N, classes)
    - classes: names by class number
    Raises ValueError for no images or arguments of different lengths, and WriteError as save_filters does.
    """
    labels, predictions, probabilities = np.asarray(labels), np.asarray(predictions), np.asarray(probabilities)
    lengths = {len(images), len(labels), len(predictions), len(probabilities)}
    if len(lengths) != 1 or not len(images):
        raise ValueError(f"save_predictions: lengths {sorted(lengths)}; there must be one of each for every image")
    if probabilities.ndim == 2:
        probabilities = np.take_along_axis(probabilities, predictions[:, None], axis=1)[:, 0]
    captions = [
        _caption(classes[predicted], classes[label], float(probability))
        for predicted, label, probability in zip(predictions, labels, probabilities, strict=True)
    ]
    _save_png(_captioned_grid([_sample(image) for image in images], captions), path)


def _caption(predicted: str, true: str, probability: float) -> list[Caption]:
    """The lines below an image: the prediction, and the true class where that is another."""
    percent = f" ({100 * probability:.1f}%)"
    return [(predicted, percent, INK)] if predicted == true else [(predicted, percent, RED), (f"is {true}", "", RED)]


def _sample(image: np.ndarray) -> Image.Image:
    """One image (C, H, W) as RGB of SAMPLE_PIXELS or a little less: small ones in whole pixels, large ones smoothed."""
    from PIL import Image

    if image.shape[0] not in (1, 3):
        image = image.mean(axis=0, keepdims=True).astype(np.uint8)
    pixels = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if max(picture.size) > SAMPLE_PIXELS:
        picture.thumbnail((SAMPLE_PIXELS, SAMPLE_PIXELS), Image.Resampling.LANCZOS)
        return picture
    zoom = SAMPLE_PIXELS // max(picture.size)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _captioned_grid(pictures: Sequence[Image.Image], captions: Sequence[list[Caption]]) -> np.ndarray:
    """Pictures of one size, each over the lines of its caption."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(14)
    width, height = SAMPLE_PIXELS + 2 * GAP, pictures[0].height + 2 * GAP + 2 * LINE_PIXELS
    columns = min(len(pictures), math.ceil(math.sqrt(len(pictures) * height / width)))
    canvas = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), WHITE)
    draw = ImageDraw.Draw(canvas)
    for position, (picture, lines) in enumerate(zip(pictures, captions, strict=True)):
        left, top = position % columns * width, position // columns * height + GAP
        canvas.paste(picture, (left + (width - picture.width) // 2, top))
        for number, (name, rest, colour) in enumerate(lines):
            place = (left + width / 2, top + picture.height + 2 + number * LINE_PIXELS)
            draw.text(place, _fitting(draw, font, name, rest), fill=colour, font=font, anchor="ma")
    return np.asarray(canvas)


def _fitting(draw: ImageDraw.ImageDraw, font: Any, name: str, rest: str) -> str:
    """name + rest, the name cut where that is wider than a sample."""
    if draw.textlength(name + rest, font) <= SAMPLE_PIXELS:
        return name + rest
    while name and draw.textlength(f"{name}…{rest}", font) > SAMPLE_PIXELS:
        name = name[:-1]
    return f"{name}…{rest}"


def save_curves(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> bool:
    """Draw loss and accuracy over the epochs, of training and, where there is one, of the validation part; a PNG.

    - history: one mapping an epoch, the lines of metrics.jsonl: epoch, train_loss, train_accuracy and perhaps
      validation_loss, validation_accuracy
    Returns whether there is a picture: without matplotlib (NO_MATPLOTLIB names the fix) or epochs there is none.
    """
    if not history or importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        _draw_curve(axes, history, what)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    write_atomically(path, stream.getvalue())
    return True


def _draw_curve(axes: Axes, history: Sequence[Mapping[str, Any]], what: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for part, colour in (("train", "tab:blue"), ("validation", "tab:orange")):
        points = [(entry["epoch"], entry[f"{part}_{what}"]) for entry in history if f"{part}_{what}" in entry]
        if points:
            marker = "o" if len(points) < 20 else ""
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=part)
    axes.set(title=what, xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    axes.grid(alpha=0.3)
    axes.legend()


def _save_png(picture: np.ndarray, path: str | os.PathLike[str]) -> None:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    write_atomically(path, stream.getvalue())
