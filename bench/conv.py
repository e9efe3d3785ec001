"""Convolutions beside PyTorch (cuDNN): every layer, pass and algorithm, checked and then timed.

A row of library "gpucnn" has the algorithm, `error` (largest, of the sum of magnitudes), times, effective TFLOP/s (as
if computed directly) and `ratio`, PyTorch's time for the same arrays with TF32 off over ours: above 1, gpucnn wins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.bench import layers, peer, timing
from gpucnn.bench.report import Report, main
from gpucnn.ops.shapes import ConvShape

PASSES = ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight")
LAYOUTS: dict[str, Callable[[Any], Any]] = {"nchw": lambda array: array, "channels_last": peer.channels_last}


class Case:
    """One layer's arrays on a device, and its references; both made when they are first needed."""

    def __init__(self, layer: layers.ConvLayer, device: str) -> None:
        self.layer, self.device, self.shape = layer, device, layer.shape

    @cached_property
    def arrays(self) -> dict[str, Any]:
        shapes = {"x": self.shape.x, "w": self.shape.weight, "gy": self.shape.y}
        return {name: peer.random(shape, seed, self.device) for seed, (name, shape) in enumerate(shapes.items())}

    def operands(self, operation: str, layout: str) -> tuple[Any, Any]:
        """The two arrays that a pass reads, in the order that it takes them."""
        first, second = {"conv2d_forward": "x w", "conv2d_backward_input": "gy w"}.get(operation, "x gy").split()
        arranged = LAYOUTS[layout]
        return arranged(self.arrays[first]), arranged(self.arrays[second])

    def reference(self, operation: str) -> tuple[Any, Any]:
        """(result, sum of magnitudes) of a pass: float64 on the CPU for the simulator, else PyTorch without TF32."""
        one, other = self.operands(operation, "nchw")
        if not self.device.startswith("cuda"):
            one, other = (devices.to_numpy(array).astype(np.float64) for array in (one, other))
            result = run(operation, one, other, self.shape, "im2col")
            return result, run(operation, abs(one), abs(other), self.shape, "im2col")
        module = peer.torch(self.device)
        if module is None:
            raise ValueError("there is no PyTorch with CUDA to check large results against")
        with peer.tf32(module, False):
            result = run_torch(module, operation, peer.to_torch(one), peer.to_torch(other), self.shape)
            scale = run_torch(module, operation, peer.to_torch(abs(one)), peer.to_torch(abs(other)), self.shape)
        return peer.from_torch(result, one), peer.from_torch(scale, one)


def run(operation: str, one: Any, other: Any, shape: ConvShape, algorithm: str) -> Any:
    """A pass in gpucnn."""
    if operation == "conv2d_forward":
        return ops.conv2d_forward(one, other, None, shape, algorithm)
    return getattr(ops, operation)(one, other, shape, algorithm)


def run_torch(module: Any, operation: str, one: Any, other: Any, shape: ConvShape) -> Any:
    """The same pass in PyTorch."""
    geometry = shape.stride, shape.padding, shape.dilation
    if operation == "conv2d_forward":
        return module.nn.functional.conv2d(one, other, None, *geometry, shape.groups)
    into_input = operation == "conv2d_backward_input"
    x = _blank(module, shape.x, one) if into_input else one
    w = other if into_input else _blank(module, shape.weight, one)
    gy = one if into_input else other
    rest = (*map(list, geometry), False, [0, 0], shape.groups, [into_input, not into_input, False])
    return module.ops.aten.convolution_backward(gy, x, w, None, *rest)[0 if into_input else 1]


def _blank(module: Any, size: tuple[int, ...], like: Any) -> Any:
    """An array of which PyTorch reads size and layout only, in the layout of `like`."""
    layout = module.contiguous_format if like.is_contiguous() else module.channels_last
    return module.empty(size, device=like.device, memory_format=layout)


def algorithms(operation: str, shape: ConvShape, device: str) -> dict[str, int]:
    """The table's algorithms that can compute a pass on a device, and the memory that each takes beside its arrays."""
    kind, dtype = device.partition(":")[0], np.dtype(np.float32)
    table = ops.ALGORITHMS[operation]
    able = [name for name, entry in table.items() if entry.supports(shape, dtype, kind) is None]
    return {name: table[name].workspace_bytes(shape, dtype) for name in able}


def cases(report: Report) -> None:
    """All layers: PyTorch's rows first, which ours are compared with."""
    flush, clock = timing.flusher(report.device), timing.clock_of(report.device)
    for layer in layers.convolutions(report.quick):
        case = Case(layer, report.device)
        for operation in PASSES:
            torch_rows(report, case, operation, clock, flush)
            gpucnn_rows(report, case, operation, clock, flush)
        del case
        peer.free_memory(report.device)


def torch_rows(report: Report, case: Case, operation: str, clock: timing.Clock, flush: Any) -> None:
    """PyTorch in both layouts, with TF32 off and on."""
    module = report.torch
    if module is None:
        return

    def measure(layout: str, tf32: bool) -> dict[str, Any]:
        one, other = (peer.to_torch(array) for array in case.operands(operation, layout))
        with peer.tf32(module, tf32), module.no_grad():
            found = timing.measure(
                lambda: run_torch(module, operation, one, other, case.shape), clock, report.seconds(0.2), flush
            )
        return columns(found, case.shape)

    for layout in LAYOUTS:
        for tf32 in peer.settings(case.device):
            labels = {"layer": case.layer.name, "pass": operation, "layout": layout}
            report.add(partial(measure, layout, tf32), library="torch", tf32=tf32, **labels)


def gpucnn_rows(report: Report, case: Case, operation: str, clock: timing.Clock, flush: Any) -> None:
    """Every algorithm in NCHW, then what "auto" stands for in both layouts."""
    known: list[tuple[Any, Any]] = []  # the reference, once it is needed

    def measure(algorithm: str, layout: str) -> dict[str, Any]:
        if not known:
            known.append(case.reference(operation))
        pair = case.operands(operation, layout)
        result = peer.check(run(operation, *pair, case.shape, algorithm), *known[0])
        found = timing.measure(lambda: run(operation, *pair, case.shape, algorithm), clock, report.seconds(0.2), flush)
        theirs = report.find(library="torch", layer=case.layer.name, tf32=False, layout=layout, **{"pass": operation})
        ratio = {"ratio": theirs["ms"] / found.median * 1e-3} if theirs and theirs["ok"] else {}
        return {**result, **columns(found, case.shape), **ratio, "workspace_bytes": workspace.get(algorithm)}

    workspace = algorithms(operation, case.shape, case.device)
    labels = {"library": "gpucnn", "layer": case.layer.name, "pass": operation}
    for algorithm in (*workspace, "auto"):
        for layout in LAYOUTS if algorithm == "auto" else ("nchw",):
            report.add(partial(measure, algorithm, layout), algorithm=algorithm, layout=layout, **labels)


def columns(found: timing.Timing, shape: ConvShape) -> dict[str, Any]:
    """Times, and the rate of direct convolution that would take as long."""
    return {**found.milliseconds(), "tflops": 2e-12 * shape.multiply_adds / found.median}


if __name__ == "__main__":
    sys.exit(main("conv", cases))
