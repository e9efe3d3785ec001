"""linear: the lecture's classifier, exact on integers, bounds, PyTorch, gradients, errors."""

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
    sum_bound,
)
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, tensor

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def passes(x, weight, bias, gy):
    """(y, gx, gw, gb) as arrays."""
    leaves = [tensor(array, requires_grad=True) for array in (x, weight, bias)]
    y = F.linear(*leaves)
    y.backward(gy)
    return y.data, *(leaf.grad.data for leaf in leaves)


def reference_passes(x, weight, bias, gy):
    gy2, x2 = gy.reshape(-1, gy.shape[-1]).astype(np.float64), x.reshape(-1, x.shape[-1]).astype(np.float64)
    gx = np.einsum("...o,oi->...i", gy.astype(np.float64), weight.astype(np.float64))
    return reference.linear(x, weight, bias), gx, np.einsum("no,ni->oi", gy2, x2), gy2.sum(axis=0)


def test_linear_classifier():
    """Cat, dog and ship scores of a picture of four pixels; the lecture's slide prints 61.95: it forgot that bias."""
    weight = np.array([[0.2, -0.5, 0.1, 2.0], [1.5, 1.3, 2.1, 0.0], [0, 0.25, 0.2, -0.3]])
    x, bias = np.array([56.0, 231, 24, 2]), np.array([1.1, 3.2, -1.2])
    assert_close(F.linear(x, weight, bias), [-96.8, 437.9, 60.75], 1e-13)
    assert_close(F.linear(x, weight), [-97.9, 434.7, 61.95], 1e-13)


extents = st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 127])


@given(leading=st.lists(st.sampled_from([0, 1, 2, 5, 17]), max_size=2).map(tuple), inputs=extents, outputs=extents)
def test_random_shapes_are_exact(leading, inputs, outputs):
    rng = np.random.default_rng(inputs + outputs)
    shapes = (*leading, inputs), (outputs, inputs), (outputs,), (*leading, outputs)
    arrays = [rng.integers(-8, 9, shape).astype(np.float32) for shape in shapes]
    for got, want in zip(passes(*arrays), reference_passes(*arrays), strict=True):
        assert got.dtype == np.float32
        assert_equal(got, want)


@dtypes
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 400, 120), (128, 400, 120), (64, 84, 10), (300, 1000, 7)])
def test_error_bounds(rows, inputs, outputs, dtype):
    rng = np.random.default_rng(1)
    shapes = (rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    sizes = reference_passes(*map(np.abs, arrays))
    for got, want, size, terms in zip(
        passes(*arrays), reference_passes(*arrays), sizes, (inputs + 1, outputs, rows, rows), strict=True
    ):
        assert_close(got, want, 2 * sum_bound(terms, size, dtype))
        assert_relative_l2(got, want, 2e-6)


@dtypes
def test_as_pytorch(torch, dtype):
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((6, 3, 50), (20, 50), (20,), (6, 3, 20))]
    oracles = [torch.tensor(array, requires_grad=True) for array in arrays[:3]]
    y = torch.nn.functional.linear(*oracles)
    y.backward(torch.tensor(arrays[3]))
    limit = {np.float32: 1e-6, np.float64: 1e-14}[dtype]
    for got, want in zip(passes(*arrays), (y.detach(), *(oracle.grad for oracle in oracles)), strict=True):
        assert_relative_l2(got, want, limit)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)], ids=str)
def test_gradients_and_adjoint(leading):
    rng = np.random.default_rng(3)
    x, weight, bias = rng.standard_normal((*leading, 4)), rng.standard_normal((5, 4)), rng.standard_normal(5)
    check_gradients(F.linear, [x, weight, bias])
    check_gradients(F.linear, [x, weight])
    gy = rng.standard_normal((*leading, 5))
    y, gx, gw, _ = passes(x, weight, 0 * bias, gy)
    check_adjoint(y, gy, [(x, gx), (weight, gw)])


def test_views_and_repeatable_bits():
    rng = np.random.default_rng(4)
    x, weight, bias = rng.standard_normal((9, 12)), rng.standard_normal((7, 12)), rng.standard_normal(7)
    first = F.linear(x, weight, bias)
    assert_same_bits(F.linear(x, weight, bias), first)
    views = [np.asfortranarray(x), np.asfortranarray(weight), np.repeat(bias, 2)[::2]]
    assert_close(F.linear(*views), first, 1e-14)
    leaves = [gpucnn.Tensor(view, requires_grad=True) for view in views]
    F.linear(*leaves).backward(np.asfortranarray(rng.standard_normal((9, 7))))
    assert [leaf.grad.shape for leaf in leaves] == [(9, 12), (7, 12), (7,)]


def test_tensors_and_arrays():
    x, weight = np.ones((2, 3)), np.ones((4, 3))
    assert type(F.linear(x, weight)) is np.ndarray
    assert isinstance(F.linear(x, tensor(weight)), gpucnn.Tensor)


def test_flatten_layer():
    assert nn.Flatten()(np.zeros((2, 3, 4, 5))).shape == (2, 60)
    assert nn.Flatten(2)(tensor(np.zeros((2, 3, 4, 5)))).shape == (2, 3, 20)


X, WEIGHT = np.zeros((2, 3)), np.zeros((4, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[:, :2], WEIGHT), ValueError, r"x has 2 features \(shape \(2, 2\)\) but weight expects 3 .*flatten x first"),
        ((np.zeros(()), WEIGHT), ValueError, r"x has no features \(shape \(\)\)"),
        ((X, WEIGHT[0]), ValueError, r"weight has shape \(3,\); it must be \(out_features, in_features\)"),
        ((X, WEIGHT, np.zeros(3)), ValueError, r"bias has shape \(3,\); it must be \(4,\)"),
        ((X, WEIGHT.astype(np.float32)), TypeError, "weight is float32 but x is float64; convert one of them"),
        ((X.astype(int), WEIGHT), TypeError, "x is int64; it must be float32 or float64"),
        ((X.tolist(), WEIGHT), TypeError, "x is list; it must be a Tensor or an array"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match="^linear: " + message):
        F.linear(*arguments)
