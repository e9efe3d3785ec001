"""Algorithms of convolution beside im2col, on the layers for which gpucnn claims them: one process, taking turns."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from tqdm import tqdm

from gpucnn import ops
from gpucnn.bench import machine


class Layer(NamedTuple):
    """A forward convolution, how often its network has it, and the algorithms that are timed beside im2col."""

    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    padding: int
    repeats: int
    algorithms: tuple[str, ...]


def _vgg(channels: int, filters: int, size: int, repeats: int = 1) -> Layer:
    return Layer((4, channels, size, size), (filters, channels, 3, 3), 1, repeats, ("winograd", "winograd4"))


LAYERS = {
    # soumith/convnet-benchmarks, at a batch that takes seconds on a CPU instead of minutes
    "convnet-L2": Layer((32, 64, 64, 64), (128, 64, 9, 9), 0, 1, ("fft",)),
    "convnet-L3": Layer((32, 128, 32, 32), (128, 128, 9, 9), 0, 1, ("fft",)),
    "vgg16-3-64": _vgg(3, 64, 224),
    "vgg16-64-64": _vgg(64, 64, 224),
    "vgg16-64-128": _vgg(64, 128, 112),
    "vgg16-128-128": _vgg(128, 128, 112),
    "vgg16-128-256": _vgg(128, 256, 56),
    "vgg16-256-256": _vgg(256, 256, 56, 2),
    "vgg16-256-512": _vgg(256, 512, 28),
    "vgg16-512-512": _vgg(512, 512, 28, 2),
    "vgg16-512-512-14": _vgg(512, 512, 14, 3),
}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """One row: the median milliseconds of each algorithm, and the one that "auto" stands for."""
    layer = LAYERS[name]
    generator = np.random.default_rng(0)
    x, weight = (generator.standard_normal(shape, dtype=np.float32) for shape in (layer.x, layer.weight))
    shape = ops.conv_shape(layer.x, layer.weight, padding=layer.padding)
    others = machine.Others()
    times: dict[str, list[float]] = {algorithm: [] for algorithm in ("im2col", *layer.algorithms)}
    for _ in tqdm(range(rounds + 1), desc=name, disable=None, leave=False):
        for algorithm, taken in times.items():
            start = time.perf_counter()
            ops.conv2d_forward(x, weight, None, shape, algorithm)
            taken.append(time.perf_counter() - start)
    medians = {
        algorithm: statistics.median(taken[1:]) * 1e3 for algorithm, taken in times.items()
    }  # the first warms up
    auto = ops.choose("conv2d_forward", shape)
    what = {"layer": name, "repeats": layer.repeats, "batch": shape.N}
    return {**what, "milliseconds": medians, "auto": auto, "others": others.share()}


def table(rows: list[dict[str, Any]], title: str) -> Table:
    """The rows, with speeds relative to im2col's."""
    algorithms = ("fft", "winograd", "winograd4")
    result = Table(title=title)
    for heading in ("layer", "repeats", "batch", "im2col ms", *algorithms, "auto", "others"):
        result.add_column(heading, justify="left" if heading in ("layer", "auto") else "right")
    for row in rows:
        times = row["milliseconds"]
        ratios = [f"{times['im2col'] / times[name]:.2f}×" if name in times else "" for name in algorithms]
        counts = str(row["repeats"]), str(row["batch"])
        result.add_row(row["layer"], *counts, f"{times['im2col']:.1f}", *ratios, row["auto"], f"{row['others']:.0%}")
    return result
