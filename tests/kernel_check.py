"""What every kernel must pass, wherever it runs: the same bits in every schedule, and no fault in any mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import simulator
from tests.check import assert_same_bits

SCHEDULES: tuple[dict[str, Any], ...] = (
    {"order": "forward", "late_copies": False},
    {"order": "reverse", "late_copies": True},
    {"order": "random", "seed": 1, "late_copies": True},
    {"order": "random", "seed": 2, "late_copies": False},
)


def on(device: str, *arrays: Any) -> tuple[Any, ...]:
    """The arrays on a device; None stays None."""
    return tuple(array if array is None else devices.move(np.asarray(array), device) for array in arrays)


def assert_two_runs_equal(run: Callable[[], Any], device: str) -> None:
    """Two runs give the same bits; on `sim` with opposite schedules."""
    first = _results(run)
    if device != "sim":
        return _assert_same(first, _results(run))
    with simulator.configured(**SCHEDULES[1]):
        _assert_same(first, _results(run))


def assert_sound(run: Callable[[], Any], device: str) -> None:
    """`run` finds no fault in the modes asan and race, in any schedule, and gives the bits of the same mode's first."""
    if device != "sim":
        return assert_two_runs_equal(run, device)
    for mode in ("asan", "race"):
        with simulator.configured(mode=mode):
            first = _results(run)
        for schedule in SCHEDULES:
            with simulator.configured(mode=mode, **schedule):
                _assert_same(first, _results(run))


def _results(run: Callable[[], Any]) -> list[np.ndarray]:
    results = run()
    return [devices.to_numpy(result).copy() for result in (results if isinstance(results, tuple) else (results,))]


def _assert_same(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for one, other in zip(first, second, strict=True):
        assert_same_bits(one, other)
