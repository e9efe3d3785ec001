"""Pooling of arrays (N,C,H,W) over windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn.ops.shapes import Pair, PoolShape, pair, require_float, require_ndim


def max_pool2d_forward(x: Any, shape: PoolShape) -> tuple[np.ndarray, np.ndarray]:
    """(y, indices), each (N,C,P,Q): the windows' maxima and where they stood, h·W + w (int64); padding never wins."""
    require_float("max_pool2d", x=x)
    y, indices = np.empty(shape.y, x.dtype), np.empty(shape.y, np.int64)
    _C.max_pool2d_forward(np.ascontiguousarray(x), y, indices, shape.window)
    return y, indices


def max_pool2d_backward(gy: Any, indices: np.ndarray, shape: PoolShape) -> np.ndarray:
    """gx (N,C,H,W): each gradient goes to where its maximum stood; overlapping windows add up."""
    require_float("max_pool2d_backward", gy=gy)
    gx = np.empty(shape.x, gy.dtype)
    _C.max_pool2d_backward(np.ascontiguousarray(gy), indices, gx)
    return gx


def avg_pool2d_forward(x: Any, shape: PoolShape, count_include_pad: bool) -> np.ndarray:
    """y (N,C,P,Q): the windows' means; count_include_pad counts padding as zeros, else only real pixels count."""
    require_float("avg_pool2d", x=x)
    y = np.empty(shape.y, x.dtype)
    _C.avg_pool2d_forward(np.ascontiguousarray(x), y, shape.window, count_include_pad)
    return y


def avg_pool2d_backward(gy: Any, shape: PoolShape, count_include_pad: bool) -> np.ndarray:
    """gx (N,C,H,W) of avg_pool2d_forward."""
    require_float("avg_pool2d_backward", gy=gy)
    gx = np.empty(shape.x, gy.dtype)
    _C.avg_pool2d_backward(np.ascontiguousarray(gy), gx, shape.window, count_include_pad)
    return gx


def adaptive_avg_pool2d_forward(x: Any, output_size: Pair) -> np.ndarray:
    """y (N,C,P,Q) for output_size (P,Q): window i covers rows floor(i·H/P) up to ceil((i+1)·H/P)."""
    require_float("adaptive_avg_pool2d", x=x)
    require_ndim("adaptive_avg_pool2d", "x", x.shape, 4, "(N, C, H, W)")
    if min(x.shape[2:]) < 1:
        raise ValueError(f"adaptive_avg_pool2d: x has no pixels (shape {x.shape})")
    y = np.empty((*x.shape[:2], *pair("adaptive_avg_pool2d", "output_size", output_size, 1)), x.dtype)
    _C.adaptive_avg_pool2d_forward(np.ascontiguousarray(x), y)
    return y


def adaptive_avg_pool2d_backward(gy: Any, x_shape: tuple[int, ...]) -> np.ndarray:
    """gx (N,C,H,W) of adaptive_avg_pool2d_forward."""
    gx = np.empty(x_shape, gy.dtype)
    _C.adaptive_avg_pool2d_backward(np.ascontiguousarray(gy), gx)
    return gx
