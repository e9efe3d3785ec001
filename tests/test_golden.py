"""Golden maps: the simulator beside every stored GPU, and both beside the definitions of primitives in NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpucnn.bench import golden, golden_barrier, golden_encoder
from gpucnn.launch import simulator
from tests import tensor_core, wgmma
from tests.check import assert_same_bits

STORED = sorted((Path(__file__).parent / "golden").glob("*.json"))
LANES = np.arange(32)
PROGRAMS = list(golden.programs())
COMPARED = [name for name in PROGRAMS if name not in golden.KNOWN_DIFFERENCES]


def copy16(x: np.ndarray) -> list[np.ndarray]:
    """Of the i-th of five parts, the first i of each four values are copied."""
    kept = np.arange(4) < np.arange(5)[:, None, None]
    return [np.where(kept, x.reshape(5, 32, 4), 0).ravel()[::-1]]


def copy4(x: np.ndarray) -> list[np.ndarray]:
    return [np.where(np.arange(x.size) % 3 != 0, x, 0)[::-1]]


def copy_groups(x: np.ndarray, tiles: int) -> list[np.ndarray]:
    return [(x.reshape(tiles, 64)[:, ::-1] + np.arange(tiles, dtype=np.float32)[:, None]).ravel()]


def shuffle_sources(width: int, amount: int) -> np.ndarray:
    """PTX ISA, shfl: the lane that each of the four shuffles reads, (4, 32); its own where the source is outside."""
    first, last = LANES & ~(width - 1), LANES | (width - 1)
    xor, down, up = LANES ^ amount, LANES + amount, LANES - amount
    found = [(xor, xor <= last), (down, down <= last), (up, up >= first), (first | amount & (width - 1), LANES >= 0)]
    return np.array([np.where(inside, source, LANES) for source, inside in found])


def shuffle(x: np.ndarray) -> list[np.ndarray]:
    return [x[[[shuffle_sources(width, amount) for amount in range(32)] for width in (32, 16, 8, 4, 2)]]]


def vote(words: np.ndarray) -> list[np.ndarray]:
    halves = words & 0xFFFF
    full = np.stack([words, words != 0, words == 0xFFFFFFFF]).T[:, :, None] * np.ones(32, int)
    half = np.stack([halves, halves != 0, halves == 0xFFFF]).T[:, :, None] * (LANES < 16)
    return [np.concatenate([full, half], 1).astype(np.uint32)]


def tree(x: np.ndarray, combine: np.ufunc) -> np.ndarray:
    """warp_reduce of each row of 32: pairs at distance 16, 8, 4, 2, 1."""
    for distance in (16, 8, 4, 2, 1):
        x = combine(x, x[..., LANES ^ distance])
    return x


def block_reduce(x: np.ndarray, threads: int) -> list[np.ndarray]:
    """The warps' results one after the other, in every thread."""
    results = []
    for combine in (np.add, np.maximum):
        partial = tree(x.reshape(-1, threads // 32, 32), combine)[:, :, 0]
        total = partial[:, 0]
        for warp in range(1, partial.shape[1]):
            total = combine(total, partial[:, warp])
        results.append(np.repeat(total, threads))
    return results


def definition(name: str) -> list[np.ndarray]:
    """What a program gives by definition."""
    inputs = golden.programs()[name].inputs
    if name.startswith("wgmma_"):
        return [wgmma.run(golden.programs()[name].kernel.removeprefix("golden_wgmma_"), *inputs)]
    match name:
        case "copy16" | "copy4" | "copy_groups" | "shuffle" | "vote":
            return globals()[name](*inputs)
        case "vector":
            return [inputs[0][::-1]]
        case "warp_reduce":
            return [tree(inputs[0].reshape(-1, 32), combine).ravel() for combine in (np.add, np.maximum)]
        case "maximum_nan":
            return [np.ones((32, 32), np.int32)]
        case "mma_tf32" | "mma_bf16" | "mma_f16":
            return [tensor_core.mma(name.removeprefix("mma_"), *inputs[:3])]
        case "round_tf32":
            return [tensor_core.round_tf32(inputs[0])]
        case "load_matrices":
            return [tensor_core.load_matrices(*inputs)]
        case "store_matrices":
            return [wgmma.store_matrices(*inputs)]
        case "multiply_high":
            return [(inputs[0].astype(np.uint64) * inputs[1] >> np.uint64(32)).astype(np.uint32)]
    return block_reduce(*inputs, int(name.rpartition("_")[2]))


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a · b + c rounded once: these products and sums are exact in float64."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


@pytest.mark.parametrize("name", COMPARED)
def test_definition(name, device):
    for got, want in zip(golden.run(name, device), definition(name), strict=True):
        assert_same_bits(got, np.ascontiguousarray(want))


def test_multiply_add_rounds_once_on_a_gpu_and_twice_in_the_simulator(device):
    a, b, c = golden.programs()["multiply_add"].inputs
    twice, once = a * b + c, fused(a, b, c)
    assert np.count_nonzero(twice != once) > 10
    assert_same_bits(golden.run("multiply_add", device)[0], twice if device == "sim" else once)


@pytest.mark.parametrize("mode", ["asan", "race"])
def test_programs_are_sound(mode):
    with simulator.configured(mode=mode, order="reverse"):
        for name in ("copy16", "copy_groups", "vote", "block_reduce_96"):
            for got, want in zip(golden.run(name, "sim"), definition(name), strict=True):
                assert_same_bits(got, np.ascontiguousarray(want))


def check_file(path: Path) -> int:
    """Hold the simulator to a stored file; returns how many programs it has."""
    content = json.loads(path.read_text())
    assert content["device"] and content["driver"]
    for name, stored in content["maps"].items():
        if name in golden.KNOWN_DIFFERENCES:
            assert_same_bits(golden.decode(stored)[0], fused(*golden.programs()[name].inputs))
            continue
        for got, want in zip(golden.run(name, "sim"), golden.decode(stored), strict=True):
            assert_same_bits(got, want)
    return len(content["maps"])


def test_stored_maps():
    """Those of every GPU on file; there may be none yet."""
    for path in STORED:
        expected = len(PROGRAMS), len(golden.names("sim")), len(PROGRAMS) - len(golden.hopper_programs())
        assert check_file(path) in expected, path


def barrier_states(script: tuple[tuple[int, int], ...]) -> list[int]:
    """PTX ISA, mbarrier: which parities have ended after each line; bytes may come at any time until a WAIT."""
    arrivals = pending = owed = phase = 0
    copying, seen = False, []
    for line, number in script:
        if line == golden_barrier.RENEW:
            arrivals, pending, owed, phase = number, number, 0, 0
        pending -= line in (golden_barrier.ARRIVE, golden_barrier.EXPECT)
        owed += number if line == golden_barrier.EXPECT else -128 if line == golden_barrier.LOAD else 0
        if pending == owed == 0:
            phase, pending = phase + 1, arrivals
        assert line != golden_barrier.WAIT or phase % 2 != number, "the script would hang"
        copying = line == golden_barrier.LOAD or (copying and line != golden_barrier.WAIT)
        seen.append(4 if copying else 2 - phase % 2)
    return seen


@pytest.mark.parametrize("name", golden_barrier.SCRIPTS)
def test_barriers(name, device):
    if name not in golden.names(device):
        pytest.skip("mbarriers are for sm_90")
    want = barrier_states(golden_barrier.SCRIPTS[name])
    assert golden.run(name, device)[0].tolist() == want
    if device == "sim":
        for mode, order, late in (("asan", "reverse", True), ("race", "random", True), ("race", "forward", False)):
            with simulator.configured(mode=mode, order=order, late_copies=late):
                assert golden.run(name, "sim")[0].tolist() == want


def test_encoder_codes(device):
    if golden_encoder.NAME not in golden.names(device):
        pytest.skip("tensor maps are for sm_90")
    assert golden.run(golden_encoder.NAME, device)[0].tolist() == [int(not taken) for _, taken in golden_encoder.CASES]


def simulated_gpu() -> dict[str, list[np.ndarray]]:
    """What a GPU would give: the simulator's maps, with one rounding in multiply_add."""
    maps = {name: golden.run(name, "sim") for name in COMPARED}
    return {**maps, "multiply_add": [fused(*golden.programs()["multiply_add"].inputs)]}


def test_a_recorded_file_is_replayed_and_a_changed_bit_found(tmp_path: Path):
    path = tmp_path / "gpu.json"
    content = {"device": "a GPU", "driver": "1", "maps": {k: golden.encode(v) for k, v in simulated_gpu().items()}}
    path.write_text(json.dumps(content))
    assert check_file(path) == len(PROGRAMS)
    stored = content["maps"]["block_reduce_256"][0]
    stored["bytes"] = stored["bytes"][:-1] + ("1" if stored["bytes"][-1] != "1" else "3")
    path.write_text(json.dumps(content))
    with pytest.raises(AssertionError, match="1 of 512 elements differ"):
        check_file(path)


def test_record(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(golden, "time_pairs", lambda name, report: {"ns": 1.0})
    assert golden.main(["--record", str(tmp_path), "--device", "sim"]) == 0
    (path,) = tmp_path.iterdir()
    assert str(path) in capsys.readouterr().out and path.stem.startswith("simulator-on-")
    content = json.loads(path.read_text())
    assert set(content["maps"]) == set(golden.names("sim"))
    assert len(content["rows"]) == len(golden.names("sim")) + len(golden.PAIR_MAPS) and all(
        row["ok"] for row in content["rows"]
    )
