"""Activations and softmax: against the definitions and PyTorch, at the limits of the number range, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from check import assert_close, assert_equal, assert_same_bits, check_gradients, rounding_bound

import gpucnn
from gpucnn import functional as F
from gpucnn import tensor

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
ELEMENTWISE = {"relu": F.relu, "leaky_relu": F.leaky_relu, "elu": F.elu, "tanh": F.tanh, "sigmoid": F.sigmoid}
SOFTMAX = {"softmax": F.softmax, "log_softmax": F.log_softmax}
functions = pytest.mark.parametrize("name", [*ELEMENTWISE, *SOFTMAX])
ALL = ELEMENTWISE | SOFTMAX


def normal(*shape: int, dtype: type = np.float64) -> np.ndarray:
    return 3 * np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def oracle_of(torch, name: str):
    return getattr(torch.nn.functional if name in ("leaky_relu", "elu") else torch, name)


def test_values_by_hand():
    assert_equal(F.relu(np.array([-2.0, 0.0, 3.0])), [0, 0, 3])
    assert_equal(F.leaky_relu(np.array([-2.0, 0.0, 3.0]), 0.25), [-0.5, 0, 3])
    assert_close(F.elu(np.array([-math.log(2), 0.0, 3.0]), 2.0), [-1, 0, 3], 1e-15)
    assert_close(F.sigmoid(np.array([0.0, math.log(3), -math.log(3)])), [0.5, 0.75, 0.25], 1e-16)
    assert_close(F.tanh(np.array([0.0, math.log(2)])), [0, 0.6], 1e-15)
    assert_close(F.softmax(np.log([[1.0, 2, 5]])), [[1 / 8, 2 / 8, 5 / 8]], 1e-15)
    assert_close(F.log_softmax(np.log([[1.0, 1, 2]])), np.log([[1 / 4, 1 / 4, 2 / 4]]), 1e-15)


def test_gradients_by_hand():
    x = tensor(np.array([-2.0, 0.0, 3.0]), requires_grad=True)
    F.relu(x).backward([10, 20, 30])
    assert_equal(x.grad, [0, 0, 30])  # at 0 the gradient is 0, as in PyTorch
    x = tensor(np.array([-2.0, 0.0, 3.0]), requires_grad=True)
    F.leaky_relu(x, 0.25).backward([10, 20, 30])
    assert_equal(x.grad, [2.5, 5, 30])
    x = tensor(np.array([-math.log(4), 0.0, 3.0]), requires_grad=True)
    F.elu(x, 2.0).backward([10, 20, 30])
    assert_close(x.grad, [5, 40, 30], 1e-14)


@dtypes
def test_sigmoid_against_its_definition(dtype):
    x = np.concatenate([normal(500, dtype=dtype), np.linspace(-40, 40, 81, dtype=dtype)])
    want = np.array([1 / (1 + math.exp(-v)) for v in x])
    y = F.sigmoid(x)
    assert y.dtype == dtype
    assert_close(y, want, rounding_bound(4, want, dtype))
    assert_equal(F.sigmoid(np.array([-2000, 2000], dtype)), [0, 1])  # without a warning about overflow


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@dtypes
def test_softmax_against_its_definition(axis, dtype):
    x = normal(5, 4, 3, dtype=dtype)
    want = reference.softmax(x, axis)
    assert F.softmax(x, axis).dtype == F.log_softmax(x, axis).dtype == dtype
    assert_close(F.softmax(x, axis), want, rounding_bound(40, want, dtype))
    assert_close(F.log_softmax(x, axis), np.log(want), rounding_bound(10, 1 + np.abs(x).max() * 2, dtype))


@functions
def test_gradients(name):
    x = normal(3, 5)
    check_gradients(ALL[name], [x + 0.01 * np.sign(x)])


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_gradients_along_each_axis(name, axis):
    check_gradients(lambda x: SOFTMAX[name](x, axis), [normal(3, 4, 2)])


@functions
@dtypes
def test_as_pytorch(torch, name, dtype):
    x = np.concatenate([normal(40, 10, dtype=dtype), np.zeros((1, 10), dtype), np.full((1, 10), -30, dtype)])
    gy = normal(42, 10, dtype=dtype)
    leaf, oracle = tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y = ALL[name](leaf)
    want = oracle_of(torch, name)(oracle, *[-1] * (name in SOFTMAX))
    y.backward(gy)
    want.backward(torch.tensor(gy))
    assert_close(y, want.detach(), rounding_bound(30, 1 + np.abs(want.detach().numpy()), dtype))
    assert_close(leaf.grad, oracle.grad, rounding_bound(200, 1 + np.abs(gy), dtype))


@pytest.mark.parametrize("name", ["leaky_relu", "elu"])
@pytest.mark.parametrize("option", [-0.5, 0, 0.3, 2])
@dtypes
def test_options_as_pytorch(torch, name, option, dtype):
    x, gy = normal(50, dtype=dtype), normal(5, 10, dtype=dtype).reshape(-1)
    leaf, oracle = tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, want = ALL[name](leaf, option), oracle_of(torch, name)(oracle, option)
    y.backward(gy)
    want.backward(torch.tensor(gy))
    assert_close(y, want.detach(), rounding_bound(8, 1 + np.abs(x), dtype))
    assert_close(leaf.grad, oracle.grad, rounding_bound(8, 2 * np.abs(gy), dtype))


@pytest.mark.parametrize("name", ELEMENTWISE)
@dtypes
def test_special_values_as_pytorch(torch, name, dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 1e-40, -1e-40, 89, -89, 104, -104, 720, -720], dtype)
    assert_close(ALL[name](x)[1:], oracle_of(torch, name)(torch.tensor(x))[1:], 1e-7)
    assert np.isnan(ALL[name](x)[0])


def test_softmax_of_huge_and_infinite_scores():
    assert_equal(F.softmax(np.array([1e30, 1e30, -1e30], np.float32)), [0.5, 0.5, 0])
    assert_equal(F.softmax(np.array([0, -np.inf, 0])), [0.5, 0, 0.5])
    assert_equal(F.log_softmax(np.array([0, -1e30], np.float32)), [0, np.float32(-1e30)])
    assert np.isnan(F.softmax(np.array([np.inf, 0.0]))[0])
    assert np.isnan(F.softmax(np.array([np.nan, 0.0]))).all()


@functions
@pytest.mark.parametrize("shape", [(1, 1), (0, 3), (7,), (2, 3, 5, 3), (13, 17)], ids=str)
def test_shapes(name, shape):
    x = tensor(normal(*shape, dtype=np.float32), requires_grad=True)
    y = ALL[name](x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert y.dtype == x.grad.dtype == np.float32


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_single_number(name):
    x = tensor(0.5, requires_grad=True)
    y = ALL[name](x)
    y.backward()
    assert y.shape == x.grad.shape == ()
    assert_equal(y, ALL[name](np.array([0.5], np.float32))[0])


@functions
def test_views_and_repeatable_bits(name):
    x = normal(6, 8, dtype=np.float32)
    first = ALL[name](x)
    assert_same_bits(ALL[name](x), first)
    for view in (x[::-1].copy()[::-1], x.T.copy().T, np.repeat(x, 2, axis=1)[:, ::2]):
        assert_close(ALL[name](view), first, rounding_bound(4, np.abs(first), np.float32))


@functions
def test_gradient_may_be_a_view(name):
    gradients = []
    for gy in (normal(6, 8), np.repeat(normal(6, 8), 2, axis=1)[:, ::2]):
        x = tensor(normal(8, 6).T, requires_grad=True)
        ALL[name](x).backward(gy)
        gradients.append(x.grad)
    assert_close(*gradients, 1e-15)


@functions
def test_tensors_and_arrays(name):
    x = normal(2, 3)
    assert type(ALL[name](x)) is np.ndarray
    assert isinstance(ALL[name](tensor(x)), gpucnn.Tensor)


@functions
@pytest.mark.parametrize(
    ("x", "message"),
    [(np.array([1, 2]), "x is int64; it must be float32 or float64"), ([1.0], "x is list; it must be a Tensor or")],
)
def test_errors(name, x, message):
    with pytest.raises(TypeError, match=f"^{name}: {message}"):
        ALL[name](x)
