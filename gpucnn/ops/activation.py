"""Element-wise activations and softmax of arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.launch import grid_for, launch
from gpucnn.ops.cast import in_float32, is_channels_last, kernel_of
from gpucnn.ops.shapes import require_float

THREADS, WARP_SIZE = 256, 32  # as in kernels/softmax.cuh
SHORT_ROW = 1024


@in_float32(native=True)
def relu_forward(x: Any) -> np.ndarray:
    """y = max(x, 0); NaN stays NaN."""
    require_float("relu", halves=True, x=x)
    if devices.runs_kernels(x):
        return _run("relu_forward", x)
    x = devices.contiguous(x)
    y = devices.empty_like(x)
    _C.relu_forward(x, y)
    return y


@in_float32(native=True)
def relu_backward(y: np.ndarray, gy: Any) -> np.ndarray:
    """gx = gy where y > 0, else 0."""
    if devices.runs_kernels(y):
        return _run("relu_backward", y, gy)
    y, gy = devices.contiguous(y), devices.contiguous(gy)
    gx = devices.empty_like(y)
    _C.relu_backward(y, gy, gx)
    return gx


@in_float32(native=True)
def leaky_relu_forward(x: Any, negative_slope: float) -> np.ndarray:
    """y = x where x > 0, else negative_slope · x."""
    require_float("leaky_relu", halves=True, x=x)
    if devices.runs_kernels(x):
        return _run("leaky_relu_forward", x, options=(negative_slope,))
    return np.where(x > 0, x, negative_slope * x)


@in_float32(native=True)
def leaky_relu_backward(x: np.ndarray, gy: Any, negative_slope: float) -> np.ndarray:
    """gx = gy where x > 0, else negative_slope · gy."""
    if devices.runs_kernels(x):
        return _run("leaky_relu_backward", x, gy, options=(negative_slope,))
    return np.where(x > 0, gy, negative_slope * gy)


@in_float32(native=True)
def elu_forward(x: Any, alpha: float) -> np.ndarray:
    """y = x where x > 0, else alpha · (e^x − 1)."""
    require_float("elu", halves=True, x=x)
    if devices.runs_kernels(x):
        return _run("elu_forward", x, options=(alpha,))
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


@in_float32(native=True)
def elu_backward(x: np.ndarray, gy: Any, alpha: float) -> np.ndarray:
    """gx = gy where x > 0, else gy · alpha · e^x."""
    if devices.runs_kernels(x):
        return _run("elu_backward", x, gy, options=(alpha,))
    return np.where(x > 0, gy, gy * (alpha * np.exp(np.minimum(x, 0))))


@in_float32(native=True)
def tanh_forward(x: Any) -> np.ndarray:
    """y = tanh(x)."""
    require_float("tanh", halves=True, x=x)
    if devices.runs_kernels(x):
        return _run("tanh_forward", x)
    return np.tanh(x)


@in_float32(native=True)
def tanh_backward(y: np.ndarray, gy: Any) -> np.ndarray:
    """gx = gy · (1 − y²)."""
    if devices.runs_kernels(y):
        return _run("tanh_backward", y, gy)
    return gy * (1 - y * y)


@in_float32(native=True)
def sigmoid_forward(x: Any) -> np.ndarray:
    """y = 1 / (1 + e^−x), from e^−|x| so that nothing overflows."""
    require_float("sigmoid", halves=True, x=x)
    if devices.runs_kernels(x):
        return _run("sigmoid_forward", x)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


@in_float32(native=True)
def sigmoid_backward(y: np.ndarray, gy: Any) -> np.ndarray:
    """gx = gy · y · (1 − y)."""
    if devices.runs_kernels(y):
        return _run("sigmoid_backward", y, gy)
    return gy * y * (1 - y)


def _run(kernel: str, *inputs: Any, options: tuple[float, ...] = ()) -> Any:
    """The output of an element-wise kernel, which takes 16 bytes a thread; channels-last arrays stay that."""
    if all(map(is_channels_last, inputs)):
        return np.moveaxis(_run(kernel, *(np.moveaxis(each, 1, -1) for each in inputs), options=options), -1, 1)
    arrays = [devices.contiguous(array) for array in inputs]
    output = devices.empty_like(arrays[0])
    blocks = grid_for(-(-output.size * output.itemsize // 16))
    launch(kernel_of(kernel, output), blocks, *arrays, output, output.size, *options)
    return output


def softmax_forward(x: Any, axis: int) -> np.ndarray:
    """y = e^x / Σ e^x along `axis`, the maximum subtracted first."""
    require_float("softmax", x=x)
    if devices.runs_kernels(x):
        return _along("softmax_forward", axis, x)
    with np.errstate(invalid="ignore"):  # a row of infinities is NaN, as it is everywhere
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return e / e.sum(axis=axis, keepdims=True)


def softmax_backward(y: np.ndarray, gy: Any, axis: int) -> np.ndarray:
    """gx = y · (gy − Σ gy·y)."""
    if devices.runs_kernels(y):
        return _along("softmax_backward", axis, y, gy)
    return y * (gy - (gy * y).sum(axis=axis, keepdims=True))


def log_softmax_forward(x: Any, axis: int) -> np.ndarray:
    """y = x − log Σ e^x along `axis`, the maximum subtracted first."""
    require_float("log_softmax", x=x)
    if devices.runs_kernels(x):
        return _along("log_softmax_forward", axis, x)
    with np.errstate(invalid="ignore"):
        shifted = x - x.max(axis=axis, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def log_softmax_backward(y: np.ndarray, gy: Any, axis: int) -> np.ndarray:
    """gx = gy − e^y · Σ gy."""
    if devices.runs_kernels(y):
        return _along("log_softmax_backward", axis, y, gy)
    return gy - np.exp(y) * gy.sum(axis=axis, keepdims=True)


def _along(kernel: str, axis: int, *arrays: Any) -> Any:
    """What a kernel of rows makes of the arrays, with `axis` as the last one there."""
    rows = [devices.contiguous(np.moveaxis(array, axis, -1)) for array in arrays]
    result = devices.empty_like(rows[0])
    launch_rows(kernel, *rows, result, shape=(math.prod(result.shape[:-1]), result.shape[-1]))
    return np.moveaxis(result, -1, axis)


def launch_rows(kernel: str, *arguments: Any, shape: tuple[int, int], more: tuple[Any, ...] = ()) -> None:
    """Launch the variant of `kernel` that suits rows of this length: a warp shares a short row, a block a long one."""
    rows, length = shape
    group = WARP_SIZE if length <= SHORT_ROW else THREADS
    launch(f"{kernel}_{group}", -(-rows * group // THREADS), *arguments, rows, length, *more)
