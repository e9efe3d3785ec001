"""Lp pooling, pooling across channels, adaptive and global maxima, unpooling: by hand, as PyTorch's, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from check import assert_close, assert_equal, assert_relative_l2, assert_same_bits, check_adjoint, check_gradients
from shapes import POOL_CASES, parametrize

import gpucnn
from gpucnn import functional as F
from gpucnn import tensor

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
LIMIT = {np.float32: 1e-6, np.float64: 1e-14}
UNPADDED = {name: case for name, case in POOL_CASES.items() if case.padding == 0 and case.dilation == 1}
ADAPTIVE = [((2, 3, 7, 7), 7), ((2, 3, 13, 13), 6), ((1, 2, 5, 8), (3, 3)), ((1, 2, 2, 3), (7, 7)), ((2, 3, 6, 6), 1)]
adaptive = pytest.mark.parametrize(("shape", "output_size"), [*ADAPTIVE, ((0, 2, 5, 5), 2), ((1, 1, 1, 1), (4, 1))])


def normal(*shape: int, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def integers(*shape: int, dtype: type = np.float64) -> np.ndarray:
    """Small integers with many ties."""
    return np.random.default_rng(sum(shape)).integers(-3, 4, shape).astype(dtype)


def distinct(*shape: int) -> np.ndarray:
    """No two elements closer than 1."""
    return np.random.default_rng(sum(shape)).permutation(math.prod(shape)).reshape(shape).astype(np.float64)


def forward_backward(function, x, gy):
    """(y, gx) as arrays; gy is a function of a shape."""
    leaf = tensor(x, requires_grad=True)
    y = function(leaf)
    y.backward(gy(*y.shape).astype(x.dtype))
    return y.data, leaf.grad.data


def torch_forward_backward(torch, function, x, gy):
    leaf = torch.tensor(x, requires_grad=True)
    y = function(leaf)
    y.backward(torch.tensor(gy(*y.shape).astype(x.dtype)))
    return y.detach().numpy(), leaf.grad.numpy()


# ---- Lp pooling


def test_lp_by_hand():
    x = np.array([[[[3.0, -4, 1, 2], [0, 0, 2, 1]]]])
    assert_equal(F.l2_pool2d(x, 2), [[[[5, math.sqrt(10)]]]])
    assert_equal(F.lp_pool2d(x, 1, 2), [[[[-1, 6]]]])  # no absolute value, as in PyTorch
    assert_close(F.lp_pool2d(x, 4, 2), [[[[337**0.25, 34**0.25]]]], 1e-15)
    assert_equal(F.l2_pool2d(x, (2, 1), (1, 3)), [[[[3, math.sqrt(5)]]]])
    leaf = tensor(x, requires_grad=True)
    F.l2_pool2d(leaf, 2).backward([[[[10, 0]]]])
    assert_close(leaf.grad, [[[[6, -8, 0, 0], [0, 0, 0, 0]]]], 1e-15)


@parametrize(UNPADDED)
@pytest.mark.parametrize("norm_type", [1, 2, 2.5, 4])
@dtypes
def test_lp_as_pytorch(torch, case, norm_type, dtype):
    x = np.abs(normal(*case.x, dtype=dtype)) if norm_type == 2.5 else normal(*case.x, dtype=dtype)
    window = (norm_type, case.kernel_size, case.stride, case.ceil_mode)
    y, gx = forward_backward(lambda t: F.lp_pool2d(t, *window), x, normal)
    want, want_gx = torch_forward_backward(torch, lambda t: torch.nn.functional.lp_pool2d(t, *window), x, normal)
    assert y.dtype == gx.dtype == dtype
    # At p = 1 sums of both signs cancel, so errors are relative to the terms.
    assert_close(y, want, 100 * LIMIT[dtype] * (1 + np.abs(x).max(initial=0)))
    assert_relative_l2(gx, want_gx, 10 * LIMIT[dtype])


@parametrize(UNPADDED)
@pytest.mark.parametrize("norm_type", [1, 2, 3])
def test_lp_gradients(case, norm_type):
    window = (norm_type, case.kernel_size, case.stride, case.ceil_mode)
    check_gradients(lambda t: F.lp_pool2d(t, *window), [1 + np.abs(normal(*case.x))])


def test_l2_is_lp_with_two():
    x = normal(2, 3, 8, 9)
    assert_same_bits(F.l2_pool2d(x, 3, 2, True), F.lp_pool2d(x, 2, 3, 2, True))


@pytest.mark.parametrize("norm_type", [1, 2, 3, 7.5])
@dtypes
def test_lp_of_zeros_has_gradient_zero(torch, norm_type, dtype):
    x = np.zeros((1, 1, 4, 4), dtype)
    x[0, 0, 3, 3] = 2
    y, gx = forward_backward(lambda t: F.lp_pool2d(t, norm_type, 2), x, lambda *shape: np.ones(shape))
    oracle = torch_forward_backward(
        torch, lambda t: torch.nn.functional.lp_pool2d(t, norm_type, 2), x, lambda *shape: np.ones(shape)
    )
    assert_close(y, oracle[0], 1e-6)
    assert_close(gx, oracle[1], 1e-6)
    assert (gx[0, 0, :2] == 0).all() and gx[0, 0, 3, 3] > 0


def test_lp_root_of_a_negative_sum_is_nan(torch):
    x = np.array([[[[-2.0, 1], [1, 1]]]])
    want, _ = torch_forward_backward(torch, lambda t: torch.nn.functional.lp_pool2d(t, 3, 2), x, normal)
    y, _ = forward_backward(lambda t: F.lp_pool2d(t, 3, 2), x, normal)
    assert_equal(y, want)
    assert np.isnan(y).all() and np.isnan(F.lp_pool2d(np.full((1, 1, 2, 2), np.nan), 2, 2)).all()


# ---- L2 across channels


def channels(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    starts = range(0, x.shape[1] - size + 1, stride)
    return np.stack([np.linalg.norm(x[:, k : k + size].astype(np.float64), axis=1) for k in starts], axis=1)


def test_channels_by_hand():
    x = tensor(np.array([[3.0, 4, 0, 0, 5]]), requires_grad=True)
    y = F.l2_pool_channels(x, 2)
    assert_equal(y, [[5, 0]])
    y.backward([[10, 10]])
    assert_equal(x.grad, [[6, 8, 0, 0, 0]])
    assert_equal(F.l2_pool_channels(x, 2, 1), [[5, 4, 0, 5]])


@pytest.mark.parametrize("shape", [(3, 7), (2, 6, 5), (2, 8, 5, 4), (0, 6, 3, 3), (1, 6, 2, 3, 2)], ids=str)
@pytest.mark.parametrize(("size", "stride"), [(2, None), (3, 1), (4, 3), (1, None), (6, None)])
@dtypes
def test_channels_against_their_definition(shape, size, stride, dtype):
    x = normal(*shape, dtype=dtype)
    y = F.l2_pool_channels(x, size, stride)
    assert y.dtype == dtype
    assert_relative_l2(y, channels(x, size, size if stride is None else stride), LIMIT[dtype])
    check_gradients(lambda t: F.l2_pool_channels(t, size, stride), [x + np.sign(x)])


@pytest.mark.parametrize(("size", "stride"), [(2, None), (3, 1), (4, 3)])
@dtypes
def test_channels_as_pytorch(torch, size, stride, dtype):
    """PyTorch pools along the last axis only: the channels are moved there and back."""

    def oracle(t):
        rows = t.permute(0, 2, 3, 1).flatten(0, 2)[:, None]
        pooled = torch.nn.functional.lp_pool1d(rows, 2, size, stride)[:, 0]
        return pooled.unflatten(0, (t.shape[0], *t.shape[2:])).permute(0, 3, 1, 2)

    x = normal(2, 8, 5, 4, dtype=dtype)
    y, gx = forward_backward(lambda t: F.l2_pool_channels(t, size, stride), x, normal)
    want, want_gx = torch_forward_backward(torch, oracle, x, normal)
    assert_relative_l2(y, want, LIMIT[dtype])
    assert_relative_l2(gx, want_gx, LIMIT[dtype])


# ---- adaptive and global


def test_adaptive_max_by_hand():
    x = np.array([[[[1.0, 9, 2], [3, 4, 9], [5, 5, 0]]]])
    y, indices = F.adaptive_max_pool2d(x, 2, return_indices=True)
    assert_equal(y, [[[[9, 9], [5, 9]]]])
    assert_equal(indices, [[[[1, 1], [6, 5]]]])  # of equal values the first; windows overlap in the middle
    assert_equal(F.global_max_pool2d(x), [[[[9]]]])
    assert_close(F.global_avg_pool2d(x), [[[[38 / 9]]]], 1e-15)


@adaptive
@dtypes
def test_adaptive_max_as_pytorch(torch, shape, output_size, dtype):
    x = integers(*shape, dtype=dtype)
    y, gx = forward_backward(lambda t: F.adaptive_max_pool2d(t, output_size), x, integers)
    indices = F.adaptive_max_pool2d(x, output_size, return_indices=True)[1]
    assert indices.dtype == np.int64
    if not shape[0]:
        assert y.shape == indices.shape == (*shape[:2], *reference.pair(output_size)) and gx.shape == shape
        return
    oracle = torch.nn.functional.adaptive_max_pool2d
    want, want_gx = torch_forward_backward(torch, lambda t: oracle(t, output_size), x, integers)
    assert_equal(y, want)
    assert_equal(gx, want_gx)
    assert_equal(indices, oracle(torch.tensor(x), output_size, return_indices=True)[1])


@adaptive
def test_adaptive_max_gradients(shape, output_size):
    check_gradients(lambda t: F.adaptive_max_pool2d(t, output_size), [distinct(*shape)])


def test_adaptive_windows_that_do_not_overlap_are_max_pooling():
    x = integers(2, 3, 8, 6)
    y, indices = F.adaptive_max_pool2d(x, (4, 2), return_indices=True)
    want, want_indices = F.max_pool2d(x, (2, 3), return_indices=True)
    assert_equal(y, want)
    assert_equal(indices, want_indices)


def test_global_pooling_is_reduction():
    x = normal(3, 4, 7, 5)
    y, gx = forward_backward(F.global_max_pool2d, x, lambda *shape: np.ones(shape))
    assert_equal(y[..., 0, 0], x.max(axis=(2, 3)))
    assert_equal(gx, x == y)
    assert_close(F.global_avg_pool2d(x)[..., 0, 0], x.mean(axis=(2, 3)), 1e-15)


def test_global_pooling_gradients_and_as_pytorch(torch):
    for function, oracle in (
        (F.global_max_pool2d, torch.nn.functional.adaptive_max_pool2d),
        (F.global_avg_pool2d, torch.nn.functional.adaptive_avg_pool2d),
    ):
        check_gradients(function, [distinct(2, 3, 4, 5)])
        got = forward_backward(function, normal(2, 3, 4, 5), normal)
        want = torch_forward_backward(torch, lambda t, oracle=oracle: oracle(t, 1), normal(2, 3, 4, 5), normal)
        for one, other in zip(got, want, strict=True):
            assert_close(one, other, 1e-15)


def test_adaptive_max_of_nan():
    x = integers(1, 2, 4, 4)
    x[0, 1, 2, 3] = np.nan
    assert_equal(np.isnan(F.adaptive_max_pool2d(x, 2)), [[[[0, 0], [0, 0]], [[0, 0], [0, 1]]]])


# ---- unpooling


def test_unpool_by_hand():
    x = np.array([[[[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]]]], np.float32)
    y, indices = F.max_pool2d(tensor(x, requires_grad=True), 2, return_indices=True)
    back = F.max_unpool2d(y, indices, 2)
    assert_equal(back, [[[[0, 0, 0, 0], [0, 6, 0, 8], [3, 0, 0, 0], [0, 0, 0, 4]]]])
    leaf = tensor(y.data, requires_grad=True)
    F.max_unpool2d(leaf, indices, 2).backward(x)
    assert_equal(leaf.grad, [[[[6, 8], [3, 4]]]])


def test_unpool_of_a_place_named_twice():
    leaf = tensor(np.array([[[[1.0, 2]]]]), requires_grad=True)
    y = F.max_unpool2d(leaf, np.array([[[[1, 1]]]]), (1, 2), 1)
    assert_equal(y, [[[[0, 2, 0]]]])
    y.backward([[[[10, 20, 30]]]])
    assert_equal(leaf.grad, [[[[20, 20]]]])


UNPOOL = {name: case for name, case in POOL_CASES.items() if case.dilation == 1 and case.x[0]}


@parametrize(UNPOOL)
@dtypes
def test_unpool_as_pytorch(torch, case, dtype):
    x = distinct(*case.x).astype(dtype)
    pooled, indices = F.max_pool2d(x, *case.window, return_indices=True)
    window = (case.kernel_size, case.stride, case.padding, case.x[2:])
    y, gx = forward_backward(lambda t: F.max_unpool2d(t, indices, *window), pooled, normal)
    want, want_gx = torch_forward_backward(
        torch, lambda t: torch.nn.functional.max_unpool2d(t, torch.tensor(indices), *window), pooled, normal
    )
    assert_equal(y, want)
    assert_equal(gx, want_gx)
    assert_same_bits(F.max_unpool2d(pooled, tensor(indices.astype(np.int32)), *window[:3], case.x), y)


def test_unpool_gradient_and_adjoint():
    indices = F.max_pool2d(distinct(2, 3, 7, 9), 2, return_indices=True)[1]
    x = normal(2, 3, 3, 4)
    check_gradients(lambda t: F.max_unpool2d(t, indices, 2, output_size=(7, 9)), [x])
    gy = normal(2, 3, 7, 9)
    y, gx = forward_backward(lambda t: F.max_unpool2d(t, indices, 2, output_size=(7, 9)), x, lambda *_: gy)
    check_adjoint(y, gy, [(x, gx)])


# ---- all of them

INDICES = F.max_pool2d(distinct(2, 4, 12, 16), 2, return_indices=True)[1]
FUNCTIONS = {
    "lp": lambda x: F.lp_pool2d(x, 4, 3, 2, True),
    "channels": lambda x: F.l2_pool_channels(x, 3, 1),
    "adaptive": lambda x: F.adaptive_max_pool2d(x, (2, 3)),
    "unpool": lambda x: F.max_unpool2d(x, INDICES, 2),
}
functions = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
VIEWS = {
    "reversed": lambda x: x[::-1, :, ::-1, ::-1].copy()[::-1, :, ::-1, ::-1],
    "transposed": lambda x: x.transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0),
    "every_second": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    "read_only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
}


@functions
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views(function, view):
    x = normal(2, 4, 6, 8, dtype=np.float32)
    want = forward_backward(function, x, normal)
    leaf = gpucnn.Tensor(view(x), requires_grad=True)
    y = function(leaf)
    y.backward(view(normal(*y.shape).astype(np.float32)))
    assert_close(y, want[0], 1e-6)
    assert_close(leaf.grad, want[1], 1e-6)


@functions
def test_tensors_and_arrays_and_repeatable_bits(function):
    x = normal(2, 4, 6, 8, dtype=np.float32)
    assert type(function(x)) is np.ndarray
    assert isinstance(function(tensor(x)), gpucnn.Tensor)
    assert_same_bits(function(tensor(x)), function(x))
    first, second = (forward_backward(function, x, normal) for _ in "12")
    assert_same_bits(first[0], second[0])
    assert_same_bits(first[1], second[1])


X = np.zeros((1, 2, 6, 6))
WHERE = np.zeros((1, 2, 6, 6), np.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.lp_pool2d(X, 0.5, 2), ValueError, "lp_pool2d: norm_type is 0.5; it must be a finite number of at"),
        (lambda: F.lp_pool2d(X, math.inf, 2), ValueError, "lp_pool2d: norm_type is inf"),
        (lambda: F.lp_pool2d(X, math.nan, 2), ValueError, "lp_pool2d: norm_type is nan"),
        (lambda: F.lp_pool2d(X.astype(int), 2, 2), TypeError, "lp_pool2d: x is int64; it must be float32 or float64"),
        (lambda: F.l2_pool2d(X.tolist(), 2), TypeError, "l2_pool2d: x is list; it must be a Tensor or an array"),
        (lambda: F.l2_pool2d(X, 7), ValueError, "l2_pool2d: the output would be empty"),
        (lambda: F.l2_pool2d(X[0], 2), ValueError, r"l2_pool2d: x has shape \(2, 6, 6\)"),
        (lambda: F.l2_pool_channels(X, 3), ValueError, r"l2_pool_channels: x has shape .* with at least 3 channels"),
        (lambda: F.l2_pool_channels(X[0, 0, 0], 1), ValueError, r"l2_pool_channels: x has shape \(6,\)"),
        (lambda: F.l2_pool_channels(X, 0), ValueError, "l2_pool_channels: size is 0; it must be a positive integer"),
        (lambda: F.l2_pool_channels(X, 2, 0), ValueError, "l2_pool_channels: stride is 0; it must be a positive"),
        (lambda: F.l2_pool_channels(X, 1.5), ValueError, "l2_pool_channels: size is 1.5"),
        (lambda: F.l2_pool_channels([1.0], 1), TypeError, "l2_pool_channels: x is list"),
        (lambda: F.adaptive_max_pool2d(X, 0), ValueError, "adaptive_max_pool2d: output_size is 0; it must be at least"),
        (lambda: F.adaptive_max_pool2d(X[0], 2), ValueError, r"adaptive_max_pool2d: x has shape \(2, 6, 6\)"),
        (lambda: F.adaptive_max_pool2d(X[:, :, :0], 2), ValueError, "adaptive_max_pool2d: x has no pixels"),
        (lambda: F.adaptive_max_pool2d(X.astype(int), 2), TypeError, "adaptive_max_pool2d: x is int64"),
        (lambda: F.max_unpool2d(X[0], WHERE, 2), ValueError, r"max_unpool2d: x has shape \(2, 6, 6\)"),
        (
            lambda: F.max_unpool2d(X, WHERE[:, :1], 2),
            ValueError,
            r"indices have shape \(1, 1, 6, 6\) but x has \(1, 2, 6",
        ),
        (lambda: F.max_unpool2d(X, X, 2), TypeError, "max_unpool2d: indices are float64; they must be integers"),
        (lambda: F.max_unpool2d(X, WHERE - 1, 2), ValueError, "indices from -1 to -1 do not fit an image of 12x12"),
        (lambda: F.max_unpool2d(X, WHERE + 144, 2), ValueError, "indices from 144 to 144 do not fit an image of 12x12"),
        (
            lambda: F.max_unpool2d(X, WHERE, 2, output_size=(12, 14)),
            ValueError,
            r"output_size is \(12, 14\); it must be less",
        ),
        (lambda: F.max_unpool2d(X, WHERE, 2, output_size=(10, 12)), ValueError, r"away from \(12, 12\)"),
        (lambda: F.max_unpool2d(X, WHERE, 1, 1, 3), ValueError, "max_unpool2d: the output would be empty: 0x0"),
        (lambda: F.max_unpool2d(X.astype(int), WHERE, 2), TypeError, "max_unpool2d: x is int64"),
        (lambda: F.max_unpool2d(X, WHERE, 0), ValueError, "max_unpool2d: kernel_size is 0; it must be at least 1"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
