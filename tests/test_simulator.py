"""The simulator: sound kernels pass in every mode and schedule, each planted fault is found where it stands."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpucnn import device as devices
from gpucnn.files import cache_folder
from gpucnn.launch import SimulatorError, launch, simulator, sources
from tests.check import assert_equal
from tests.kernel_check import SCHEDULES, on

PLANTED = Path(__file__).parent / "kernels" / "planted.cu"
X = np.arange(1, 129, dtype=np.float32)
modes = pytest.mark.parametrize("mode", simulator.KERNEL_FLAGS)


@pytest.fixture(autouse=True, scope="module")
def planted() -> Iterator[None]:
    sources.register(PLANTED)
    yield


def run(kernel: str, n: int = 64, grid: int = 1, size: int = 64) -> np.ndarray:
    (x,) = on("sim", X[:size])
    y = devices.empty_like(x)
    launch(kernel, grid, x, y, n)
    return devices.to_numpy(y)


def line_of(kernel: str, text: str) -> int:
    """The first line with `text` in a kernel."""
    lines = PLANTED.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if f" planted_{kernel}(" in line)
    return next(i for i in range(start, len(lines)) if text in lines[i]) + 1


@modes
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sound(mode, schedule):
    with simulator.configured(mode=mode, **schedule):
        assert_equal(run("planted_sound"), X[63::-1])
        assert_equal(run("planted_sound", n=100, grid=2, size=100), [*X[63::-1], *[0] * 28, *X[99:91:-1]])
        assert_equal(run("planted_copy_sound", n=60), [0, 0, 0, 0, *X[59::-1]])


@modes
def test_warp_operations(mode):
    with simulator.configured(mode=mode):
        y = run("planted_warp_sums", size=96)
    total = X[:96].sum()
    assert_equal(y, [total + 11, *[total] * 95])


@modes
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_operations_of_half_warps(mode, schedule):
    with simulator.configured(mode=mode, **schedule):
        y = run("planted_half_warps")
    lanes = np.arange(64) % 32
    value = np.where(lanes < 16, X[:64] + X[:64][np.arange(64) ^ 1], X[:64] + 8)
    assert_equal(y, value + value[np.where(np.arange(64) < 32, 31, 63)])


FAULTS = [
    # kernel, mode, n, kind, a part of the line where it stands
    ("read_past_end", "asan", 64, "out of bounds", "y[i] = x[i + 1]"),
    ("read_past_end", "race", 64, "out of bounds", "y[i] = x[i + 1]"),
    ("write_before_begin", "fast", 64, "out of bounds", None),
    ("write_before_begin", "asan", 64, "out of bounds", "y[static_cast<int>(threadIdx.x) - 1]"),
    ("write_to_const", "asan", 64, "read-only", "const_cast<float*>(x)"),
    ("shared_past_end", "asan", 1, "out of bounds", "first[threadIdx.x + n] ="),
    ("shared_past_end", "race", 1, "out of bounds", "first[threadIdx.x + n] ="),
    ("index_outside_array", "asan", 1, "undefined behaviour", "values[i] = x[i]"),
    ("no_barrier_before_read", "race", 64, ("race", "uninitialised"), "tile[63 - threadIdx.x]"),
    ("no_barrier_after_read", "race", 64, "race", "tile[63 - threadIdx.x]"),
    ("two_writers", "race", 64, "race", "tile[threadIdx.x / 2] = x"),
    ("uninitialised", "race", 64, "uninitialised", "tile[threadIdx.x + 1]"),
    ("divergent_barrier", "fast", 64, "divergent barrier", None),
    ("early_exit", "fast", 64, "barrier", "__syncthreads();"),
    ("lane_missing", "fast", 64, ("warp operation", "deadlock"), None),
    ("different_operations", "fast", 64, "divergent warp operation", None),
    ("masks_that_differ", "fast", 64, ("deadlock", "warp operation"), None),
    ("source_outside_mask", "fast", 64, "shuffle", None),
    ("misaligned", "asan", 1, "undefined behaviour", "store4(y + 4"),
    ("overflow", "asan", 64, "undefined behaviour", "static_cast<float>(big +"),
    ("division_by_zero", "asan", 64, "undefined behaviour", "x[64 / (n - n)]"),
    ("wild_address", "fast", 64, "bad address", None),
    ("wild_address", "asan", 64, "out of bounds", "x[int64(n) << 40]"),
    ("copy_not_awaited", "race", 64, "race", "tile[63 - threadIdx.x]"),
    ("copy_awaited_alone", "race", 64, ("race", "uninitialised"), "tile[63 - threadIdx.x]"),
    ("copy_wrong_group", "race", 64, "race", "tile[1][63 - threadIdx.x]"),
]


@pytest.mark.parametrize("kernel, mode, n, kind, text", FAULTS)
def test_fault_is_found(kernel, mode, n, kind, text):
    with simulator.configured(mode=mode), pytest.raises(SimulatorError) as caught:
        run(f"planted_{kernel}", n)
    assert caught.value.kind in ([kind] if isinstance(kind, str) else kind)
    assert caught.value.kernel == f"planted_{kernel}" and "block 0,0,0" in str(caught.value) or mode == "fast"
    if text is not None:
        assert caught.value.place == f"planted.cu:{line_of(kernel, text)}"
    assert_equal(run("planted_sound"), X[63::-1])  # the next launch is not disturbed


@pytest.mark.parametrize("mode", ["fast", "asan", "race"])
def test_write_past_end(mode):
    with simulator.configured(mode=mode), pytest.raises(SimulatorError, match="out of bounds: .*argument y"):
        run("planted_write_past_end", grid=2)


def test_views_are_guarded_as_a_whole():
    """A flat view of an array keeps its guard bands; a part of it has none."""
    (x,) = on("sim", X[:64])
    y = devices.empty((8, 8), np.float32, x)
    with pytest.raises(SimulatorError, match="argument y: something wrote 4 bytes before its begin"):
        launch("planted_write_before_begin", 1, x, y.reshape(64), 64)
    launch("planted_sound", 1, x, devices.empty((9, 8), np.float32, x)[1:], 64)
    assert not y[1:].guarded and not (y + 1).guarded


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_race_between_blocks(schedule):
    with simulator.configured(mode="race", **schedule), pytest.raises(SimulatorError, match="another block wrote"):
        run("planted_blocks_share_output", grid=3)


def test_copies_arrive_late():
    """What reads before the wait gets the old bytes (NaN) if copies are late, and what it wants if they are early."""
    with simulator.configured(late_copies=True):
        assert np.isnan(run("planted_copy_not_awaited")[1])
    with simulator.configured(late_copies=False):
        assert_equal(run("planted_copy_not_awaited"), X[63::-1])


def test_profile_counts():
    with simulator.configured(mode="profile"):
        (x,) = on("sim", np.zeros(256, np.float32))
        y = devices.empty(48, np.float32, x)
        launch("planted_counted", 1, x, y, 0)
        found = simulator.profile("planted_counted")
    assert (found.barriers, found.flops) == (1, 64)
    counts = [(c.space, c.writes, c.requests, c.bytes, c.units, c.partial) for c in found.lines.values()]
    assert sorted(counts) == [
        ("global", False, 1, 64, 2, 1),
        ("global", False, 1, 128, 32, 0),
        ("global", True, 1, 64, 2, 1),
        ("global", True, 1, 128, 4, 0),
        ("shared", False, 1, 128, 32, 0),
        ("shared", True, 1, 128, 32, 0),
    ]


def test_shared_memory_limit():
    (x,) = on("sim", X[:64])
    y = devices.empty_like(x)
    with pytest.raises(ValueError, match="architecture is 'sm_1'"), simulator.configured(architecture="sm_1"):
        pass
    launch("planted_sound", 1, x, y, 64, shared_bytes=0)


@modes
def test_block_size_limit(mode):
    with simulator.configured(mode=mode), pytest.raises(SimulatorError, match="2048 threads; the limit is 1024"):
        run("planted_too_many_threads")


def test_settings_are_checked():
    for wrong in ({"mode": "slow"}, {"order": "backwards"}):
        with pytest.raises(ValueError, match="must be one of"), simulator.configured(**wrong):
            pass


def test_cache_keeps_to_its_size(tmp_path, monkeypatch):
    """The oldest go first; what this or another process uses stays, and what is new."""
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))
    folder = cache_folder("simulator")
    names = ["old.so", "used.so", "locked.so", "middle.o", "new.so"]
    for age, name in zip(range(50, 0, -10), names, strict=True):
        (folder / name).write_bytes(b"x" * 100)
        os.utime(folder / name, (time.time() - age, time.time() - age))
    assert simulator._hold(folder / "used.so") and not simulator._hold(folder / "missing.so")
    os.utime(folder / "used.so", (time.time() - 40, time.time() - 40))
    with open(folder / "locked.so") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert simulator.prune(limit=500, age=0) == 0
        assert simulator.prune(limit=450, age=45) == 1
        assert not (folder / "old.so").exists()
        assert simulator.prune(limit=300, age=15) == 1
        assert sorted(path.name for path in folder.iterdir()) == ["locked.so", "new.so", "used.so"]
        assert simulator.prune(limit=0, age=0) == 1
    assert simulator.prune(limit=0, age=0) == 1
    assert [path.name for path in folder.iterdir()] == ["used.so"]


def test_what_was_pruned_is_built_again(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))
    path, built = tmp_path / "x.so", []

    def build() -> None:
        built.append(1)
        path.write_bytes(b"x")

    simulator._cached(path, build)
    simulator._cached(path, build)
    assert len(built) == 1
    path.unlink()
    simulator._cached(path, build)
    assert len(built) == 2


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts the process' mappings as Linux lists them")
def test_libraries_share_their_stacks():
    """Of the 65,530 mappings that a process may have each stack takes two: 512 for a library of 256 threads a block."""

    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    (x,) = on("sim", X)
    launch("relu_forward", 1, x, devices.empty_like(x), X.size)
    before = mappings()
    for mode in ("asan", "race"):
        with simulator.configured(mode=mode):
            launch("relu_forward", 1, x, devices.empty_like(x), X.size)
    assert mappings() - before < 200
