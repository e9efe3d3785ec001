"""Convolution of arrays: three passes, and tables of algorithms for each of them.

conv2d is cross-correlation, as everywhere in deep learning:
y[n,k,p,q] = b[k] + Σ_{c,r,s} x[n, c, p·stride + r·dilation − padding, q·stride + s·dilation − padding] · w[k,c,r,s].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.launch import grid_for, launch
from gpucnn.ops import conv_sums
from gpucnn.ops.conv_half import is_half
from gpucnn.ops.conv_table import run
from gpucnn.ops.shapes import ConvShape, require_float


def check_operands(operation: str, x: Any, weight: Any, bias: Any, filters: int) -> None:
    """Raise TypeError for dtypes that do not fit, and ValueError unless bias is None or (filters,)."""
    _check_dtypes(operation, {"x": x}, {"weight": weight, "bias": bias})
    if bias is not None and bias.shape != (filters,):
        raise ValueError(
            f"{operation}: bias has shape {bias.shape} but weight has {filters} filters; it must be ({filters},)"
        )


def _check_dtypes(operation: str, data: dict[str, Any], parameters: dict[str, Any] | None = None) -> None:
    """Raise TypeError unless all have one dtype; beside 16-bit data parameters may be float32 masters."""
    parameters = parameters or {}
    name, first = next(iter(data.items()))
    if not (devices.is_array(first) and is_half(first.dtype)):
        return require_float(operation, **data, **parameters)
    for other, array in (data | parameters).items():
        if array is None:
            continue
        if not devices.is_array(array):
            raise TypeError(f"{operation}: {other} is {type(array).__name__}; it must be a Tensor or an array")
        if array.dtype != first.dtype and not (other in parameters and array.dtype == np.float32):
            also = " or float32" if other in parameters else ""
            raise TypeError(f"{operation}: {other} is {array.dtype} but {name} is {first.dtype}; it must be that{also}")
        if devices.of(array) != devices.of(first):
            raise TypeError(
                f"{operation}: {other} is on {devices.of(array)} but {name} is on {devices.of(first)}; move one of them "
                "with .to(device)"
            )


def _in_float32(array: Any) -> bool:
    """Whether an array has 16 bits, and is on the CPU: it is computed in float32 and rounded once."""
    return is_half(array.dtype) and not devices.runs_kernels(array)


def _float32(*arrays: Any) -> list[Any]:
    return [None if array is None else array.astype(np.float32) for array in arrays]


def _images(shape: tuple[int, ...], like: Any) -> Any:
    """Uninitialised images (N,C,H,W) of the dtype of others; 16-bit ones also take their order in memory."""
    if is_half(like.dtype) and not like.flags.c_contiguous and like.transpose(0, 2, 3, 1).flags.c_contiguous:
        N, C, H, W = shape
        return devices.empty((N, H, W, C), like.dtype, like).transpose(0, 3, 1, 2)
    return devices.empty(shape, like.dtype, like)


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
    x may be bfloat16 or float16, with weight and bias of its dtype or float32; y then has x's dtype and order in memory,
    channels-last or not. Kernels compute it on tensor cores from sm_80, the CPU in float32, rounded once.
    Raises TypeError for other dtypes or ones that differ, ValueError for a bias of another shape, and
    UnsupportedAlgorithm, also for an algorithm that needs more workspace.
    """
    check_operands("conv2d", x, weight, bias, shape.K)
    if _in_float32(x):
        return conv2d_forward(*_float32(x, weight, bias), shape, algorithm, relu, workspace_limit).astype(x.dtype)
    y = _images(shape.y, x)
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
    _check_dtypes("conv2d_backward_input", {"gy": gy}, {"weight": weight})
    if _in_float32(gy):
        return conv2d_backward_input(*_float32(gy, weight), shape, algorithm, workspace_limit).astype(gy.dtype)
    gx = _images(shape.x, gy)
    gy = gy if devices.runs_kernels(gy) else devices.contiguous(gy)
    run("conv2d_backward_input", shape, algorithm, workspace_limit, gy, devices.contiguous(weight), gx, shape)
    return gx


def conv2d_backward_weight(
    x: Any,
    gy: Any,
    shape: ConvShape,
    algorithm: str = "auto",
    workspace_limit: int | None = None,
    dtype: Any = None,
) -> np.ndarray:
    """gw (K,C/groups,R,S), the gradient of weight, from x and gy (N,K,P,Q); raises as conv2d_forward does.

    - dtype: of gw; None: gy's. For 16-bit images it may be float32, the sums as they are.
    """
    _check_dtypes("conv2d_backward_weight", {"x": x, "gy": gy})
    dtype = np.dtype(gy.dtype if dtype is None else dtype)
    if dtype != gy.dtype and not (is_half(gy.dtype) and dtype == np.float32):
        raise TypeError(f"conv2d_backward_weight: dtype is {dtype}; of {gy.dtype} images it must be theirs or float32")
    if _in_float32(gy):
        return conv2d_backward_weight(*_float32(x, gy), shape, algorithm, workspace_limit).astype(dtype, copy=False)
    gw = devices.empty(shape.weight, dtype, gy)
    if not devices.runs_kernels(gy):
        x, gy = devices.contiguous(x), devices.contiguous(gy)
    run("conv2d_backward_weight", shape, algorithm, workspace_limit, x, gy, gw, shape)
    return gw


def conv2d_backward_bias(gy: Any, dtype: Any = None) -> np.ndarray:
    """gb (K,) = Σ gy (N,K,P,Q) over n, p and q; of 16-bit gy its sums are float32, and rounded once to `dtype`.

    - dtype: of gb; None: gy's
    """
    _check_dtypes("conv2d_backward_bias", {"gy": gy})
    dtype = np.dtype(gy.dtype if dtype is None else dtype)
    if _in_float32(gy):
        return conv2d_backward_bias(*_float32(gy)).astype(dtype, copy=False)
    gb = devices.empty(gy.shape[1], np.float32 if is_half(gy.dtype) else gy.dtype, gy)
    if devices.runs_kernels(gy):
        conv_sums.sum_channels(gy, gb)
    else:
        _C.conv2d_backward_bias(devices.contiguous(gy), gb)
    return _rounded(gb, dtype)


def _rounded(sums: Any, dtype: np.dtype) -> Any:
    """Float32 sums where kernels run, in another dtype."""
    if sums.dtype == dtype:
        return sums
    rounded = devices.empty(sums.shape, dtype, sums)
    launch(f"cast_float32_{dtype.name}", grid_for(sums.size), sums, rounded, sums.size)
    return rounded
