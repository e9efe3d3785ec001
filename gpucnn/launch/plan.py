"""Plans: launches in their order, recorded once and run again with the same arrays.

Arguments are recorded as they are, arrays by their address. Numbers that change from step to step (a learning rate, the
place in the stream of random numbers) are therefore read by the kernels from small arrays while a plan is recorded, and
`Plan.refresh` writes the next step's numbers there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.launch import native
from gpucnn.launch.sources import Entry
from gpucnn.random import default_generator

Engine = Callable[[Entry, tuple[int, int, int], list[Any], int], None]


class Plan:
    """Launches that `recording` noted down. It keeps their arrays alive; what else computed with them is not noted."""

    def __init__(self) -> None:
        self.launches: list[tuple[Engine, Entry, tuple[int, int, int], list[Any], int]] = []
        self._prepared: list[_C.NativeLaunch] = []
        self._graph: _C.NativeGraph | None = None
        self._numbers: list[Any] = []  # what `changing` returned, in its order
        self._refreshed: int | None = None  # how many of them have their next values; None: it is being recorded
        self._stream: Any = None  # seed, and the generator's offset where the plan starts
        self._offset, self._drawn = default_generator.offset, 0

    def __len__(self) -> int:
        return len(self.launches)

    @property
    def is_native(self) -> bool:
        """Whether every launch was recorded on the engine `native`, so that `capture` can make a graph of them."""
        return len(self._prepared) == len(self.launches) > 0

    def add(self, engine: Engine, entry: Entry, grid: tuple[int, int, int], arguments: list[Any], shared: int) -> None:
        """Note a launch; with the engine `native` it is bound now."""
        if engine is native.run:
            self._prepared.append(native.prepare(entry, grid, arguments, shared))
        self.launches.append((engine, entry, grid, arguments, shared))

    def replay(self) -> None:
        """Run all launches again: as one graph if there is one, else bound or through their engine."""
        if self._graph is not None:
            return self._graph.run(native.current_stream())
        if self.is_native:
            stream = native.current_stream()
            for launch in self._prepared:
                launch.run(stream)
            return
        for engine, entry, grid, arguments, shared in self.launches:
            engine(entry, grid, arguments, shared)

    def capture(self) -> None:
        """Make a CUDA graph of the plan, which `replay` then starts in one call.

        Raises ValueError unless all launches were recorded on the engine `native`.
        """
        if not self.is_native:
            raise ValueError(
                "Plan.capture: a graph needs launches of the engine 'native'; set GPUCNN_ENGINE=native before recording"
            )
        self._graph = _C.NativeGraph(native.driver(), self._prepared)

    def refresh(self, again: Callable[[], None] | None = None) -> None:
        """Give the kernels the numbers of the next step, before `replay`.

        Dropout goes on in the stream of the default generator, which counts as if the step had been made anew.

        - again: the code that sets other numbers, as it ran while they were recorded (`optimizer.step`); launches in it
          run nothing
        Raises ValueError if `again` has other numbers to set than were recorded.
        """
        global _current
        if self._stream is not None:
            devices.write(self._stream, _stream_numbers(default_generator.seed, default_generator.offset))
        default_generator.offset += self._drawn
        if again is None:
            return
        require_no_plan("Plan.refresh")
        _current, self._refreshed = self, 0
        try:
            again()
            if self._refreshed != len(self._numbers):
                raise ValueError(f"Plan.refresh: {self._refreshed} numbers are set, but {len(self._numbers)} recorded")
        finally:
            _current = None

    def changing(self, values: np.ndarray, like: Any) -> Any:
        """As the function `changing`."""
        if self._refreshed is None:
            self._numbers.append(devices.move(values, devices.of(like)))
            return self._numbers[-1]
        position, self._refreshed = self._refreshed, self._refreshed + 1
        if position >= len(self._numbers) or self._numbers[position].shape != values.shape:
            raise ValueError(f"Plan.refresh: number {position + 1} is another one than was recorded")
        devices.write(self._numbers[position], values)
        return self._numbers[position]

    def stream(self, offset: int, like: Any) -> tuple[int, Any]:
        """As the function `random_stream`."""
        if self._refreshed is not None:
            raise ValueError("Plan.refresh: dropout goes on by itself; give only the code after it, as optimizer.step")
        if self._stream is None:
            self._stream = devices.move(_stream_numbers(default_generator.seed, self._offset), devices.of(like))
        return (offset - self._offset) % 2**64, self._stream

    def finish(self) -> None:
        """End the recording."""
        self._drawn = default_generator.offset - self._offset


def _stream_numbers(seed: int, offset: int) -> np.ndarray:
    return np.array([seed, offset], np.uint64)


_current: Plan | None = None


@contextmanager
def recording(strict: bool = False) -> Iterator[Plan]:
    """Inside this context every launch runs and is noted in the Plan.

    - strict: raise ValueError where something else than a launch computes, as far as it can be seen
      (`device.launches_only`)
    """
    global _current
    require_no_plan("recording")
    plan = _current = Plan()
    try:
        with devices.launches_only() if strict else nullcontext():
            yield plan
    finally:
        _current = None
        plan.finish()


def require_no_plan(operation: str) -> None:
    """Raise ValueError while a plan is being recorded or refreshed."""
    if _current is not None:
        raise ValueError(f"{operation}: another plan is being recorded; end it first")


def current() -> Plan | None:
    """The plan that is being recorded or refreshed."""
    return _current


def is_refreshing() -> bool:
    """Whether numbers are written for a replay, so that launches run nothing."""
    return _current is not None and _current._refreshed is not None


def changing(values: np.ndarray, like: Any) -> Any:
    """An array of `values` on the device of `like`, which `Plan.refresh` will change; None where no plan is recorded.

    A kernel that takes it reads the numbers there instead of its own arguments.
    """
    return None if _current is None else _current.changing(values, like)


def random_stream(offset: int, like: Any) -> tuple[int, Any]:
    """(offset, None), or while a plan is recorded (offset from where the plan starts, array of seed and that place)."""
    return (offset, None) if _current is None else _current.stream(offset, like)
