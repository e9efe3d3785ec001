"""The three passes of conv2d: exact on integers, bounded in floating point, as PyTorch's, over shapes of every kind."""

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
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from shapes import CONV_CASES, ConvCase, parametrize

from gpucnn import functional as F
from gpucnn import ops, tensor

algorithms = pytest.mark.parametrize("algorithm", ["auto", "direct", "im2col", "toeplitz"])  # all that take any shape
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def three_passes(case: ConvCase, x, weight, bias, algorithm, make_gy):
    """(y, gy, gx, gw, gb), all arrays, of conv2d on Tensors; gy is made from y's shape."""
    leaves = [tensor(array, requires_grad=True) for array in (x, weight, bias)]
    y = F.conv2d(*leaves, **case.options, algorithm=algorithm)
    gy = make_gy(y.shape).astype(x.dtype)
    y.backward(gy)
    return y.data, gy, *(leaf.grad.data for leaf in leaves)


def reference_passes(case: ConvCase, x, weight, bias, gy):
    """(y, gx, gw, gb) by the definitions, in float64."""
    return (
        reference.conv2d(x, weight, bias, **case.options),
        reference.conv2d_backward_input(gy, weight, case.x, **case.options),
        reference.conv2d_backward_weight(x, gy, case.weight, **case.options),
        gy.astype(np.float64).sum(axis=(0, 2, 3)),
    )


@parametrize(CONV_CASES)
@algorithms
@dtypes
def test_exact_on_integers(case, algorithm, dtype):
    x, weight, bias = case.arrays(dtype, "integers")
    rng = np.random.default_rng(3)
    y, gy, *gradients = three_passes(case, x, weight, bias, algorithm, lambda shape: rng.integers(-4, 5, shape))
    for got, want in zip((y, *gradients), reference_passes(case, x, weight, bias, gy), strict=True):
        assert got.dtype == dtype
        assert_equal(got, want)


@parametrize(CONV_CASES)
@algorithms
@dtypes
def test_error_bounds(case, algorithm, dtype):
    x, weight, bias = case.arrays(dtype)
    rng = np.random.default_rng(4)
    y, gy, *gradients = three_passes(case, x, weight, bias, algorithm, rng.standard_normal)
    wanted = reference_passes(case, x, weight, bias, gy)
    sizes = reference_passes(case, *map(np.abs, (x, weight, bias, gy)))
    K, C, R, S = case.weight
    pixels = gy.size // max(K, 1)
    terms = C * R * S + 1, K // case.groups * R * S, pixels, pixels
    for got, want, size, count in zip((y, *gradients), wanted, sizes, terms, strict=True):
        assert_close(got, want, sum_bound(count, size, dtype) + sum_bound(count, size, np.float64))
        assert_relative_l2(got, want, 2e-6)


@parametrize(CONV_CASES)
@algorithms
def test_two_runs_give_the_same_bits(case, algorithm):
    data = case.arrays(np.float32)
    first, second = (three_passes(case, *data, algorithm, lambda s: np.random.default_rng(5).random(s)) for _ in "12")
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)


@parametrize(CONV_CASES)
@algorithms
def test_adjoint(case, algorithm):
    """⟨gy, conv(x, w)⟩ = ⟨gx, x⟩ = ⟨gw, w⟩: convolution is linear in x and in w."""
    x, weight, bias = case.arrays(np.float64)
    rng = np.random.default_rng(6)
    y, gy, gx, gw, _ = three_passes(case, x, weight, 0 * bias, algorithm, rng.standard_normal)
    check_adjoint(y, gy, [(x, gx), (weight, gw)])


GRADIENT_CASES = ["smallest", "dilated_both", "groups", "wide_strides", "kernel_larger_than_image", "empty_batch"]


@parametrize({name: CONV_CASES[name] for name in GRADIENT_CASES})
@algorithms
def test_gradients(case, algorithm):
    check_gradients(
        lambda x, weight, bias: F.conv2d(x, weight, bias, **case.options, algorithm=algorithm),
        case.arrays(np.float64),
    )


@parametrize(CONV_CASES)
@dtypes
def test_as_pytorch(torch, case, dtype):
    x, weight, bias = case.arrays(dtype)
    rng = np.random.default_rng(8)
    y, gy, *gradients = three_passes(case, x, weight, bias, "auto", rng.standard_normal)
    leaves = [torch.tensor(array, requires_grad=True) for array in (x, weight, bias)]
    oracle = torch.nn.functional.conv2d(*leaves, **case.options)
    oracle.backward(torch.tensor(gy))
    limit = {np.float32: 2e-6, np.float64: 1e-14}[dtype]
    for got, want in zip((y, *gradients), (oracle.detach(), *(leaf.grad for leaf in leaves)), strict=True):
        assert_relative_l2(got, want.numpy(), limit)


extents = st.sampled_from([1, 2, 3, 5, 7, 8, 9, 13, 16, 17, 31, 33])


@st.composite
def conv_cases(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, filters = draw(extents), draw(extents)
    if draw(st.booleans()):
        channels = 1  # depthwise, with one or more filters a channel
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    padding = draw(st.tuples(st.integers(0, kernel[0]), st.integers(0, kernel[1])))
    size = draw(st.tuples(st.integers(1, 17), st.integers(1, 17)))
    batch = draw(st.sampled_from([0, 1, 2, 3]))
    case = ConvCase(
        (batch, channels * groups, *size),
        (filters * groups, channels, *kernel),
        draw(pairs),
        padding,
        draw(pairs),
        groups,
    )
    fits = [n + 2 * p > d * (k - 1) for n, p, d, k in zip(size, padding, case.dilation, kernel, strict=True)]
    assume(all(fits))
    return case


@algorithms
@given(case=conv_cases())
@example(case=CONV_CASES["wide_padding"])
@settings(max_examples=60)
def test_random_shapes_are_exact(algorithm, case):
    x, weight, bias = case.arrays(np.float32, "integers")
    rng = np.random.default_rng(9)
    y, gy, *gradients = three_passes(case, x, weight, bias, algorithm, lambda shape: rng.integers(-4, 5, shape))
    for got, want in zip((y, *gradients), reference_passes(case, x, weight, bias, gy), strict=True):
        assert_equal(got, want)


VIEWS = {
    "reversed": lambda x: x[::-1, :, ::-1, ::-1],
    "channels_last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "every_second": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    "zero_stride": lambda x: np.broadcast_to(x[:1, :1], x.shape),
    "read_only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@algorithms
def test_views(view, algorithm):
    case = CONV_CASES["groups"]
    x, weight, _ = (view(array) if array.ndim == 4 else array for array in case.arrays(np.float32, "integers"))
    gy = view(np.random.default_rng(1).integers(-3, 4, (2, 9, 7, 6)).astype(np.float32))
    shape = ops.conv_shape(x.shape, weight.shape, **case.options)
    y = ops.conv2d_forward(x, weight, None, shape, algorithm)
    gx = ops.conv2d_backward_input(gy, weight, shape, algorithm)
    gw = ops.conv2d_backward_weight(x, gy, shape, algorithm)
    for got, want in zip((y, gx, gw), reference_passes(case, x, weight, np.zeros(9), gy), strict=False):
        assert_equal(got, want)
    assert_equal(ops.conv2d_backward_bias(gy), gy.sum(axis=(0, 2, 3)))
