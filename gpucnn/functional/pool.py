"""Pooling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.functional import arithmetic
from gpucnn.ops.shapes import Pair, PoolShape, require_float, shape_of
from gpucnn.tensor import Function, Tensor


class MaxPool2d(Function):
    def __init__(self, shape: PoolShape, return_indices: bool) -> None:
        self.shape, self.return_indices = shape, return_indices

    def forward(self, x: Any) -> Any:
        y, self.indices = ops.max_pool2d_forward(x, self.shape)
        return (y, self.indices.astype(np.int64, copy=False)) if self.return_indices else y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.max_pool2d_backward(gradient, self.indices, self.shape),)


class AvgPool2d(Function):
    def __init__(self, shape: PoolShape, count_include_pad: bool) -> None:
        self.shape, self.count_include_pad = shape, count_include_pad

    def forward(self, x: Any) -> np.ndarray:
        return ops.avg_pool2d_forward(x, self.shape, self.count_include_pad)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.avg_pool2d_backward(gradient, self.shape, self.count_include_pad),)


class AdaptiveAvgPool2d(Function):
    def __init__(self, output_size: Pair) -> None:
        self.output_size = output_size

    def forward(self, x: Any) -> np.ndarray:
        self.x_shape = x.shape
        return ops.adaptive_avg_pool2d_forward(x, self.output_size)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.adaptive_avg_pool2d_backward(gradient, self.x_shape),)


class AdaptiveMaxPool2d(Function):
    def __init__(self, output_size: Pair, return_indices: bool) -> None:
        self.output_size, self.return_indices = output_size, return_indices

    def forward(self, x: Any) -> Any:
        self.x_shape = x.shape
        y, self.indices = ops.adaptive_max_pool2d_forward(x, self.output_size)
        return (y, self.indices.astype(np.int64, copy=False)) if self.return_indices else y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.adaptive_max_pool2d_backward(gradient, self.indices, self.x_shape),)


class MaxUnpool2d(Function):
    def __init__(self, indices: np.ndarray, size: tuple[int, int]) -> None:
        self.indices, self.size = indices, size

    def forward(self, x: Any) -> np.ndarray:
        return ops.max_unpool2d_forward(x, self.indices, self.size)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.max_unpool2d_backward(gradient, self.indices),)


class LpPool2d(Function):
    def __init__(self, norm_type: float, shape: PoolShape) -> None:
        self.norm_type, self.shape = norm_type, shape

    def forward(self, x: Any) -> np.ndarray:
        self.x = x
        self.y = ops.lp_pool2d_forward(x, self.norm_type, self.shape)
        return self.y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.lp_pool2d_backward(self.x, self.y, gradient, self.norm_type, self.shape),)


def max_pool2d(
    x: Any,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window; windows may overlap. The gradient goes to where the maximum stood.

    P = floor((H + 2·padding − dilation·(kernel − 1) − 1) / stride) + 1, rounded up with ceil_mode as long as the last
    window starts inside the image. Padding never wins; of equal values the first wins; NaN wins over numbers.

    - x: (N, C, H, W); kernel_size, stride (default: kernel_size), padding, dilation: pixels, an integer or a pair
    - return_indices: return (y, indices) with indices (N, C, P, Q) int64, h·W + w of each maximum ("switches")
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    x_shape = shape_of("max_pool2d", "x", x)
    shape = ops.pool_shape("max_pool2d", x_shape, kernel_size, stride, padding, dilation, ceil_mode)
    return MaxPool2d(shape, return_indices)(x)


def avg_pool2d(
    x: Any,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """The mean of each window; the sizes are those of max_pool2d.

    - count_include_pad: padding counts as zeros; else a window at the border is the mean of its real pixels
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    shape = ops.pool_shape("avg_pool2d", shape_of("avg_pool2d", "x", x), kernel_size, stride, padding, 1, ceil_mode)
    return AvgPool2d(shape, count_include_pad)(x)


def adaptive_avg_pool2d(x: Any, output_size: Pair) -> Any:
    """The mean of output_size windows that cover x (N, C, H, W) evenly: rows floor(i·H/P) up to ceil((i+1)·H/P).

    Raises ValueError for an output_size below 1 or an x that is not four-dimensional.
    """
    return AdaptiveAvgPool2d(output_size)(x)


def adaptive_max_pool2d(x: Any, output_size: Pair, return_indices: bool = False) -> Any:
    """The maximum of output_size windows that cover x (N, C, H, W) evenly: those of adaptive_avg_pool2d.

    - return_indices: return (y, indices) as max_pool2d does
    Raises ValueError for an output_size below 1 or an x that is not four-dimensional.
    """
    return AdaptiveMaxPool2d(output_size, return_indices)(x)


def global_max_pool2d(x: Any) -> Any:
    """The maximum of each channel: (N, C, H, W) → (N, C, 1, 1)."""
    return adaptive_max_pool2d(x, 1)


def global_avg_pool2d(x: Any) -> Any:
    """The mean of each channel (Lin et al. 2014): (N, C, H, W) → (N, C, 1, 1)."""
    return adaptive_avg_pool2d(x, 1)


def max_unpool2d(
    x: Any,
    indices: Any,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    output_size: tuple[int, ...] | None = None,
) -> Any:
    """The way back from max_pool2d: each value goes to where its maximum stood, zeros elsewhere (Zeiler & Fergus 2014).

    H = (P − 1)·stride − 2·padding + kernel. Where windows overlapped, a place may be named several times: it holds the
    last of the values, and each of them gets the place's gradient, as in PyTorch.

    - x, indices: (N, C, P, Q), indices from max_pool2d(…, return_indices=True)
    - kernel_size, stride, padding: those of the pooling
    - output_size: (H, W), or the (N, C, H, W) that was pooled; needed where pooling left a border unused
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    x_shape = shape_of("max_unpool2d", "x", x)
    size = ops.unpool_size("max_unpool2d", x_shape, kernel_size, stride, padding, output_size)
    checked = ops.check_indices("max_unpool2d", x_shape, _array(indices), size)
    return MaxUnpool2d(checked, size)(x)


def lp_pool2d(x: Any, norm_type: float, kernel_size: Pair, stride: Pair | None = None, ceil_mode: bool = False) -> Any:
    """y = (Σ x^p)^(1/p) over each window, p = norm_type (Sermanet, Chintala & LeCun 2012); a sum at p = 1.

    As in PyTorch no absolute value is taken (for odd p apply it to what is negative, else the root may be NaN), the
    gradient of a window whose y is 0 is 0, and a window that ceil_mode lets reach over the border counts its mean for
    the missing pixels. The sizes are those of max_pool2d.

    - x: (N, C, H, W); norm_type: a number of at least 1; kernel_size, stride (default: kernel_size): pixels
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    return _lp_pool2d("lp_pool2d", x, norm_type, kernel_size, stride, ceil_mode)


def l2_pool2d(x: Any, kernel_size: Pair, stride: Pair | None = None, ceil_mode: bool = False) -> Any:
    """y = √Σ x² over each window: lp_pool2d with norm_type 2."""
    return _lp_pool2d("l2_pool2d", x, 2.0, kernel_size, stride, ceil_mode)


def l2_pool_channels(x: Any, size: int, stride: int | None = None) -> Any:
    """y[n, k] = √Σ x[n, k·stride + i]² for i < size: invariance from neighbouring channels (Kavukcuoglu et al. 2009).

    - x: (N, C, …); the result has (C − size) // stride + 1 channels; where it is 0 the gradient is 0
    - size, stride (default: size): channels
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    N, C, *rest = _checked_channels(x, size, stride)
    shape = ops.pool_shape("l2_pool_channels", (N, 1, C, math.prod(rest)), (size, 1), (stride or size, 1))
    y = LpPool2d(2.0, shape)(arithmetic.reshape(x, shape.x))
    return arithmetic.reshape(y, N, shape.P, *rest)


def _lp_pool2d(
    operation: str, x: Any, norm_type: float, kernel_size: Pair, stride: Pair | None, ceil_mode: bool
) -> Any:
    require_float(operation, halves=True, x=_array(x))
    if not 1 <= norm_type < math.inf:
        raise ValueError(f"{operation}: norm_type is {norm_type}; it must be a finite number of at least 1")
    shape = ops.pool_shape(operation, shape_of(operation, "x", x), kernel_size, stride, ceil_mode=ceil_mode)
    return LpPool2d(float(norm_type), shape)(x)


def _checked_channels(x: Any, size: int, stride: int | None) -> tuple[int, ...]:
    require_float("l2_pool_channels", halves=True, x=_array(x))
    for name, value in (("size", size), ("stride", size if stride is None else stride)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"l2_pool_channels: {name} is {value!r}; it must be a positive integer")
    if x.ndim < 2 or size > x.shape[1]:
        raise ValueError(f"l2_pool_channels: x has shape {x.shape}; it must be (N, C, …) with at least {size} channels")
    return tuple(x.shape)


def _array(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value
