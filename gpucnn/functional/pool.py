"""Pooling."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.ops.shapes import Pair, PoolShape, shape_of
from gpucnn.tensor import Function


class MaxPool2d(Function):
    def __init__(self, shape: PoolShape) -> None:
        self.shape = shape

    def forward(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        y, self.indices = ops.max_pool2d_forward(x, self.shape)
        return y, self.indices

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
    results = MaxPool2d(shape)(x)
    return results if return_indices else results[0]


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
