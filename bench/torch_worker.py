"""The PyTorch side of `gpucnn.bench.cpu`: a program of its own, which imports nothing of gpucnn.

The first line of its input is a plan (see `cpu.plan`); for each further line it takes steps for a turn and prints their
median seconds and the most memory that the process has taken.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def make_step(plan: dict[str, Any]) -> Callable[[], object]:
    """A function that takes one step of the plan."""
    import torch

    torch.set_num_threads(plan["threads"])
    model = torch.nn.Sequential(*(getattr(torch.nn, name)(*arguments) for name, arguments in plan["layers"]))
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.standard_normal(plan["shape"], dtype=np.float32))
    y = torch.from_numpy(generator.integers(0, plan["classes"], plan["shape"][0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=plan["rate"], momentum=0.9)

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    def forward() -> None:
        with torch.no_grad():
            model(x)

    model.train(plan["step"] == "train")
    return train if plan["step"] == "train" else forward


def serve(step: Callable[[], object], seconds: float, beside_blas: bool) -> None:
    """For each line of input, take steps for a turn and print their median seconds and the process's peak of memory."""
    matrix = np.ones((512, 512), np.float32)
    for _ in sys.stdin:
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            step()
            if beside_blas:
                np.matmul(matrix, matrix)
            times.append(time.perf_counter() - start)
        print(statistics.median(times), peak_bytes(), flush=True)


def peak_bytes() -> int:
    """The most memory this process has taken, as Linux counts it; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    plan = json.loads(sys.stdin.readline())
    serve(make_step(plan), plan["seconds"], plan["beside_blas"])
