"""Convolution of arrays: three passes, and tables of algorithms for each of them.

conv2d is cross-correlation, as everywhere in deep learning:
y[n,k,p,q] = b[k] + Σ_{c,r,s} x[n, c, p·stride + r·dilation − padding, q·stride + s·dilation − padding] · w[k,c,r,s].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.ops import conv_sums
from gpucnn.ops.conv_table import run
from gpucnn.ops.shapes import ConvShape, require_float


def check_operands(operation: str, x: Any, weight: Any, bias: Any, filters: int) -> None:
    """Raise TypeError for dtypes that do not fit, and ValueError unless bias is None or (filters,)."""
    require_float(operation, x=x, weight=weight, bias=bias)
    if bias is not None and bias.shape != (filters,):
        raise ValueError(
            f"{operation}: bias has shape {bias.shape} but weight has {filters} filters; it must be ({filters},)"
        )


def conv2d_forward(
    x: Any,
    weight: Any,
    bias: Any,
    shape: ConvShape,
    algorithm: str = "auto",
    relu: bool = False,
    workspace_limit: int | None = None,
) -> np.ndarray:
    """y (N,K,P,Q) = x (N,C,H,W) convolved with weight (K,C/groups,R,S), plus bias (K,) unless it is None.

    - relu: y = max(y, 0), in the same pass over memory where kernels run
    - workspace_limit: bytes beside the arrays that the algorithm may take; None: `gpucnn.workspace_limit`'s
    Raises TypeError for dtypes that differ or are not float32/float64, ValueError for a bias of another shape, and
    UnsupportedAlgorithm, also for an algorithm that needs more workspace.
    """
    check_operands("conv2d", x, weight, bias, shape.K)
    y = devices.empty(shape.y, x.dtype, x)
    weight, bias = devices.contiguous(weight), devices.contiguous(bias)
    if devices.runs_kernels(x):
        run("conv2d_forward", shape, algorithm, workspace_limit, x, weight, bias, y, shape, relu)
        return y
    run("conv2d_forward", shape, algorithm, workspace_limit, devices.contiguous(x), weight, bias, y, shape)
    if relu:
        _C.relu_forward(y, y)
    return y


def conv2d_backward_input(
    gy: Any, weight: Any, shape: ConvShape, algorithm: str = "auto", workspace_limit: int | None = None
) -> np.ndarray:
    """gx (N,C,H,W), the gradient of x, from gy (N,K,P,Q) and weight; raises as conv2d_forward does."""
    require_float("conv2d_backward_input", gy=gy, weight=weight)
    gx = devices.empty(shape.x, gy.dtype, gy)
    gy = gy if devices.runs_kernels(gy) else devices.contiguous(gy)
    run("conv2d_backward_input", shape, algorithm, workspace_limit, gy, devices.contiguous(weight), gx, shape)
    return gx


def conv2d_backward_weight(
    x: Any, gy: Any, shape: ConvShape, algorithm: str = "auto", workspace_limit: int | None = None
) -> np.ndarray:
    """gw (K,C/groups,R,S), the gradient of weight, from x and gy (N,K,P,Q); raises as conv2d_forward does."""
    require_float("conv2d_backward_weight", x=x, gy=gy)
    gw = devices.empty(shape.weight, gy.dtype, gy)
    if not devices.runs_kernels(gy):
        x, gy = devices.contiguous(x), devices.contiguous(gy)
    run("conv2d_backward_weight", shape, algorithm, workspace_limit, x, gy, gw, shape)
    return gw


def conv2d_backward_bias(gy: Any) -> np.ndarray:
    """gb (K,) = Σ gy (N,K,P,Q) over n, p and q."""
    require_float("conv2d_backward_bias", gy=gy)
    gb = devices.empty(gy.shape[1], gy.dtype, gy)
    if devices.runs_kernels(gy):
        conv_sums.sum_channels(gy, gb)
    else:
        _C.conv2d_backward_bias(devices.contiguous(gy), gb)
    return gb
