"""Direct convolution of bfloat16 and float16 arrays where kernels run: by way of float32.

For groups of few channels, depthwise above all: a tile of tensor cores would multiply mostly by zeros, so both
conversions cost less. The kernels are those of conv_direct.py, the result is rounded once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import grid_for, launch
from gpucnn.ops import conv_direct
from gpucnn.ops.shapes import ConvShape


def supports(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """None, or the reason why not."""
    if shape.groups == 1 or shape.C // shape.groups >= 16:
        return f"of {dtype.name} it takes groups of fewer than 16 channels, which it converts to float32"
    return conv_direct.supports(shape, np.dtype(np.float32), device)


def forward(
    x: Any, w: Any, b: Any, y: Any, shape: ConvShape, relu: bool = False, workspace_limit: int | None = None
) -> None:
    """y (N,K,P,Q), overwritten, with bias b (K,) unless it is None; with `relu` max(y, 0)."""
    sums = devices.empty(shape.y, np.float32, y)
    conv_direct.forward(_wide(x), _wide(w), _wide(b), sums, shape, relu)
    _round(sums, y)


def backward_input(gy: Any, w: Any, gx: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gx (N,C,H,W), overwritten."""
    sums = devices.empty(shape.x, np.float32, gx)
    conv_direct.backward_input(_wide(gy), _wide(w), sums, shape)
    _round(sums, gx)


def backward_weight(x: Any, gy: Any, gw: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gw (K,C/groups,R,S), float32 or of x's dtype, overwritten."""
    sums = gw if gw.dtype == np.float32 else devices.empty(shape.weight, np.float32, gw)
    limit = None if workspace_limit is None else max(0, workspace_limit - _bytes(shape))
    conv_direct.backward_weight(_wide(x), _wide(gy), sums, shape, limit)
    if sums is not gw:
        _round(sums, gw)


def forward_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Bytes of all arrays in float32."""
    return _bytes(shape)


def backward_input_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Bytes of all arrays in float32."""
    return _bytes(shape)


def backward_weight_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Bytes of all arrays in float32, and of partial sums, as many as fit the limit."""
    left = None if limit is None else max(0, limit - _bytes(shape))
    return _bytes(shape) + conv_direct.backward_weight_workspace(shape, np.dtype(np.float32), left)


def _bytes(shape: ConvShape) -> int:
    return 4 * (math.prod(shape.x) + math.prod(shape.y) + math.prod(shape.weight) + shape.K)


def _wide(array: Any) -> Any:
    if array is None or array.dtype == np.float32:
        return array
    array = devices.contiguous(array)
    wide = devices.empty(array.shape, np.float32, array)
    launch(f"cast_{array.dtype.name}_float32", grid_for(array.size), array, wide, array.size)
    return wide


def _round(sums: Any, target: Any) -> None:
    rounded = target if target.flags.c_contiguous else devices.empty(target.shape, target.dtype, target)
    launch(f"cast_float32_{target.dtype.name}", grid_for(sums.size), sums, rounded, sums.size)
    if rounded is not target:
        devices.require_launch(f"a copy to channels-last images of shape {target.shape}")
        target[...] = rounded
