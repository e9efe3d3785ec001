"""Local response and batch normalisation: against definitions and PyTorch, gradients, statistics, errors."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from check import assert_close, assert_equal, assert_relative_l2, assert_same_bits, check_gradients

import gpucnn
from gpucnn import functional as F
from gpucnn import tensor

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
LIMIT = {np.float32: 2e-6, np.float64: 1e-13}
SHAPES = [(2, 5, 4, 3), (1, 1, 3, 3), (3, 2, 7), (4, 7, 1, 1), (6, 3), (2, 17, 5, 7), (33, 2, 2, 2)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
SIZES = [(5, 1e-4, 0.75, 1.0), (5, 5e-4, 0.75, 2.0), (1, 2.0, 0.5, 1.0), (4, 1.0, 0.75, 2.0), (11, 0.5, 1.5, 0.5)]
response_norms = pytest.mark.parametrize("options", SIZES, ids=str)


def normal(shape: tuple[int, ...], dtype: type = np.float64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def strided(array: np.ndarray) -> np.ndarray:
    """The same values with other strides."""
    return np.repeat(array, 2, axis=-1)[..., ::2]


def test_response_norm_by_hand():
    """Three channels 1, 2, 3 of one pixel, size 3, α = 3, β = 1, k = 1: y_c = x_c / (1 + Σ x²)."""
    y = F.local_response_norm(np.array([1.0, 2, 3]).reshape(1, 3, 1, 1), 3, alpha=3, beta=1, k=1)
    assert_close(y.reshape(-1), [1 / 6, 2 / 15, 3 / 14], 1e-15)


def test_response_norm_of_even_size_looks_further_back():
    y = F.local_response_norm(np.array([1.0, 2, 3]).reshape(1, 3, 1), 2, alpha=2, beta=1, k=0)
    assert_close(y.reshape(-1), [1 / 1, 2 / 5, 3 / 13], 1e-15)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) > 2], ids=str)
@response_norms
@dtypes
def test_response_norm(shape, options, dtype):
    x = normal(shape, dtype)
    y = F.local_response_norm(x, *options)
    assert y.dtype == dtype
    assert_close(y, reference.local_response_norm(x, *options), LIMIT[dtype])


@response_norms
def test_response_norm_gradients(options):
    check_gradients(lambda x: F.local_response_norm(x, *options), [normal((2, 7, 2, 2))])


@response_norms
@dtypes
def test_response_norm_as_pytorch(torch, options, dtype):
    x, gy = normal((2, 9, 4, 5), dtype), normal((2, 9, 4, 5), dtype, 1)
    leaf, oracle = tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, want = F.local_response_norm(leaf, *options), torch.nn.functional.local_response_norm(oracle, *options)
    y.backward(strided(gy))
    want.backward(torch.tensor(gy))
    assert_relative_l2(y, want.detach(), LIMIT[dtype])
    assert_relative_l2(leaf.grad, oracle.grad, LIMIT[dtype])


def test_response_norm_defaults_as_pytorch(torch):
    x = 30 * normal((1, 6, 2, 2))
    assert_relative_l2(F.local_response_norm(x, 5), torch.nn.functional.local_response_norm(torch.tensor(x), 5), 1e-14)


def test_batch_norm_by_hand():
    """One channel with 1, 2, 3, 6: mean 3, biased variance 3.5, unbiased 14/3."""
    x = np.array([1.0, 2, 3, 6]).reshape(2, 1, 1, 2)
    mean, variance = np.array([10.0]), np.array([20.0])
    y = F.batch_norm(x, mean, variance, np.array([2.0]), np.array([5.0]), training=True, momentum=0.25, eps=0.5)
    assert_equal(y.reshape(-1), [3, 4, 5, 8])  # (x − 3) / √4 · 2 + 5
    assert_equal(mean, [0.75 * 10 + 0.25 * 3])
    assert_close(variance, [0.75 * 20 + 0.25 * 14 / 3], 1e-14)


def test_batch_norm_evaluation_by_hand():
    mean, variance = np.array([1.0, -1.0]), np.array([3.0, 8.0])
    y = F.batch_norm(np.array([[5.0, 5.0]]), mean, variance, eps=1.0)
    assert_equal(y, [[2, 2]])
    assert_equal([mean, variance], [[1, -1], [3, 8]])


@shapes
@dtypes
def test_batch_norm_training(shape, dtype):
    x, weight, bias = normal(shape, dtype), normal(shape[1:2], dtype, 1), normal(shape[1:2], dtype, 2)
    y = F.batch_norm(3 * x + 100, None, None, weight, bias, training=True)
    exact = (3 * x + 100).astype(np.float64)
    axes = (0, *range(2, x.ndim))
    want = reference.batch_norm(exact, exact.mean(axes), exact.var(axes), weight, bias)
    assert y.dtype == dtype
    assert_close(y, want, 100 * np.abs(weight).max() * LIMIT[dtype])


@shapes
@dtypes
def test_batch_norm_evaluation(shape, dtype):
    x, (weight, bias, mean) = normal(shape, dtype), normal((3, shape[1]), dtype, 1)
    variance = 0.5 + normal(shape[1:2], dtype, 2) ** 2
    y = F.batch_norm(x, mean, variance, weight, bias)
    assert_close(y, reference.batch_norm(x, mean, variance, weight, bias), 10 * LIMIT[dtype])
    assert_close(F.batch_norm(x, mean, variance), reference.batch_norm(x, mean, variance), 10 * LIMIT[dtype])


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_gradients(training):
    mean, variance = normal((3,)), 1 + normal((3,)) ** 2

    def function(*inputs):
        return F.batch_norm(inputs[0], mean.copy(), variance.copy(), *inputs[1:], training=training)

    x, weight, bias = normal((4, 3, 2, 2)), normal((3,)), normal((3,))
    check_gradients(function, [x, weight, bias])
    check_gradients(function, [x])
    check_gradients(lambda w: function(tensor(x), w), [weight])


@shapes
@pytest.mark.parametrize("training", [True, False])
@dtypes
def test_batch_norm_as_pytorch(torch, shape, training, dtype):
    x, gy = 2 * normal(shape, dtype) + 1, normal(shape, dtype, 1)
    weight, bias = normal((2, shape[1]), dtype, 2)
    running, oracle_running = ([normal(shape[1:2], dtype, 3), 1 + normal(shape[1:2], dtype, 4) ** 2] for _ in "12")
    leaves = [tensor(array, requires_grad=True) for array in (x, weight, bias)]
    oracles = [torch.tensor(array, requires_grad=True) for array in (x, weight, bias)]
    y = F.batch_norm(leaves[0], *running, *leaves[1:], training=training, momentum=0.3, eps=1e-3)
    want = torch.nn.functional.batch_norm(
        oracles[0], *map(torch.from_numpy, oracle_running), *oracles[1:], training=training, momentum=0.3, eps=1e-3
    )
    y.backward(strided(gy))
    want.backward(torch.tensor(gy))
    assert_relative_l2(y, want.detach(), LIMIT[dtype])
    for got, oracle in zip(leaves, oracles, strict=True):
        scale = float(np.linalg.norm(gy) * (1 + np.linalg.norm(x)))  # gradients cancel: not relative to themselves
        assert_close(got.grad, oracle.grad, LIMIT[dtype] * scale)
    for got, oracle in zip(running, oracle_running, strict=True):
        assert_relative_l2(got, oracle, LIMIT[dtype])


def test_running_statistics_stay_float32_with_float64_input():
    mean, variance = np.zeros(2, np.float32), np.ones(2, np.float32)
    y = F.batch_norm(normal((4, 2, 3)), mean, variance, training=True)
    assert (y.dtype, mean.dtype) == (np.float64, np.float32)
    assert F.batch_norm(normal((4, 2, 3)), mean, variance).dtype == np.float64


def test_running_statistics_may_move_between_forward_and_backward():
    x, weight = normal((4, 2, 3)), tensor(np.ones(2), requires_grad=True)
    mean, variance = np.zeros(2), np.ones(2)
    y = F.batch_norm(x, mean, variance, weight, eps=0.0)
    mean[:], variance[:] = 5, 100
    y.sum().backward()
    assert_close(weight.grad, x.sum(axis=(0, 2)), 1e-13)  # the normalised x of the forward pass


def test_running_statistics_may_be_tensors():
    mean, variance = tensor(np.zeros(2)), tensor(np.ones(2))
    F.batch_norm(normal((4, 2, 3)) + 5, mean, variance, training=True, momentum=1.0)
    assert_close(mean, normal((4, 2, 3)).mean(axis=(0, 2)) + 5, 1e-14)


def test_large_mean_does_not_cancel():
    """Mean 10^4 and variance 1 in float32: E[x²] − E[x]² would lose all digits, two passes keep them."""
    x = (normal((64, 1, 8, 8), np.float64) + 1e4).astype(np.float32)
    y = F.batch_norm(x, None, None, training=True)
    exact = x.astype(np.float64)
    assert_close(y, reference.batch_norm(exact, exact.mean(), exact.var()), 2e-3)  # 1e4 · 2^-24 of x itself


FUNCTIONS = {
    "response": lambda x: F.local_response_norm(x, 3),
    "batch": lambda x: F.batch_norm(x, None, None, training=True),
    "running": lambda x: F.batch_norm(x, np.zeros(4, x.dtype), np.ones(4, x.dtype)),
}
functions = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@functions
def test_views_and_repeatable_bits(function):
    x = normal((5, 4, 6, 7), np.float32)
    first = function(x)
    assert_same_bits(function(x), first)
    assert_same_bits(function(strided(x)), first)
    assert_same_bits(function(x[::-1].copy()[::-1]), first)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_weights_may_be_views(training):
    x, weight, bias = tensor(normal((3, 4, 5))), normal((4,)), normal((4,), seed=1)
    want = F.batch_norm(x, np.zeros(4), np.ones(4), weight, bias, training)
    leaf = gpucnn.Tensor(strided(weight), requires_grad=True)
    y = F.batch_norm(x, np.zeros(4), np.ones(4), leaf, strided(bias), training)
    y.sum().backward()
    assert_same_bits(y, want)


@functions
def test_tensors_and_arrays(function):
    x = normal((2, 4, 3, 3))
    assert type(function(x)) is np.ndarray
    assert isinstance(function(tensor(x)), gpucnn.Tensor)


def test_empty_batch():
    assert F.local_response_norm(np.zeros((0, 4, 2, 2)), 3).shape == (0, 4, 2, 2)
    x = tensor(np.zeros((0, 4, 2, 2)), requires_grad=True)
    F.batch_norm(x, np.zeros(4), np.ones(4)).sum().backward()
    assert x.grad.shape == x.shape


X = np.zeros((2, 3, 4, 4))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda: F.local_response_norm(X, 0),
            ValueError,
            "local_response_norm: size is 0; it must be at least 1 channel",
        ),
        (lambda: F.local_response_norm(X[:, 0, 0], 1), ValueError, r"x has shape \(2, 4\); it must have at least 3"),
        (lambda: F.local_response_norm(X.astype(int), 1), TypeError, "x is int64; it must be float32 or float64"),
        (
            lambda: F.batch_norm(X[0, 0, 0], None, None),
            ValueError,
            r"batch_norm: x has shape \(4,\); it must be \(N, C, …\)",
        ),
        (
            lambda: F.batch_norm(X, np.zeros(4), np.ones(4)),
            ValueError,
            r"running_mean has shape \(4,\) but x has 3 channels",
        ),
        (
            lambda: F.batch_norm(X, None, None, np.ones(2)),
            ValueError,
            r"batch_norm: weight has shape \(2,\) but x has 3",
        ),
        (lambda: F.batch_norm(X, np.zeros(3), None), ValueError, "both running_mean and running_var, or neither"),
        (
            lambda: F.batch_norm(X[:1, :, :1, :1], None, None, training=True),
            ValueError,
            "more than one value a channel",
        ),
        (
            lambda: F.batch_norm(X[:0], np.zeros(3), np.ones(3), training=True),
            ValueError,
            "more than one value a channel",
        ),
        (lambda: F.batch_norm(X, None, None, np.ones(3, np.float32)), TypeError, "weight is float32 but x is float64"),
    ],
)
def test_errors(function, error, message):
    with pytest.raises(error, match=message):
        function()
