"""Devices: where arrays live, and how to get them there. The only file that imports CuPy, and then lazily.

- cpu: NumPy arrays
- cuda, or cuda:1 and so on: CuPy arrays on an NVIDIA GPU
- sim: `SimArray`s, NumPy arrays on which operations run the CUDA kernels in the simulator
"""

from __future__ import annotations

import gc
import math
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np

DEVICES = ("cpu", "cuda", "sim")
GUARD_BYTES = 256  # of 0xFF around every array that `empty` makes for the simulator; also the arrays' alignment

# Errors after which a process cannot use its GPU any more, by their number in CUDA's driver and runtime: ECC, NVLink,
# hardware, illegal address, timeout, context destroyed, assert, stack, illegal instruction, misaligned address, invalid
# address space, invalid program counter, launch failure.
STICKY_ERRORS = frozenset((214, 220, 226, 700, 702, 709, 710, *range(714, 720)))
ARRAYS_SHOWN = 10  # in the text of a MemoryError


class DeviceLost(RuntimeError):
    """The GPU cannot be used by this process any more: what was in its memory is gone, and only a new process helps."""


class SimArray(np.ndarray):
    """A NumPy array that belongs to the simulated device; what NumPy computes from it is one, too."""

    guarded = False  # whether guard bands stand around exactly this memory

    def __array_finalize__(self, source: Any) -> None:
        """A view of the whole of a guarded array is guarded, too."""
        if getattr(source, "guarded", False) and self.nbytes == source.nbytes:
            self.guarded = self.__array_interface__["data"] == source.__array_interface__["data"]

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        require_launch(f"NumPy's {context[0].__name__ if context else 'arithmetic'}")
        return np.asarray(array).view(SimArray)

    def __setitem__(self, key: Any, value: Any) -> None:
        require_launch("an assignment to elements")
        super().__setitem__(key, value)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        results = super().__array_function__(function, types, arguments, options)
        if isinstance(results, np.ndarray) and results.base is None:  # others are views
            require_launch(f"NumPy's {function.__name__}")
        if isinstance(results, (tuple, list)):
            return type(results)(map(_simulated, results))
        return _simulated(results)


_restriction = threading.local()  # of this thread: others may prepare batches meanwhile


@contextmanager
def launches_only() -> Iterator[None]:
    """Inside this context what `require_launch` guards raises: copies and sums of gradients, and on `sim` NumPy.

    For steps whose launches are recorded: only those are repeated.
    """
    before, _restriction.active = getattr(_restriction, "active", False), True
    try:
        yield
    finally:
        _restriction.active = before


def require_launch(what: str) -> None:
    """Raise ValueError inside `launches_only`."""
    if getattr(_restriction, "active", False):
        raise ValueError(f"{what} is no launch of a kernel, so that a replay of the recorded ones would leave it out")


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


@cache
def gpu(device: str) -> tuple[str, tuple[int, int]]:
    """(name, compute capability) of the GPU that a device names."""
    found = cupy().cuda.runtime.getDeviceProperties(_index(device))
    return found["name"].decode(), (found["major"], found["minor"])


def use(device: str) -> None:
    """Make the GPU that a device (as `resolve` returns it) names this thread's current one; others need nothing."""
    if device.startswith("cuda"):
        cupy().cuda.Device(_index(device)).use()


def is_device(name: Any) -> bool:
    """Whether `name` is written as a device is; it may be missing all the same."""
    return isinstance(name, str) and name.partition(":")[0] in ("auto", *DEVICES)


def is_array(value: Any) -> bool:
    """Whether `value` is an array of some device."""
    return isinstance(value, np.ndarray) or _is_cupy(value)


def arrays_in(value: Any) -> tuple[Any, ...]:
    """The arrays that an argument of a kernel holds: itself, those of a tuple, a tensor map's, or none."""
    parts = value if isinstance(value, tuple) else (getattr(value, "array", value),)
    return tuple(each for each in parts if is_array(each))


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
    if _is_cupy(like):
        return _allocate(lambda: cupy().empty(shape, dtype), f"an array of shape {shape}, {np.dtype(dtype)}")
    return np.empty(shape, dtype)


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


def full_like(array: Any, value: float) -> Any:
    """A C-contiguous array of `value`, of the shape, dtype and device of `array`."""
    filled = empty_like(array)
    filled.fill(value)
    return filled


def address(array: Any) -> int:
    """Where the array's first element lies in the memory of its device."""
    return int(array.data.ptr if _is_cupy(array) else array.ctypes.data)


def contiguous(array: Any) -> Any:
    """`array`, or a copy in C order on its device."""
    if array is None or array.flags.c_contiguous:
        return array
    require_launch(f"a copy in C order of shape {array.shape}")
    copy = empty_like(array)
    if _is_cupy(array) and array.dtype.kind == "V":  # bfloat16, which CuPy copies as integers
        copy.view(np.uint16)[...] = array.view(np.uint16)
    else:
        copy[...] = array
    return copy


def astype(array: Any, dtype: np.dtype) -> Any:
    """`array` in another dtype on its device, itself if it has it; what leaves the range becomes infinite."""
    if array.dtype == dtype:
        return array
    if _is_cupy(array) and "V" in (array.dtype.kind, dtype.kind):  # CuPy computes nothing in bfloat16
        return move(to_numpy(array).astype(dtype), of(array))
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)


def write(array: Any, values: np.ndarray) -> None:
    """Copy host values into an array of their shape and dtype, in order with what was launched before."""
    if _is_cupy(array):
        with cuda_errors("a copy to the GPU"):
            array.set(values, stream=cupy().cuda.get_current_stream())
    else:
        array[...] = values


def owns_memory(array: Any) -> bool:
    """Whether the array is no view of memory that another one has."""
    if isinstance(array, SimArray) and array.guarded:
        return not isinstance(array.base, SimArray)  # its guard bands are bytes of a plain array
    return bool(array.flags.owndata)


def as_array(value: Any) -> Any:
    """`value` as an array: one of any device as it is, everything else through NumPy."""
    return value if is_array(value) else np.asarray(value)


def from_dlpack(value: Any) -> Any:
    """An array on memory that another library shares by DLPack; raises ValueError unless a CPU or CUDA holds it."""
    kind, _ = value.__dlpack_device__()
    if kind in (1, 3):  # DLPack's numbers: CPU, and its memory that CUDA has pinned
        return np.from_dlpack(value)
    if kind in (2, 13):  # CUDA, and its managed memory
        return cupy().from_dlpack(value)
    raise ValueError(f"tensor: DLPack's device {kind} is neither a CPU nor an NVIDIA GPU; copy the data to one")


def move(array: Any, device: str) -> Any:
    """`array` on a device (as `resolve` returns it): itself if it is there, else a copy."""
    if of(array) == device or (device == "cuda" and _is_cupy(array)):
        return array
    if device.startswith("cuda"):
        source = to_numpy(array) if isinstance(array, np.ndarray) else array
        if source.dtype.kind == "V":  # bfloat16, which CuPy moves as integers
            return move(source.view(np.uint16), device).view(source.dtype)
        with cupy().cuda.Device(_index(device)), cuda_errors("a copy to the GPU"):
            return _allocate(lambda: cupy().array(source), f"a copy of shape {source.shape}, {source.dtype}")
    host = to_numpy(array)
    if device == "cpu":
        return host.copy() if isinstance(array, SimArray) else host
    copy = _guarded(host.shape, host.dtype)
    to_numpy(copy)[...] = host
    return copy


def to_numpy(array: Any) -> np.ndarray:
    """The values as a plain NumPy array; a SimArray's memory is shared, a GPU's is copied."""
    if _is_cupy(array):
        with cuda_errors("a copy from the GPU"):
            if array.dtype.kind == "V":  # bfloat16, which CuPy moves as integers
                return cupy().asnumpy(array.view(np.uint16)).view(array.dtype)
            return cupy().asnumpy(array)
    return array.view(np.ndarray) if isinstance(array, SimArray) else np.asarray(array)


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


@contextmanager
def errors_of(device: str, action: str) -> Iterator[None]:
    """cuda_errors where the device is a GPU; else nothing."""
    if device.startswith("cuda"):
        with cuda_errors(action):
            yield
    else:
        yield


@contextmanager
def cuda_errors(action: str) -> Iterator[None]:
    """Inside this context an error that ends the use of the GPU becomes DeviceLost, others of CUDA RuntimeErrors."""
    try:
        yield
    except RuntimeError as error:
        status = _status(error)
        if status is None:
            raise
        if status not in STICKY_ERRORS:
            raise RuntimeError(f"{action}: {error}") from error
        raise DeviceLost(
            f"{action}: {error}; this process cannot use the GPU any more: start a new one, with GPUCNN_SYNC=1 to "
            "learn which kernel it was"
        ) from error


def _status(error: RuntimeError) -> int | None:
    """CUDA's number of an error that CuPy or the extension's launcher raised; None for others."""
    if isinstance(error, (cupy().cuda.driver.CUDADriverError, cupy().cuda.runtime.CUDARuntimeError)):
        return error.status
    number = re.fullmatch(r"native: .*\((\d+)\)", str(error))
    return int(number[1]) if number else None


def _allocate(make: Callable[[], Any], what: str) -> Any:
    """make(), once more after the pool has given back what it keeps for later; then MemoryError with what is in use."""
    full = cupy().cuda.memory.OutOfMemoryError
    try:
        return make()
    except full:
        pass  # the exception holds arrays of the frames it went through, so that the rest is done after it
    _free_cached_blocks()
    try:
        return make()
    except full as error:
        text = str(error)
    raise MemoryError(f"{what} does not fit the GPU's memory ({text})\n{memory_table()}")


def _free_cached_blocks() -> None:
    gc.collect()
    cupy().get_default_memory_pool().free_all_blocks()


def memory_table() -> str:
    """What holds the GPU's memory, as far as Python's objects tell: the largest arrays by shape, and the pool's sum."""
    sizes: dict[str, list[int]] = {}
    arrays = (each for each in gc.get_objects() if issubclass(type(each), cupy().ndarray))
    for array in {each.data.ptr: each for each in arrays}.values():
        sizes.setdefault(f"{array.dtype} {array.shape}", []).append(array.nbytes)
    largest = sorted(sizes.items(), key=lambda entry: -sum(entry[1]))
    pool = cupy().get_default_memory_pool()
    lines = [f"{sum(each) / 2**20:10.1f} MiB  {len(each)} × {name}" for name, each in largest[:ARRAYS_SHOWN]]
    return "\n".join([*lines, f"{pool.used_bytes() / 2**20:10.1f} MiB  of {pool.total_bytes() / 2**20:.1f} MiB in use"])


def uploaded(batches: Iterable[tuple[np.ndarray, ...]], device: str) -> Generator[tuple[Any, ...], None, None]:
    """The batches with their arrays on a device; on a GPU the next one is copied while the last is computed with."""
    if not device.startswith("cuda"):
        for batch in batches:
            yield tuple(move(array, device) for array in batch)
        return
    copies = cupy().cuda.Stream(non_blocking=True)
    ahead = None
    try:
        for batch in batches:
            upload = _start_upload(batch, copies)
            if ahead is not None:
                yield _finish_upload(*ahead)
            ahead = upload
        if ahead is not None:
            yield _finish_upload(*ahead)
    finally:
        with cuda_errors("a copy to the GPU"):
            copies.synchronize()  # memory of copies under way must not be used for anything else


Upload = tuple[tuple[Any, ...], Any, list[np.ndarray]]  # arrays, the event after their copies, the pinned sources


def _start_upload(batch: tuple[np.ndarray, ...], copies: Any) -> Upload:
    """Copies of the arrays under way in the stream `copies`.

    Their memory comes from the computing stream's pool, where an earlier batch may have had it, so the copies wait for
    all that was launched on it before; that is why they are started before the previous batch is handed out.
    """
    with cuda_errors("a copy to the GPU"):
        copies.wait_event(cupy().cuda.get_current_stream().record())
        arrays, pinned = [], []
        for source in batch:
            pinned.append(_pinned(source))
            what = f"a batch of shape {source.shape}, {source.dtype}"
            arrays.append(_allocate(partial(cupy().empty, source.shape, source.dtype), what))
            arrays[-1].set(pinned[-1], stream=copies)
        return tuple(arrays), copies.record(), pinned


def _pinned(source: np.ndarray) -> np.ndarray:
    """A copy in memory that the GPU reads by itself."""
    memory = cupy().cuda.alloc_pinned_memory(source.nbytes)
    copy = np.frombuffer(memory, source.dtype, source.size).reshape(source.shape)
    copy[...] = source
    return copy


def _finish_upload(arrays: tuple[Any, ...], copied: Any, pinned: list[np.ndarray]) -> tuple[Any, ...]:
    """The arrays, once they are there; the pinned memory is used again after that."""
    with cuda_errors("a copy to the GPU"):
        copied.synchronize()
        cupy().cuda.get_current_stream().wait_event(copied)
    pinned.clear()
    return arrays
