"""Pooling on devices that run kernels: the geometry as kernels/pool.cuh takes it, the choice of kernel, launches.

The functions are those of pool.py, which checks their arguments. x may have any strides; switches are int32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import Strided, launch
from gpucnn.launch.division import divisor
from gpucnn.ops.cast import kernel_of
from gpucnn.ops.shapes import PoolShape

THREADS = 256  # POOL_THREADS of kernels/pool.cuh
WARP = 32


def max_pool2d_forward(x: Any, shape: PoolShape) -> tuple[Any, Any]:
    """(y, switches), each (N,C,P,Q)."""
    _require_pixels(shape)
    y, switches = devices.empty(shape.y, x.dtype, x), devices.empty(shape.y, np.int32, x)
    if _tiles_in_pairs(shape) and x.flags.c_contiguous and _is_aligned(x, 16):
        kernel = kernel_of("max_pool2d_forward_vector", x)
        launch(kernel, -(-y.size // (2 * THREADS)), x, y, switches, _window_pairs(shape))
    else:
        _launch_outputs(f"max_pool2d_forward_{_window(shape)}", shape, x, y, switches)
    return y, switches


def max_pool2d_backward(gy: Any, switches: Any, shape: PoolShape) -> Any:
    """gx (N,C,H,W)."""
    gy, switches = devices.contiguous(gy), devices.contiguous(switches)
    gx = devices.empty(shape.x, gy.dtype, gy)
    if _tiles_in_pairs(shape) and _is_aligned(gy, 8) and _is_aligned(switches, 8):
        kernel = kernel_of("max_pool2d_backward_vector", gy)
        launch(kernel, -(-gy.size // (2 * THREADS)), gy, switches, gx, _window_pairs(shape))
    else:
        _launch_inputs(f"max_pool2d_backward_{_overlap(shape)}", shape, gy, switches, gx)
    return gx


def avg_pool2d_forward(x: Any, shape: PoolShape, count_include_pad: bool) -> Any:
    """y (N,C,P,Q)."""
    if shape.kernel == (shape.H, shape.W) and shape.padding == (0, 0) and shape.P == shape.Q == 1:
        return adaptive_avg_pool2d_forward(x, (1, 1))
    y = devices.empty(shape.y, x.dtype, x)
    _launch_outputs(f"avg_pool2d_forward_{_window(shape)}", shape, x, y, count_include_pad=count_include_pad)
    return y


def avg_pool2d_backward(gy: Any, shape: PoolShape, count_include_pad: bool) -> Any:
    """gx (N,C,H,W)."""
    gx = devices.empty(shape.x, gy.dtype, gy)
    _launch_inputs("avg_pool2d_backward", shape, devices.contiguous(gy), gx, count_include_pad=count_include_pad)
    return gx


def adaptive_avg_pool2d_forward(x: Any, output_size: tuple[int, int]) -> Any:
    """y (N,C,P,Q)."""
    shape = _adaptive_shape(x.shape, output_size)
    y = devices.empty(shape.y, x.dtype, x)
    _launch_adaptive("adaptive_avg_pool2d_forward", shape, x, y)
    return y


def adaptive_avg_pool2d_backward(gy: Any, x_shape: tuple[int, ...]) -> Any:
    """gx (N,C,H,W)."""
    gx = devices.empty(x_shape, gy.dtype, gy)
    _launch_inputs("adaptive_avg_pool2d_backward", _adaptive_shape(x_shape, gy.shape[2:]), devices.contiguous(gy), gx)
    return gx


def adaptive_max_pool2d_forward(x: Any, output_size: tuple[int, int]) -> tuple[Any, Any]:
    """(y, switches), each (N,C,P,Q)."""
    shape = _adaptive_shape(x.shape, output_size)
    y, switches = devices.empty(shape.y, x.dtype, x), devices.empty(shape.y, np.int32, x)
    _launch_adaptive("adaptive_max_pool2d_forward", shape, x, y, switches)
    return y, switches


def adaptive_max_pool2d_backward(gy: Any, switches: Any, x_shape: tuple[int, ...]) -> Any:
    """gx (N,C,H,W)."""
    gx = devices.empty(x_shape, gy.dtype, gy)
    arrays = devices.contiguous(gy), devices.contiguous(switches)
    _launch_inputs("adaptive_max_pool2d_backward", _adaptive_shape(x_shape, gy.shape[2:]), *arrays, gx)
    return gx


def lp_pool2d_forward(x: Any, norm_type: float, shape: PoolShape) -> Any:
    """y (N,C,P,Q)."""
    y = devices.empty(shape.y, x.dtype, x)
    _launch_outputs("l2_pool2d_forward" if norm_type == 2 else "lp_pool2d_forward", shape, x, y, norm_type)
    return y


def lp_pool2d_backward(x: Any, y: Any, gy: Any, norm_type: float, shape: PoolShape) -> Any:
    """gx (N,C,H,W)."""
    gx = devices.empty(shape.x, gy.dtype, gy)
    arguments = Strided(x), devices.contiguous(y), devices.contiguous(gy), gx, norm_type
    _launch_inputs("l2_pool2d_backward" if norm_type == 2 else "lp_pool2d_backward", shape, *arguments)
    return gx


def max_unpool2d_forward(x: Any, indices: Any, size: tuple[int, int]) -> Any:
    """y (N,C,H,W)."""
    N, C, P, Q = x.shape
    y = devices.empty((N, C, *size), x.dtype, x)
    launch("max_unpool2d_forward", N * C, devices.contiguous(x), devices.contiguous(indices), y, P * Q, math.prod(size))
    return y


def max_unpool2d_backward(gy: Any, indices: Any) -> Any:
    """gx (N,C,P,Q)."""
    gx = devices.empty(indices.shape, gy.dtype, gy)
    planes = math.prod(gy.shape[2:]), divisor(max(math.prod(indices.shape[2:]), 1))
    arrays = devices.contiguous(gy), devices.contiguous(indices)
    launch("max_unpool2d_backward", -(-gx.size // THREADS), *arrays, gx, gx.size, planes)
    return gx


def _launch_outputs(name: str, shape: PoolShape, x: Any, *arguments: Any, count_include_pad: bool = True) -> None:
    """A thread for each output, in tiles where x has its channels side by side."""
    bits = _channel_bits(x, shape)
    channels, pixels = 1 << bits, THREADS >> bits
    grid = shape.N * -(-shape.C // channels) * -(-shape.P * shape.Q // pixels)
    if bits == 0:
        grid = -(-math.prod(shape.y) // THREADS)
    geometry = _geometry(name, shape, math.prod(shape.y), x, bits, count_include_pad)
    launch(kernel_of(name, x), grid, Strided(x), *arguments, geometry)


def _launch_inputs(name: str, shape: PoolShape, *arguments: Any, count_include_pad: bool = True) -> None:
    """A thread for each input; x, if the kernel reads it, is the first argument."""
    count = math.prod(shape.x)
    x = arguments[0].array if isinstance(arguments[0], Strided) else None
    geometry = _geometry(name, shape, count, x, 0, count_include_pad)
    launch(kernel_of(name, arguments[0]), -(-count // THREADS), *arguments, geometry)


def _launch_adaptive(name: str, shape: PoolShape, x: Any, *arguments: Any) -> None:
    """A warp for each output where windows are large and warps read along their rows, else a thread."""
    if shape.H * shape.W < WARP * shape.P * shape.Q or _channel_bits(x, shape):
        return _launch_outputs(name, shape, x, *arguments)
    count = math.prod(shape.y)
    geometry = _geometry(name, shape, count, x, 0, False)
    launch(kernel_of(f"{name}_warp", x), -(-count * WARP // THREADS), Strided(x), *arguments, geometry)


def _geometry(
    name: str, shape: PoolShape, count: int, x: Any, channel_bits: int, count_include_pad: bool
) -> tuple[Any, ...]:
    """The Pool2d of a launch; x is None where the kernel does not read it."""
    N, C, H, W, P, Q, *windows = shape
    _require_range(name, shape)
    strides = (0, 0, 0, 0) if x is None else tuple(stride // x.itemsize for stride in x.strides)
    divisors = tuple(divisor(max(n, 1)) for n in (C, H, W, P, Q, *shape.stride))
    return count, strides, C, channel_bits, count_include_pad, (H, W), (P, Q), *windows, divisors


def _require_range(name: str, shape: PoolShape) -> None:
    """Raise ValueError where a row's number, or a pixel's place in its plane, would not fit 32 bits."""
    rows = shape.N * shape.C * max(shape.H, shape.P)
    if max(rows, shape.H * shape.W, shape.P * shape.Q) >= 2**31:
        raise ValueError(
            f"{name}: x has shape {shape.x}; its rows, and a plane's pixels, must be fewer than 2^31: split the batch"
        )


def _adaptive_shape(x_shape: tuple[int, ...], output_size: tuple[int, ...]) -> PoolShape:
    """The sizes alone: adaptive windows follow from them."""
    N, C, H, W = x_shape
    P, Q = output_size
    return PoolShape(N, C, H, W, P, Q, (0, 0), (0, 0), (0, 0), (0, 0))


def _channel_bits(x: Any, shape: PoolShape) -> int:
    """log2 of the channels in a block's tile: 0 unless channels lie side by side; 8 of them fill a sector."""
    if shape.C == 1 or x.strides[1] != x.itemsize or x.strides[3] == x.itemsize:
        return 0
    spare = 8 - (shape.P * shape.Q - 1).bit_length()  # planes of few outputs leave threads for more channels
    return min(max(3, spare), (shape.C - 1).bit_length())


def _window(shape: PoolShape) -> str:
    """The kernel's name for this window."""
    square = shape.kernel in ((2, 2), (3, 3)) and shape.dilation == (1, 1)
    return f"{shape.kernel[0]}x{shape.kernel[1]}" if square else "any"


def _overlap(shape: PoolShape) -> str:
    """How many windows hold a pixel along an axis, at most, in the kernel's name."""
    axes = zip(shape.kernel, shape.stride, shape.dilation, strict=True)
    windows = max(-(-((kernel - 1) * dilation + 1) // stride) for kernel, stride, dilation in axes)
    return str(windows) if windows <= 2 else "any"


def _tiles_in_pairs(shape: PoolShape) -> bool:
    """Whether 2×2 windows tile the planes and rows are whole 16-byte vectors."""
    windows = shape.kernel == shape.stride == (2, 2) and shape.padding == (0, 0) and shape.dilation == (1, 1)
    return windows and shape.H % 2 == 0 and shape.W % 4 == 0


def _window_pairs(shape: PoolShape) -> tuple[Any, ...]:
    """The WindowPairs of kernels/max_pool2d.cu."""
    _require_range("max_pool2d", shape)
    return math.prod(shape.y) // 2, shape.W, shape.H * shape.W, divisor(shape.W // 4), divisor(shape.P)


def _is_aligned(array: Any, alignment: int) -> bool:
    address = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    return bool(address % alignment == 0)


def _require_pixels(shape: PoolShape) -> None:
    """Raise ValueError if a window holds no pixel: only dilation lets one step over the image from its padding."""
    for axis in range(2):
        size, kernel, stride = shape.x[2 + axis], shape.kernel[axis], shape.stride[axis]
        padding, dilation = shape.padding[axis], shape.dilation[axis]
        for start in range(-padding, 0, stride)[: shape.y[2 + axis]]:
            if start % dilation >= min(size, start + (kernel - 1) * dilation + 1):
                raise ValueError("max_pool2d: a window would lie wholly in the padding; use less padding or dilation")
