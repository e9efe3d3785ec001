"""Barriers of asynchronous copies and products in the simulator: rings work in every schedule, and misuse is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpucnn import device as devices
from gpucnn.launch import SimulatorError, launch, simulator, sources
from tests.check import assert_equal
from tests.kernel_check import SCHEDULES, assert_sound, on

KERNELS = Path(__file__).parent / "kernels" / "barriers.cu"


@pytest.fixture(autouse=True, scope="module")
def barriers() -> Iterator[None]:
    sources.register(KERNELS)
    yield


def run_ring(name: str, steps: int) -> np.ndarray:
    (x,) = on("sim", np.random.default_rng(1).integers(-100, 100, (steps, 32)).astype(np.float32))
    y = devices.empty_like(x)
    launch(f"ring_{name}", 1, x, y, steps)
    assert_equal(devices.to_numpy(y), devices.to_numpy(x) + devices.to_numpy(x)[:, ::-1])
    return y


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_ring(stages):
    for steps in (1, stages, 2 * stages + 1, 6 * stages + 5):
        run_ring(str(stages), steps)
    assert_sound(lambda: run_ring(str(stages), 4 * stages + 1), "sim")


@pytest.mark.parametrize("fault", ["skipped_empty", "skipped_full", "early_release", "lane_releases_warp"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_races_of_a_ring(fault, schedule):
    with simulator.configured(mode="race", **schedule), pytest.raises(SimulatorError) as caught:
        run_ring(fault, 13)
    assert caught.value.kind in ("race", "uninitialised", "mbarrier"), caught.value
    assert "tiles" in line(caught.value) or caught.value.kind == "mbarrier"


def line(error: SimulatorError) -> str:
    """The text of the line where an error stands."""
    file, number = error.place.rsplit(":", 1)
    return Path(file).read_text().splitlines()[int(number) - 1] if Path(file).exists() else ""


def test_wrong_parity_deadlocks():
    with pytest.raises(SimulatorError, match="waits at the barrier at shared byte") as caught:
        run_ring("wrong_parity", 5)
    assert caught.value.kind == "deadlock"


def exchange(name: str, count: int) -> np.ndarray:
    (x,) = on("sim", np.arange(64, dtype=np.float32))
    y = devices.empty_like(x)
    launch(name, 1, x, y, count)
    return devices.to_numpy(y)


def test_named_barrier():
    assert_equal(exchange("named_exchange", 64), np.arange(63, -1, -1))
    assert_sound(lambda: exchange("named_exchange", 64), "sim")
    with pytest.raises(SimulatorError, match="named barrier"):
        exchange("named_exchange", 96)
    with pytest.raises(SimulatorError, match="whole warps"):
        exchange("named_exchange", 33)
    with simulator.configured(mode="race"), pytest.raises(SimulatorError) as caught:
        exchange("named_exchange_missing", 64)
    assert caught.value.kind in ("race", "uninitialised")


def change_registers(name: str) -> np.ndarray:
    (y,) = on("sim", np.zeros(384, np.float32))
    launch(name, 1, y, 0)
    return devices.to_numpy(y)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_registers(schedule):
    with simulator.configured(**schedule):
        assert change_registers("registers_change").sum() == 256
        with pytest.raises(SimulatorError, match="for registers that others give back"):
            change_registers("registers_too_many")
        with pytest.raises(SimulatorError, match="has 168 registers a thread and cannot give some to have 240"):
            change_registers("registers_given_up")


def script(name: str, n: int = 5) -> None:
    (y,) = on("sim", np.zeros(1, np.float32))
    launch(f"script_{name}", 1, y, n)
    assert devices.to_numpy(y)[0] == 1


@pytest.mark.parametrize("mode", ["fast", "asan", "race"])
def test_phases(mode):
    with simulator.configured(mode=mode):
        script("five_phases", 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uninitialised", "nothing has initialised"),
        ("twice", "was initialised before"),
        ("no_arrivals", "from 1 to 2\\^20 - 1 arrivals"),
        ("misplaced", "at a multiple of 8"),
        ("too_many_bytes", "from 0 to 2\\^20 - 1 bytes"),
        ("unseen_phase", "phase 0 of the barrier at shared byte 0 has completed, nothing has waited for it"),
        ("never_completed", "whose phase 0 lacks 1 arrivals and 0 bytes"),
        ("bytes_never_come", "whose phase 0 lacks 0 arrivals and 128 bytes"),
    ],
)
def test_misuse(name, message):
    with pytest.raises(SimulatorError, match=message) as caught:
        script(name)
    assert caught.value.kind in ("mbarrier", "deadlock")


def test_plain_access():
    with simulator.configured(mode="race"), pytest.raises(SimulatorError, match="belongs to an mbarrier"):
        script("plain_access")
