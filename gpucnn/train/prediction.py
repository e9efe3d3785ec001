"""Using a trained network: load it from its checkpoint alone, read pictures, name what they show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import checkpoint
from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn.data import Normalize
from gpucnn.data.pictures import read_image as read_image
from gpucnn.models import Network
from gpucnn.precision import ALL_PRECISIONS, computing
from gpucnn.tensor import no_grad
from gpucnn.train.config import check_choice
from gpucnn.train.evaluation import default_batch_size, evaluating, scores_of

CLEARLY = 0.2  # how far from mid-grey the training images' mean must be to tell dark from light


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network with what its use needs: class names, the Normalize it was trained with, the name of its data.

    - precision: in which it computes: the one it was trained in, or another of gpucnn.precision
    """

    model: Network
    classes: tuple[str, ...]
    normalize: Normalize
    data: str
    precision: str = "float32"


@dataclass(frozen=True)
class Prediction:
    """What an image shows: up to five (class name, probability), the likeliest first; note: a doubt about it, or ""."""

    image: str
    top5: tuple[tuple[str, float], ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """{"image", "top5": [{"label", "probability"}]}."""
        return {
            "image": self.image,
            "top5": [{"label": label, "probability": probability} for label, probability in self.top5],
        }


def load_model(path: str | os.PathLike[str], device: str = "cpu", precision: str | None = None) -> TrainedModel:
    """The network in a checkpoint of `fit`, ready for use on a device; nothing but the file is needed.

    - precision: in which it shall compute; None: the one it was trained in

    Raises FileNotFoundError or CheckpointError, naming the file, and ValueError for a device that is not there.
    """
    where = devices.resolve(device)
    stored = checkpoint.load(path)
    devices.use(where)
    model = checkpoint.build_model(stored)
    model.to(where)
    model.eval()
    found = stored.metadata
    normalize = Normalize(found["normalization"]["mean"], found["normalization"]["std"])
    config = found.get("config")
    trained_in = config.get("precision", "float32") if isinstance(config, dict) else "float32"
    chosen = trained_in if precision is None else precision
    check_choice("precision", chosen, ALL_PRECISIONS)
    return TrainedModel(model, tuple(found["classes"]), normalize, found["data"], chosen)


def predict(
    trained: TrainedModel | str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    invert: bool = False,
) -> list[Prediction]:
    """The likeliest classes of each picture, PNG or JPEG files of any size and colour.

    All files are read before the first is looked at, so that a wrong one is told at once. They are turned upright,
    converted to the network's channels (transparent parts become white) and resized, without keeping their aspect.
    - trained: what `load_model` returns, or the checkpoint's path
    - invert: turn dark into light first, for dark digits on light paper
    Raises ValueError or OSError naming the file that is no usable picture.
    """
    if not isinstance(trained, TrainedModel):
        trained = load_model(trained)
    shape = trained.model.input_shape
    pixels = [read_image(path, shape) for path in images]
    if invert:
        pixels = [255 - each for each in pixels]
    predictions: list[Prediction] = []
    batch_size = default_batch_size(shape[1:])
    for start in range(0, len(pixels), batch_size):
        part = slice(start, start + batch_size)
        for path, image, row in zip(images[part], pixels[part], _probabilities(trained, pixels[part]), strict=True):
            likeliest = np.argsort(-row, kind="stable")[:5]
            top5 = tuple((trained.classes[label], float(row[label])) for label in likeliest)
            predictions.append(Prediction(os.fspath(path), top5, _doubt(trained, image)))
    return predictions


def _probabilities(trained: TrainedModel, pixels: list[np.ndarray]) -> np.ndarray:
    images = trained.normalize(np.stack(pixels).astype(np.float32) / 255)
    with evaluating(trained.model), no_grad(), computing(trained.precision):
        return F.softmax(scores_of(trained.model, images))


def _doubt(trained: TrainedModel, image: np.ndarray) -> str:
    """A note if a grey image is as light where the training images are dark, or the other way round."""
    usual, found = trained.normalize.mean[0], image.mean() / 255
    if len(image) != 1 or abs(usual - 0.5) < CLEARLY or abs(found - (1 - usual)) >= abs(found - usual):
        return ""
    looks, trained_on = ("dark on light", "light on dark") if usual < 0.5 else ("light on dark", "dark on light")
    return f"it looks {looks}, but the network was trained on {trained_on}"
