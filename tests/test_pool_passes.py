"""Pooling forwards and backwards: exact on integers, within bounds, as PyTorch's, for windows of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from check import (
    assert_close,
    assert_equal,
    assert_relative_l2,
    assert_same_bits,
    check_adjoint,
    check_gradients,
    rounding_bound,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from shapes import POOL_CASES, PoolCase, parametrize

from gpucnn import functional as F
from gpucnn import tensor

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
counting = pytest.mark.parametrize("count_include_pad", [True, False])


def integers(shape: tuple[int, ...], dtype: type = np.float64) -> np.ndarray:
    """Small integers with many ties, so that the rule for equal maxima counts."""
    return np.random.default_rng(sum(shape)).integers(-3, 4, shape).astype(dtype)


def distinct(shape: tuple[int, ...]) -> np.ndarray:
    """No two elements closer than 1, so that small moves change no maximum."""
    return np.random.default_rng(sum(shape)).permutation(np.prod(shape)).reshape(shape).astype(np.float64)


def average(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.einsum("pqhw,nchw->ncpq", matrix, x)


def average_backward(gy: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.einsum("pqhw,ncpq->nchw", matrix, gy)


def forward_backward(function, x, gradient=None):
    """(y, gy, gx) as arrays."""
    leaf = tensor(x, requires_grad=True)
    y = function(leaf)
    gy = (integers(y.shape) if gradient is None else gradient(y.shape)).astype(x.dtype)
    y.backward(gy)
    return y.data, gy, leaf.grad.data


@parametrize(POOL_CASES)
@dtypes
def test_max_is_exact(case, dtype):
    x = integers(case.x, dtype)
    y, gy, gx = forward_backward(lambda t: F.max_pool2d(t, *case.window), x)
    want, indices = reference.max_pool2d(x, *case.window)
    assert y.dtype == gx.dtype == dtype
    assert_equal(y, want)
    assert_equal(F.max_pool2d(x, *case.window, return_indices=True)[1], indices)
    assert_equal(gx, reference.max_pool2d_backward(gy, indices, case.x))


@parametrize(POOL_CASES)
@counting
@dtypes
def test_average_is_close(case, count_include_pad, dtype):
    window = case.window_without_dilation
    x = np.random.default_rng(1).standard_normal(case.x).astype(dtype)
    y, gy, gx = forward_backward(lambda t: F.avg_pool2d(t, *window, count_include_pad), x)
    matrix = reference.avg_pool2d_matrix(*case.x[2:], *window, count_include_pad)
    terms = 2 + np.prod(reference.pair(case.kernel_size))
    assert y.dtype == gx.dtype == dtype
    assert_close(y, average(x, matrix), rounding_bound(terms, average(np.abs(x), matrix), dtype))
    assert_close(gx, average_backward(gy, matrix), rounding_bound(terms, average_backward(np.abs(gy), matrix), dtype))


ADAPTIVE = [((2, 3, 7, 7), 7), ((2, 3, 13, 13), 6), ((1, 2, 5, 8), (3, 3)), ((1, 2, 2, 3), (7, 7)), ((2, 3, 6, 6), 1)]
adaptive = pytest.mark.parametrize(("shape", "output_size"), [*ADAPTIVE, ((0, 2, 5, 5), 2), ((1, 1, 1, 1), (4, 1))])


@adaptive
@dtypes
def test_adaptive_average(shape, output_size, dtype):
    x = np.random.default_rng(2).standard_normal(shape).astype(dtype)
    y, gy, gx = forward_backward(lambda t: F.adaptive_avg_pool2d(t, output_size), x)
    matrix = reference.adaptive_avg_pool2d_matrix(*shape[2:], *reference.pair(output_size))
    assert_close(y, average(x, matrix), rounding_bound(40, average(np.abs(x), matrix), dtype))
    assert_close(gx, average_backward(gy, matrix), rounding_bound(60, average_backward(np.abs(gy), matrix), dtype))
    assert_same_bits(F.adaptive_avg_pool2d(x, shape[2:]), x)  # windows of one pixel


@parametrize(POOL_CASES)
def test_max_gradients(case):
    check_gradients(lambda x: F.max_pool2d(x, *case.window), [distinct(case.x)])


@parametrize(POOL_CASES)
@counting
def test_average_gradients_and_adjoint(case, count_include_pad):
    x = np.random.default_rng(3).standard_normal(case.x)

    def function(t):
        return F.avg_pool2d(t, *case.window_without_dilation, count_include_pad)

    check_gradients(function, [x])
    y, gy, gx = forward_backward(function, x, np.random.default_rng(4).standard_normal)
    check_adjoint(y, gy, [(x, gx)])


@adaptive
def test_adaptive_gradients_and_adjoint(shape, output_size):
    x = np.random.default_rng(3).standard_normal(shape)
    check_gradients(lambda t: F.adaptive_avg_pool2d(t, output_size), [x])
    y, gy, gx = forward_backward(
        lambda t: F.adaptive_avg_pool2d(t, output_size), x, np.random.default_rng(4).standard_normal
    )
    check_adjoint(y, gy, [(x, gx)])


def torch_forward_backward(torch, function, x, gy):
    leaf = torch.tensor(x, requires_grad=True)
    y = function(leaf)
    y.backward(torch.tensor(gy))
    return y.detach().numpy(), leaf.grad.numpy()


@parametrize(POOL_CASES)
@dtypes
def test_max_as_pytorch(torch, case, dtype):
    x = integers(case.x, dtype)
    y, gy, gx = forward_backward(lambda t: F.max_pool2d(t, *case.window), x)
    want, want_gx = torch_forward_backward(torch, lambda t: torch.nn.functional.max_pool2d(t, *case.window), x, gy)
    assert_equal(y, want)
    assert_equal(gx, want_gx)
    indices = torch.nn.functional.max_pool2d(torch.tensor(x), *case.window, return_indices=True)[1]
    assert_equal(F.max_pool2d(x, *case.window, return_indices=True)[1], indices.numpy())


@parametrize(POOL_CASES)
@counting
@dtypes
def test_average_as_pytorch(torch, case, count_include_pad, dtype):
    window = case.window_without_dilation
    x = np.random.default_rng(5).standard_normal(case.x).astype(dtype)
    y, gy, gx = forward_backward(lambda t: F.avg_pool2d(t, *window, count_include_pad), x)
    oracle = torch_forward_backward(
        torch, lambda t: torch.nn.functional.avg_pool2d(t, *window, count_include_pad), x, gy
    )
    limit = {np.float32: 1e-6, np.float64: 1e-15}[dtype]
    assert_relative_l2(y, oracle[0], limit)
    assert_relative_l2(gx, oracle[1], limit)


@adaptive
def test_adaptive_as_pytorch(torch, shape, output_size):
    x = np.random.default_rng(6).standard_normal(shape)
    y, gy, gx = forward_backward(lambda t: F.adaptive_avg_pool2d(t, output_size), x)
    oracle = torch_forward_backward(torch, lambda t: torch.nn.functional.adaptive_avg_pool2d(t, output_size), x, gy)
    assert_relative_l2(y, oracle[0], 1e-15)
    assert_relative_l2(gx, oracle[1], 1e-15)


@st.composite
def pool_cases(draw):
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
    size = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    case = PoolCase(
        (draw(st.integers(0, 2)), draw(st.integers(1, 5)), *size),
        kernel,
        draw(pairs),
        padding,
        draw(pairs),
        draw(st.booleans()),
    )
    reach = [d * (k - 1) + 1 for d, k in zip(case.dilation, kernel, strict=True)]
    assume(all(n + 2 * p >= r for n, p, r in zip(size, padding, reach, strict=True)))
    return case


@given(case=pool_cases())
def test_random_shapes(case):
    x = integers(case.x, np.float32)
    windows = reference.pool_windows(*case.x[2:], *case.window)
    assume(all(rows and columns for line in windows for rows, columns in line))  # see test_window_without_a_pixel
    want, indices = reference.max_pool2d(x, *case.window)
    y, gy, gx = forward_backward(lambda t: F.max_pool2d(t, *case.window), x)
    assert_equal(y, want)
    assert_equal(gx, reference.max_pool2d_backward(gy, indices, case.x))
    window = case.window_without_dilation
    matrix = reference.avg_pool2d_matrix(*case.x[2:], *window, True)
    assert_close(F.avg_pool2d(x, *window), average(x, matrix), rounding_bound(27, average(np.abs(x), matrix), x.dtype))


@pytest.mark.parametrize("function", [F.max_pool2d, F.avg_pool2d])
def test_two_runs_give_the_same_bits(function):
    x = np.random.default_rng(8).standard_normal((5, 7, 13, 13)).astype(np.float32)
    first, second = (
        forward_backward(lambda t: function(t, 3, 1, 1), x, np.random.default_rng(9).standard_normal) for _ in "12"
    )
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)
