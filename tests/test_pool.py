"""Pooling: worked examples, ties, padding and NaN, what it accepts and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from check import assert_equal, assert_same_bits

import gpucnn
from gpucnn import functional as F
from gpucnn import tensor

EXAMPLE = np.array([[[[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]]]], np.float32)


def integers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(-3, 4, shape).astype(np.float64)


def test_max_example():
    y, indices = F.max_pool2d(EXAMPLE, 2, return_indices=True)
    assert_equal(y, [[[[6, 8], [3, 4]]]])
    assert_equal(indices, [[[[5, 7], [8, 15]]]])
    assert indices.dtype == np.int64


def test_max_example_gradient():
    x = tensor(EXAMPLE, requires_grad=True)
    F.max_pool2d(x, 2).backward([[[[10, 20], [30, 40]]]])
    assert_equal(x.grad, [[[[0, 0, 0, 0], [0, 10, 0, 20], [30, 0, 0, 0], [0, 0, 0, 40]]]])


def test_average_example():
    assert_equal(F.avg_pool2d(EXAMPLE, 2), [[[[13 / 4, 21 / 4], [2, 2]]]])
    assert_equal(F.avg_pool2d(EXAMPLE, 2, padding=1)[0, 0, 0], [1 / 4, 3 / 4, 1])
    assert_equal(F.avg_pool2d(EXAMPLE, 2, padding=1, count_include_pad=False)[0, 0, 0], [1, 3 / 2, 4])
    assert_equal(F.adaptive_avg_pool2d(EXAMPLE, 1), [[[[50 / 16]]]])


def test_overlapping_windows_add_gradients():
    x = tensor(np.array([[[[0.0, 5, 0, 0, 4]]]]), requires_grad=True)
    F.max_pool2d(x, (1, 3), (1, 1)).backward([[[[1, 10, 100]]]])
    assert_equal(x.grad, [[[[0, 11, 0, 0, 100]]]])


def test_first_of_equal_maxima_wins():
    y, indices = F.max_pool2d(np.zeros((1, 1, 4, 4)), 2, return_indices=True)
    assert_equal(indices, [[[[0, 2], [8, 10]]]])


def test_padding_never_wins():
    y, indices = F.max_pool2d(np.full((1, 1, 3, 3), -7.0), 3, 2, 1, return_indices=True)
    assert_equal(y, np.full((1, 1, 2, 2), -7))
    assert_equal(indices, [[[[0, 1], [3, 4]]]])
    lowest = np.full((1, 1, 2, 2), -np.inf)
    assert_equal(F.max_pool2d(lowest, 2, 1, 1), np.full((1, 1, 3, 3), -np.inf))


def test_max_of_nan_as_pytorch(torch):
    x = integers(2, 3, 9, 9)
    x[np.random.default_rng(7).random(x.shape) < 0.1] = np.nan
    y, indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    want, want_indices = torch.nn.functional.max_pool2d(torch.tensor(x), 3, 2, 1, return_indices=True)
    assert_equal(y, want.numpy())
    assert np.isnan(y).any() and not np.isnan(y).all()
    places = x.reshape(2, 3, 81)
    taken = np.take_along_axis(places, indices.reshape(2, 3, -1), axis=2).reshape(y.shape)
    assert_equal(taken, y)  # torch names the last NaN of a window; either is one
    numbers = ~np.isnan(y)
    assert_equal(indices[numbers], want_indices.numpy()[numbers])


FUNCTIONS = {
    "max": lambda x: F.max_pool2d(x, 3, 2, 1),
    "average": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
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
    x = integers(2, 3, 8, 9)
    gy = integers(*function(x).shape)
    leaf, leaf_of_view = gpucnn.Tensor(x, requires_grad=True), gpucnn.Tensor(view(x), requires_grad=True)
    y, y_of_view = function(leaf), function(leaf_of_view)
    y.backward(gy)
    y_of_view.backward(view(gy))
    assert_same_bits(y, y_of_view)
    assert_same_bits(leaf.grad, leaf_of_view.grad)


@functions
def test_tensors_and_arrays(function):
    x = integers(1, 2, 6, 6)
    assert type(function(x)) is np.ndarray
    assert isinstance(function(tensor(x)), gpucnn.Tensor)


def test_indices_of_tensors_are_a_tensor():
    y, indices = F.max_pool2d(tensor(EXAMPLE, requires_grad=True), 2, return_indices=True)
    assert y.requires_grad and not indices.requires_grad and indices.dtype == np.int64


X = np.zeros((1, 2, 6, 6))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda: F.max_pool2d(X[0], 2),
            ValueError,
            r"max_pool2d: x has shape \(2, 6, 6\); .* batch dimension: x\[None\]",
        ),
        (lambda: F.max_pool2d(X, 0), ValueError, "max_pool2d: kernel_size is 0; it must be at least 1"),
        (lambda: F.max_pool2d(X, 2, 0), ValueError, "max_pool2d: stride is 0; it must be at least 1"),
        (lambda: F.max_pool2d(X, 2, padding=2), ValueError, r"padding \(2, 2\) must be at most half of kernel_size"),
        (
            lambda: F.max_pool2d(X, 7),
            ValueError,
            r"output would be empty: kernel_size \(7, 7\) does not fit into x of 6x6",
        ),
        (lambda: F.max_pool2d(X.astype(int), 2), TypeError, "max_pool2d: x is int64; it must be float32 or float64"),
        (lambda: F.max_pool2d(X.tolist(), 2), TypeError, "max_pool2d: x is list; it must be a Tensor or an array"),
        (lambda: F.avg_pool2d(X.tolist(), 2), TypeError, "avg_pool2d: x is list; it must be a Tensor or an array"),
        (
            lambda: F.avg_pool2d(X, (2,)),
            ValueError,
            r"avg_pool2d: kernel_size is \(2,\); it must be an integer or a pair",
        ),
        (
            lambda: F.adaptive_avg_pool2d(X, 0),
            ValueError,
            "adaptive_avg_pool2d: output_size is 0; it must be at least 1",
        ),
        (lambda: F.adaptive_avg_pool2d(X[0], 2), ValueError, r"adaptive_avg_pool2d: x has shape \(2, 6, 6\)"),
        (lambda: F.adaptive_avg_pool2d(X[:, :, :0], 2), ValueError, "adaptive_avg_pool2d: x has no pixels"),
    ],
)
def test_errors(function, error, message):
    with pytest.raises(error, match=message):
        function()


def test_window_without_a_pixel():
    """Dilation can make a window jump over a small image; PyTorch then gives −∞ with a meaningless index."""
    with pytest.raises(ValueError, match="max_pool2d.*: a window would lie wholly in the padding"):
        F.max_pool2d(np.zeros((1, 1, 1, 2)), (1, 2), (1, 1), (0, 1), (1, 3))
