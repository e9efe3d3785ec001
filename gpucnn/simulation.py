"""What the simulator tells of the library's operations: whether their kernels are sound, and what a GPU would do.

Each case is one operation at sizes that can be chosen: arrays made at random, and the call that computes with them on
whatever device they are on, so that the CPU's results are the reference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.launch import SimulatorError, simulator
from gpucnn.launch.simulator import Profile

SCHEDULES: tuple[dict[str, Any], ...] = (
    {"order": "forward", "late_copies": True},
    {"order": "reverse", "late_copies": True},
    {"order": "random", "seed": 1, "late_copies": False},
)
CHECKED_MODES = ("fast", "asan", "race")
L2_LIMIT = 1e-5  # of the difference to the CPU's result, relative; both are float32

Arrays = dict[str, np.ndarray]
Sizes = dict[str, int]


@dataclass(frozen=True)
class Case:
    """One operation: its sizes and their defaults, its arrays' shapes, and the call, which returns array(s).

    - algorithms: the table's key for a convolution's pass, of which each algorithm is a case of its own
    """

    sizes: Sizes
    shapes: Callable[[Sizes], dict[str, tuple[int, ...]]]
    run: Callable[..., Any]
    algorithms: str | None = None


@dataclass
class Finding:
    """Of one case: None, or what is wrong; and how long it took, in seconds."""

    operation: str
    algorithm: str | None
    fault: str | None
    seconds: float


@dataclass
class Usage:
    """Of one case: the counters of each launch, and bytes of inputs and outputs, each counted once."""

    launches: list[tuple[str, Profile]] = field(default_factory=list)
    ideal_bytes: int = 0


def _conv(sizes: Sizes) -> ops.ConvShape:
    N, C, H, W, K, R, S, stride, padding = sizes.values()
    return ops.conv_shape((N, C, H, W), (K, C, R, S), stride, padding)


def _conv_arrays(*names: str) -> Callable[[Sizes], dict[str, tuple[int, ...]]]:
    def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
        shape = _conv(sizes)
        every = {"x": shape.x, "weight": shape.weight, "bias": (shape.K,), "gy": shape.y}
        return {name: every[name] for name in names}

    return shapes


def _pool(sizes: Sizes) -> ops.PoolShape:
    N, C, H, W, kernel, stride = sizes.values()
    return ops.pool_shape("pool", (N, C, H, W), kernel, stride)


def _image(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    return {"x": (sizes["N"], sizes["C"], sizes["H"], sizes["W"])}


def _flat(*names: str) -> Callable[[Sizes], dict[str, tuple[int, ...]]]:
    return lambda sizes: {name: (sizes["count"],) for name in names}


def _batch_norm(arrays: Arrays, sizes: Sizes) -> tuple[Any, ...]:
    x = arrays["x"]
    mean, inverse_std = ops.batch_norm_statistics(x, 1e-5)
    y = ops.batch_norm_apply(x, mean, inverse_std, None, None)
    return y, *ops.batch_norm_backward(x, y, mean, inverse_std, None, True)


def _max_pool(arrays: Arrays, sizes: Sizes) -> tuple[Any, ...]:
    shape = _pool(sizes)
    y, indices = ops.max_pool2d_forward(arrays["x"], shape)
    return y, ops.max_pool2d_backward(y, indices, shape)


def _avg_pool(arrays: Arrays, sizes: Sizes) -> tuple[Any, ...]:
    shape = _pool(sizes)
    y = ops.avg_pool2d_forward(arrays["x"], shape, True)
    return y, ops.avg_pool2d_backward(y, shape, True)


def _relu(arrays: Arrays, sizes: Sizes) -> tuple[Any, ...]:
    y = ops.relu_forward(arrays["x"])
    return y, ops.relu_backward(y, arrays["gy"])


def _response_norm(arrays: Arrays, sizes: Sizes) -> tuple[Any, ...]:
    y, scale = ops.local_response_norm_forward(arrays["x"], 5, 1e-4, 0.75, 1.0)
    return y, ops.local_response_norm_backward(arrays["x"], scale, y, 5, 1e-4, 0.75)


def _softmax(arrays: Arrays, sizes: Sizes) -> tuple[Any, ...]:
    y = ops.softmax_forward(arrays["x"], 1)
    return y, ops.softmax_backward(y, arrays["gy"], 1)


CONV = {"N": 2, "C": 5, "H": 9, "W": 11, "K": 6, "R": 3, "S": 3, "stride": 1, "padding": 1}
POOL = {"N": 2, "C": 3, "H": 13, "W": 11, "kernel": 3, "stride": 2}
IMAGE = {"N": 3, "C": 7, "H": 6, "W": 5}

CASES: dict[str, Case] = {
    "matmul": Case(
        {"M": 65, "N": 35, "K": 21},
        lambda sizes: {"a": (sizes["M"], sizes["K"]), "b": (sizes["K"], sizes["N"])},
        lambda arrays, sizes: ops.matmul(arrays["a"], arrays["b"]),
    ),
    "conv2d_forward": Case(
        CONV,
        _conv_arrays("x", "weight", "bias"),
        lambda a, sizes, algorithm: ops.conv2d_forward(a["x"], a["weight"], a["bias"], _conv(sizes), algorithm),
        "conv2d_forward",
    ),
    "conv2d_backward_input": Case(
        CONV,
        _conv_arrays("gy", "weight"),
        lambda a, sizes, algorithm: ops.conv2d_backward_input(a["gy"], a["weight"], _conv(sizes), algorithm),
        "conv2d_backward_input",
    ),
    "conv2d_backward_weight": Case(
        CONV,
        _conv_arrays("x", "gy"),
        lambda a, sizes, algorithm: ops.conv2d_backward_weight(a["x"], a["gy"], _conv(sizes), algorithm),
        "conv2d_backward_weight",
    ),
    "conv2d_backward_bias": Case(
        CONV, _conv_arrays("gy"), lambda arrays, sizes: ops.conv2d_backward_bias(arrays["gy"])
    ),
    "max_pool2d": Case(POOL, _image, _max_pool),
    "avg_pool2d": Case(POOL, _image, _avg_pool),
    "relu": Case({"count": 1000}, _flat("x", "gy"), _relu),
    "batch_norm": Case(IMAGE, _image, _batch_norm),
    "local_response_norm": Case(IMAGE, _image, _response_norm),
    "dropout": Case({"count": 1000}, _flat("x"), lambda arrays, sizes: ops.dropout(arrays["x"], 0.5, 3, 2)),
    "softmax": Case({"N": 9, "classes": 17}, lambda sizes: dict.fromkeys(("x", "gy"), tuple(sizes.values())), _softmax),
}


def find(operation: str) -> Case:
    """The case of an operation; raises ValueError naming those that there are."""
    if operation not in CASES:
        raise ValueError(f"operation {operation!r} is unknown; use one of {', '.join(CASES)}")
    return CASES[operation]


def sizes_of(operation: str, given: list[int]) -> Sizes:
    """The case's sizes, the first of them replaced by the given ones; raises ValueError for too many or below 0."""
    defaults = find(operation).sizes
    if len(given) > len(defaults) or any(size < 0 for size in given):
        raise ValueError(f"{operation}: sizes are {given}; they must be at most {' '.join(defaults)}, none below 0")
    return {**defaults, **dict(zip(defaults, given, strict=False))}


def algorithms_of(operation: str, sizes: Sizes) -> list[str | None]:
    """The algorithms that can compute the case on the simulator; [None] for an operation that has none."""
    key = find(operation).algorithms
    if key is None:
        return [None]
    shape, dtype = _conv(sizes), np.dtype(np.float32)
    return [name for name, entry in ops.table(key, "sim").items() if entry.supports(shape, dtype, "sim") is None]


def run(operation: str, sizes: Sizes, algorithm: str | None, device: str) -> tuple[np.ndarray, ...]:
    """The results of the case on a device, from the same random arrays on each."""
    results = _call(operation, sizes, algorithm, _arrays(operation, sizes, device))
    return tuple(devices.to_numpy(result).copy() for result in results)


def _arrays(operation: str, sizes: Sizes, device: str) -> Arrays:
    random = np.random.default_rng(1)
    shapes = find(operation).shapes(sizes)
    return {name: devices.move(random.standard_normal(shape, np.float32), device) for name, shape in shapes.items()}


def _call(operation: str, sizes: Sizes, algorithm: str | None, arrays: Arrays) -> tuple[Any, ...]:
    options = [] if algorithm is None else [algorithm]
    results = find(operation).run(arrays, sizes, *options)
    return results if isinstance(results, tuple) else (results,)


def check(operations: list[str]) -> Iterator[Finding]:
    """Run the cases of the operations in all modes and schedules; a Finding for each algorithm of each."""
    for operation in operations:
        sizes = sizes_of(operation, [])
        for algorithm in algorithms_of(operation, sizes):
            start = time.perf_counter()
            fault = _fault(operation, sizes, algorithm)
            yield Finding(operation, algorithm, fault, time.perf_counter() - start)


def _fault(operation: str, sizes: Sizes, algorithm: str | None) -> str | None:
    wanted = run(operation, sizes, None if algorithm is None else "auto", "cpu")
    for mode in CHECKED_MODES:
        first = None
        for schedule in SCHEDULES:
            with simulator.configured(mode=mode, **schedule):
                try:
                    results = run(operation, sizes, algorithm, "sim")
                except SimulatorError as error:
                    return f"mode {mode}: {error}"
            first = first or results
            if any(one.tobytes() != other.tobytes() for one, other in zip(first, results, strict=True)):
                return f"mode {mode}: the schedule {schedule} gives other bits"
        if not all(_close(one, other) for one, other in zip(results, wanted, strict=True)):
            return f"mode {mode}: the results are not the CPU's"
    return None


def _close(got: np.ndarray, want: np.ndarray) -> bool:
    size = float(np.linalg.norm(want.astype(np.float64)))
    return bool(np.linalg.norm(got.astype(np.float64) - want) <= L2_LIMIT * max(size, 1e-30))


def profile(operation: str, sizes: Sizes, algorithm: str | None) -> Usage:
    """The counters of every launch of the case, and the least bytes it could move."""
    arrays = _arrays(operation, sizes, "sim")
    usage = Usage(ideal_bytes=sum(array.nbytes for array in arrays.values()))
    with simulator.profiling() as launches:
        results = _call(operation, sizes, algorithm, arrays)
    usage.launches += launches
    usage.ideal_bytes += sum(result.nbytes for result in results)
    return usage
