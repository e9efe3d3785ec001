"""Normalisation of arrays: over neighbouring channels (LRN), or over the batch (batch norm)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.ops import normalization_kernels as kernels
from gpucnn.ops.cast import in_float32
from gpucnn.ops.shapes import require_float


@in_float32()
def local_response_norm_forward(
    x: Any, size: int, alpha: float, beta: float, k: float
) -> tuple[np.ndarray, np.ndarray]:
    """(y, scale) for x (N,C,…): scale = k + alpha/size · Σ x² over `size` neighbouring channels, y = x · scale^−beta.

    Krizhevsky et al. 2012, §3.3, with alpha divided by size as in PyTorch. Raises ValueError for size < 1.
    """
    require_float("local_response_norm", x=x)
    if x.ndim < 3:
        raise ValueError(f"local_response_norm: x has shape {x.shape}; it must have at least 3 dimensions (N, C, …)")
    if size < 1:
        raise ValueError(f"local_response_norm: size is {size}; it must be at least 1 channel")
    if devices.runs_kernels(x):
        return kernels.local_response_norm_forward(x, size, alpha, beta, k)
    y, scale = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    _C.local_response_norm_forward(_planes(x), _planes(y), _planes(scale), size, alpha, beta, k)
    return y, scale


@in_float32()
def local_response_norm_backward(
    x: Any, scale: np.ndarray, gy: Any, size: int, alpha: float, beta: float
) -> np.ndarray:
    """gx of local_response_norm_forward, from its x and scale."""
    if devices.runs_kernels(x):
        return kernels.local_response_norm_backward(x, scale, gy, size, alpha, beta)
    gx = np.empty(x.shape, x.dtype)
    _C.local_response_norm_backward(_planes(x), _planes(scale), _planes(gy), _planes(gx), size, alpha, beta)
    return gx


@in_float32(native=True, rounds=False)
def batch_norm_statistics(
    x: Any, eps: float, running_mean: Any = None, running_var: Any = None, momentum: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(mean, inverse_std), each (C,), of x (N,C,…) over everything but the channels: inverse_std = 1/√(variance + eps).

    This variance is the biased one. Running statistics, unless None, are moved in place:
    running ← (1 − momentum)·running + momentum·batch, with the unbiased variance.
    Raises ValueError for an x without elements.
    """
    count = x.size // max(x.shape[1], 1)
    if count == 0:
        raise ValueError(f"batch_norm_statistics: x has no elements (shape {x.shape})")
    if devices.runs_kernels(x):
        return kernels.batch_norm_statistics(x, eps, running_mean, running_var, momentum)
    mean, variance = np.empty(x.shape[1], x.dtype), np.empty(x.shape[1], x.dtype)
    _C.batch_norm_statistics(_planes(x), mean, variance)
    if running_mean is not None:
        _move(running_mean, mean, momentum)
        _move(running_var, variance * (count / max(count - 1, 1)), momentum)
    return mean, 1 / np.sqrt(variance + eps)


def batch_norm_count(batches: Any) -> None:
    """Add 1 to batches (), an int64 array, in place."""
    if devices.runs_kernels(batches):
        return kernels.batch_norm_count(batches)
    batches[...] += 1


def _move(running: np.ndarray, batch: np.ndarray, momentum: float) -> None:
    running *= 1 - momentum
    running += momentum * batch


@in_float32(native=True, rounds=False)
def batch_norm_running(x: Any, running_mean: Any, running_var: Any, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """(mean, inverse_std), each (C,) and in x's dtype, of running statistics, which may move on afterwards."""
    if devices.runs_kernels(x):
        return kernels.batch_norm_running(x, running_mean, running_var, eps)
    return running_mean.astype(x.dtype), 1 / np.sqrt(running_var.astype(x.dtype) + eps)


@in_float32(native=True)
def batch_norm_apply(x: Any, mean: Any, inverse_std: Any, weight: Any, bias: Any) -> np.ndarray:
    """y = (x − mean) · inverse_std · weight + bias, each (C,); weight and bias may be None (1 and 0)."""
    if devices.runs_kernels(x):
        return kernels.batch_norm_apply(x, mean, inverse_std, weight, bias)
    y = np.empty(x.shape, x.dtype)
    _C.batch_norm_apply(_planes(x), mean, inverse_std, _contiguous(weight), _contiguous(bias), _planes(y))
    return y


@in_float32(native=True)
def batch_norm_backward(
    x: Any, gy: Any, mean: Any, inverse_std: Any, weight: Any, training: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(gx, gweight, gbias) of batch_norm_apply; in training the statistics depend on x (Ioffe & Szegedy 2015, §3)."""
    if devices.runs_kernels(x):
        return kernels.batch_norm_backward(x, gy, mean, inverse_std, weight, training)
    gx = np.empty(x.shape, x.dtype)
    gweight, gbias = np.empty(x.shape[1], x.dtype), np.empty(x.shape[1], x.dtype)
    run = _C.batch_norm_backward_training if training else _C.batch_norm_backward_inference
    run(_planes(x), _planes(gy), mean, inverse_std, _contiguous(weight), _planes(gx), gweight, gbias)
    return gx, gweight, gbias


def _planes(x: Any) -> np.ndarray:
    """x (N,C,…) as (N,C,L), as the extension takes it: a view of x if that is contiguous."""
    return np.ascontiguousarray(x).reshape(*x.shape[:2], math.prod(x.shape[2:]))


def _contiguous(vector: Any) -> np.ndarray | None:
    return None if vector is None else np.ascontiguousarray(vector)
