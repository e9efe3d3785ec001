"""Devices: where arrays live, and how to get them there. The only file that imports CuPy, and then lazily.

- cpu: NumPy arrays
- cuda, or cuda:1 and so on: CuPy arrays on an NVIDIA GPU
- sim: `SimArray`s, NumPy arrays on which operations run the CUDA kernels in the simulator
"""

from __future__ import annotations

import math
import re
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

DEVICES = ("cpu", "cuda", "sim")
GUARD_BYTES = 256  # of 0xFF around every array that `empty` makes for the simulator; also the arrays' alignment


class SimArray(np.ndarray):
    """A NumPy array that belongs to the simulated device; what NumPy computes from it is one, too."""

    guarded = False  # whether guard bands stand around exactly this memory

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return np.asarray(array).view(SimArray)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        results = super().__array_function__(function, types, arguments, options)
        if isinstance(results, (tuple, list)):
            return type(results)(map(_simulated, results))
        return _simulated(results)


def _simulated(value: Any) -> Any:
    return value.view(SimArray) if type(value) is np.ndarray else value


@cache
def cupy() -> ModuleType:
    """The CuPy module; raises ValueError, saying how to get it, where it is missing."""
    try:
        import cupy as module
    except ImportError as error:
        raise ValueError(
            f"device 'cuda': CuPy is not installed ({error}); pip install 'gpucnn[cuda13]' (or cuda12), or use 'cpu', "
            "'sim' or 'auto'"
        ) from error
    return module


@cache
def has_cuda() -> bool:
    """Whether CuPy is installed and finds a GPU."""
    try:
        return bool(cupy().cuda.is_available())
    except ValueError:
        return False


def resolve(name: str) -> str:
    """The device that `name` stands for: "auto" is a GPU if there is one, else the CPU.

    Raises ValueError for a device that is unknown or not there.
    """
    if name == "auto":
        return "cuda" if has_cuda() else "cpu"
    kind, _, index = name.partition(":") if isinstance(name, str) else (name, "", "")
    if kind not in DEVICES or not re.fullmatch(r"(cpu|sim|cuda(:\d+)?)", name):
        raise ValueError(f"device {name!r} is unknown; use 'auto', 'cuda:1' or one of {', '.join(map(repr, DEVICES))}")
    if kind == "cuda":
        _require_gpu(name, int(index or 0))
    return name


def _require_gpu(name: str, index: int) -> None:
    if not cupy().cuda.is_available():
        raise ValueError(f"device {name!r}: CuPy finds no NVIDIA GPU or driver; use 'cpu', 'sim' or 'auto'")
    count = cupy().cuda.runtime.getDeviceCount()
    if index >= count:
        raise ValueError(f"device {name!r}: there are {count} GPUs, so the index must be below {count}")


def is_device(name: Any) -> bool:
    """Whether `name` is written as a device is; it may be missing all the same."""
    return isinstance(name, str) and name.partition(":")[0] in ("auto", *DEVICES)


def is_array(value: Any) -> bool:
    """Whether `value` is an array of some device."""
    return isinstance(value, np.ndarray) or _is_cupy(value)


def _is_cupy(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "cupy" and hasattr(value, "__cuda_array_interface__")


def of(array: Any) -> str:
    """The device of an array: "cpu", "sim", or "cuda:0" and so on."""
    if isinstance(array, SimArray):
        return "sim"
    return "cpu" if isinstance(array, (np.ndarray, np.generic)) else f"cuda:{array.device.id}"


def runs_kernels(array: Any) -> bool:
    """Whether operations on this array launch kernels, rather than call the extension."""
    return isinstance(array, SimArray) or not isinstance(array, (np.ndarray, np.generic))


def array_module(array: Any) -> ModuleType:
    """numpy or cupy, whichever the array is of."""
    return cupy() if _is_cupy(array) else np


def empty(shape: tuple[int, ...] | int, dtype: Any, like: Any) -> Any:
    """An uninitialised C-contiguous array on the device of `like`; on `sim` all bytes are 0xFF (NaN) and guarded."""
    if isinstance(like, SimArray):
        return _guarded(shape, np.dtype(dtype))
    return array_module(like).empty(shape, dtype)


def _guarded(shape: tuple[int, ...] | int, dtype: np.dtype) -> SimArray:
    count = math.prod(shape) if isinstance(shape, tuple) else shape
    memory = np.full(count * dtype.itemsize + 3 * GUARD_BYTES, 0xFF, np.uint8)
    start = GUARD_BYTES + -memory.ctypes.data % GUARD_BYTES
    array = memory[start : start + count * dtype.itemsize].view(dtype).reshape(shape).view(SimArray)
    array.guarded = count > 0  # NumPy puts an empty slice at the beginning
    return array


def empty_like(array: Any) -> Any:
    """An uninitialised C-contiguous array of the shape, dtype and device of `array`."""
    return empty(array.shape, array.dtype, array)


def contiguous(array: Any) -> Any:
    """`array`, or a copy in C order on its device."""
    if array is None or array.flags.c_contiguous:
        return array
    copy = empty_like(array)
    copy[...] = array
    return copy


def as_array(value: Any) -> Any:
    """`value` as an array: one of any device as it is, everything else through NumPy."""
    return value if is_array(value) else np.asarray(value)


def move(array: Any, device: str) -> Any:
    """`array` on a device (as `resolve` returns it): itself if it is there, else a copy."""
    if of(array) == device or (device == "cuda" and _is_cupy(array)):
        return array
    if device.startswith("cuda"):
        with cupy().cuda.Device(int(device.partition(":")[2] or 0)):
            return cupy().asarray(to_numpy(array)) if isinstance(array, np.ndarray) else cupy().array(array)
    host = to_numpy(array)
    if device == "cpu":
        return host.copy() if isinstance(array, SimArray) else host
    copy = _guarded(host.shape, host.dtype)
    copy[...] = host
    return copy


def to_numpy(array: Any) -> np.ndarray:
    """The values as a plain NumPy array; a SimArray's memory is shared, a GPU's is copied."""
    if _is_cupy(array):
        return cupy().asnumpy(array)
    return array.view(np.ndarray) if isinstance(array, SimArray) else np.asarray(array)
