"""Comparisons that say where and by how much results differ, and tests of gradients that need no reference.

A comparison passes only if it is shown to hold, so NaN fails. Bounds follow from how many rounded additions a result
took: u = 2^-24 (float32) or 2^-53 (float64) is the rounding error of one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gpucnn

UNIT_ROUNDOFF = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-53}


def assert_close(got: Any, want: Any, bound: Any) -> None:
    """Each element of `got` within `bound` (a number or an array) of `want`; infinities must be equal, NaN fails."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    with np.errstate(invalid="ignore"):
        excess = np.abs(got.astype(np.float64) - want.astype(np.float64)) - np.broadcast_to(bound, want.shape)
    wrong = ~((excess <= 0) | (got == want))
    if wrong.any():
        _fail(got, want, wrong, np.where(np.isnan(excess), np.inf, excess), np.broadcast_to(bound, want.shape))


def assert_equal(got: Any, want: Any) -> None:
    """Equal shapes and equal elements; NaN equals NaN."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    wrong = ~((got == want) | ((got != got) & (want != want)))
    if wrong.any():
        _fail(got, want, wrong, wrong.astype(float), np.zeros(want.shape))


def assert_same_bits(got: Any, want: Any) -> None:
    """The same dtype, shape and bytes, so that −0 differs from 0."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype, f"dtype {got.dtype}, expected {want.dtype}"
    assert_equal(got, want)
    assert got.tobytes() == want.tobytes(), "equal values but different bits"


def assert_relative_l2(got: Any, want: Any, limit: float) -> None:
    """|got − want| / |want| ≤ limit, with Euclidean norms over all elements."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    error, size = np.linalg.norm(got - want), np.linalg.norm(want)
    assert error <= limit * size, f"relative L2 error {error / size:.3g} of shape {want.shape}, limit {limit:.3g}"


def _fail(got: np.ndarray, want: np.ndarray, wrong: np.ndarray, excess: np.ndarray, bound: np.ndarray) -> None:
    worst = np.unravel_index(np.argmax(np.where(wrong, excess, -np.inf)), want.shape)
    index = tuple(map(int, worst))
    raise AssertionError(
        f"{wrong.sum()} of {wrong.size} elements differ (shape {want.shape}, {got.dtype}); worst at {index}: "
        f"got {got[worst]!r}, expected {want[worst]!r}, allowed {bound[worst]:.3g}"
    )


def sum_bound(terms: int, magnitude: Any, dtype: Any) -> Any:
    """Error of a sum of `terms` rounded products, where magnitude = Σ|x||w|: min(n + 2, 8 + 2√n) · u · magnitude."""
    return min(terms + 2, 8 + 2 * terms**0.5) * UNIT_ROUNDOFF[np.dtype(dtype)] * np.asarray(magnitude)


def rounding_bound(operations: float, magnitude: Any, dtype: Any) -> Any:
    """Error of a result of the size `magnitude` after a few rounded operations."""
    return operations * UNIT_ROUNDOFF[np.dtype(dtype)] * np.asarray(magnitude)


def check_gradients(
    function: Callable[..., Any], inputs: Sequence[Any], step: float = 1e-5, limit: float = 1e-8
) -> None:
    """The gradients of `function` (float64 arrays → Tensor) agree with central differences.

    f = Σ v·function(inputs) for a random v. Each input is moved along three random directions, and one with at most 32
    elements along each of its elements. Functions with kinks need inputs that are further than `step` from them.
    """
    rng = np.random.default_rng(7)
    arrays = [np.array(array, np.float64) for array in inputs]
    leaves = [gpucnn.tensor(array, requires_grad=True) for array in arrays]
    output = function(*leaves)
    weights = rng.standard_normal(output.shape)
    output.backward(weights)

    def projected(position: int, moved: np.ndarray) -> float:
        moved_inputs = [gpucnn.tensor(moved if i == position else array) for i, array in enumerate(arrays)]
        return float((function(*moved_inputs).numpy() * weights).sum())

    for position, (array, leaf) in enumerate(zip(arrays, leaves, strict=True)):
        assert leaf.grad is not None and leaf.grad.dtype == np.float64, f"input {position} has no float64 gradient"
        for direction in _directions(array, rng):
            h = step / max(1.0, float(np.abs(direction).max(initial=0)))
            ahead, behind = (projected(position, array + sign * h * direction) for sign in (1, -1))
            numeric, analytic = (ahead - behind) / (2 * h), float((leaf.grad.numpy() * direction).sum())
            scale = 1 + abs(numeric) + abs(ahead)
            assert abs(numeric - analytic) <= limit * scale, (
                f"input {position} of shape {array.shape}: differences give {numeric:.12g}, backward {analytic:.12g}"
            )


def _directions(array: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    directions = [rng.standard_normal(array.shape) for _ in range(3)]
    if array.size <= 32:
        directions += list(np.eye(array.size).reshape(array.size, *array.shape))
    return directions


def check_adjoint(output: Any, gradient: Any, pairs: Sequence[tuple[Any, Any]], limit: float = 1e-12) -> None:
    """⟨gradient, output⟩ = ⟨input gradient, input⟩ for each pair (input, its gradient) in which output is linear."""
    left = float((np.asarray(output) * np.asarray(gradient)).sum())
    scale = float(np.abs(np.asarray(output) * np.asarray(gradient)).sum())
    for position, (value, value_gradient) in enumerate(pairs):
        right = float((np.asarray(value) * np.asarray(value_gradient)).sum())
        assert abs(left - right) <= limit * scale, f"pair {position}: {left!r}, not {right!r} (scale {scale:.3g})"
