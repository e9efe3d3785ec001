"""Barriers of asynchronous copies and products in the simulator: rings work in every schedule, and misuse is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpucnn import device as devices
from gpucnn.launch import SimulatorError, launch, simulator, sources
from gpucnn.launch.tensor_map import tiled
from tests.check import assert_equal
from tests.kernel_check import SCHEDULES, assert_sound, on

KERNELS = Path(__file__).parent / "kernels" / "barriers.cu"


@pytest.fixture(autouse=True, scope="module")
def barriers() -> Iterator[None]:
    sources.register(KERNELS)
    sources.register(KERNELS.with_name("proxies.cu"))
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
    return KERNELS.read_text().splitlines()[int(number) - 1] if file == KERNELS.name else ""


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


def ping(name: str, rounds: int = 7) -> np.ndarray:
    (y,) = on("sim", np.zeros((4, 64), np.float32))
    launch(f"cluster_{name}", 4, y, rounds)
    return devices.to_numpy(y)


def test_cluster():
    """Blocks of a cluster run together, and wait for each other's arrivals."""
    assert_equal(ping("ping"), np.repeat([[21], [28], [21], [28]], 64, axis=1))
    assert_sound(lambda: ping("ping"), "sim")
    with pytest.raises(ValueError, match="grid.x is 3; it must be a multiple of the cluster of 2 blocks"):
        launch("cluster_ping", 3, on("sim", np.zeros(256, np.float32))[0], 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_faults_of_a_cluster(schedule):
    with simulator.configured(mode="race", **schedule):
        for name, message in (
            ("no_wait", "nothing has initialised|initialised a barrier, which"),
            ("no_fence", "a missing barrier_init_fence"),
        ):
            with pytest.raises(SimulatorError, match=message):
                ping(name)


def test_block_that_ends_early():
    found = "nothing has waited|has ended"
    with simulator.configured(order="random", seed=3), pytest.raises(SimulatorError, match=found):
        ping("ends_early")


def test_invalidated():
    script("invalidated", 3)
    with pytest.raises(SimulatorError, match="an arrival on a barrier that nothing has initialised"):
        script("invalidated", 1)


def test_bytes_that_nobody_brings():
    with pytest.raises(SimulatorError, match="the block ends, and the barrier .* waits for 64 bytes"):
        script("unfinished")


def test_use_before_initialisation():
    (y,) = on("sim", np.zeros(64, np.float32))
    with simulator.configured(mode="race"):
        launch("script_used_before_init", 1, y, 1)
        with pytest.raises(SimulatorError, match="initialised a barrier, which thread 1 uses"):
            launch("script_used_before_init", 1, y, 0)


@pytest.mark.parametrize("arrivals", [1, 2, 3])
def test_golden_script(arrivals):
    """What try_wait says after each arrival: parity 1 passes at first, then that of the phase before."""
    steps = 5 * arrivals + 1
    (y,) = on("sim", np.zeros((steps, 2), np.int32))
    launch("golden_mbarrier", 1, y, arrivals, steps)
    phase = np.arange(steps) // arrivals
    assert_equal(devices.to_numpy(y), np.stack([phase % 2 == 1, phase % 2 == 0], 1).astype(np.int32))


# By the numbers of proxies.cu's enum Fault.
PROXY_FAULTS = {
    1: "a missing fence.proxy.async: thread .* read shared byte .*, which a copy of a box overwrites",
    2: "a missing fence.proxy.async: thread .* read shared byte .*, which a copy of a box overwrites",
    3: "which thread 0 writes with no barrier|without having waited for its barrier|a wait for phase",
}


def reload(fault: int = 0, steps: int = 5) -> np.ndarray:
    x = devices.move(np.arange(steps * 16 * 32, dtype=np.float32).reshape(-1, 32), "sim")
    y = devices.empty_like(x)
    launch("proxies_reload", 1, tiled(x, (32, 16)), y, steps, fault, shared_bytes=2064)
    assert_equal(devices.to_numpy(y), devices.to_numpy(x))
    return y


def multicast(fault: int = 0, steps: int = 5) -> np.ndarray:
    x = devices.move(np.arange(steps * 16 * 32, dtype=np.float32).reshape(-1, 32), "sim")
    y = devices.empty((4, steps * 16, 32), np.float32, x)
    launch("proxies_multicast", 4, tiled(x, (32, 16)), y, steps, fault, shared_bytes=2064)
    assert_equal(devices.to_numpy(y), np.broadcast_to(devices.to_numpy(x), y.shape))
    return y


def test_boxes_one_after_the_other():
    assert_sound(reload, "sim")


@pytest.mark.parametrize("fault", PROXY_FAULTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reads_before_a_load(fault, schedule):
    with simulator.configured(mode="race", **schedule), pytest.raises(SimulatorError, match=PROXY_FAULTS[fault]):
        reload(fault)


def test_multicast():
    assert_sound(multicast, "sim")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_faults_of_a_multicast(schedule):
    with simulator.configured(mode="race", **schedule):
        with pytest.raises(SimulatorError, match="a missing fence.proxy.async"):
            multicast(1)
        with pytest.raises(SimulatorError) as caught:
            multicast(4)
    assert caught.value.kind in ("race", "mbarrier")
