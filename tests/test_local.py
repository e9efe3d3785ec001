"""locally_connected2d: worked examples, exact on integers, bounds, gradients, PyTorch, what it refuses."""

from __future__ import annotations

from typing import Any, NamedTuple

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
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import parametrize

from gpucnn import functional as F
from gpucnn import nn, ops, tensor
from gpucnn.ops.shapes import output_size


class Case(NamedTuple):
    """x (N,C,H,W), K filters of R×S for each output pixel, stride and padding (height, width)."""

    x: tuple[int, int, int, int]
    filters: tuple[int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def pixels(self) -> tuple[int, ...]:
        axes = zip(self.x[2:], self.filters[1:], self.stride, self.padding, strict=True)
        return tuple(output_size(size, kernel, stride, padding, 1) for size, kernel, stride, padding in axes)

    def arrays(self, dtype: Any, kind: str = "normal") -> tuple[np.ndarray, ...]:
        K, R, S = self.filters
        shapes = self.x, (*self.pixels, K, self.x[1], R, S), (K, *self.pixels)
        rng = np.random.default_rng(sum(self.x) + sum(self.filters))
        if kind == "integers":
            return tuple(rng.integers(-4, 5, shape).astype(dtype) for shape in shapes)
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


CASES = {
    "smallest": Case((1, 1, 1, 1), (1, 1, 1)),
    "faces": Case((4, 3, 11, 10), (5, 3, 3), padding=(1, 1)),
    "primes": Case((3, 5, 7, 13), (7, 3, 2), (2, 3), (1, 0)),
    "no_overlap": Case((2, 2, 8, 6), (3, 2, 2), (2, 2)),
    "gaps": Case((1, 2, 7, 7), (2, 1, 2), (3, 3)),  # pixels that no window reads
    "one_output_pixel": Case((2, 3, 5, 4), (4, 5, 4)),
    "empty_batch": Case((0, 2, 5, 5), (3, 3, 3)),
}
cases = parametrize(CASES)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def passes(case: Case, data: tuple[np.ndarray, ...], make_gy: Any) -> list[np.ndarray]:
    """[y, gy, gx, gw, gb], all arrays; gy is made from y's shape."""
    leaves = [tensor(array, requires_grad=True) for array in data]
    y = F.locally_connected2d(*leaves, case.stride, case.padding)
    gy = make_gy(y.shape).astype(data[0].dtype)
    y.backward(gy)
    return [y.data, gy, *(leaf.grad.data for leaf in leaves)]


def test_weights_of_40000_hidden_units():
    """10×10 windows on a 200×200 image and 40,000 units: 4 million weights, one bias a unit."""
    images, filters = (1, 1, 200, 200), (100, 1, 10, 10)
    shape = ops.locally_connected2d_shape(images, (20, 20, *filters), stride=10)
    assert shape.K * shape.P * shape.Q == 40_000
    assert np.prod(ops.locally_connected2d_weight_shape(shape)) == 4_000_000
    layer = nn.LocallyConnected2d(1, 100, 10, 200, stride=10)
    assert layer.weight.size == 4_000_000
    assert layer.bias is not None and layer.bias.size == 40_000


def test_each_pixel_has_its_own_filter():
    x = np.array([[[[1.0, 2, 3], [4, 5, 6]]]])
    weight = np.array([[1.0, -1], [10, 0]]).reshape(1, 2, 1, 1, 1, 2).repeat(2, axis=0)
    assert_equal(F.locally_connected2d(x, weight), [[[[-1, 20], [-1, 50]]]])
    bias = np.array([[[0.5, 0], [0, -50]]])
    assert_equal(F.locally_connected2d(x, weight, bias), [[[[-0.5, 20], [-1, 0]]]])


def test_equal_filters_are_a_convolution():
    rng = np.random.default_rng(1)
    x, filters = rng.integers(-4, 5, (2, 3, 9, 8)), rng.integers(-4, 5, (4, 3, 3, 3))
    weight = np.broadcast_to(filters, (5, 4, *filters.shape)).astype(float)
    want = F.conv2d(x.astype(float), filters.astype(float), None, 2, 1)
    assert_equal(F.locally_connected2d(x.astype(float), weight, None, 2, 1), want)


def assert_exact(case: Case, dtype: Any) -> None:
    data = case.arrays(dtype, "integers")
    rng = np.random.default_rng(3)
    y, gy, gx, gw, gb = passes(case, data, lambda shape: rng.integers(-4, 5, shape))
    want = reference.locally_connected2d(*data, case.stride, case.padding)
    assert_equal(y, want)
    assert all(array.dtype == dtype for array in (y, gx, gw, gb))
    check_adjoint(want - data[2], gy, [(data[0], gx), (data[1], gw)], limit=0)
    assert_equal(gb, gy.sum(axis=0))


@cases
@dtypes
def test_exact_on_integers(case, dtype):
    assert_exact(case, dtype)


sizes, steps = st.integers(1, 9), st.integers(1, 3)


@given(
    batch=st.integers(0, 3),
    channels=st.sampled_from([1, 2, 5]),
    extents=st.tuples(sizes, sizes),
    filters=st.tuples(st.sampled_from([1, 3, 7]), steps, steps),
    stride=st.tuples(steps, steps),
    padding=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
@settings(max_examples=60)
def test_random_shapes_are_exact(batch, channels, extents, filters, stride, padding):
    assert_exact(Case((batch, channels, *extents), filters, stride, padding), np.dtype(np.float32))


@cases
@dtypes
def test_error_bounds(case, dtype):
    data = case.arrays(dtype)
    want = reference.locally_connected2d(*data, case.stride, case.padding)
    size = reference.locally_connected2d(*map(np.abs, data), case.stride, case.padding)
    y = F.locally_connected2d(*data, case.stride, case.padding)
    terms = case.x[1] * case.filters[1] * case.filters[2] + 1
    assert_close(y, want, sum_bound(terms, size, dtype) + sum_bound(terms, size, np.float64))


@cases
def test_two_runs_give_the_same_bits(case):
    data = case.arrays(np.float32)
    first, second = (passes(case, data, lambda s: np.random.default_rng(5).random(s)) for _ in "12")
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)


@cases
def test_gradients(case):
    check_gradients(lambda *data: F.locally_connected2d(*data, case.stride, case.padding), case.arrays(np.float64))


@cases
@dtypes
def test_as_pytorch(torch, case, dtype):
    """PyTorch has no such function: its unfold makes the patches, and einsum meets them with their filters."""
    data = case.arrays(dtype)
    y, gy, *gradients = passes(case, data, np.random.default_rng(8).standard_normal)
    x, weight, bias = leaves = [torch.tensor(array, requires_grad=True) for array in data]
    patches = torch.nn.functional.unfold(x, case.filters[1:], stride=case.stride, padding=case.padding)
    oracle = torch.einsum("ncl,lkc->nkl", patches, weight.reshape(patches.shape[2], case.filters[0], -1))
    oracle = oracle.reshape(y.shape) + bias
    oracle.backward(torch.tensor(gy))
    limit = {np.float32: 2e-6, np.float64: 1e-14}[dtype]
    for got, want in zip((y, *gradients), (oracle.detach(), *(leaf.grad for leaf in leaves)), strict=True):
        assert_relative_l2(got, want.numpy(), limit)


def test_views():
    case = CASES["primes"]
    x, weight, bias = (array[(slice(None, None, -1),) * array.ndim] for array in case.arrays(np.float32, "integers"))
    want = reference.locally_connected2d(x, weight, bias, case.stride, case.padding)
    assert_equal(F.locally_connected2d(x, weight, bias, case.stride, case.padding), want)


def test_layer_is_its_function():
    layer = nn.LocallyConnected2d(3, 4, (3, 2), (7, 8), 2, (1, 0))
    x = np.random.default_rng(1).standard_normal((2, 3, 7, 8)).astype(np.float32)
    assert_same_bits(layer(x), F.locally_connected2d(x, layer.weight, layer.bias, 2, (1, 0)))
    bound = (3 * 3 * 2) ** -0.5
    assert 0.9 * bound < np.abs(layer.weight.numpy()).max() <= bound
    assert 0.5 * bound < np.abs(layer.bias.numpy()).max() <= bound
    text = "LocallyConnected2d(3, 4, kernel_size=(3, 2), input_size=(7, 8), stride=(2, 2), padding=(1, 0))"
    assert repr(layer) == text
    assert repr(nn.LocallyConnected2d(1, 1, 1, 1, bias=False)).endswith("stride=(1, 1), bias=False)")


X, WEIGHT = np.zeros((2, 4, 8, 8), np.float32), np.zeros((6, 6, 5, 4, 3, 3), np.float32)
BIAS = np.zeros((5,), np.float32)
ERRORS = [
    (F.locally_connected2d, (X[0], WEIGHT), ValueError, r"locally_connected2d: x has shape \(4, 8, 8\).* 4 dimensions"),
    (F.locally_connected2d, (X, WEIGHT[0]), ValueError, r"weight has shape .* 6 dimensions \(P, Q, K, C, R, S\)"),
    (
        F.locally_connected2d,
        (X[:, :3], WEIGHT),
        ValueError,
        "locally_connected2d: x has 3 channels but weight expects 4",
    ),
    (F.locally_connected2d, (X[..., :7], WEIGHT), ValueError, "filters for 6x6 output pixels .* x of 8x7 gives 6x5"),
    (
        F.locally_connected2d,
        (X, WEIGHT, BIAS),
        ValueError,
        r"bias has shape \(5,\); it must be \(K, P, Q\) = \(5, 6, 6\)",
    ),
    (F.locally_connected2d, (X, WEIGHT, None, 0), ValueError, "locally_connected2d: stride is 0"),
    (F.locally_connected2d, (X, WEIGHT, None, 1, -1), ValueError, "locally_connected2d: padding is -1"),
    (F.locally_connected2d, (X, WEIGHT.astype(float)), TypeError, "weight is float64 but x is float32"),
    (F.locally_connected2d, (X, WEIGHT.tolist()), TypeError, "weight is list; it must be a Tensor or an array"),
    (nn.LocallyConnected2d, (0, 1, 3, 8), ValueError, r"LocallyConnected2d: in_channels \(=0\)"),
    (nn.LocallyConnected2d, (1, 1, 9, 8), ValueError, "LocallyConnected2d: the output would be empty: .* 9x9 .* 8x8"),
    (nn.LocallyConnected2d, (1, 1, 3, (8, 8, 8)), ValueError, r"LocallyConnected2d: input_size is \(8, 8, 8\)"),
]


@pytest.mark.parametrize(("function", "arguments", "error", "message"), ERRORS)
def test_errors(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)
