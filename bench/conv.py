"""Convolutions: every layer, pass, layout and algorithm, checked, then timed beside PyTorch or ONNX Runtime.

Effective TFLOP/s are those of the direct convolution that would take as long, so that a faster algorithm may exceed
what the device's multiply-adds reach. On the simulator layers are shrunk, and counters stand in place of times.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.bench import layers, oracle, peer, policies, report
from gpucnn.bench.contest import Arena, Candidate, Limits, Problem
from gpucnn.bench.layers import ConvLayer
from gpucnn.bench.policies import POLICIES, Policy
from gpucnn.bench.report import Report
from gpucnn.ops.shapes import ConvShape
from gpucnn.precision import precision

PASSES = ("forward", "backward_input", "backward_weight")
LAYOUTS: dict[str, Callable[[Any], Any]] = {"nchw": lambda array: array, "nhwc": peer.channels_last}
BATCHES = {"cpu": 4, "sim": 1}  # where the suite's own would take too long
SIMULATED_MULTIPLY_ADDS = 4_000_000  # of a layer: seconds in the profile mode, for a tile that is mostly empty too
PREDICTED_MULTIPLY_ADDS = 50_000_000  # smaller layers are tried rather than predicted


@dataclass(frozen=True)
class Plan:
    """What to compare: `algorithms` ("all",) stands for every one of the table and "auto"."""

    layers: tuple[ConvLayer, ...]
    passes: tuple[str, ...] = PASSES
    algorithms: tuple[str, ...] = ("all",)
    layouts: tuple[str, ...] = ("nchw",)
    precision: str = "float32"  # one of policies.POLICIES

    @property
    def policy(self) -> Policy:
        return policies.named(self.precision)

    def settings(self) -> dict[str, Any]:
        """What of the plan changes the meaning of a figure."""
        layouts = ", ".join(self.layouts) + (" (a copy into the kernel's own counts)" if "nhwc" in self.layouts else "")
        return {
            "dtype": self.policy.dtype,
            "precision": self.precision,
            "layouts": layouts,
            "batch": _batches(self.layers),
        }

    def names(self, device: str) -> list[str]:
        """The algorithms by name."""
        kind = device.partition(":")[0]
        every = dict.fromkeys(name for p in self.passes for name in ops.table(operation_of(p), kind))
        chosen = [each for name in self.algorithms for each in ([*every, "auto"] if name == "all" else [name])]
        return list(dict.fromkeys(chosen))


def _batches(layers: tuple[ConvLayer, ...]) -> str:
    return ", ".join(map(str, sorted({layer.shape.N for layer in layers})))


def operation_of(pass_: str) -> str:
    """The name of a pass in gpucnn.ops."""
    return f"conv2d_{pass_}"


def known_algorithms() -> list[str]:
    """Every algorithm of any device, and "auto"."""
    tables = (ops.table(operation_of(pass_), device) for pass_ in PASSES for device in ("cpu", "sim"))
    return list(dict.fromkeys(name for table in tables for name in (*table, "auto")))


def chosen_layers(suites: list[str], shapes: list[str], batch: int | None, device: str) -> tuple[ConvLayer, ...]:
    """The layers of suites and of shapes as in layers.SHAPE_FORM, at a batch that the device takes.

    - batch: of all; None: the suites' own on a GPU, else that of BATCHES; a shape keeps its own
    """
    own = batch or BATCHES.get(device.partition(":")[0])
    found = [layer.with_batch(own) if own else layer for name in suites for layer in layers.SUITES[name]]
    given = [layers.parse_shape(text) for text in shapes]
    return (*found, *(layer.with_batch(batch) if batch else layer for layer in given))


class Case:
    """One layer's arrays on a device, made when they are first needed."""

    def __init__(self, layer: ConvLayer, device: str, policy: Policy = POLICIES["float32"]) -> None:
        self.layer, self.device, self.policy, self.shape = layer, device, policy, layer.shape
        self.dtype = policy.dtype

    @cached_property
    def arrays(self) -> dict[str, Any]:
        shapes = {"x": self.shape.x, "w": self.shape.weight, "gy": self.shape.y}
        return {
            name: peer.random(shape, seed, self.device, self.dtype) for seed, (name, shape) in enumerate(shapes.items())
        }

    def operands(self, pass_: str, layout: str) -> tuple[Any, Any]:
        """The two arrays that a pass reads, in the order that it takes them; weights are (K, C/groups, R, S) always."""
        first, second = oracle.OPERANDS[operation_of(pass_)][:2]
        return self._arranged(first, layout), self._arranged(second, layout)

    def _arranged(self, name: str, layout: str) -> Any:
        """An array in a layout, made once."""
        if layout == "nchw" or name == "w":
            return self.arrays[name]
        key = f"{name} {layout}"
        if key not in self.arrays:
            self.arrays[key] = LAYOUTS[layout](self.arrays[name])
        return self.arrays[key]

    def spec(self, pass_: str, layout: str, threads: int) -> dict[str, Any]:
        """As reference_worker takes it."""
        geometry = {name: getattr(self.shape, name) for name in ("stride", "padding", "dilation", "groups")}
        arrays = {"x": self.shape.x, "w": self.shape.weight, "gy": self.shape.y}
        what = {"operation": operation_of(pass_), "dtype": self.dtype, "layout": layout, "threads": threads}
        return {**what, **arrays, **geometry}

    def bytes(self) -> int:
        """Two arrays read, one written, once each."""
        values = math.prod(self.shape.x) + math.prod(self.shape.weight) + math.prod(self.shape.y)
        return values * policies.dtype_of(self.dtype).itemsize


def run(pass_: str, one: Any, other: Any, shape: ConvShape, algorithm: str, allowed: str = "float32") -> Any:
    """A pass in gpucnn; allowed: the precision that products may use."""
    with precision(allowed):
        if pass_ == "forward":
            return ops.conv2d_forward(one, other, None, shape, algorithm)
        return getattr(ops, operation_of(pass_))(one, other, shape, algorithm)


def measure(arena: Arena, plan: Plan, progress: Callable[[list[Any]], Any] = iter) -> None:
    """Rows of everything in the plan; `progress` wraps the list of contests, as tqdm does."""
    from_plan = [(layer, pass_, layout) for layer in plan.layers for pass_ in plan.passes for layout in plan.layouts]
    case: Case | None = None
    for layer, pass_, layout in progress(from_plan):
        smaller = layers.shrunk(layer, SIMULATED_MULTIPLY_ADDS) if arena.device == "sim" else layer
        if case is None or case.layer != smaller:
            case = None  # gives its arrays back
            peer.free_memory(arena.device)
            case = Case(smaller, arena.device, plan.policy)
        contest(arena, plan, case, pass_, layout, layer.shape)


def contest(arena: Arena, plan: Plan, case: Case, pass_: str, layout: str, wanted: ConvShape) -> None:
    """Rows of all algorithms for one layer, pass and layout."""
    shape, dtype = case.shape, policies.dtype_of(case.dtype)
    entrants, before = [], len(arena.report.rows)
    names = plan.names(arena.device)
    for name in names:
        values = describe(shape, wanted, name, pass_, case)
        labels = labels_of(case.layer, pass_, name, case.policy, layout)
        entry = ops.table(operation_of(pass_), arena.device.partition(":")[0]).get(values.get("chosen", name))
        reason = refusal(entry, name, shape, dtype, arena.device)
        if reason is not None or entry is None:
            leave_out(arena, labels, values, str(reason))
            continue
        with precision(case.policy.precision):
            needed = entry.workspace_bytes(shape, dtype)
        values |= {"workspace_bytes": needed, "deterministic": entry.deterministic}
        entrants.append(candidate(case, pass_, layout, name, labels, values))
    threads = arena.report.content["settings"].get("threads", 1)
    problem = Problem(case.spec(pass_, layout, threads), 2.0 * shape.multiply_adds, case.bytes())
    arena.run(problem, entrants)
    rows = arena.report.rows
    rows[before:] = sorted(rows[before:], key=lambda row: names.index(row["algorithm"]))


def describe(shape: ConvShape, wanted: ConvShape, name: str, pass_: str, case: Case) -> dict[str, Any]:
    """What a row holds besides figures."""
    found: dict[str, Any] = {"shape": words(shape), "multiply_adds": shape.multiply_adds, "bytes": case.bytes()}
    found["repeats"] = case.layer.repeats
    if shape != wanted:
        found["shrunk_from"] = words(wanted)
    if name == "auto":
        with precision(case.policy.precision):
            dtype = policies.dtype_of(case.dtype)
            found["chosen"] = ops.choose(operation_of(pass_), shape, case.device.partition(":")[0], dtype)
    return found


def words(shape: ConvShape) -> str:
    """A shape in words, with what differs from the plain case."""
    text = f"{shape.N}x{shape.C}x{shape.H}x{shape.W} {shape.K}x{shape.R}x{shape.S}"
    for name, plain in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1))):
        pair = getattr(shape, name)
        if pair != plain:
            text += f" {name} {pair[0]}" + (f"x{pair[1]}" if pair[0] != pair[1] else "")
    return text + (f" groups {shape.groups}" if shape.groups > 1 else "")


def labels_of(layer: ConvLayer, pass_: str, algorithm: str, policy: Policy, layout: str) -> dict[str, Any]:
    """What a row is known by."""
    names = {"suite": layer.suite, "layer": layer.name, "pass": pass_, "algorithm": algorithm}
    return {**names, "dtype": policy.dtype, "precision": policy.label, "layout": layout}


def refusal(entry: Any, name: str, shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """Why an algorithm cannot compute this; None if it can."""
    kind = device.partition(":")[0]
    if entry is None:
        return f"{name} does not run on the device {kind}"
    if dtype == np.float64 and kind != "cpu":
        return "kernels compute in float32"
    return entry.supports(shape, dtype, kind)


def leave_out(arena: Arena, labels: dict[str, Any], values: dict[str, Any], reason: str) -> None:
    """A row that says why there is nothing to measure."""
    row = arena.report.begin(**labels)
    if row is not None:
        arena.report.finish(row, **values, reason=reason)


def candidate(
    case: Case, pass_: str, layout: str, name: str, labels: dict[str, Any], values: dict[str, Any]
) -> Candidate:
    """An algorithm as a contest takes it."""
    shape = case.shape

    def call() -> Any:
        return run(pass_, *case.operands(pass_, layout), shape, name, case.policy.precision)

    def error(result: Any) -> float:
        return oracle.error(operation_of(pass_), *case.operands(pass_, layout), result, shape, seed=shape.N)

    large = shape.multiply_adds >= PREDICTED_MULTIPLY_ADDS and shape.N > 1
    chosen = values.get("chosen", name)
    limit = oracle.limit(chosen, policies.dtype_of(case.dtype), case.policy.label)
    predict = partial(predict_by_one_image, case, pass_, layout, chosen) if large and case.device != "sim" else None
    return Candidate(labels, call, error, limit, predict, values, needed=name == "auto")


def predict_by_one_image(case: Case, pass_: str, layout: str, name: str) -> float:
    """Seconds of a call with the first image alone, times the number of images."""
    one, other = case.operands(pass_, layout)
    names = oracle.OPERANDS[operation_of(pass_)][:2]
    first, second = (array if which == "w" else array[:1] for which, array in zip(names, (one, other), strict=True))
    single = case.shape._replace(N=1)
    if case.device != "cpu":
        run(pass_, first, second, single, name, case.policy.precision)  # compiles, perhaps
        synchronize(case.device)
    start = time.perf_counter()
    run(pass_, first, second, single, name, case.policy.precision)
    synchronize(case.device)
    return (time.perf_counter() - start) * case.shape.N


def synchronize(device: str) -> None:
    """Wait for a GPU's work."""
    if device.startswith("cuda"):
        devices.cupy().cuda.Device().synchronize()


def cases(found: Report) -> None:
    """The GPU suite's part: short layers of each network first, so that a cut leaves some of all."""
    suites = ("layers", "alexnet", "vgg16")
    every = [layer for name in suites for layer in layers.SUITES[name]]
    chosen = layers.QUICK_CONVOLUTIONS if found.quick else sorted(every, key=lambda layer: layer.shape.multiply_adds)
    arena = Arena(found, Limits(repeat=5, max_seconds=0.2))
    for layer in chosen:
        for pass_ in PASSES:
            case = Case(layer, found.device)
            contest(arena, Plan((layer,)), case, pass_, "nchw", layer.shape)
            contest(arena, Plan((layer,), algorithms=("auto",)), case, pass_, "nhwc", layer.shape)
            peer.free_memory(found.device)


if __name__ == "__main__":
    sys.exit(report.main("conv", cases))
