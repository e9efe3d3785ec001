"""Tuning: the convolutions of a network, each algorithm measured on each, kept where "auto" looks for them.

A result is checked before it is timed. Algorithms take turns, so that a slow spell of the machine meets all of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gpucnn import device as devices
from gpucnn import nn, ops
from gpucnn.bench import policies, timing
from gpucnn.bench.policies import POLICIES, Policy
from gpucnn.ops import cards, conv_cost, conv_tuning
from gpucnn.ops.shapes import ConvShape
from gpucnn.precision import precision
from gpucnn.tensor import Function, Tensor, topological_order
from gpucnn.train.evaluation import evaluating

# Of the relative L2 difference to float64, by a policy's label; of 16-bit values what rounding the result leaves.
TOLERANCE, TOLERANCES = 1e-5, {"tf32": 2e-3, "bf16": 1e-2, "fp16": 1e-3}
ROUNDS, SECONDS = 9, 2.0  # at least so many turns; fewer, but three, where one takes long
SMALL = 10**7  # multiply-adds on which algorithms without a model are tried
HOPELESS = 4  # times the fastest's first time: measured once, not in turns
FLOAT32 = POLICIES["float32"]


class Case(NamedTuple):
    """One pass of one convolution."""

    operation: str
    shape: ConvShape


class Result(NamedTuple):
    """Milliseconds of the algorithms whose result is right, why others were left out, and what auto took before."""

    case: Case
    milliseconds: dict[str, float]
    refused: dict[str, str]
    before: str

    @property
    def fastest(self) -> str:
        """The name of the fastest; raises ValueError if there is none."""
        return min(self.milliseconds, key=lambda name: self.milliseconds[name])


def cases(network: nn.Module, batch_size: int, passes: tuple[str, ...] = ops.PASSES) -> list[Case]:
    """The different passes that a training step of a network takes, in its order, from one image of zeros.

    Raises ValueError for a network without input_shape or without convolutions.
    """
    shape = getattr(network, "input_shape", None)
    if shape is None:
        raise ValueError(f"tune: {type(network).__name__} has no input_shape")
    with evaluating(network):
        output = network(Tensor(np.zeros((1, *shape), np.float32)))
    found: dict[Case, None] = {}
    for function in reversed(_tape(output)):
        conv = getattr(function, "shape", None)
        if not isinstance(conv, ConvShape):
            continue
        for operation in passes:
            if operation != "conv2d_backward_input" or function.needs_gradient(0):
                found[Case(operation, conv._replace(N=batch_size))] = None
    if not found:
        raise ValueError("tune: the network has no convolution")
    return list(found)


def _tape(output: Tensor) -> list[Function]:
    return [] if output._function is None else list(topological_order(output._function))


def tune(
    found: list[Case],
    device: str,
    limit: int | None = None,
    clock: timing.Clock | None = None,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    policy: Policy = FLOAT32,
) -> Iterator[Result]:
    """Measure each case and store it at once, so that what is done stays done; yields what was found.

    - limit: bytes of workspace, for which alone the results then hold
    - policy: the type of the arrays and the precision of products, for which alone they hold, too
    - clock: of the device, unless another one is given
    """
    clock = clock or timing.clock_of(device)
    for case in found:
        result = measure(case, device, limit, clock, rounds, seconds, policy)
        if result.milliseconds:
            dtype = policies.dtype_of(policy.dtype)
            key = conv_tuning.key(case.operation, case.shape, dtype, limit, policy.precision)
            conv_tuning.store(device, {key: result.milliseconds})
        yield result


def measure(
    case: Case,
    device: str,
    limit: int | None,
    clock: timing.Clock,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    policy: Policy = FLOAT32,
) -> Result:
    """Check and time the algorithms that can compute a case within the limit."""
    with precision(policy.precision):
        return _measure(case, device, limit, clock, rounds, seconds, policy)


def _measure(
    case: Case, device: str, limit: int | None, clock: timing.Clock, rounds: int, seconds: float, policy: Policy
) -> Result:
    operation, shape = case
    dtype, tolerance = policies.dtype_of(policy.dtype), TOLERANCES.get(policy.label, TOLERANCE)
    able = ops.algorithms(operation, shape, dtype, device, limit)
    if not able:
        return Result(case, {}, {"every algorithm": f"it needs more workspace than {limit} bytes"}, "none")
    with ops.tuning(False):
        before = ops.choose(operation, shape, device, dtype, limit)
    arrays, checked, want = _arrays(case, device, dtype)
    refused = {name: reason for name in able if (reason := _hopeless(name, case, device, limit, dtype))}
    first: dict[str, float] = {}
    for name in able:
        if name in refused:
            continue
        try:
            error = _error(_run(case, checked, name, limit), want)
            if not error <= tolerance:
                raise ArithmeticError(f"its result is off by {error:.1e}")
            first[name] = _seconds(partial(_run, case, arrays, name, limit), clock)
        except (ArithmeticError, MemoryError, TypeError, ValueError, RuntimeError) as failure:
            refused[name] = " ".join(str(failure).split())
    times = {name: [once] for name, once in first.items()}
    turns = {name: once for name, once in first.items() if once <= HOPELESS * min(first.values())}
    flush = timing.flusher(device)
    for turn in range(_turns(sum(turns.values()), rounds, seconds)):
        for name in turns:
            if flush is not None:
                flush()
            taken = _seconds(partial(_run, case, arrays, name, limit), clock)
            times[name] = times[name] + [taken] if turn else [taken]
    return Result(case, {name: statistics.median(each) * 1e3 for name, each in times.items()}, refused, before)


def _hopeless(name: str, case: Case, device: str, limit: int | None, dtype: np.dtype) -> str | None:
    """Why an algorithm is not worth a trial that could take minutes; None if it is."""
    operation, shape = case
    if conv_cost.estimate(name, operation, shape, cards.SIMULATED) is None and shape.multiply_adds > SMALL:
        return f"it is for reading and for convolutions of at most {SMALL} multiply-adds"
    arrays = 4 * (math.prod(shape.x) + math.prod(shape.weight) + math.prod(shape.y))
    needed = ops.table(operation, device)[name].workspace_bytes(shape, dtype, limit)
    return f"it needs {needed} bytes of workspace" if needed > max(1 << 30, 4 * arrays) else None


def _turns(once: float, rounds: int, seconds: float) -> int:
    return rounds if once * rounds <= seconds else max(3, min(rounds, int(seconds / max(once, 1e-9))))


def _seconds(call: Callable[[], Any], clock: timing.Clock) -> float:
    clock.synchronize()
    start = clock.mark()
    call()
    end = clock.mark()
    clock.synchronize()
    return max(clock.elapsed(start, end), 1e-9)


def _run(case: Case, arrays: tuple[Any, Any], algorithm: str, limit: int | None) -> Any:
    operation, shape = case
    if operation == "conv2d_forward":
        return ops.conv2d_forward(*arrays, None, shape, algorithm, workspace_limit=limit)
    return getattr(ops, operation)(*arrays, shape, algorithm, limit)


def _arrays(case: Case, device: str, dtype: np.dtype) -> tuple[tuple[Any, Any], tuple[Any, Any], np.ndarray]:
    """Random operands; those whose result is known, where only the first image is not zero; and that result.

    float64 on the CPU for one image takes less than for a batch, and the kernels that compute are the same.
    """
    operation, shape = case
    sizes, images = {
        "conv2d_forward": ((shape.x, shape.weight), (True, False)),
        "conv2d_backward_input": ((shape.y, shape.weight), (True, False)),
        "conv2d_backward_weight": ((shape.x, shape.y), (True, True)),
    }[operation]
    random = np.random.default_rng(0)
    host = [random.standard_normal(size, np.float32).astype(dtype) for size in sizes]
    known = [a * (np.arange(len(a)) < 1).astype(dtype).reshape(-1, 1, 1, 1) if of_images else a
             for a, of_images in zip(host, images, strict=True)]  # fmt: skip
    alone = [(a[:1] if of_images else a).astype(np.float64) for a, of_images in zip(host, images, strict=True)]
    want = _run(Case(operation, shape._replace(N=1)), (alone[0], alone[1]), "im2col", None)
    moved = [[devices.move(a, device) for a in each] for each in (host, known)]
    return (moved[0][0], moved[0][1]), (moved[1][0], moved[1][1]), want


def _error(got: Any, want: np.ndarray) -> float:
    """The relative L2 difference to `want`, which of images has the first only."""
    result = devices.to_numpy(got)[: len(want)].astype(np.float64)
    return float(np.linalg.norm(result - want) / max(float(np.linalg.norm(want)), 1e-300))
