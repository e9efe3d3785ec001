"""Plans: launches in their order, recorded once and run again with the same arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpucnn import _C
from gpucnn.launch import native
from gpucnn.launch.sources import Entry

Engine = Callable[[Entry, tuple[int, int, int], list[Any], int], None]


class Plan:
    """Launches that `recording` noted down. It keeps their arrays alive; what else computed with them is not noted."""

    def __init__(self) -> None:
        self.launches: list[tuple[Engine, Entry, tuple[int, int, int], list[Any], int]] = []
        self._prepared: list[_C.NativeLaunch] = []
        self._graph: _C.NativeGraph | None = None

    def __len__(self) -> int:
        return len(self.launches)

    def add(self, engine: Engine, entry: Entry, grid: tuple[int, int, int], arguments: list[Any], shared: int) -> None:
        """Note a launch; with the engine `native` it is bound now."""
        if engine is native.run:
            self._prepared.append(native.prepare(entry, grid, arguments, shared))
        self.launches.append((engine, entry, grid, arguments, shared))

    def replay(self) -> None:
        """Run all launches again: as one graph if there is one, else bound or through their engine."""
        if self._graph is not None:
            return self._graph.run(native.current_stream())
        if len(self._prepared) == len(self.launches) > 0:
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
        if len(self._prepared) != len(self.launches) or not self.launches:
            raise ValueError(
                "Plan.capture: a graph needs launches of the engine 'native'; set GPUCNN_ENGINE=native before recording"
            )
        self._graph = _C.NativeGraph(native.driver(), self._prepared)


_recorded: Plan | None = None


@contextmanager
def recording() -> Iterator[Plan]:
    """Inside this context every launch runs and is noted in the Plan."""
    global _recorded
    if _recorded is not None:
        raise ValueError("recording: another plan is being recorded; end it first")
    _recorded = Plan()
    try:
        yield _recorded
    finally:
        _recorded = None


def current() -> Plan | None:
    """The plan that is being recorded."""
    return _recorded
