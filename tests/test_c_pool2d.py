"""The extension's pooling, called directly: by definition, in plain loops. Every output starts as NaN or −7."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from check import assert_close, assert_equal, assert_same_bits, sum_bound

from gpucnn import _C

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def unset(shape: Any, dtype: Any = np.float64) -> np.ndarray:
    return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else -7, dtype)


def axis_windows(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> list[list[int]]:
    """The places of each window along one axis that lie inside the plane."""
    starts = [i * stride - padding for i in range(outputs)]
    return [[at for k in range(kernel) if 0 <= (at := start + k * dilation) < size] for start in starts]


def outputs(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """torch's rule: in ceil mode one more window where places are left, if it starts before the right padding."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - (ceil_mode and (count - 1) * stride >= size + padding)


# (H, W), (kernel, stride, padding, dilation) of rows and of columns, ceil mode
POOLS = {
    "one_pixel": ((1, 1), ((1, 1, 0, 1), (1, 1, 0, 1)), False),
    "lenet_first": ((28, 28), ((2, 2, 0, 1), (2, 2, 0, 1)), False),
    "lenet_second": ((10, 10), ((2, 2, 0, 1), (2, 2, 0, 1)), False),  # rows narrower than a vector
    "as_wide_as_a_vector": ((4, 16), ((2, 2, 0, 1), (2, 2, 0, 1)), False),
    "one_more_than_a_vector": ((4, 18), ((2, 2, 0, 1), (2, 2, 0, 1)), False),
    "odd_border_unused": ((7, 35), ((2, 2, 0, 1), (2, 2, 0, 1)), False),
    "odd_border_ceil": ((7, 35), ((2, 2, 0, 1), (2, 2, 0, 1)), True),
    "overlapping": ((13, 27), ((3, 2, 0, 1), (3, 2, 0, 1)), False),
    "overlapping_ceil": ((6, 20), ((3, 2, 0, 1), (3, 2, 0, 1)), True),
    "padded": ((14, 19), ((3, 2, 1, 1), (3, 2, 1, 1)), False),
    "padded_ceil": ((12, 18), ((3, 2, 1, 1), (3, 2, 1, 1)), True),
    "stride_one": ((6, 33), ((3, 1, 1, 1), (3, 1, 1, 1)), False),
    "stride_one_wide": ((9, 12), ((5, 1, 2, 1), (4, 1, 1, 1)), False),
    "stride_three": ((11, 31), ((3, 3, 0, 1), (2, 3, 1, 1)), False),
    "stride_past_kernel": ((9, 40), ((1, 4, 0, 1), (2, 4, 0, 1)), True),
    "sides_differ": ((8, 21), ((2, 1, 1, 1), (3, 2, 0, 1)), False),
    "dilated": ((12, 26), ((3, 1, 1, 2), (3, 2, 1, 3)), False),
    "dilated_ceil": ((11, 14), ((2, 2, 1, 3), (3, 2, 1, 2)), True),
    "whole_plane": ((5, 23), ((5, 1, 0, 1), (23, 1, 0, 1)), False),
}
pools = pytest.mark.parametrize("name", POOLS)


class Pool:
    """Geometry of one case: shapes of three images of two channels, and the places of every window."""

    def __init__(self, name: str, dilated: bool = True) -> None:
        size, axes, ceil_mode = POOLS[name]
        self.axes = axes if dilated else tuple((*axis[:3], 1) for axis in axes)
        self.x = (3, 2, *size)
        self.y = (3, 2, *(outputs(n, *axis, ceil_mode) for n, axis in zip(size, self.axes, strict=True)))
        self.window = tuple(itertools.chain(*zip(*self.axes, strict=True)))
        self.rows, self.columns = (
            axis_windows(n, count, *axis) for n, count, axis in zip(size, self.y[2:], self.axes, strict=True)
        )

    def places(self) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        for (p, rows), (q, columns) in itertools.product(enumerate(self.rows), enumerate(self.columns)):
            yield p, q, list(itertools.product(rows, columns))

    def divisor(self, p: int, q: int, count_include_pad: bool) -> int:
        """torch: the window up to H + padding, or what of it lies inside the plane."""
        if not count_include_pad:
            return len(self.rows[p]) * len(self.columns[q])
        extents = zip((p, q), self.axes, self.x[2:], strict=True)
        return math.prod(min(k, n + pad - (i * stride - pad)) for i, (k, stride, pad, _), n in extents)


def max_by_definition(x: np.ndarray, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    y, indices = unset(pool.y), unset(pool.y, np.int64)
    for image, channel in np.ndindex(*pool.x[:2]):
        for p, q, places in pool.places():
            best, winner = -math.inf, places[0]
            for place in places:
                value = x[image, channel][place]
                if value > best or math.isnan(value):
                    best, winner = value, place
            y[image, channel, p, q], indices[image, channel, p, q] = best, winner[0] * pool.x[3] + winner[1]
    return y, indices


def scatter(gy: np.ndarray, indices: np.ndarray, x_shape: tuple[int, ...]) -> np.ndarray:
    gx = np.zeros((*x_shape[:2], x_shape[2] * x_shape[3]))
    for image, channel, p, q in np.ndindex(*gy.shape):
        gx[image, channel, indices[image, channel, p, q]] += gy[image, channel, p, q]
    return gx.reshape(x_shape)


def max_pool(x: np.ndarray, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    y, indices = unset(pool.y, x.dtype), unset(pool.y, np.int64)
    _C.max_pool2d_forward(x, y, indices, pool.window)
    return y, indices


@pools
@dtypes
def test_max_pool_with_ties_is_exact(name, dtype, rng):
    pool = Pool(name)
    x, gy = rng.integers(-2, 3, pool.x).astype(dtype), rng.integers(-9, 10, pool.y).astype(dtype)
    y, indices = max_pool(x, pool)
    want, want_indices = max_by_definition(x, pool)
    assert_equal(y, want)
    assert_equal(indices, want_indices)
    gx = unset(pool.x, dtype)
    _C.max_pool2d_backward(gy, indices, gx)
    assert_equal(gx, scatter(gy, want_indices, pool.x))


@pools
@dtypes
def test_max_pool_of_nan_infinity_and_negative_zero(name, dtype, rng):
    pool = Pool(name)
    values = np.array([np.nan, -np.inf, -np.inf, np.inf, -0.0, 0.0, -1.0, -1.0], dtype)
    x = rng.choice(values, pool.x)
    y, indices = max_pool(x, pool)
    want, want_indices = max_by_definition(x, pool)
    assert_same_bits(np.where(np.isnan(y), 0, y), np.where(np.isnan(want), 0, want).astype(dtype))
    assert_equal(np.isnan(y), np.isnan(want))
    assert_equal(indices, want_indices)


@pools
def test_max_pool_as_pytorch(torch, name, rng):
    pool = Pool(name)
    x = rng.choice(np.array([np.nan, -np.inf, 0, 1, 2, 3, 4, 5], np.float32), pool.x)
    kernel, stride, padding, dilation = zip(*pool.axes, strict=True)
    y, indices = torch.nn.functional.max_pool2d(
        torch.tensor(x), kernel, stride, padding, dilation, POOLS[name][2], return_indices=True
    )
    got, got_indices = max_pool(x, pool)
    assert_equal(got, y.numpy())
    assert_equal(got_indices, indices.numpy())


def test_a_window_that_holds_only_padding_is_refused():
    x, y, indices = np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 1, 1), np.int64)
    with pytest.raises(ValueError, match="max_pool2d_forward: a window would lie wholly in the padding"):
        _C.max_pool2d_forward(x, y, indices, (2, 2, 1, 1, 1, 1, 3, 3))
    with pytest.raises(ValueError, match="avg_pool2d_forward: a window would lie wholly in the padding"):
        _C.avg_pool2d_forward(x, np.zeros((1, 1, 3, 1)), (1, 2, 1, 1, 0, 0, 1, 1), True)


@pytest.mark.parametrize("index", [-1, 6, 2**40, -(2**62)])
def test_an_index_outside_the_plane_is_refused(index):
    gy, gx = np.ones((1, 2, 1, 2)), unset((1, 2, 2, 3))
    with pytest.raises(ValueError, match="max_pool2d_backward: an index lies outside its H x W plane"):
        _C.max_pool2d_backward(gy, np.array([[[[0, 5]], [[index, 0]]]]), gx)


@pools
@pytest.mark.parametrize("count_include_pad", [True, False])
@dtypes
def test_avg_pool(name, count_include_pad, dtype, rng):
    pool = Pool(name, dilated=False)
    x, gy = rng.standard_normal(pool.x).astype(dtype), rng.standard_normal(pool.y).astype(dtype)
    sums, magnitudes, gradients, sizes = np.zeros(pool.y), np.zeros(pool.y), np.zeros(pool.x), np.zeros(pool.x)
    for p, q, places in pool.places():
        divisor = pool.divisor(p, q, count_include_pad)
        for place in places:
            sums[:, :, p, q] += x[(..., *place)] / np.float64(divisor)
            magnitudes[:, :, p, q] += np.abs(x[(..., *place)]) / divisor
            gradients[(..., *place)] += gy[:, :, p, q] / np.float64(divisor)
            sizes[(..., *place)] += np.abs(gy[:, :, p, q]) / divisor
    y, gx = unset(pool.y, dtype), unset(pool.x, dtype)
    _C.avg_pool2d_forward(x, y, pool.window, count_include_pad)
    _C.avg_pool2d_backward(gy, gx, pool.window, count_include_pad)
    terms = pool.window[0] * pool.window[1]
    assert_close(y, sums, sum_bound(terms, magnitudes, dtype))
    assert_close(gx, gradients, sum_bound(terms, sizes, dtype))


def test_avg_pool_of_integers_is_exact(rng):
    x = 4.0 * rng.integers(-50, 50, (2, 3, 6, 10)).astype(np.float32)
    y, gx = unset((2, 3, 3, 5), np.float32), unset(x.shape, np.float32)
    _C.avg_pool2d_forward(x, y, (2, 2, 2, 2, 0, 0, 1, 1), True)
    assert_equal(y, x.reshape(2, 3, 3, 2, 5, 2).sum(axis=(3, 5)) / 4)
    _C.avg_pool2d_backward(4 * y, gx, (2, 2, 2, 2, 0, 0, 1, 1), True)
    assert_equal(gx, y.repeat(2, axis=2).repeat(2, axis=3))


@pytest.mark.parametrize(
    "sizes", [(7, 7, 7, 7), (13, 9, 6, 4), (5, 8, 3, 3), (2, 3, 7, 5), (6, 17, 1, 1), (1, 1, 3, 2)]
)
@dtypes
def test_adaptive_avg_pool(sizes, dtype, rng):
    h, w, p, q = sizes
    x, gy = rng.standard_normal((2, 3, h, w)).astype(dtype), rng.standard_normal((2, 3, p, q)).astype(dtype)
    want, want_gx, magnitude = np.zeros(gy.shape), np.zeros(x.shape), np.zeros(x.shape)
    for i, j in itertools.product(range(p), range(q)):
        rows = slice(math.floor(i * h / p), math.ceil((i + 1) * h / p))
        columns = slice(math.floor(j * w / q), math.ceil((j + 1) * w / q))
        part = x[:, :, rows, columns].astype(np.float64)
        want[:, :, i, j] = part.mean(axis=(2, 3))
        want_gx[:, :, rows, columns] += gy[:, :, i, j, None, None] / np.float64(part[0, 0].size)
        magnitude[:, :, rows, columns] += np.abs(gy[:, :, i, j, None, None])
    y, gx = unset(gy.shape, dtype), unset(x.shape, dtype)
    _C.adaptive_avg_pool2d_forward(x, y)
    _C.adaptive_avg_pool2d_backward(gy, gx)
    assert_close(y, want, sum_bound(h * w, np.abs(x).max(), dtype))
    assert_close(gx, want_gx, sum_bound(p * q, magnitude, dtype))
