"""Operations that memory bounds: activations, pooling, normalisation, softmax, optimisers; in bytes a second.

Bytes are the least that a pass must read and write, and the share is of what a plain copy reaches: above 100% means
that caches helped.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import optim
from gpucnn.bench import layers, oracle, peer, report
from gpucnn.bench.contest import Arena, Candidate, Limits, Problem
from gpucnn.bench.report import Report
from gpucnn.tensor import Tensor


class Operation(NamedTuple):
    """A function of x in gpucnn and in PyTorch, and how often it must pass over x and over y in each direction."""

    ours: Callable[[Any], Any]
    theirs: str  # in torch.nn.functional
    arguments: tuple[Any, ...]  # after x
    forward: tuple[int, int]  # times the bytes of x, times those of y
    backward: tuple[int, int]


OPERATIONS = {
    "relu": Operation(F.relu, "relu", (), (1, 1), (1, 2)),
    "max_pool2d": Operation(lambda x: F.max_pool2d(x, 2), "max_pool2d", (2,), (1, 1), (1, 1)),
    "max_pool2d 3x3 stride 2": Operation(lambda x: F.max_pool2d(x, 3, 2), "max_pool2d", (3, 2), (1, 1), (1, 1)),
    "avg_pool2d": Operation(lambda x: F.avg_pool2d(x, 2), "avg_pool2d", (2,), (1, 1), (1, 1)),
    "local_response_norm": Operation(
        lambda x: F.local_response_norm(x, 5), "local_response_norm", (5,), (1, 1), (2, 1)
    ),
    "batch_norm": Operation(
        lambda x: F.batch_norm(x, None, None, training=True),
        "batch_norm",
        (None, None, None, None, True),
        (2, 1),
        (3, 2),
    ),
    "log_softmax": Operation(F.log_softmax, "log_softmax", (-1,), (1, 1), (0, 3)),
}
OPTIMIZERS: dict[str, tuple[Callable[..., Any], str, dict[str, float], int]] = {
    # ours, PyTorch's name, options, how often a step passes over the parameters
    "sgd": (optim.SGD, "SGD", {"lr": 0.01, "momentum": 0.9}, 5),
    "adam": (optim.Adam, "Adam", {"lr": 0.001}, 7),
}
NAMES = (*OPERATIONS, *OPTIMIZERS)
PARTS = 32  # arrays that an optimiser's parameters are in


class Sizes(NamedTuple):
    """What the operations read: images (N,C,H,W), (rows, columns) of a softmax, values that an optimiser updates."""

    images: tuple[int, int, int, int]
    classes: tuple[int, int]
    parameters: int


def sizes(device: str, batch: int | None = None) -> Sizes:
    """The output of VGG-16's first block; less on the CPU, tiny on the simulator."""
    if device == "sim":
        return Sizes((batch or 2, *layers.activations(True)[1:]), layers.classes(True), layers.parameters(True))
    if device == "cpu":
        return Sizes((batch or 4, *layers.activations(False)[1:]), (4096, 1000), 1 << 22)
    (N, *rest) = layers.activations(False)
    return Sizes((batch or N, *rest), layers.classes(False), layers.parameters(False))  # type: ignore[arg-type]


def measure(
    arena: Arena, names: tuple[str, ...], size: Sizes, progress: Callable[[list[Any]], Iterable[Any]] = iter
) -> None:
    """Rows of the operations forward and backward, and of the optimisers' steps."""
    contests = [
        (name, pass_) for name in names for pass_ in (("forward", "backward") if name in OPERATIONS else ("step",))
    ]
    for name, pass_ in progress(contests):
        if name in OPTIMIZERS:
            optimizer_contest(arena, name, size.parameters)
        else:
            contest(arena, name, pass_, size.classes if name == "log_softmax" else size.images)
        peer.free_memory(arena.device)


def labels_of(name: str, pass_: str) -> dict[str, Any]:
    """What a row is known by."""
    return {"suite": "pool", "layer": name, "pass": pass_, "algorithm": "auto"}


def contest(arena: Arena, name: str, pass_: str, shape: tuple[int, ...]) -> None:
    """The row of one direction of an operation."""
    operation = OPERATIONS[name]
    x = peer.random(shape, 0, arena.device)
    passes = operation.forward if pass_ == "forward" else operation.backward
    y_size = math.prod(operation.ours(x[:1]).shape) * shape[0]
    size = passes[0] * x.nbytes + passes[1] * y_size * x.itemsize
    values = {"shape": "x".join(map(str, shape)), "bytes": size}
    call, limit = prepare(operation, x, pass_), oracle.limit("auto", np.dtype(np.float32))
    candidate = Candidate(
        labels_of(name, pass_), call, lambda got: error(operation, x, pass_, got), limit, values=values
    )
    spec = {"operation": "function", "function": operation.theirs, "arguments": operation.arguments, "x": shape}
    arena.run(Problem({**spec, **common(arena), "backward": pass_ == "backward"}, None, size), [candidate])


def common(arena: Arena) -> dict[str, Any]:
    """What every SPEC of a reference holds."""
    threads = arena.report.content["settings"].get("threads", 1)
    return {"dtype": "float32", "layout": "nchw", "threads": threads}


def prepare(operation: Operation, x: Any, pass_: str) -> Callable[[], Any]:
    """What is timed: it returns y, or the gradient of x."""
    if pass_ == "forward":
        return lambda: operation.ours(x)
    leaf = Tensor(x, requires_grad=True)
    y = operation.ours(leaf)
    gradient = peer.random(y.shape, 1, devices.of(x)).astype(x.dtype, copy=False)

    def step() -> Any:
        leaf.grad = None
        y.backward(gradient, retain_graph=True)
        return leaf.grad.data if leaf.grad is not None else None

    return step


def error(operation: Operation, x: Any, pass_: str, got: Any) -> float:
    """The largest error of a result, of the largest value that the CPU computes in float64."""
    want = prepare(operation, devices.to_numpy(x).astype(np.float64), pass_)()
    found = float(abs(devices.to_numpy(got) - want).max() / abs(want).max())
    return found if found == found else float("inf")


def optimizer_contest(arena: Arena, name: str, count: int) -> None:
    """The row of a step over parameters in PARTS arrays, each its own gradient, from the same start."""
    make, theirs, options, passes = OPTIMIZERS[name]
    starts = [peer.random((count // PARTS,), seed, arena.device) for seed in range(PARTS)]
    parameters = [Tensor(start.copy(), requires_grad=True) for start in starts]
    for value in parameters:
        value.grad = Tensor(value.data.copy())
    before = devices.to_numpy(starts[0]).astype(np.float64)
    step, size = make(parameters, **options).step, passes * sum(start.nbytes for start in starts)
    taken: list[np.ndarray] = []

    def call() -> Any:
        step()
        if not taken:
            taken.append(devices.to_numpy(parameters[0].data).copy())
        return parameters[0].data

    def step_error(got: Any) -> float:
        # From zero state, gradient = parameter: SGD moves by lr · g, Adam by lr · sign(g) up to its epsilon.
        moved = before if theirs == "SGD" else before / (abs(before) + 1e-8)
        return float(abs(taken[0] - (before - options["lr"] * moved)).max())

    values = {"shape": f"{PARTS}x{count // PARTS}", "bytes": size}
    candidate = Candidate(
        labels_of(name, "step"), call, step_error, oracle.limit("auto", np.dtype(np.float32)), values=values
    )
    spec = {"operation": "optimizer", "optimizer": theirs, "options": options, "parts": PARTS, "count": count // PARTS}
    arena.run(Problem({**spec, **common(arena)}, None, size), [candidate])


def cases(found: Report) -> None:
    """The GPU suite's part."""
    size = Sizes(layers.activations(found.quick), layers.classes(found.quick), layers.parameters(found.quick))
    measure(Arena(found, Limits(repeat=5, max_seconds=0.2)), NAMES, size)


if __name__ == "__main__":
    sys.exit(report.main("pool", cases))
