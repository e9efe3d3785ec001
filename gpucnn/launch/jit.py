"""Engine `jit`: kernels compiled by CuPy (NVRTC) at their first launch, and kept in CuPy's cache on disk."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import compilers
from gpucnn.launch.sources import Entry, digest, folder, structs, suits
from gpucnn.launch.tensor_map import TensorMap

STATIC_SHARED_BYTES = 48 << 10  # above this, dynamic shared memory must be asked for


def options(file: str) -> tuple[str, ...]:
    """The compiler's options; CuPy adds -ftz=true and the architecture, and its cache key has no header's text."""
    return "-std=c++17", f"-I{folder()}", f"-DGPUCNN_SOURCES={digest(file)}"


@cache
def function(name: str, file: str, device: int) -> Any:
    """The compiled kernel, loaded for one GPU."""
    return _module(file).get_function(name)


@cache
def _module(file: str) -> Any:
    cupy = devices.cupy()
    if not suits(file, ""):  # CuPy compiles for sm_90, without the instructions of sm_90a
        return cupy.RawModule(path=str(compilers.cubin_path(file, "sm_90a", "nvrtc")))
    return cupy.RawModule(code=Path(file).read_text(), options=options(file))


def run(entry: Entry, grid: tuple[int, int, int], arguments: list[Any], shared_bytes: int) -> None:
    """Launch on CuPy's current stream; with GPUCNN_SYNC also wait, so that an error names its kernel."""
    cupy = devices.cupy()
    kernel = function(entry.name, entry.file, cupy.cuda.runtime.getDevice())
    if shared_bytes > STATIC_SHARED_BYTES:
        kernel.max_dynamic_shared_size_bytes = shared_bytes
    with devices.cuda_errors(f"{entry.name}: grid {grid}, {entry.threads} threads, {shared_bytes} B shared"):
        kernel(grid, (entry.threads, 1, 1), tuple(map(_value, arguments)), shared_mem=shared_bytes)
        if os.environ.get("GPUCNN_SYNC"):
            cupy.cuda.get_current_stream().synchronize()


def _value(argument: Any) -> Any:
    """An argument as CuPy takes it: a struct (as `Pointers`, or a tensor map) is an array of one element."""
    if isinstance(argument, TensorMap):
        return argument.encode()
    if isinstance(argument, np.void):
        return np.asarray(argument)
    if not isinstance(argument, tuple):
        return argument
    addresses = np.zeros((), [("data", np.uintp, structs()["Pointers"][0][1])])
    addresses["data"][: len(argument)] = [array.data.ptr for array in argument]
    return addresses
