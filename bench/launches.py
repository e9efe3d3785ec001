"""What a launch of a tiny kernel costs: by each engine, replayed as a plan, and as a graph."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import launch
from gpucnn.bench import peer, timing
from gpucnn.bench.report import Report
from gpucnn.launch.dispatch import ENGINES

LAUNCHES = 100  # in a plan


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Inside this context launches on a GPU go through this engine."""
    before = os.environ.get("GPUCNN_ENGINE")
    os.environ["GPUCNN_ENGINE"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["GPUCNN_ENGINE"]
        else:
            os.environ["GPUCNN_ENGINE"] = before


def cases(report: Report) -> None:
    """A row an engine and a way to launch; PyTorch's as well."""
    x = devices.move(np.ones(32, np.float32), report.device)
    y = devices.empty_like(x)
    for name in ENGINES if report.device.startswith("cuda") else ("sim",):
        for way in ("launch", "plan", "graph") if name == "native" else ("launch", "plan"):
            report.add(partial(row, report, name, way, x, y), **labels_of(name, way))
    module = report.torch
    if module is not None:
        value = peer.to_torch(x)
        out = module.empty_like(value)
        call = partial(module.clamp_min, value, 0, out=out)
        report.add(lambda: a_launch(report, call, 1), **labels_of("torch", "launch"))


def labels_of(engine: str, way: str) -> dict[str, Any]:
    """What a row is known by; its time is that of one launch."""
    return {"suite": "launches", "layer": way, "pass": "launch", "algorithm": engine}


def row(report: Report, name: str, way: str, x: Any, y: Any) -> dict[str, Any]:
    """A launch by one engine in one way; the result must be right."""
    with engine(name):
        if way == "launch":
            found = a_launch(report, lambda: launch.launch("relu_forward", 1, x, y, 32), 1)
        else:
            with launch.recording() as plan:
                for _ in range(LAUNCHES):
                    launch.launch("relu_forward", 1, x, y, 32)
            if way == "graph":
                plan.capture()
            found = a_launch(report, plan.replay, LAUNCHES)
    right = bool((devices.to_numpy(y) == 1).all())
    return {**found, "max_error": 0.0} if right else {**found, "ok": False, "reason": "y is not relu(x)"}


def a_launch(report: Report, run: Callable[[], Any], count: int) -> dict[str, Any]:
    """Wall time a launch: `run`, which makes `count` of them, is called again and again and waited for at the end."""
    clock = timing.clock_of(report.device)
    calls = 3 if report.quick else max(2000 // count, 20)
    rounds = []
    for _ in range(6):
        clock.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        clock.synchronize()
        rounds.append((time.perf_counter() - start) / calls / count)
    return timing.summarize(rounds[1:]).milliseconds()  # the first warms up
