"""Losses of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.ops.activation import log_softmax_forward
from gpucnn.ops.shapes import require_float, shape_of


def check_labels(operation: str, logits: Any, labels: Any) -> np.ndarray:
    """labels (N,) as integers from 0 to classes − 1; raises TypeError or ValueError naming what does not fit."""
    shape, labels = shape_of(operation, "x", logits), np.asarray(labels)
    if len(shape) != 2:
        raise ValueError(f"{operation}: x has shape {shape}; it must be (N, classes)")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{operation}: labels are {labels.dtype}; they must be integers (class numbers)")
    if labels.shape != shape[:1]:
        raise ValueError(f"{operation}: labels have shape {labels.shape} but x has {shape[0]} rows; they must be (N,)")
    if labels.size and not (0 <= labels.min() and labels.max() < shape[1]):
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise ValueError(f"{operation}: label {wrong} is outside 0 to {shape[1] - 1}; x has {shape[1]} classes")
    return labels


def cross_entropy_forward(x: Any, labels: np.ndarray, label_smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """(losses (N,), log-probabilities (N,classes)): −Σ_j t_j log softmax(x)_j for each row.

    The target t is 1 at the label, mixed with the uniform one: t·(1 − s) + s/classes (Szegedy et al. 2016, §7).
    """
    require_float("cross_entropy", x=x)
    log_probabilities = log_softmax_forward(x, axis=1)
    losses = -(1 - label_smoothing) * np.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    if label_smoothing:
        losses -= label_smoothing * log_probabilities.mean(axis=1)
    return losses, log_probabilities


def cross_entropy_backward(
    log_probabilities: np.ndarray, labels: np.ndarray, label_smoothing: float, gy: np.ndarray
) -> np.ndarray:
    """gx (N,classes) = (softmax(x) − t) · gy for row gradients gy (N,)."""
    gx = np.exp(log_probabilities)
    gx -= label_smoothing / gx.shape[1]
    gx[np.arange(len(labels)), labels] -= 1 - label_smoothing
    return gx * gy[:, None]
