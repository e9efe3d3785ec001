"""Engine `native`: kernels compiled by nvcc, loaded and launched by the extension through the CUDA driver.

Its launches are bound once, with all their arguments, and then cost one call of the driver each; a plan of them can be
captured into a CUDA graph. `gpucnn build-kernels` compiles all kernels ahead, so that no compiler is needed later.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.launch import compilers
from gpucnn.launch.sources import Entry, structs
from gpucnn.launch.tensor_map import TensorMap

LIBRARY = "libcuda.so.1"
FEATURES = {"90": "sm_90a"}  # architectures whose own instructions the kernels use


@cache
def driver() -> _C.NativeDriver:
    """The CUDA driver; raises RuntimeError where there is none."""
    return _C.NativeDriver(LIBRARY)


def architecture(capability: str) -> str:
    """What nvcc calls a GPU of a compute capability as CuPy writes it: "90" is sm_90a, "86" is sm_86."""
    return FEATURES.get(capability, f"sm_{capability}")


@cache
def module(file: str, capability: str, device: int) -> _C.NativeModule:
    """A file of kernels, compiled (or from the cache) and loaded for one GPU."""
    driver().require_context(device)
    code, _ = compilers.cubin(file, architecture(capability), "nvcc")
    return _C.NativeModule(driver(), code)


def prepare(entry: Entry, grid: tuple[int, int, int], arguments: list[Any], shared_bytes: int) -> _C.NativeLaunch:
    """The launch with everything bound; it holds addresses, so the arrays must live as long."""
    device = devices.cupy().cuda.Device()
    kernels = module(entry.file, device.compute_capability, device.id)
    values = [value_bytes(argument) for argument in arguments]
    return _C.NativeLaunch(kernels, entry.name, grid, entry.threads, shared_bytes, values)


def value_bytes(argument: Any) -> bytes:
    """A kernel's argument as its bytes in memory: an array's address, `Pointers`, a number, a struct, a tensor map."""
    if isinstance(argument, TensorMap):
        return argument.encode().tobytes()
    if isinstance(argument, np.generic):
        return argument.tobytes()
    if isinstance(argument, tuple):
        addresses = b"".join(map(value_bytes, argument))
        return addresses.ljust(8 * structs()["Pointers"][0][1], b"\0")
    address = 0 if argument is None else argument.data.ptr
    return address.to_bytes(8, "little")


def run(entry: Entry, grid: tuple[int, int, int], arguments: list[Any], shared_bytes: int) -> None:
    """Launch on CuPy's current stream."""
    with devices.cuda_errors(f"{entry.name}: grid {grid}, {entry.threads} threads, {shared_bytes} B shared"):
        prepare(entry, grid, arguments, shared_bytes).run(current_stream())


def current_stream() -> int:
    return devices.cupy().cuda.get_current_stream().ptr
