"""What a device reaches at most, measured in the run whose figures are compared with it.

Multiply-adds are those of a loop on registers alone, on all of the CPU's threads or the whole GPU; the copy reads and
writes arrays too large for any cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.bench import timing
from gpucnn.launch import launch, sources

COPY_BYTES = 256 << 20
SECONDS = 0.2  # of each loop
CHAINS = 8  # as in ceiling.cu


@cache
def _registered() -> list[str]:
    return sources.register(Path(__file__).with_name("ceiling.cu"))


def measure(device: str, dtype: np.dtype, seconds: float | None = None) -> dict[str, float]:
    """{"tflops", "gb_per_s"} of a device: most multiply-adds, in `dtype`, and bytes read and written by a copy."""
    seconds = SECONDS if seconds is None else seconds
    if device == "cpu":
        compute, copy = _cpu_multiply_adds(dtype), _cpu_copy(COPY_BYTES)
    else:
        _registered()
        compute, copy = _kernel_multiply_adds(device), _kernel_copy(device, COPY_BYTES)
    clock = timing.clock_of(device)
    flops = compute()
    return {
        "tflops": 1e-12 * flops / timing.measure(compute, clock, seconds).p20,
        "gb_per_s": 1e-9 * copy() / timing.measure(copy, clock, seconds).p20,
    }


def _cpu_multiply_adds(dtype: np.dtype) -> Callable[[], float]:
    rounds = 20_000
    return lambda: _C.multiply_add_loop(rounds, dtype.itemsize)


def _cpu_copy(size: int) -> Callable[[], float]:
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)

    def copy() -> float:
        _C.copy_bytes(source, target)
        return 2.0 * size

    return copy


def _kernel_multiply_adds(device: str) -> Callable[[], float]:
    blocks, rounds = (2048, 2000) if device.startswith("cuda") else (1, 10)
    like = devices.move(np.zeros(1, np.float32), device)
    y = devices.empty(blocks * 256, np.float32, like)

    def compute() -> float:
        launch("ceiling_multiply_adds", blocks, y, y.size, rounds, 0.999, 0.001)
        return 2.0 * y.size * rounds * CHAINS

    return compute


def _kernel_copy(device: str, size: int) -> Callable[[], float]:
    count = size // 16
    x = devices.move(np.ones(4 * count, np.float32), device)
    y = devices.empty_like(x)

    def copy() -> float:
        launch("ceiling_copy", -(-count // 256), x, y, count)
        return 2.0 * y.nbytes

    return copy
