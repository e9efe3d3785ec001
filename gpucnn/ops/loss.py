"""Losses of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import Strided
from gpucnn.ops.activation import launch_rows, log_softmax_forward, sigmoid_forward
from gpucnn.ops.shapes import require_float, shape_of


def check_labels(operation: str, x: Any, labels: Any) -> Any:
    """labels (N,) as integers from 0 to classes − 1, on the device of x (N, classes).

    Labels that are on a GPU or the simulator already are not looked at, which would wait for the device: kernels make
    the loss of a wrong one NaN. Raises TypeError or ValueError naming what does not fit.
    """
    shape, labels = shape_of(operation, "x", x), devices.as_array(labels)
    if len(shape) != 2:
        raise ValueError(f"{operation}: x has shape {shape}; it must be (N, classes)")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{operation}: labels are {labels.dtype}; they must be integers (class numbers)")
    if labels.shape != shape[:1]:
        raise ValueError(f"{operation}: labels have shape {labels.shape} but x has {shape[0]} rows; they must be (N,)")
    if devices.runs_kernels(labels):
        _check_device(operation, x, labels=labels)
    elif labels.size and not (0 <= labels.min() and labels.max() < shape[1]):
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise ValueError(f"{operation}: label {wrong} is outside 0 to {shape[1] - 1}; x has {shape[1]} classes")
    if devices.runs_kernels(x):
        return devices.move(labels.astype(np.int64, copy=False), devices.of(x))
    return labels


def check_targets(operation: str, x: Any, target: Any) -> None:
    """Raise TypeError or ValueError unless x and target are arrays of one floating-point dtype and one shape."""
    require_float(operation, x=x, target=target)
    if x.shape != target.shape:
        raise ValueError(f"{operation}: target has shape {target.shape} but x has {x.shape}; they must be equal")


def check_pairs(operation: str, a: Any, b: Any, same: Any) -> np.ndarray:
    """same (N,) as booleans, for a and b (N,features); raises TypeError or ValueError naming what does not fit."""
    require_float(operation, a=a, b=b)
    same = devices.as_array(same)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"{operation}: a has shape {a.shape} and b {b.shape}; both must be one (N, features)")
    if same.shape != a.shape[:1]:
        raise ValueError(f"{operation}: same has shape {same.shape} but a has {len(a)} rows; it must be (N,)")
    if devices.runs_kernels(same):
        _check_device(operation, a, same=same)
    elif not np.isin(same, (0, 1)).all():
        raise ValueError(f"{operation}: same holds other values than 0 and 1; it says whether a pair is of one kind")
    return devices.move(same.astype(bool), devices.of(a))


def check_probabilities(operation: str, target: Any) -> None:
    """Raise ValueError for values outside 0 to 1 in an array on the CPU; on other devices that would have to wait."""
    if not devices.runs_kernels(target) and not ((target >= 0) & (target <= 1)).all():
        raise ValueError(f"{operation}: target holds values outside 0 to 1; it must be the probability of a yes")


def _check_device(operation: str, x: Any, **others: Any) -> None:
    for name, array in others.items():
        if devices.of(array) != devices.of(x):
            raise TypeError(
                f"{operation}: {name} is on {devices.of(array)} but x is on {devices.of(x)}; move one of them with "
                ".to(device)"
            )


def cross_entropy_forward(x: Any, labels: np.ndarray, label_smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """(losses (N,), log-probabilities (N,classes)): −Σ_j t_j log softmax(x)_j for each row.

    The target t is 1 at the label, mixed with the uniform one: t·(1 − s) + s/classes (Szegedy et al. 2016, §7). Where
    kernels run, the loss and the gradient of a row whose label is no class are NaN.
    """
    require_float("cross_entropy", x=x)
    if devices.runs_kernels(x):
        losses, log_probabilities = devices.empty((len(x),), x.dtype, like=x), devices.empty_like(x)
        arrays = devices.contiguous(x), devices.contiguous(labels), losses, log_probabilities
        launch_rows("cross_entropy_forward", *arrays, shape=x.shape, more=(label_smoothing,))
        return losses, log_probabilities
    log_probabilities = log_softmax_forward(x, axis=1)
    losses = -(1 - label_smoothing) * np.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    if label_smoothing:
        losses -= label_smoothing * log_probabilities.mean(axis=1)
    return losses, log_probabilities


def cross_entropy_backward(
    log_probabilities: np.ndarray, labels: np.ndarray, label_smoothing: float, gy: np.ndarray, divisor: int = 1
) -> np.ndarray:
    """gx (N,classes) = (softmax(x) − t) · gy / divisor for row gradients gy (N,)."""
    if devices.runs_kernels(log_probabilities):
        gx, stride = devices.empty_like(log_probabilities), gy.strides[0] // gy.itemsize
        arrays = log_probabilities, devices.contiguous(labels), Strided(gy), stride, gx
        launch_rows("cross_entropy_backward", *arrays, shape=gx.shape, more=(label_smoothing, divisor))
        return gx
    gx = np.exp(log_probabilities)
    gx -= label_smoothing / gx.shape[1]
    gx[np.arange(len(labels)), labels] -= 1 - label_smoothing
    return gx * (gy / divisor)[:, None]


def binary_cross_entropy_forward(x: Any, target: Any) -> np.ndarray:
    """−t·log σ(x) − (1 − t)·log(1 − σ(x)) of each element, as max(x, 0) − x·t + log(1 + e^−|x|): no overflow."""
    return np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x)))


def binary_cross_entropy_backward(x: np.ndarray, target: np.ndarray, gy: Any) -> tuple[np.ndarray, np.ndarray]:
    """(σ(x) − t)·gy for x and −x·gy for the target."""
    return (sigmoid_forward(x) - target) * gy, -x * gy


def huber_forward(difference: Any, delta: float) -> np.ndarray:
    """½·d² where |d| ≤ delta, else delta·(|d| − ½·delta)."""
    size = np.abs(difference)
    inside = np.minimum(size, delta)
    return inside * (size - 0.5 * inside)


def huber_backward(difference: np.ndarray, gy: Any, delta: float) -> np.ndarray:
    """gy · d, with d cut off at ±delta."""
    return gy * np.clip(difference, -delta, delta)


def multi_margin_forward(x: Any, labels: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """(losses (N,), violated (N,classes)): Σ_{j≠y} max(0, margin − x_y + x_j) / classes, and where that is above 0."""
    require_float("multi_margin_loss", x=x)
    rows = _rows(labels)
    excess = margin - x[rows, labels][:, None] + x
    excess[rows, labels] = 0
    violated = excess > 0
    return np.maximum(excess, 0).mean(axis=1), violated


def multi_margin_backward(violated: np.ndarray, labels: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """gx (N,classes): gy / classes for each class that violates the margin, and what balances them for the label."""
    gx = violated * (gy / violated.shape[1])[:, None]
    gx[_rows(labels), labels] = -gx.sum(axis=1)
    return gx


def _rows(labels: Any) -> Any:
    return devices.array_module(labels).arange(len(labels))


def contrastive_forward(difference: Any, same: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """(losses (N,), distances (N,)): ½·D² for pairs of the same kind, ½·max(0, margin − D)² for others."""
    distances = np.sqrt((difference * difference).sum(axis=1))
    return 0.5 * np.where(same, distances, np.maximum(margin - distances, 0)) ** 2, distances


def contrastive_backward(
    difference: np.ndarray, distances: np.ndarray, same: np.ndarray, margin: float, gy: np.ndarray
) -> np.ndarray:
    """Gradient (N,features) of the difference: gy·d, or −gy·(margin − D)/D·d for different ones; 0 where D is 0."""
    apart = np.maximum(margin - distances, 0) / np.where(distances > 0, distances, 1)
    return difference * (gy * np.where(same, 1, -apart))[:, None]
