"""Losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.tensor import Function, Tensor


class CrossEntropy(Function):
    def __init__(self, labels: np.ndarray, reduction: str, label_smoothing: float) -> None:
        self.labels, self.reduction, self.label_smoothing = labels, reduction, label_smoothing

    def forward(self, x: Any) -> Any:
        losses, self.log_probabilities = ops.cross_entropy_forward(x, self.labels, self.label_smoothing)
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.mean()

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        count = len(self.labels)
        rows = gradient / count if self.reduction == "mean" else gradient
        rows = np.broadcast_to(rows, (count,))
        return (ops.cross_entropy_backward(self.log_probabilities, self.labels, self.label_smoothing, rows),)


def cross_entropy(x: Any, labels: Any, *, reduction: str = "mean", label_smoothing: float = 0.0) -> Any:
    """Softmax and negative log-likelihood in one: L = −log(e^{x_label} / Σ_j e^{x_j}) for each row.

    - x: (N, classes) scores; labels: (N,) integers from 0 to classes − 1
    - reduction: "mean" over the rows, "sum", or "none" for (N,) losses
    - label_smoothing: share of the target spread evenly over all classes, 0 to 1 (Szegedy et al. 2016, §7)
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"cross_entropy: reduction is {reduction!r}; it must be 'mean', 'sum' or 'none'")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}; it must be from 0 to 1")
    labels = ops.check_labels("cross_entropy", x, labels.data if isinstance(labels, Tensor) else labels)
    if reduction == "mean" and not len(labels):
        raise ValueError("cross_entropy: the mean over an empty batch is undefined; skip empty batches or use 'sum'")
    return CrossEntropy(labels, reduction, label_smoothing)(x)
