"""What the simulator counts of a call, where its time would say nothing about a GPU's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gpucnn.launch import simulator
from gpucnn.launch.simulator import Counts, Profile


def count(run: Callable[[], Any], ideal_bytes: int) -> tuple[Any, dict[str, Any]]:
    """The result of a call on the simulator, and its counters; `results.COUNTERS` says what each means."""
    with simulator.profiling(lines=False) as launches:
        result = run()
    return result, summarize(launches, ideal_bytes)


def summarize(launches: list[tuple[str, Profile]], ideal_bytes: int) -> dict[str, Any]:
    """The counters of some launches together."""
    accesses = [counts for _, profile in launches for counts in profile.lines.values()]
    memory = [counts for counts in accesses if counts.space == "global"]
    shared = [counts for counts in accesses if counts.space == "shared"]
    return {
        "launches": len(launches),
        "flops": sum(profile.flops for _, profile in launches),
        "global_bytes": sum(counts.bytes for counts in memory),
        "ideal_bytes": ideal_bytes,
        "sectors_per_request": _a_request(memory, "units"),
        "ideal_sectors_per_request": _a_request(memory, "least"),
        "wavefronts_per_request": _a_request(shared, "units"),
        "ideal_wavefronts_per_request": _a_request(shared, "least"),
        "barriers": sum(profile.barriers for _, profile in launches),
    }


def _a_request(accesses: Iterable[Counts], what: str) -> float | None:
    accesses = list(accesses)
    requests = sum(counts.requests for counts in accesses)
    return sum(getattr(counts, what) for counts in accesses) / requests if requests else None
