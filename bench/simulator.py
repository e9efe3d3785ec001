"""How fast the simulator is: matrix products of two tiles in each mode, and a training step of LeNet-5.

python -m gpucnn.bench.simulator [--out bench/results/simulator/speed.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import models, optim
from gpucnn.bench.machine import commit, processor
from gpucnn.files import write_atomically
from gpucnn.launch import launch, simulator, sources
from gpucnn.ops.gemm import gemm
from gpucnn.tensor import Tensor

ROUNDS = 5
SIZE = 256
GOALS = {"sgemm 16x16, fast": 0.5, "gemm 128x128, fast": 5.0}  # GFLOP/s
STEP_GOAL = 0.5  # seconds


def median_seconds(run: Callable[[], Any]) -> float:
    """After one run that compiles."""
    run()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def products() -> dict[str, float]:
    """GFLOP/s of a product of 256³ by tile and mode."""
    sources.register(Path(__file__).with_name("sgemm16.cu"))
    random = np.random.default_rng(0)
    a, b = (devices.move(random.standard_normal((SIZE, SIZE), np.float32), "sim") for _ in range(2))
    c = devices.empty_like(a)
    blocks = SIZE // 16
    kernels: dict[str, Callable[[], Any]] = {
        "sgemm 16x16": lambda: launch("sgemm16", (blocks, blocks), a, b, c, SIZE, SIZE, SIZE),
        "gemm 128x128": lambda: gemm(a[None], b[None], c[None], tile="128x128"),
    }
    rates = {}
    for name, run in kernels.items():
        for mode in ("fast", "asan", "race"):
            with simulator.configured(mode=mode):
                rates[f"{name}, {mode}"] = 2 * SIZE**3 / median_seconds(run) / 1e9
    return rates


def lenet_step() -> float:
    """Seconds of a training step of LeNet-5 at batch 16."""
    model = models.lenet5(num_classes=10).to("sim")
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = Tensor(devices.move(np.random.default_rng(0).standard_normal((16, 1, 28, 28), np.float32), "sim"))
    labels = np.arange(16) % 10

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return median_seconds(step)


def main() -> None:
    """Print the figures with their goals, and write them."""
    parser = argparse.ArgumentParser(prog="simulator", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    options = parser.parse_args()
    rates, step = products(), lenet_step()
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
