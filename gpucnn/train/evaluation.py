"""How good a network is on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn.data import DataLoader, Dataset, Normalize
from gpucnn.dtypes import is_half
from gpucnn.nn import Module
from gpucnn.precision import computing
from gpucnn.tensor import Tensor, no_grad
from gpucnn.train.report import Report

MAX_BATCH_SIZE = 256
BATCH_PIXELS = 1 << 20  # of all images of a batch, so that activations of large images fit the memory


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result on a data set.

    - loss: mean cross-entropy; accuracy, top5: share of images whose class is the likeliest, among the 5 likeliest
    - count: images; predictions: int64 (count,), the likeliest class of each; probabilities: (count,), how likely
    """

    loss: float
    accuracy: float
    top5: float
    count: int
    predictions: np.ndarray
    probabilities: np.ndarray


def evaluate(
    model: Module,
    dataset: Dataset,
    normalize: Normalize | None = None,
    *,
    batch_size: int | None = None,
    report: Report | None = None,
    title: str = "evaluate",
    check: Callable[[], None] | None = None,
    precision: str = "float32",
) -> Evaluation:
    """Loss and accuracies of `model` on all images, which are resized to its input_shape where it has one.

    - model: computes on its device; normalize: what it was trained with, None leaves pixels in [0, 1]
    - batch_size: images at a time; by default as many as have some million pixels, at most 256
    - report: shows a bar with this title; check: called before each batch, may raise to break off
    - precision: of gpucnn.precision, in which the model computes; the scores are float32
    Raises ValueError where channels or classes of the data are not the model's.
    """
    check_fits(model, dataset)
    shape = getattr(model, "input_shape", None)
    images = dataset if shape is None else dataset.resize(shape[1:])
    loader = DataLoader(images, batch_size or default_batch_size(images.image_size), normalize=normalize, workers=1)
    bar = (report or Report()).bar(title, len(loader))
    loss, correct, among5 = 0.0, 0, 0
    predictions, probabilities = [], []
    batches = loader.epoch(0)
    try:
        with evaluating(model), no_grad(), computing(precision):
            for pixels, labels in batches:
                if check is not None:
                    check()
                scores = scores_of(model, pixels)
                loss += float(F.cross_entropy(scores, labels, reduction="sum"))
                predictions.append(scores.argmax(axis=1))
                probabilities.append(F.softmax(scores).max(axis=1))
                correct += int(np.count_nonzero(predictions[-1] == labels))
                among5 += count_top(scores, labels, 5)
                seen = sum(map(len, predictions))
                bar.step(loss / seen, correct / seen)
    finally:
        bar.close()
        batches.close()
    count = len(images)
    return Evaluation(
        loss / count, correct / count, among5 / count, count, np.concatenate(predictions), np.concatenate(probabilities)
    )


def scores_of(model: Module, images: np.ndarray) -> np.ndarray:
    """model(images) on the model's device, as a NumPy array."""
    scores = model(Tensor(devices.move(images, model.device))).data
    return devices.to_numpy(scores).astype(np.float32, copy=False) if is_half(scores) else devices.to_numpy(scores)


def default_batch_size(image_size: tuple[int, int]) -> int:
    """Images of so many pixels that are computed at a time where none of the intermediate results is kept."""
    height, width = image_size
    return max(1, min(MAX_BATCH_SIZE, BATCH_PIXELS // (height * width)))


def check_fits(model: Any, dataset: Dataset) -> None:
    """Raise ValueError where channels or classes of the data are not those of a Network; other Modules may have any."""
    arguments = getattr(model, "arguments", {})
    for what, wanted, found in (
        ("channels", arguments.get("in_channels"), dataset.channels),
        ("classes", arguments.get("num_classes"), len(dataset.classes)),
    ):
        if wanted not in (None, found):
            raise ValueError(f"the network has {wanted} {what} but data {dataset.name!r} has {found}; use other data")


def count_top(scores: np.ndarray, labels: np.ndarray, k: int) -> int:
    """In how many rows fewer than k classes (or than all, where there are no more) score higher than the label's."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    higher = np.count_nonzero(~(scores <= own), axis=1)  # rows with NaN count as wrong
    return int(np.count_nonzero(higher < min(k, scores.shape[1])))


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module's mode is what it was."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
