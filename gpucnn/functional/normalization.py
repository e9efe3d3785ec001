"""Local response normalisation and batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import dtypes, ops
from gpucnn.functional.cast import to_float32
from gpucnn.ops.shapes import require_float
from gpucnn.tensor import Function, Tensor


class LocalResponseNorm(Function):
    def __init__(self, size: int, alpha: float, beta: float, k: float) -> None:
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Any) -> np.ndarray:
        self.x = x
        y, self.scale = ops.local_response_norm_forward(x, self.size, self.alpha, self.beta, self.k)
        return y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.local_response_norm_backward(self.x, self.scale, gradient, self.size, self.alpha, self.beta),)


class BatchNorm(Function):
    def __init__(self, mean: np.ndarray, inverse_std: np.ndarray, training: bool) -> None:
        self.mean, self.inverse_std, self.training = mean, inverse_std, training

    def forward(self, x: Any, weight: Any, bias: Any) -> np.ndarray:
        self.x, self.weight = x, weight
        return ops.batch_norm_apply(x, self.mean, self.inverse_std, weight, bias)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        return ops.batch_norm_backward(self.x, gradient, self.mean, self.inverse_std, self.weight, self.training)


def local_response_norm(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    """y = x / (k + alpha/size · Σ x²)^beta, the sum over `size` neighbouring channels (Krizhevsky et al. 2012, §3.3).

    - x: (N, C, …); size: channels. The paper does not divide alpha by size; PyTorch and this function do.
    Raises ValueError for size < 1 or an x of fewer than 3 dimensions.
    """
    return LocalResponseNorm(size, alpha, beta, k)(x)


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """y = (x − mean) / √(variance + eps) · weight + bias for each channel (Ioffe & Szegedy 2015, algorithm 1).

    In training mean and variance are the batch's, and running ← (1 − momentum)·running + momentum·batch, in place and
    with the unbiased variance; else the running ones are used.

    - x: (N, C, …); running_mean, running_var, weight, bias: (C,) or None; of 16-bit x, and y, the vectors and all
      statistics are float32
    Raises ValueError if a shape does not fit, or in training with one value a channel.
    """
    if dtypes.is_half(x):
        weight, bias = (None if each is None else to_float32(each) for each in (weight, bias))
    data, mean, variance = _data(x), _data(running_mean), _data(running_var)
    _check_batch_norm(data, mean, variance, _data(weight), _data(bias), training)
    if training or mean is None:
        moved = (mean, variance, momentum) if training else ()
        mean, inverse_std = ops.batch_norm_statistics(data, eps, *moved)
        return BatchNorm(mean, inverse_std, training=True)(x, weight, bias)
    mean, inverse_std = ops.batch_norm_running(data, mean, variance, eps)
    return BatchNorm(mean, inverse_std, training=False)(x, weight, bias)


def _data(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


def _check_batch_norm(x: Any, mean: Any, variance: Any, weight: Any, bias: Any, training: bool) -> None:
    if dtypes.is_half(x):
        require_float("batch_norm", halves=True, x=x)
        require_float("batch_norm", weight=weight, bias=bias)
    else:
        require_float("batch_norm", x=x, weight=weight, bias=bias)
    if x.ndim < 2:
        raise ValueError(f"batch_norm: x has shape {x.shape}; it must be (N, C, …)")
    named = {"running_mean": mean, "running_var": variance, "weight": weight, "bias": bias}
    for name, array in named.items():
        if array is not None and array.shape != (x.shape[1],):
            raise ValueError(
                f"batch_norm: {name} has shape {array.shape} but x has {x.shape[1]} channels; it must be (C,)"
            )
    if (mean is None) != (variance is None):
        raise ValueError("batch_norm: give both running_mean and running_var, or neither")
    if training and x.size // max(x.shape[1], 1) <= 1:
        raise ValueError(
            f"batch_norm: training needs more than one value a channel, but x has shape {x.shape}; use a larger batch"
        )
