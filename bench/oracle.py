"""The right answer in float64, of a part of a convolution's result that takes a bounded time to compute.

The part is some images, groups, filters and channels next to each other, at a place drawn at random; small convolutions
are checked whole. NumPy computes it, tap by tap: it shares no code with what is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn.ops.shapes import ConvShape

BUDGET = 100_000_000  # multiply-adds of a check
UNIT = 2.0**-24
# Of |error| / Σ|a·b|: float32 in any order and with F(2×2) transforms is below, TF32 above.
LIMIT = 67 * UNIT
LIMITS = {"winograd4": 128 * UNIT}  # its transforms' numbers are larger
DOUBLE = 2.0**-29  # of float64's rounding to float32's
# Two roundings of operands to 11 bits in tf32; else one of the result, to 8 bits in bfloat16 and 11 in float16.
ROUNDED = {"tf32": 2.0**-10, "bf16": 2.0**-8, "fp16": 2.0**-11}


def limit(algorithm: str, dtype: np.dtype, precision: str = "fp32") -> float:
    """The largest error that an algorithm may make, over the sum of magnitudes; precision: a row's label."""
    if precision in ROUNDED:
        return ROUNDED[precision] + LIMIT
    return LIMITS.get(algorithm, LIMIT) * (DOUBLE if dtype == np.float64 else 1.0)


@dataclass(frozen=True)
class Part:
    """Which images, groups, filters and channels of a convolution are computed; the last two are within one group."""

    images: slice
    groups: slice
    filters: slice
    channels: slice

    def cut(self, name: str, array: Any, shape: ConvShape) -> Any:
        """The part of x, gx, w, gw, y or gy."""
        filters = _within(self.groups, self.filters, shape.K // shape.groups)
        if name in ("w", "gw"):
            return array[filters, self.channels]
        inner = filters if name in ("y", "gy") else _within(self.groups, self.channels, shape.C // shape.groups)
        return array[self.images, inner]


def _within(groups: slice, inner: slice, size: int) -> slice:
    """Indices over all groups of what `inner` takes of each; more than one group comes whole."""
    return slice(groups.start * size + inner.start, (groups.stop - 1) * size + inner.stop)


def choose_part(operation: str, shape: ConvShape, budget: int, random: np.random.Generator) -> Part:
    """A part of at most about `budget` multiply-adds."""
    filters, channels = shape.K // shape.groups, shape.C // shape.groups
    counts = {"images": shape.N, "groups": shape.groups, "filters": filters, "channels": channels}
    free = {
        "conv2d_forward": ("images", "groups", "filters"),
        "conv2d_backward_input": ("images", "groups", "channels"),
        "conv2d_backward_weight": ("groups", "filters", "channels"),
    }[operation]
    whole, cost = dict(counts), shape.multiply_adds
    for name in free:
        if cost > budget:
            fewer = max(1, counts[name] * budget // cost)
            cost = cost // counts[name] * fewer
            counts[name] = fewer
    starts = {name: int(random.integers(0, whole[name] - count + 1)) for name, count in counts.items()}
    return Part(*(slice(starts[name], starts[name] + count) for name, count in counts.items()))


OPERANDS = {
    "conv2d_forward": ("x", "w", "y"),
    "conv2d_backward_input": ("gy", "w", "gx"),
    "conv2d_backward_weight": ("x", "gy", "gw"),
}


def error(
    operation: str, one: Any, other: Any, result: Any, shape: ConvShape, seed: int = 0, budget: int = BUDGET
) -> float:
    """The largest |result − right answer| / Σ|products| over a part; infinite where any element is no number."""
    if result.size == 0:
        return 0.0
    if not bool(np.isfinite(result).all()):
        return float("inf")
    part = choose_part(operation, shape, budget, np.random.default_rng(seed))
    arrays = zip(OPERANDS[operation], (one, other, result), strict=True)
    first, second, got = (_double(part.cut(name, array, shape)) for name, array in arrays)
    groups = part.groups.stop - part.groups.start
    want = convolve(operation, first, second, shape, groups)
    scale = convolve(operation, abs(first), abs(second), shape, groups)
    return float((abs(got - want) / (scale + 1e-300)).max())


def _double(array: Any) -> np.ndarray:
    return np.asarray(devices.to_numpy(array), np.float64)


def convolve(operation: str, one: np.ndarray, other: np.ndarray, shape: ConvShape, groups: int) -> np.ndarray:
    """A pass in float64; images, filters and channels are the arrays', the geometry is the shape's."""
    if operation == "conv2d_forward":
        return _forward(one, other, shape, groups)
    if operation == "conv2d_backward_input":
        return _backward_input(one, other, shape, groups)
    return _backward_weight(one, other, shape, groups)


def _padded(x: np.ndarray, shape: ConvShape) -> np.ndarray:
    (ph, pw), (N, C, H, W) = shape.padding, x.shape
    padded = np.zeros((N, C, H + 2 * ph, W + 2 * pw))
    padded[:, :, ph : ph + H, pw : pw + W] = x
    return padded


def _window(padded: np.ndarray, r: int, s: int, shape: ConvShape) -> np.ndarray:
    """The pixels (N,C,P,Q) of a padded image that the filters' tap (r, s) meets; a view."""
    (sh, sw), (dh, dw) = shape.stride, shape.dilation
    rows = slice(r * dh, r * dh + (shape.P - 1) * sh + 1, sh)
    return padded[:, :, rows, s * dw : s * dw + (shape.Q - 1) * sw + 1 : sw]


def _grouped(images: np.ndarray, groups: int) -> np.ndarray:
    """(N, C, P, Q) as (N, groups, C/groups, P·Q)."""
    N, C, P, Q = images.shape
    return images.reshape(N, groups, C // groups, P * Q)


def _forward(x: np.ndarray, w: np.ndarray, shape: ConvShape, groups: int) -> np.ndarray:
    padded = _padded(x, shape)
    filters = w.reshape(groups, len(w) // groups, *w.shape[1:])
    y = np.zeros((len(x), groups, len(w) // groups, shape.P * shape.Q))
    for r, s in np.ndindex(shape.R, shape.S):
        y += filters[:, :, :, r, s] @ _grouped(_window(padded, r, s, shape), groups)
    return y.reshape(len(x), len(w), shape.P, shape.Q)


def _backward_input(gy: np.ndarray, w: np.ndarray, shape: ConvShape, groups: int) -> np.ndarray:
    channels = groups * w.shape[1]
    padded = _padded(np.zeros((len(gy), channels, shape.H, shape.W)), shape)
    filters = w.reshape(groups, len(w) // groups, *w.shape[1:])
    for r, s in np.ndindex(shape.R, shape.S):
        gradients = filters[:, :, :, r, s].transpose(0, 2, 1) @ _grouped(gy, groups)
        _window(padded, r, s, shape)[...] += gradients.reshape(len(gy), channels, shape.P, shape.Q)
    (ph, pw) = shape.padding
    return padded[:, :, ph : ph + shape.H, pw : pw + shape.W]


def _backward_weight(x: np.ndarray, gy: np.ndarray, shape: ConvShape, groups: int) -> np.ndarray:
    padded, gradients = _padded(x, shape), _grouped(gy, groups)
    gw = np.zeros((groups, gradients.shape[2], x.shape[1] // groups, shape.R, shape.S))
    for r, s in np.ndindex(shape.R, shape.S):
        pixels = _grouped(_window(padded, r, s, shape), groups)
        gw[:, :, :, r, s] = (gradients @ pixels.transpose(0, 1, 3, 2)).sum(0)
    return gw.reshape(gy.shape[1], -1, shape.R, shape.S)
