"""How fast the simulator is: matrix products of two tiles in each mode, and a training step of LeNet-5.

python -m gpucnn.bench.simulator [--out bench/results/simulator/speed.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import models, optim
from gpucnn.bench import oracle, timing
from gpucnn.bench.gemm import error as product_error
from gpucnn.bench.machine import commit, processor
from gpucnn.bench.report import Report
from gpucnn.files import write_atomically
from gpucnn.launch import launch, simulator, sources
from gpucnn.ops.gemm import gemm
from gpucnn.tensor import Tensor

ROUNDS = 5
MODES = ("fast", "asan", "race")
SIZE = 256
GOALS = {"sgemm 16x16, fast": 0.5, "gemm 128x128, fast": 5.0}  # GFLOP/s
STEP_GOAL = 0.5  # seconds


def median_seconds(run: Callable[[], Any], rounds: int = ROUNDS) -> timing.Timing:
    """After one run that compiles."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return timing.summarize(times)


def kernels(a: Any, b: Any, c: Any) -> dict[str, Callable[[], Any]]:
    """Products c = a · b by name: the textbook's, with many barriers, and the library's."""
    sources.register(Path(__file__).with_name("sgemm16.cu"))
    size = len(a)
    blocks = -(-size // 16)
    return {
        "sgemm 16x16": lambda: launch("sgemm16", (blocks, blocks), a, b, c, size, size, size),
        "gemm 128x128": lambda: gemm(a[None], b[None], c[None], tile="128x128"),
    }


def measure(
    report: Report, size: int = SIZE, rounds: int = ROUNDS, progress: Callable[[list[Any]], Iterable[Any]] = iter
) -> None:
    """A row for each product and mode, with its real time, and one for a training step of LeNet-5 at batch 16."""
    random = np.random.default_rng(0)
    a, b = (devices.move(random.standard_normal((size, size), np.float32), "sim") for _ in range(2))
    c = devices.empty_like(a)
    contests = [(name, mode) for name in kernels(a, b, c) for mode in MODES]
    for name, mode in progress([*contests, ("lenet5", "fast")]):
        labels = {"suite": "sim", "layer": name, "pass": "train" if name == "lenet5" else "NN", "algorithm": mode}
        if name == "lenet5":
            report.add(lambda: median_seconds(lenet_step(), rounds).milliseconds(), **labels)
        else:
            report.add(partial(product_row, kernels(a, b, c)[name], mode, (a, b, c), rounds), **labels)


def product_row(run: Callable[[], Any], mode: str, arrays: tuple[Any, Any, Any], rounds: int) -> dict[str, Any]:
    """A product in one mode; its result must be right."""
    a, b, c = (devices.to_numpy(array) for array in arrays)
    with simulator.configured(mode=mode):
        found = median_seconds(run, rounds)
    error = product_error(a, b, c)
    flops = 2.0 * len(a) ** 3
    row: dict[str, Any] = {**found.milliseconds(), "tflops": 1e-12 * flops / found.median, "max_error": error}
    row |= {"shape": "x".join(3 * [str(len(a))]), "multiply_adds": len(a) ** 3}
    return row if error <= oracle.LIMIT else {**row, "ok": False, "reason": f"wrong: error {error:.3g}"}


def lenet_step() -> Callable[[], None]:
    """A training step of LeNet-5 at batch 16."""
    model = models.lenet5(num_classes=10).to("sim")
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = Tensor(devices.move(np.random.default_rng(0).standard_normal((16, 1, 28, 28), np.float32), "sim"))
    labels = np.arange(16) % 10

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Print the figures with their goals, and write them."""
    parser = argparse.ArgumentParser(prog="simulator", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    options = parser.parse_args()
    report = Report("sim", "sim", None)
    measure(report)
    rates = {f"{row['layer']}, {row['algorithm']}": 1e3 * row["tflops"] for row in report.rows if row["tflops"]}
    step = 1e-3 * report.rows[-1]["milliseconds"]
    for name, rate in rates.items():
        print(f"{name}: {rate:.2f} GFLOP/s" + (f" (goal {GOALS[name]})" if name in GOALS else ""))
    print(f"LeNet-5, training step at batch 16: {step:.3f} s (goal {STEP_GOAL})")
    if options.out:
        figures = {
            "device": processor(),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            "gflops": rates,
            "lenet_step_seconds": step,
        }
        write_atomically(options.out, json.dumps(figures, indent=1).encode())


if __name__ == "__main__":
    main()
