"""Pooling of arrays (N,C,H,W) over windows, and its reverse.

The indices that forward passes return are int64 on the CPU and int32 where kernels run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.ops import pool_kernels
from gpucnn.ops.cast import in_float32
from gpucnn.ops.shapes import Pair, PoolShape, pair, require_float, require_ndim


@in_float32(native=True)
def max_pool2d_forward(x: Any, shape: PoolShape) -> tuple[np.ndarray, np.ndarray]:
    """(y, indices), each (N,C,P,Q): the windows' maxima and where they stood, h·W + w; padding never wins."""
    require_float("max_pool2d", halves=True, x=x)
    if devices.runs_kernels(x):
        return pool_kernels.max_pool2d_forward(x, shape)
    y, indices = np.empty(shape.y, x.dtype), np.empty(shape.y, np.int64)
    _C.max_pool2d_forward(np.ascontiguousarray(x), y, indices, shape.window)
    return y, indices


@in_float32(native=True)
def max_pool2d_backward(gy: Any, indices: np.ndarray, shape: PoolShape) -> np.ndarray:
    """gx (N,C,H,W): each gradient goes to where its maximum stood; overlapping windows add up."""
    require_float("max_pool2d_backward", halves=True, gy=gy)
    if devices.runs_kernels(gy):
        return pool_kernels.max_pool2d_backward(gy, indices, shape)
    gx = np.empty(shape.x, gy.dtype)
    _C.max_pool2d_backward(np.ascontiguousarray(gy), indices, gx)
    return gx


@in_float32(native=True)
def avg_pool2d_forward(x: Any, shape: PoolShape, count_include_pad: bool) -> np.ndarray:
    """y (N,C,P,Q): the windows' means; count_include_pad counts padding as zeros, else only real pixels count."""
    require_float("avg_pool2d", halves=True, x=x)
    if devices.runs_kernels(x):
        return pool_kernels.avg_pool2d_forward(x, shape, count_include_pad)
    y = np.empty(shape.y, x.dtype)
    _C.avg_pool2d_forward(np.ascontiguousarray(x), y, shape.window, count_include_pad)
    return y


@in_float32(native=True)
def avg_pool2d_backward(gy: Any, shape: PoolShape, count_include_pad: bool) -> np.ndarray:
    """gx (N,C,H,W) of avg_pool2d_forward."""
    require_float("avg_pool2d_backward", halves=True, gy=gy)
    if devices.runs_kernels(gy):
        return pool_kernels.avg_pool2d_backward(gy, shape, count_include_pad)
    gx = np.empty(shape.x, gy.dtype)
    _C.avg_pool2d_backward(np.ascontiguousarray(gy), gx, shape.window, count_include_pad)
    return gx


@in_float32(native=True)
def adaptive_avg_pool2d_forward(x: Any, output_size: Pair) -> np.ndarray:
    """y (N,C,P,Q) for output_size (P,Q): window i covers rows floor(i·H/P) up to ceil((i+1)·H/P)."""
    require_float("adaptive_avg_pool2d", halves=True, x=x)
    require_ndim("adaptive_avg_pool2d", "x", x.shape, 4, "(N, C, H, W)")
    if min(x.shape[2:]) < 1:
        raise ValueError(f"adaptive_avg_pool2d: x has no pixels (shape {x.shape})")
    size = pair("adaptive_avg_pool2d", "output_size", output_size, 1)
    if devices.runs_kernels(x):
        return pool_kernels.adaptive_avg_pool2d_forward(x, size)
    y = np.empty((*x.shape[:2], *size), x.dtype)
    _C.adaptive_avg_pool2d_forward(np.ascontiguousarray(x), y)
    return y


@in_float32(native=True)
def adaptive_avg_pool2d_backward(gy: Any, x_shape: tuple[int, ...]) -> np.ndarray:
    """gx (N,C,H,W) of adaptive_avg_pool2d_forward."""
    if devices.runs_kernels(gy):
        return pool_kernels.adaptive_avg_pool2d_backward(gy, x_shape)
    gx = np.empty(x_shape, gy.dtype)
    _C.adaptive_avg_pool2d_backward(np.ascontiguousarray(gy), gx)
    return gx


@in_float32()
def lp_pool2d_forward(x: Any, norm_type: float, shape: PoolShape) -> np.ndarray:
    """y (N,C,P,Q) = (Σ x^p)^(1/p) for p = norm_type, from the windows' means; NaN where a power or root is not real."""
    if devices.runs_kernels(x):
        return pool_kernels.lp_pool2d_forward(x, norm_type, shape)
    with np.errstate(invalid="ignore"):
        means = avg_pool2d_forward(x**norm_type, shape, count_include_pad=True)
        return (means * (shape.kernel[0] * shape.kernel[1])) ** (1 / norm_type)


@in_float32()
def lp_pool2d_backward(x: np.ndarray, y: np.ndarray, gy: Any, norm_type: float, shape: PoolShape) -> np.ndarray:
    """gx (N,C,H,W) = x^(p−1) · Σ gy · y^(1−p) over the windows with this pixel; a window whose y is 0 adds nothing."""
    if devices.runs_kernels(x):
        return pool_kernels.lp_pool2d_backward(x, y, gy, norm_type, shape)
    with np.errstate(invalid="ignore"):
        rates = np.where(y == 0, 0, gy * np.where(y == 0, 1, y) ** (1 - norm_type))
        sums = avg_pool2d_backward(rates, shape, count_include_pad=True) * (shape.kernel[0] * shape.kernel[1])
        return x ** (norm_type - 1) * sums


@in_float32()
def adaptive_max_pool2d_forward(x: Any, output_size: Pair) -> tuple[np.ndarray, np.ndarray]:
    """(y, indices), each (N,C,P,Q), over the windows of adaptive_avg_pool2d_forward; indices as max_pool2d_forward."""
    require_float("adaptive_max_pool2d", x=x)
    require_ndim("adaptive_max_pool2d", "x", x.shape, 4, "(N, C, H, W)")
    if min(x.shape[2:]) < 1:
        raise ValueError(f"adaptive_max_pool2d: x has no pixels (shape {x.shape})")
    N, C, H, W = x.shape
    P, Q = pair("adaptive_max_pool2d", "output_size", output_size, 1)
    if devices.runs_kernels(x):
        return pool_kernels.adaptive_max_pool2d_forward(x, (P, Q))
    indices = np.empty((N, C, P, Q), np.int64)
    for p, (top, bottom) in enumerate(_adaptive_windows(H, P)):
        for q, (left, right) in enumerate(_adaptive_windows(W, Q)):
            window = x[:, :, top:bottom, left:right].reshape(N, C, (bottom - top) * (right - left))
            row, column = np.divmod(window.argmax(axis=2), right - left)  # argmax takes NaN for the largest
            indices[:, :, p, q] = (top + row) * W + left + column
    return _taken(x, indices), indices


@in_float32()
def adaptive_max_pool2d_backward(gy: Any, indices: np.ndarray, x_shape: tuple[int, ...]) -> np.ndarray:
    """gx (N,C,H,W) of adaptive_max_pool2d_forward: each gradient goes to where its maximum stood."""
    if devices.runs_kernels(gy):
        return pool_kernels.adaptive_max_pool2d_backward(gy, indices, x_shape)
    gx = np.empty(x_shape, gy.dtype)
    _C.max_pool2d_backward(np.ascontiguousarray(gy), indices, gx)
    return gx


@in_float32()
def max_unpool2d_forward(x: Any, indices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """y (N,C,H,W) for size (H,W): each value where its index h·W + w says, else 0; of several the last."""
    require_float("max_unpool2d", x=x)
    if devices.runs_kernels(x):
        return pool_kernels.max_unpool2d_forward(x, indices, size)
    y = np.zeros((*x.shape[:2], size[0] * size[1]), x.dtype)
    np.put_along_axis(y, _planes(indices), _planes(x), axis=2)
    return y.reshape(*x.shape[:2], *size)


@in_float32()
def max_unpool2d_backward(gy: Any, indices: np.ndarray) -> np.ndarray:
    """gx (N,C,P,Q): the gradient at each value's place."""
    if devices.runs_kernels(gy):
        return pool_kernels.max_unpool2d_backward(gy, indices)
    return _taken(gy, indices)


def unpool_size(
    operation: str,
    x: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    output_size: tuple[int, ...] | None = None,
) -> tuple[int, int]:
    """(H, W) from which pooling came to x (N,C,P,Q): (P − 1)·stride − 2·padding + kernel, or output_size if it can be.

    Pooling rounds down (or up), so H and W may differ by up to stride − 1. Raises ValueError naming what does not fit.
    """
    require_ndim(operation, "x", x, 4, "(N, C, P, Q)")
    kernels = pair(operation, "kernel_size", kernel_size, 1)
    strides = kernels if stride is None else pair(operation, "stride", stride, 1)
    paddings = pair(operation, "padding", padding, 0)
    H, W = ((n - 1) * s - 2 * p + k for n, s, p, k in zip(x[2:], strides, paddings, kernels, strict=True))
    if output_size is not None:
        wanted = output_size[2:] if isinstance(output_size, (tuple, list)) and len(output_size) == 4 else output_size
        size = pair(operation, "output_size", wanted, 1)
        if any(abs(n - d) >= s for n, d, s in zip(size, (H, W), strides, strict=True)):
            raise ValueError(
                f"{operation}: output_size is {size}; it must be less than stride {strides} away from {(H, W)}"
            )
        return size
    if min(H, W) < 1:
        raise ValueError(f"{operation}: the output would be empty: {H}x{W}; use less padding or a larger kernel_size")
    return H, W


def check_indices(operation: str, x: tuple[int, ...], indices: Any, size: tuple[int, int]) -> np.ndarray:
    """indices as int64, of the shape of x and from 0 to H·W − 1; raises TypeError or ValueError otherwise."""
    indices = devices.as_array(indices)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"{operation}: indices are {indices.dtype}; they must be integers, from max_pool2d's indices")
    if indices.shape != x:
        raise ValueError(f"{operation}: indices have shape {indices.shape} but x has {x}; they must be equal")
    low, high = (int(indices.min()), int(indices.max())) if indices.size else (0, 0)
    if indices.size and not (0 <= low and high < size[0] * size[1]):
        raise ValueError(
            f"{operation}: indices from {low} to {high} do not fit an image of {size[0]}x{size[1]}; "
            "give the kernel_size, stride and padding of the pooling, and output_size where it left a border unused"
        )
    return indices.astype(np.int64, copy=False)


def _adaptive_windows(size: int, count: int) -> list[tuple[int, int]]:
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _planes(array: np.ndarray) -> np.ndarray:
    N, C, H, W = array.shape
    return array.reshape(N, C, H * W)


def _taken(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.take_along_axis(_planes(x), _planes(indices), axis=2).reshape(indices.shape)
