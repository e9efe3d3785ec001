"""Operations that memory bounds: pooling, normalisation, softmax, optimisers, in bytes a second beside a plain copy.

Bytes are the least that a pass must read and write, so `share` of the copy's rate above 1 would mean that caches
helped; `ratio` is PyTorch's time over ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import optim
from gpucnn.bench import layers, peer, timing
from gpucnn.bench.report import Report, main
from gpucnn.tensor import Tensor


class Operation(NamedTuple):
    """A function of x in gpucnn and in PyTorch, and how often it must pass over x and over y in each direction."""

    ours: Callable[[Any], Any]
    theirs: Callable[[Any, Any], Any]  # torch.nn.functional, x
    forward: tuple[int, int]  # times the bytes of x, times those of y
    backward: tuple[int, int]


OPERATIONS = {
    "relu": Operation(F.relu, lambda f, x: f.relu(x), (1, 1), (1, 2)),
    "max_pool2d": Operation(lambda x: F.max_pool2d(x, 2), lambda f, x: f.max_pool2d(x, 2), (1, 1), (1, 1)),
    "max_pool2d 3x3 stride 2": Operation(
        lambda x: F.max_pool2d(x, 3, 2), lambda f, x: f.max_pool2d(x, 3, 2), (1, 1), (1, 1)
    ),
    "avg_pool2d": Operation(lambda x: F.avg_pool2d(x, 2), lambda f, x: f.avg_pool2d(x, 2), (1, 1), (1, 1)),
    "local_response_norm": Operation(
        lambda x: F.local_response_norm(x, 5), lambda f, x: f.local_response_norm(x, 5), (1, 1), (2, 1)
    ),
    "batch_norm": Operation(
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda f, x: f.batch_norm(x, None, None, training=True),
        (2, 1),
        (3, 2),
    ),
    "log_softmax": Operation(F.log_softmax, lambda f, x: f.log_softmax(x, -1), (1, 1), (0, 3)),
}
OPTIMIZERS: dict[str, tuple[Callable[..., Any], str, dict[str, float], int]] = {
    # ours, PyTorch's name, options, how often a step passes over the parameters
    "sgd": (optim.SGD, "SGD", {"lr": 0.01, "momentum": 0.9}, 5),
    "adam": (optim.Adam, "Adam", {"lr": 0.001}, 7),
}


def cases(report: Report) -> None:
    """The copy first, then every operation forward and backward, then the optimisers."""
    flush, clock = timing.flusher(report.device), timing.clock_of(report.device)
    shape = layers.activations(report.quick)
    report.add(lambda: copy(report, shape, clock, flush), operation="copy")
    for name, operation in OPERATIONS.items():
        size = layers.classes(report.quick) if name == "log_softmax" else shape
        for direction in ("forward", "backward"):
            for library in ("torch", "gpucnn"):
                if library == "gpucnn" or report.torch is not None:
                    labels = {"library": library, "operation": name, "direction": direction}
                    report.add(partial(row, report, operation, size, clock, flush, labels), **labels)
        peer.free_memory(report.device)
    for name in OPTIMIZERS:
        for library in ("torch", "gpucnn"):
            if library == "gpucnn" or report.torch is not None:
                labels = {"library": library, "operation": name, "direction": "step"}
                report.add(partial(optimizer_row, report, clock, labels), **labels)
        peer.free_memory(report.device)


def copy(report: Report, shape: tuple[int, ...], clock: timing.Clock, flush: Any) -> dict[str, Any]:
    """What a plain copy of the same size reaches."""
    x = peer.random(shape, 0, report.device)
    y = devices.empty_like(x)
    found = timing.measure(lambda: y.__setitem__(..., x), clock, report.seconds(0.2), flush)
    return {**found.milliseconds(), "gb_per_s": 2e-9 * x.nbytes / found.median}


def row(
    report: Report,
    operation: Operation,
    shape: tuple[int, ...],
    clock: timing.Clock,
    flush: Any,
    labels: dict[str, str],
) -> dict[str, Any]:
    """One direction of an operation in one library, checked if it is ours, and timed."""
    x = peer.random(shape, 0, report.device)
    prepare = ours if labels["library"] == "gpucnn" else theirs
    step, result = prepare(operation, x, labels["direction"] == "forward")
    checked = {}
    if labels["library"] == "gpucnn":
        want = reference(operation, x, labels["direction"] == "forward")
        checked = peer.check(result(), want, float(abs(want).max()))
    found = timing.measure(step, clock, report.seconds(0.2), flush)
    passes = operation.forward if labels["direction"] == "forward" else operation.backward
    y_size = math.prod(operation.ours(x[:1]).shape) * shape[0]
    return {**checked, **columns(report, found, passes[0] * x.nbytes + passes[1] * y_size * x.itemsize, labels)}


def columns(report: Report, found: timing.Timing, size: int, labels: dict[str, str]) -> dict[str, Any]:
    """Times, bytes a second, their share of the copy's, and PyTorch's time over ours."""
    rate = 1e-9 * size / found.median
    plain, peers = report.find(operation="copy"), report.find(**{**labels, "library": "torch"})
    share = {"share": rate / plain["gb_per_s"]} if plain and plain["ok"] else {}
    ours = labels["library"] == "gpucnn" and peers is not None and peers["ok"]
    ratio = {"ratio": peers["ms"] / found.median * 1e-3} if ours and peers else {}
    return {**found.milliseconds(), "gb_per_s": rate, **share, **ratio}


def ours(operation: Operation, x: Any, forward: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(what is timed, the array that it gives) in gpucnn."""
    if forward:
        return lambda: operation.ours(x), lambda: operation.ours(x)
    leaf = Tensor(x, requires_grad=True)
    y = operation.ours(leaf)
    gradient = peer.random(y.shape, 1, devices.of(x)).astype(x.dtype, copy=False)

    def step() -> Any:
        leaf.grad = None
        y.backward(gradient, retain_graph=True)
        return leaf.grad.data if leaf.grad is not None else None

    return step, step


def theirs(operation: Operation, x: Any, forward: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same in PyTorch; its result is an array on the device of x."""
    module = peer.torch(devices.of(x))
    value = peer.to_torch(x)
    if forward:

        def step() -> Any:
            return operation.theirs(module.nn.functional, value)

        return step, lambda: peer.from_torch(step(), x)
    leaf = value.clone().requires_grad_()
    y = operation.theirs(module.nn.functional, leaf)
    gradient = peer.to_torch(peer.random(tuple(y.shape), 1, devices.of(x)))

    def backward() -> Any:
        leaf.grad = None
        y.backward(gradient, retain_graph=True)
        return leaf.grad

    return backward, lambda: peer.from_torch(backward(), x)


def reference(operation: Operation, x: Any, forward: bool) -> Any:
    """PyTorch's result on a GPU; for the simulator, the CPU's in float64."""
    if devices.of(x).startswith("cuda"):
        if peer.torch(devices.of(x)) is None:
            raise ValueError("there is no PyTorch with CUDA to check large results against")
        return theirs(operation, x, forward)[1]()
    return ours(operation, devices.to_numpy(x).astype(np.float64), forward)[1]()


def optimizer_row(report: Report, clock: timing.Clock, labels: dict[str, str]) -> dict[str, Any]:
    """A step over parameters in 32 arrays; ours is checked after one step from the same start."""
    ours_class, name, options, passes = OPTIMIZERS[labels["operation"]]
    count = layers.parameters(report.quick)
    starts = [peer.random((count // 32,), seed, report.device) for seed in range(32)]
    if labels["library"] == "torch":
        tensors = [peer.to_torch(start).clone().requires_grad_() for start in starts]
        for value in tensors:
            value.grad = value.detach().clone()
        step = getattr(report.torch.optim, name)(tensors, **options).step
        checked: dict[str, Any] = {}
    else:
        parameters = [Tensor(devices.contiguous(start), requires_grad=True) for start in starts]
        for value in parameters:
            value.grad = Tensor(value.data.copy())
        before = devices.to_numpy(starts[0]).astype(np.float64)
        step = ours_class(parameters, **options).step
        step()
        # From zero state, gradient = parameter: SGD moves by lr · g, Adam by lr · sign(g) up to its epsilon.
        moved = before if name == "SGD" else before / (abs(before) + 1e-8)
        checked = peer.check(devices.to_numpy(parameters[0].data), before - options["lr"] * moved, 1.0)
    found = timing.measure(step, clock, report.seconds(0.2))
    return {**checked, **columns(report, found, passes * (count // 32) * 32 * 4, labels)}


if __name__ == "__main__":
    sys.exit(main("pool", cases))
