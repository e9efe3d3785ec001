"""Hand-made results of benchmarks, for the tests of their outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

HOSTILE = "<script>alert('x')</script>"
PASSES = ("forward", "backward_input", "backward_weight")
ALGORITHMS = ("im2col", "direct", "winograd", "winograd4", "fft")
VGG16 = ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1")


def row(layer: str = "conv1", algorithm: str = "im2col", **changes: Any) -> dict[str, Any]:
    """A measured row."""
    return {
        "suite": "vgg16",
        "layer": layer,
        "pass": "forward",
        "algorithm": algorithm,
        "dtype": "float32",
        "precision": "fp32",
        "layout": "nchw",
        "milliseconds": 10.0,
        "p20": 9.5,
        "p80": 11.25,
        "tflops": 0.05,
        "percent_of_peak": 50.0,
        "workspace_bytes": 0,
        "max_error": 1.25e-7,
        "references": {"torch": 20.0},
        "ratio": 2.0,
        "kernel_commit": "abc1234",
        "multiply_adds": 250_000_000,
        "bytes": 10_000_000,
        "repeats": 1,
    } | changes


def unmeasured(layer: str, algorithm: str, reason: str, **changes: Any) -> dict[str, Any]:
    """A row without a time."""
    names = "milliseconds", "p20", "p80", "tflops", "percent_of_peak", "workspace_bytes", "max_error", "ratio"
    return row(layer, algorithm, **dict.fromkeys(names), references={}, reason=reason, **changes)


def counted(layer: str, algorithm: str, **changes: Any) -> dict[str, Any]:
    """A row of the simulator: counters and no time."""
    names = "milliseconds", "p20", "p80", "tflops", "percent_of_peak", "ratio"
    counters = {
        "launches": 2,
        "flops": 123_456_789,
        "global_bytes": 3_000_000,
        "ideal_bytes": 2_000_000,
        "sectors_per_request": 4.0,
        "wavefronts_per_request": 1.25,
        "ideal_wavefronts_per_request": 1.0,
        "barriers": 640,
    }
    return row(layer, algorithm, **dict.fromkeys(names), references={}, counters=counters, **changes)


def result(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Rows with what they were measured on."""
    settings = {
        "part": "conv",
        "device": "cpu",
        "batch": 4,
        "threads": 2,
        "reference": "torch",
        "ceiling": {"tflops": 0.1, "gb_per_s": 12.5},
    }
    return {
        "device": "AMD EPYC",
        "commit": "abc1234",
        "date": "2026-11-25",
        "settings": settings,
        "rows": list(rows),
    } | changes


def network(suite: str, layers: tuple[str, ...], passes: tuple[str, ...] = PASSES) -> dict[str, Any]:
    """All algorithms on all layers; winograd cannot do the first, and fft fails on the second."""
    random = np.random.default_rng(0)
    rows = []
    for operation in passes:
        for layer in layers:
            work, moved = int(10 ** random.uniform(7, 10)), int(10 ** random.uniform(5.5, 7.5))
            reference = work * 2 / 4e10 * 1e3 * random.uniform(0.8, 1.5)
            for algorithm in ALGORITHMS:
                labels = {"suite": suite, "pass": operation}
                if algorithm.startswith("winograd") and layer == layers[0]:
                    rows.append(unmeasured(layer, algorithm, "winograd: the kernel is 5×5; it takes 3×3", **labels))
                    continue
                if algorithm == "fft" and layer == layers[1 % len(layers)]:
                    reason = "RuntimeError: the answer is wrong: error 0.1, limit 1e-5"
                    rows.append(unmeasured(layer, algorithm, reason, ok=False, **labels))
                    continue
                rate = 0.03 * random.uniform(0.3, 4)
                time = work * 2 / rate / 1e9
                figures = {"milliseconds": time, "p20": time * 0.97, "p80": time * 1.05, "tflops": rate}
                figures |= {
                    "ratio": reference / time,
                    "references": {"torch": reference},
                    "percent_of_peak": rate * 1e3,
                }
                figures |= {"multiply_adds": work, "bytes": moved, "workspace_bytes": int(random.uniform(0, 3e8))}
                rows.append(row(layer, algorithm, **labels, **figures))
    return result(*rows)


def vgg16() -> dict[str, Any]:
    """As large as a usual result."""
    return network("vgg16", VGG16)


def googlenet() -> dict[str, Any]:
    """As large as the largest suite: 57 layers with long names."""
    branches = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
    modules = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
    stem = ("conv1", "conv2_reduce", "conv2")
    return network("googlenet", (*stem, *(f"inception_{module}/{branch}" for module in modules for branch in branches)))


def awkward() -> dict[str, Any]:
    """Failures, missing and undefined figures, markup, other scripts, control characters, very long names."""
    nothing = dict.fromkeys(("p20", "p80", "percent_of_peak", "workspace_bytes", "max_error", "ratio"))
    return result(
        row(HOSTILE, "im2col", reason=""),
        row("[bold]x[/bold]", "[red]fft", references={"torch": math.nan}, ratio=math.nan),
        row("Schicht-ß-层-\u202e-\x1b[31m\n", "direct", **nothing, references={"torch": None}),
        row("n" * 90, "winograd", milliseconds=1e-5, tflops=math.inf, p20=math.nan, p80=math.nan),
        row("slow", "winograd4", milliseconds=123_456_789.0, tflops=1e-9),
        unmeasured(HOSTILE, "fft", f'</td>{HOSTILE} & "quoted"', ok=False),
        unmeasured("conv1", "toeplitz", ""),
        row("wrong", "direct", ok=False, reason="error 0.1, limit 1e-5"),
        settings={"note": HOSTILE, "tf32": False, "ceiling": None},
        device=f"AMD {HOSTILE}",
    )


def many(count: int) -> dict[str, Any]:
    """This many rows."""
    random = np.random.default_rng(1)
    rows = [
        row(f"layer{i // 5:03}", ALGORITHMS[i % 5], milliseconds=float(10 ** random.uniform(-2, 3)))
        for i in range(count)
    ]
    return result(*rows)
