"""Timing of calls: warm-up, repeats, caches emptied before each, median and 20th and 80th percentile.

A clock marks moments and tells the seconds between two of them: `WallClock` for work on the CPU, `EventClock` for work
that a GPU's stream takes on. Another object with the same methods can stand in for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.bench import machine


class Clock(Protocol):
    """Marks moments, waits for all work, tells the seconds between two marks once the work is done."""

    def mark(self) -> Any: ...

    def synchronize(self) -> None: ...

    def elapsed(self, start: Any, end: Any) -> float: ...


class Timing(NamedTuple):
    """Seconds of one call: median, 20th and 80th percentile of `repeats` calls."""

    median: float
    p20: float
    p80: float
    repeats: int

    def milliseconds(self) -> dict[str, float | int]:
        """The columns of a row of results."""
        return {
            "milliseconds": self.median * 1e3,
            "p20": self.p20 * 1e3,
            "p80": self.p80 * 1e3,
            "calls": self.repeats,
        }


class WallClock:
    """time.perf_counter: for calls that return when their work is done."""

    def mark(self) -> float:
        return time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed(self, start: float, end: float) -> float:
        return end - start


class EventClock:
    """CUDA events on CuPy's current stream; PyTorch works on the same one unless told otherwise."""

    def mark(self) -> Any:
        event = devices.cupy().cuda.Event()
        event.record()
        return event

    def synchronize(self) -> None:
        devices.cupy().cuda.Device().synchronize()

    def elapsed(self, start: Any, end: Any) -> float:
        return devices.cupy().cuda.get_elapsed_time(start, end) * 1e-3


def clock_of(device: str) -> Clock:
    """The clock for work on a device."""
    return EventClock() if device.startswith("cuda") else WallClock()


def measure(
    run: Callable[[], Any],
    clock: Clock,
    seconds: float = 0.3,
    flush: Callable[[], Any] | None = None,
    least: int = 5,
    most: int = 100,
) -> Timing:
    """Time `run`: two calls to warm up, as many more as fill a quarter of `seconds`, then timed ones for `seconds`.

    - flush: runs before each timed call and is not timed; `flusher` makes one that empties the L2 cache
    - least, most: bounds of the number of timed calls; a call that takes longer than `seconds` is timed three times
    """
    estimate = min(_once(run, clock) for _ in range(2))
    for _ in range(min(int(seconds / 4 / max(estimate, 1e-9)), most)):
        run()
    repeats = 3 if estimate > seconds else min(max(int(seconds / max(estimate, 1e-9)), least), most)
    marks = []
    for _ in range(repeats):
        if flush is not None:
            flush()
        start = clock.mark()
        run()
        marks.append((start, clock.mark()))
    clock.synchronize()
    return summarize([clock.elapsed(start, end) for start, end in marks])


def _once(run: Callable[[], Any], clock: Clock) -> float:
    clock.synchronize()
    start = clock.mark()
    run()
    end = clock.mark()
    clock.synchronize()
    return clock.elapsed(start, end)


def summarize(seconds: list[float]) -> Timing:
    """The Timing of single calls' seconds."""
    p20, median, p80 = np.quantile(seconds, (0.2, 0.5, 0.8))
    return Timing(float(median), float(p20), float(p80), len(seconds))


CPU_FLUSH_LIMIT = 128 << 20


def flush_bytes(device: str) -> int:
    """How much is written to empty a device's last cache: twice its size, on a GPU at least 256 MB; 0 for `sim`."""
    if device == "cpu":
        return min(2 * machine.cache_bytes(), CPU_FLUSH_LIMIT)
    if not device.startswith("cuda"):
        return 0
    return max(256 << 20, 2 * devices.cupy().cuda.Device().attributes["L2CacheSize"])


def flusher(device: str) -> Callable[[], Any] | None:
    """A function that writes `flush_bytes`; None for the simulator."""
    size = flush_bytes(device)
    if size == 0:
        return None
    if device == "cpu":  # by gpucnn's own threads, as a reference does by its own
        source, target = np.zeros(size // 2, np.uint8), np.zeros(size // 2, np.uint8)
        return lambda: _C.copy_bytes(source, target)
    buffer = devices.cupy().empty(size // 4, np.float32)
    return lambda: buffer.fill(0)
