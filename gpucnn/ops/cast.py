"""Arrays in another dtype, and operations that compute 16-bit arrays in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import dtypes
from gpucnn.launch import Strided, grid_for, launch

TILE = 32  # as in kernels/cast.cu
CAST_TYPES = (dtypes.FLOAT32, *dtypes.HALVES)


def cast(x: Any, dtype: Any, channels_last: bool = False) -> Any:
    """x in another dtype, rounded to nearest even: itself if it has it, else an array in the same order in memory.

    - channels_last: y of x (N,C,H,W) has its channels next to each other in memory, whatever x has
    Raises TypeError for a dtype that is not supported, or that no kernel converts.
    """
    dtype = dtypes.resolve(dtype)
    if channels_last and not is_channels_last(x):
        return _cast_to_channels_last(x, dtype)
    if x.dtype == dtype:
        return x
    if not devices.runs_kernels(x):
        return devices.astype(x, dtype)
    if is_channels_last(x):
        return np.moveaxis(cast(np.moveaxis(x, 1, -1), dtype), -1, 1)
    _check_types(x, dtype)
    x = devices.contiguous(x)
    y = devices.empty(x.shape, dtype, x)
    launch(f"cast_{x.dtype.name}_{dtype.name}", grid_for(-(-x.size // 4)), x, y, x.size)
    return y


def _cast_to_channels_last(x: Any, dtype: np.dtype) -> Any:
    if x.ndim != 4:
        raise ValueError(f"cast: x has shape {x.shape}; channels_last needs (N, C, H, W)")
    if not devices.runs_kernels(x) or x.dtype == dtype:
        memory = np.moveaxis(cast(x, dtype), 1, -1)
        return np.moveaxis(devices.contiguous(memory), -1, 1)
    _check_types(x, dtype)
    N, C, H, W = x.shape
    y = devices.empty((N, H, W, C), dtype, x)
    strides = tuple(stride // x.itemsize for stride in x.strides)
    grid = N * -(-H * W // TILE), -(-C // TILE)
    if y.size:
        name = f"cast_channels_last_{x.dtype.name}_{dtype.name}"
        launch(name, grid, Strided(x), y, (C, H * W, W, strides))
    return np.moveaxis(y, -1, 1)


def is_channels_last(x: Any) -> bool:
    """Whether x (N,C,H,W) lies in memory as (N,H,W,C) without gaps."""
    return x.ndim == 4 and not x.flags.c_contiguous and np.moveaxis(x, 1, -1).flags.c_contiguous


def _check_types(x: Any, dtype: np.dtype) -> None:
    if x.dtype not in CAST_TYPES or dtype not in CAST_TYPES:
        raise TypeError(f"cast: from {x.dtype} to {dtype} is not there on {devices.of(x)}; use the CPU")


def in_float32(native: bool = False, rounds: bool = True) -> Callable[[Any], Any]:
    """A decorator for operations of float32 arrays that lets them take 16-bit ones: cast, compute, round once.

    16-bit arguments are cast to float32; of the results the first is rounded to the dtype of the first of them. Others,
    such as statistics and gradients of parameters, stay float32.

    - native: the operation has kernels for 16 bits, so that only the CPU's arrays are cast
    - rounds: False where the first result stays float32, too
    """

    def decorate(operation: Any) -> Any:
        @wraps(operation)
        def computed(*arguments: Any, **options: Any) -> Any:
            halves = [value for value in (*arguments, *options.values()) if dtypes.is_half(value)]
            if not halves or (native and devices.runs_kernels(halves[0])):
                return operation(*arguments, **options)
            results = operation(*map(_wide, arguments), **{name: _wide(value) for name, value in options.items()})
            if not rounds:
                return results
            if not isinstance(results, tuple):
                return cast(results, halves[0].dtype)
            return cast(results[0], halves[0].dtype), *results[1:]

        return computed

    return decorate


def _wide(value: Any) -> Any:
    return cast(value, dtypes.FLOAT32) if dtypes.is_half(value) else value


def kernel_of(name: str, array: Any) -> str:
    """The name of a kernel that has variants for 16-bit arrays."""
    return f"{name}_{array.dtype.name}" if dtypes.is_half(array) else name
