"""Losses. Of 16-bit scores they are computed in float32, and float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.functional import arithmetic
from gpucnn.functional.cast import to_float32
from gpucnn.tensor import Function, Tensor


class CrossEntropy(Function):
    def __init__(self, labels: np.ndarray, reduction: str, label_smoothing: float) -> None:
        self.labels, self.reduction, self.label_smoothing = labels, reduction, label_smoothing

    def forward(self, x: Any) -> Any:
        losses, self.log_probabilities = ops.cross_entropy_forward(x, self.labels, self.label_smoothing)
        if self.reduction == "none":
            return losses
        return ops.sum_over(losses) if self.reduction == "sum" else ops.mean_over_all(losses)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        count = len(self.labels)
        rows, divisor = np.broadcast_to(gradient, (count,)), count if self.reduction == "mean" else 1
        return (ops.cross_entropy_backward(self.log_probabilities, self.labels, self.label_smoothing, rows, divisor),)


class BinaryCrossEntropy(Function):
    launches = False

    def forward(self, x: Any, target: Any) -> np.ndarray:
        self.x, self.target = x, target
        return ops.binary_cross_entropy_forward(x, target)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return ops.binary_cross_entropy_backward(self.x, self.target, gradient)


class Absolute(Function):
    launches = False

    def forward(self, x: Any) -> np.ndarray:
        self.x = x
        return np.abs(x)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (gradient * np.sign(self.x),)


class Huber(Function):
    launches = False

    def __init__(self, delta: float) -> None:
        self.delta = delta

    def forward(self, difference: Any) -> np.ndarray:
        self.difference = difference
        return ops.huber_forward(difference, self.delta)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.huber_backward(self.difference, gradient, self.delta),)


class MultiMargin(Function):
    launches = False

    def __init__(self, labels: np.ndarray, margin: float) -> None:
        self.labels, self.margin = labels, margin

    def forward(self, x: Any) -> np.ndarray:
        losses, self.violated = ops.multi_margin_forward(x, self.labels, self.margin)
        return losses

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.multi_margin_backward(self.violated, self.labels, gradient),)


class Contrastive(Function):
    launches = False

    def __init__(self, same: np.ndarray, margin: float) -> None:
        self.same, self.margin = same, margin

    def forward(self, difference: Any) -> np.ndarray:
        self.difference = difference
        losses, self.distances = ops.contrastive_forward(difference, self.same, self.margin)
        return losses

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.contrastive_backward(self.difference, self.distances, self.same, self.margin, gradient),)


def cross_entropy(x: Any, labels: Any, *, reduction: str = "mean", label_smoothing: float = 0.0) -> Any:
    """Softmax and negative log-likelihood in one: L = −log(e^{x_label} / Σ_j e^{x_j}) for each row.

    - x: (N, classes) scores; labels: (N,) integers from 0 to classes − 1
    - reduction: "mean" over the rows, "sum", or "none" for (N,) losses
    - label_smoothing: share of the target spread evenly over all classes, 0 to 1 (Szegedy et al. 2016, §7)
    Labels that are on a GPU or the simulator already are not checked on the host: a wrong one makes the loss NaN.
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    _check_reduction("cross_entropy", reduction)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}; it must be from 0 to 1")
    x = to_float32(x)
    labels = ops.check_labels("cross_entropy", _array(x), _array(labels))
    _check_not_empty("cross_entropy", reduction, labels)
    return CrossEntropy(labels, reduction, label_smoothing)(x)


def binary_cross_entropy_with_logits(x: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Independent yes-or-no questions (several labels an image): L = −t·log σ(x) − (1 − t)·log(1 − σ(x)) for each.

    - x: scores of any shape; target: of its shape and dtype, from 0 (no) to 1 (yes)
    - reduction: "mean" over all elements, "sum", or "none" for losses of x's shape
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    operation = "binary_cross_entropy_with_logits"
    x, target = _in_float32(x, target)
    _check_targets(operation, x, target, reduction)
    ops.check_probabilities(operation, _array(target))
    return _reduce(BinaryCrossEntropy()(x, target), reduction)


def mse_loss(x: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Squared error L = (x − target)² of each element.

    - x, target: of one shape and dtype; either may be the Tensor to differentiate
    - reduction: "mean" over all elements, "sum", or "none" for losses of x's shape
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    x, target = _in_float32(x, target)
    _check_targets("mse_loss", x, target, reduction)
    return _reduce(arithmetic.power(arithmetic.subtract(x, target), 2), reduction)


def l1_loss(x: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Absolute error L = |x − target| of each element; the gradient where they are equal is 0.

    Arguments and errors are those of mse_loss.
    """
    x, target = _in_float32(x, target)
    _check_targets("l1_loss", x, target, reduction)
    return _reduce(Absolute()(arithmetic.subtract(x, target)), reduction)


def huber_loss(x: Any, target: Any, *, reduction: str = "mean", delta: float = 1.0) -> Any:
    """Squared error near the target, absolute error far from it (Huber 1964), with d = x − target:

    L = ½·d² where |d| ≤ delta, else delta·(|d| − ½·delta). The arguments are those of mse_loss.
    Raises ValueError for a delta that is not positive, and as mse_loss does.
    """
    x, target = _in_float32(x, target)
    _check_targets("huber_loss", x, target, reduction)
    if not delta > 0:
        raise ValueError(f"huber_loss: delta is {delta}; it must be positive")
    return _reduce(Huber(float(delta))(arithmetic.subtract(x, target)), reduction)


def multi_margin_loss(x: Any, labels: Any, *, margin: float = 1.0, reduction: str = "mean") -> Any:
    """Multi-class hinge loss: L = Σ_{j≠label} max(0, margin − x_label + x_j) / classes for each row.

    - x: (N, classes) scores; labels: (N,) integers from 0 to classes − 1
    - margin: by how much the label's score shall exceed each other one (Weston & Watkins 1999)
    - reduction: "mean" over the rows, "sum", or "none" for (N,) losses
    The division by the number of classes is PyTorch's. Raises ValueError or TypeError naming the argument that does not
    fit.
    """
    _check_reduction("multi_margin_loss", reduction)
    x = to_float32(x)
    labels = ops.check_labels("multi_margin_loss", _array(x), _array(labels))
    _check_not_empty("multi_margin_loss", reduction, labels)
    return _reduce(MultiMargin(labels, float(margin))(x), reduction)


def contrastive_loss(a: Any, b: Any, same: Any, margin: float = 1.0, *, reduction: str = "mean") -> Any:
    """Pulls pairs of one kind together and others apart (Hadsell, Chopra & LeCun 2006), with D = |a − b|:

    L = ½·D² for pairs of the same kind, ½·max(0, margin − D)² for others. The gradient where D is 0 is 0.

    - a, b: (N, features), what a network with shared weights makes of the two parts of N pairs
    - same: (N,) booleans or 0 and 1; margin: the distance from which different pairs are far enough apart
    - reduction: "mean" over the pairs, "sum", or "none" for (N,) losses
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    _check_reduction("contrastive_loss", reduction)
    a, b = _in_float32(a, b)
    same = ops.check_pairs("contrastive_loss", _array(a), _array(b), _array(same))
    _check_not_empty("contrastive_loss", reduction, same)
    if not margin > 0:
        raise ValueError(f"contrastive_loss: margin is {margin}; it must be positive")
    return _reduce(Contrastive(same, float(margin))(arithmetic.subtract(a, b)), reduction)


def _in_float32(a: Any, b: Any) -> tuple[Any, Any]:
    return to_float32(a), to_float32(b)


def _array(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


def _check_reduction(operation: str, reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{operation}: reduction is {reduction!r}; it must be 'mean', 'sum' or 'none'")


def _check_not_empty(operation: str, reduction: str, target: np.ndarray) -> None:
    if reduction == "mean" and not target.size:
        raise ValueError(f"{operation}: the mean over an empty batch is undefined; skip empty batches or use 'sum'")


def _check_targets(operation: str, x: Any, target: Any, reduction: str) -> None:
    _check_reduction(operation, reduction)
    ops.check_targets(operation, _array(x), _array(target))
    _check_not_empty(operation, reduction, _array(target))


def _reduce(losses: Any, reduction: str) -> Any:
    if reduction == "none":
        return losses
    return arithmetic.mean(losses) if reduction == "mean" else arithmetic.sum(losses)
