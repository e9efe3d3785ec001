"""Sums by kernels: exact on integers, better than one after the other on real numbers, the same bits on every run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from gpucnn import device as devices
from gpucnn import ops
from gpucnn.ops.reduce import COLUMN_CHUNK, ROW_CHUNK, SHORT_ROW, sum_of_squares
from tests.check import assert_close, assert_equal, sum_bound
from tests.kernel_check import assert_sound, assert_two_runs_equal, on

EXTENTS = st.sampled_from([0, 1, 2, 3, 7, 31, 32, 33])
LENGTHS = [1, SHORT_ROW - 1, SHORT_ROW, SHORT_ROW + 1, ROW_CHUNK - 3, ROW_CHUNK, ROW_CHUNK + 1, 3 * ROW_CHUNK + 5]


def integers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


@pytest.mark.parametrize("length", LENGTHS)
def test_all_elements_exactly(device, length):
    x = integers((length,))
    (there,) = on(device, x)
    total = ops.sum_over(there)
    assert total.shape == () and devices.of(total) == devices.of(there)
    assert_equal(devices.to_numpy(total), x.astype(np.int64).sum())
    assert_close(devices.to_numpy(ops.mean_over_all(there)), x.mean(dtype=np.float64), 2**-24 * abs(x.mean()) * 4)


@pytest.mark.parametrize("rows", [1, 7, 8, 9])
@pytest.mark.parametrize("length", [1, 5, SHORT_ROW + 3, ROW_CHUNK + 3])
def test_rows_exactly(device, rows, length):
    x = integers((rows, length))
    assert_equal(devices.to_numpy(ops.sum_over(on(device, x)[0], 1)), x.astype(np.int64).sum(axis=1))


@pytest.mark.parametrize("columns", [2, 31, 32, 33])
@pytest.mark.parametrize("length", [1, 8, COLUMN_CHUNK, COLUMN_CHUNK + 1, 2 * COLUMN_CHUNK + 9])
def test_columns_exactly(device, columns, length):
    x = integers((length, columns))
    assert_equal(devices.to_numpy(ops.sum_over(on(device, x)[0], 0)), x.astype(np.int64).sum(axis=0))


@settings(max_examples=60)
@given(shape=st.lists(EXTENTS, min_size=0, max_size=4).map(tuple), data=st.data())
def test_any_axes(device, shape, data):
    x = integers(shape)
    chosen = data.draw(st.sets(st.sampled_from(range(len(shape)))) if shape else st.just(set()))
    axes = data.draw(st.sampled_from([None, tuple(chosen), tuple(axis - len(shape) for axis in chosen)]))
    keepdims = data.draw(st.booleans())
    got = ops.sum_over(on(device, x)[0], axes, keepdims)
    assert got.dtype == np.float32
    assert_equal(devices.to_numpy(got), x.sum(axis=axes, keepdims=keepdims))


def test_other_layouts(device):
    x = integers((6, 5, 7))
    (there,) = on(device, x)
    assert_equal(devices.to_numpy(ops.sum_over(there.transpose(2, 0, 1)[::2], (0, 2))), x[:, :, ::2].sum(axis=(1, 2)))
    assert_equal(devices.to_numpy(ops.sum_over(np.broadcast_to(there, (4, 6, 5, 7)), 0)), 4 * x)


def test_better_than_one_after_the_other(device, rng):
    """300,000 terms: adding them in float32 one by one errs 10 times as much as is allowed here."""
    x = rng.random(300_000, np.float32)
    exact = math.fsum(x.tolist())
    total = float(ops.sum_over(on(device, x)[0]))
    assert abs(total - exact) <= 4 * 2**-24 * exact
    one_by_one = float(np.cumsum(x)[-1])
    assert abs(one_by_one - exact) > 40 * 2**-24 * exact
    columns = x.reshape(-1, 10)
    got = devices.to_numpy(ops.sum_over(on(device, columns)[0], 0))
    assert_close(got, columns.sum(axis=0, dtype=np.float64), 6 * 2**-24 * columns.sum(axis=0))


@pytest.mark.parametrize("shape", [(2 * COLUMN_CHUNK, 200), (200, 2 * ROW_CHUNK)], ids=["columns", "rows"])
def test_chains_are_short(device, rng, shape):
    """Equal terms, whose roundings add up: a thread adds 64 of them, not a whole chunk, one after the other."""
    axis = int(shape[0] == 200)
    terms = np.expand_dims(rng.random(200, np.float32), axis)
    got = devices.to_numpy(ops.sum_over(on(device, np.broadcast_to(terms, shape).copy())[0], axis))
    exact = shape[axis] * terms.ravel().astype(np.float64)
    assert_close(got, exact, 24 * 2**-24 * exact)


def test_not_finite_numbers_stay(device):
    x = np.zeros((3, 40), np.float32)
    x[0, 7], x[1, 3], x[1, 30] = np.nan, np.inf, -np.inf
    got = devices.to_numpy(ops.sum_over(on(device, x)[0], 1))
    assert np.isnan(got[:2]).all() and got[2] == 0


@pytest.mark.parametrize("counts", [(1,), (3, 0, 5), tuple(range(1, 140)), (20_000, 2)])
def test_squares_of_many_arrays(device, counts):
    arrays = [integers((count,), seed) for seed, count in enumerate(counts)]
    want = sum(int((array.astype(np.int64) ** 2).sum()) for array in arrays)
    there = list(on(device, *arrays))
    assert_equal(devices.to_numpy(sum_of_squares(there)), want)
    assert_close(ops.global_norm(there), math.sqrt(want), 1e-12 * want)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_norm_of_what_is_not_finite(device, value):
    arrays = [np.ones(1000, np.float32), np.array([1, value, 2], np.float32)]
    assert not math.isfinite(ops.global_norm(list(on(device, *arrays))))


def test_sums_of_tensors_and_their_gradients(device):
    x = gpucnn.tensor(integers((4, 3, 5)), device=device, requires_grad=True)
    y = gpucnn.tensor(integers((3, 1), 1), device=device, requires_grad=True)
    ((x * y).sum(axis=(0, 2)) * gpucnn.tensor(np.arange(3, dtype=np.float32), device=device)).mean().backward()
    weights = np.arange(3, dtype=np.float32)[:, None] / 3
    assert x.grad is not None and y.grad is not None
    assert_close(x.grad.numpy(), np.broadcast_to(weights * y.numpy(), x.shape), 1e-6)
    want = x.numpy().sum(axis=(0, 2))[:, None] * weights
    assert_close(y.grad.numpy(), want, sum_bound(20, np.abs(x.numpy()).sum(), np.float32))


def test_integers_are_summed_as_ever(device):
    (x,) = on(device, np.arange(10))
    assert int(ops.sum_over(x)) == 45


def test_the_same_bits_and_no_fault(device, rng):
    x, tall = rng.standard_normal(ROW_CHUNK + 77, np.float32), rng.standard_normal((70, 3, 5), np.float32)
    there = on(device, x, tall, x[1:], x[:1])  # x[1:] is a copy: aligned; a view is not
    assert_two_runs_equal(lambda: ops.sum_over(there[0]), device)
    assert_two_runs_equal(lambda: ops.sum_over(there[0][1:]), device)
    assert_sound(
        lambda: (
            ops.sum_over(there[0][: SHORT_ROW + 9]),
            ops.sum_over(there[1], (0, 2)),
            ops.sum_over(there[1], 2),
            sum_of_squares([there[3], there[0][:300]]),
        ),
        device,
    )
