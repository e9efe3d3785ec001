"""Golden maps: what small programs of integers give on a GPU, kept for the simulator to be held to.

    python -m gpucnn.bench.golden --record DIR [--device cuda]

runs the programs of tests/kernels/golden*.cu, those of Hopper there only, and writes DIR/<gpu>.json; tests/golden/
keeps such files, and tests/test_golden.py holds the simulator to each of them bit by bit. `multiply_add` is recorded
and not compared: it rounds once on a GPU and twice in the simulator. The times of loads from shared memory, by which
lanes read the same address, are recorded only. It runs in a checkout, where tests/ is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpucnn import device as devices
from gpucnn.bench import golden_barrier, golden_encoder, golden_tma, golden_wgmma
from gpucnn.bench.adopt import slug
from gpucnn.bench.report import Report
from gpucnn.bench.report import main as report_main
from gpucnn.bench.timing import clock_of, measure
from gpucnn.launch import launch, sources

KERNELS = Path(__file__).resolve().parent.parent / "tests" / "kernels"
KNOWN_DIFFERENCES = ("multiply_add",)
# Which 16-byte group of 32 each lane n of a warp reads: passes are 4 if a quarter of a warp is served at a time.
PAIR_MAPS: dict[str, Callable[[int], int]] = {
    "one group for all": lambda n: 0,
    "all different": lambda n: n,
    "n and n^1 the same": lambda n: n >> 1,
    "n and n^2 the same": lambda n: n >> 2 << 1 | n & 1,
    "n and n^4 the same": lambda n: n >> 3 << 2 | n & 3,
    "n and n^8 the same": lambda n: n >> 4 << 3 | n & 7,
    "n and n^16 the same": lambda n: n & 15,
    "by bits 0 and 4": lambda n: n & 1 | n >> 3 & 2,
    "by bits 1, 2 and 3": lambda n: n >> 1 & 7,
}


class Program(NamedTuple):
    """A kernel of golden.cu, its grid, its inputs (arrays, then integers at the end), and its outputs."""

    kernel: str
    grid: int
    inputs: tuple[Any, ...]
    outputs: tuple[tuple[tuple[int, ...], str], ...]  # shapes and dtypes


@cache
def programs() -> dict[str, Program]:
    """Every program with its data, which is the same on every machine."""
    generator = np.random.default_rng(1)

    def integers(*shape: int) -> np.ndarray:
        return generator.integers(1, 1 << 20, shape).astype(np.float32)

    def bits(count: int) -> np.ndarray:
        edges = np.array([0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 0x10000], np.uint32)
        return np.concatenate([edges, generator.integers(0, 1 << 32, count - edges.size, np.uint32)])

    def reals(count: int) -> np.ndarray:
        return generator.standard_normal(count).astype(np.float32)

    words = bits(40)
    a, b = (generator.integers(1 << 23, 1 << 24, 64).astype(np.float32) for _ in range(2))
    found = {
        "copy16": Program("golden_copy16", 1, (integers(640),), (((640,), "float32"),)),
        "copy4": Program("golden_copy4", 1, (integers(128),), (((128,), "float32"),)),
        "copy_groups": Program("golden_copy_groups", 1, (integers(7 * 64), 7), (((7 * 64,), "float32"),)),
        "shuffle": Program(
            "golden_shuffle", 1, (generator.permutation(1000)[:32].astype(np.int32),), (((5, 32, 4, 32), "int32"),)
        ),
        "vote": Program("golden_vote", 1, (words,), (((words.size, 6, 32), "uint32"),)),
        "vector": Program("golden_vector", 1, (integers(4 * 75),), (((4 * 75,), "float32"),)),
        "warp_reduce": Program("golden_warp_reduce", 1, (reals(96),), (((96,), "float32"),) * 2),
        "maximum_nan": Program("golden_maximum_nan", 1, (reals(32),), (((32, 32), "int32"),)),
        "multiply_high": Program("golden_multiply_high", 1, (bits(200), bits(200)[::-1].copy()), (((200,), "uint32"),)),
        "multiply_add": Program("golden_multiply_add", 1, (a, b, -(a * b)), (((64,), "float32"),)),
    }
    found.update(tensor_core_programs(generator))
    found.update(hopper_programs())
    for threads in (32, 96, 256, 1024):
        shape = (2 * threads,)
        kernel = f"golden_block_reduce_{threads}"
        found[f"block_reduce_{threads}"] = Program(kernel, 2, (reals(2 * threads),), ((shape, "float32"),) * 2)
    return found


def tensor_core_programs(generator: np.random.Generator) -> dict[str, Program]:
    """mma.sync on integers, whose sums are exact, and on any bits; rounding to tf32; ldmatrix."""

    def bits(*shape: int) -> np.ndarray:
        return generator.integers(0, 1 << 32, shape, np.uint32)

    def problems(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[Any, ...]:
        return a, b, c, len(a)

    found = {}
    for name, floats in (("tf32", 1), ("bf16", 2), ("f16", 2)):
        encode = {"tf32": _tf32_bits, "bf16": _bf16_bits, "f16": _f16_bits}[name]
        a, b = (generator.integers(-60, 61, (12, 32, count * floats)).astype(np.float32) for count in (4, 2))
        c = generator.integers(-1000, 1001, (12, 32, 4)).astype(np.float32)
        near = np.exp2(generator.integers(-30, 31, (24, 32, 4))).astype(np.float32)  # beside products of like size
        wide = bits(24, 32, 4), bits(24, 32, 2), generator.standard_normal((24, 32, 4), np.float32) * near
        reals = [generator.standard_normal((24, 32, count * floats), np.float32) for count in (4, 2)]
        close = encode(reals[0]), encode(reals[1]), generator.standard_normal((24, 32, 4), np.float32)
        inputs = [np.concatenate(each) for each in zip((encode(a), encode(b), c), wide, close, strict=True)]
        shape = ((60, 32, 4), "float32")  # 12 + 24 + 24
        found[f"mma_{name}"] = Program(f"golden_mma_{name}", 1, problems(*inputs), (shape,))
    edges = np.array([0x3F800FFF, 0x3F801000, 0x3F802FFF, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FFFFFFF, 0x80000001])
    values = np.concatenate([edges.astype(np.uint32), bits(504)]).view(np.float32)
    found["round_tf32"] = Program("golden_round_tf32", 1, (values,), (((512,), "uint32"),))
    rows = generator.permutation(32).astype(np.int32)
    found["load_matrices"] = Program("golden_load_matrices", 1, (bits(128), rows), (((2, 32, 7), "uint32"),))
    return found


@cache
def hopper_programs() -> dict[str, Program]:
    """Those that only sm_90 runs."""
    return {
        name: Program(kernel, 1, inputs, ((shape, dtype),))
        for name, kernel, inputs, shape, dtype in golden_wgmma.programs()
    }


def _tf32_bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)


def _bf16_bits(values: np.ndarray) -> np.ndarray:
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    return halves.view(np.uint32)


def _f16_bits(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).view(np.uint32)


def names(device: str) -> list[str]:
    """The programs that a device can run."""
    if device == "sim" or devices.gpu(device)[1][0] == 9:
        return [*programs(), *golden_tma.cases(), *golden_barrier.SCRIPTS, golden_encoder.NAME]
    return [name for name in programs() if name not in hopper_programs()]


@cache
def register() -> None:
    """Make the programs' kernels known to `launch`; raises ValueError outside a checkout."""
    if not KERNELS.is_dir():
        raise ValueError(f"golden: {KERNELS} is not there; run it in a checkout of the repository")
    sources.register(KERNELS / "golden.cu")
    sources.register(KERNELS / "golden_barrier.cu")
    sources.register(KERNELS / "golden_mma.cu")
    sources.register(KERNELS / "golden_tma.cu")
    sources.register(KERNELS / "golden_wgmma.cu")
    sources.register(KERNELS / "shared_pairs.cu")


def run(name: str, device: str) -> list[np.ndarray]:
    """The outputs of a program on a device."""
    register()
    if name in golden_tma.cases():
        return [golden_tma.run(golden_tma.cases()[name], device)]
    if name in golden_barrier.SCRIPTS:
        return [golden_barrier.run(name, device)]
    if name == golden_encoder.NAME:
        return [golden_encoder.codes(device)]
    program = programs()[name]
    arrays = [devices.move(value, device) for value in program.inputs if isinstance(value, np.ndarray)]
    outputs = [devices.empty(shape, dtype, arrays[0]) for shape, dtype in program.outputs]
    numbers = [value for value in program.inputs if not isinstance(value, np.ndarray)]
    wanted = len(sources.entries()[program.kernel].parameters) - len(arrays) - len(outputs)
    counts = (numbers or [_count(program)])[:wanted]
    launch(program.kernel, program.grid, *arrays, *outputs, *counts)
    return [devices.to_numpy(output).copy() for output in outputs]


def _count(program: Program) -> int:
    """What a kernel that takes one integer counts: its inputs' elements, or fours of them."""
    size = program.inputs[0].size
    return size // 4 if program.kernel == "golden_vector" else size


def encode(outputs: list[np.ndarray]) -> list[dict[str, Any]]:
    """Outputs for a JSON file: their bytes, little-endian, in hexadecimal."""
    return [{"dtype": str(each.dtype), "shape": list(each.shape), "bytes": each.tobytes().hex()} for each in outputs]


def decode(stored: list[dict[str, Any]]) -> list[np.ndarray]:
    """The outputs that `encode` wrote."""
    return [np.frombuffer(bytes.fromhex(each["bytes"]), each["dtype"]).reshape(each["shape"]) for each in stored]


def same_bits(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return [each.tobytes() for each in one] == [each.tobytes() for each in other]


def cases(report: Report) -> None:
    """A row a program, beside the simulator on the same machine; then the times of loads from shared memory."""
    report.content.setdefault("maps", {})
    for name in names(report.device):
        report.add(partial(compare, name, report), program=name)
    for name in PAIR_MAPS:
        report.add(partial(time_pairs, name, report), shared_loads=name)


def compare(name: str, report: Report) -> dict[str, Any]:
    """Record a program's map; whether it is the simulator's: a difference fails unless it is a known one."""
    outputs = run(name, report.device)
    report.content["maps"][name] = encode(outputs)
    same = same_bits(outputs, run(name, "sim"))
    if name in KNOWN_DIFFERENCES:
        return {"same_as_simulator": same, "known_difference": True}
    return {"same_as_simulator": same} if same else {"ok": False, "reason": "not the simulator's bits"}


def time_pairs(name: str, report: Report) -> dict[str, Any]:
    """Nanoseconds that a multiprocessor takes for one warp's load, with a block on each."""
    register()
    blocks = 1 if report.device == "sim" else devices.cupy().cuda.Device().attributes["MultiProcessorCount"]
    rounds = 2 if report.quick else 20_000
    lanes = devices.move(np.array([PAIR_MAPS[name](n) for n in range(32)], np.int32), report.device)
    y = devices.empty((256 * blocks,), np.float32, lanes)
    clock = clock_of(report.device)
    timing = measure(lambda: launch("golden_shared_loads", blocks, lanes, y, rounds), clock, 0.05)
    expected = 32 * rounds  # eight loads of four ones each a round
    right = bool((devices.to_numpy(y) == expected).all())
    result = {"ns": timing.median / (rounds * 8 * 8) * 1e9, **timing.milliseconds()}
    return result if right else {"ok": False, "reason": f"a thread's sum is not {expected}", **result}


def record(folder: Path, device: str) -> Path:
    """Write the maps of a device into a folder; returns the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    report = Report("golden", device, folder / "unnamed.json", False, time.monotonic() + 600)
    report.path = folder / f"{slug(report.content['device'])}.json"
    cases(report)
    return report.path


def main(arguments: list[str] | None = None) -> int:
    """--record DIR, or a part's options; returns an exit code."""
    if "--record" not in (sys.argv[1:] if arguments is None else arguments):
        return report_main("golden", cases, arguments)
    parser = argparse.ArgumentParser(prog="python -m gpucnn.bench.golden", description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, required=True, metavar="DIR", help="where <gpu>.json goes")
    parser.add_argument("--device", default="cuda", help="cuda (default) or sim")
    options = parser.parse_args(arguments)
    print(record(options.record, devices.resolve(options.device)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
