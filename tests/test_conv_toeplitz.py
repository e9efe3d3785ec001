"""The algorithm "toeplitz": its matrix, its product, its memory (its results: test_conv_passes.py)."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from check import assert_equal, assert_relative_l2
from shapes import CONV_CASES, parametrize

from gpucnn import _C, ops
from gpucnn.ops import conv_toeplitz

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def test_matrix_of_a_small_convolution():
    """A 2×2 filter a b / c d over 2×3 pixels: two outputs, the second row is the first, moved by one column."""
    pairs = conv_toeplitz.pairs_of(ops.conv_shape((1, 1, 2, 3), (1, 1, 2, 2)))
    matrix = conv_toeplitz.csr(pairs.outputs, pairs.pixels, 2, planes=1, plane_size=6)
    a, b, c, d = 2.0, 3.0, 5.0, 7.0
    dense = matrix.multiply(np.array([[a, b, c, d]])[:, pairs.taps], np.eye(6))
    assert_equal(dense, [[a, b, 0, c, d, 0], [0, a, b, 0, c, d]])


def test_padding_has_no_entries():
    pairs = conv_toeplitz.pairs_of(ops.conv_shape((1, 1, 1, 1), (1, 1, 3, 3), padding=1))
    assert [list(index) for index in pairs] == [[0], [0], [4]]


@dtypes
@pytest.mark.parametrize("width", [0, 1, 31, 32, 33, 70])
def test_csr_product(dtype, width, rng):
    dense = rng.integers(-4, 5, (9, width)).astype(dtype)
    matrix = rng.integers(-4, 5, (21, 9)) * (rng.random((21, 9)) < 0.5)
    rows, columns = map(np.ascontiguousarray, np.nonzero(matrix))
    starts = np.searchsorted(rows, np.arange(22))
    out = np.full((21, width), np.nan, dtype)
    _C.csr_matmul(matrix[rows, columns].astype(dtype), columns, starts, dense, out)
    assert_equal(out, matrix @ dense)


def test_long_sums_are_sums_of_chains(rng):
    """10^5 terms: one chain of additions in float32 would miss this bound."""
    count = 100_000
    values, dense = rng.random(count, np.float32), rng.random((count, 1), np.float32)
    out = np.empty((1, 1), np.float32)
    _C.csr_matmul(values, np.arange(count), np.array([0, count]), dense, out)
    assert_relative_l2(out, values[None].astype(np.float64) @ dense, 2e-6)


@pytest.mark.parametrize(
    ("columns", "starts", "message"),
    [
        ([0, 3], [0, 2], "columns must be rows of dense"),
        ([0, -1], [0, 2], "columns must be rows of dense"),
        ([0, 1], [0, 1], "starts must rise from 0 to the number of values"),
        ([0, 1], [1, 2], "starts must rise from 0 to the number of values"),
        ([0, 1, 2], [0, 2], "columns has another shape"),
    ],
)
def test_indices_outside_are_refused(columns, starts, message):
    with pytest.raises(ValueError, match="csr_matmul: " + message):
        _C.csr_matmul(np.ones(2), np.array(columns), np.array(starts), np.ones((3, 1)), np.empty((1, 1)))


@parametrize({name: CONV_CASES[name] for name in ("lenet_c3", "groups", "dilated_both", "many_images")})
def test_workspace_is_an_upper_bound(case):
    x, weight, _ = case.arrays(np.float32)
    shape = ops.conv_shape(x.shape, weight.shape, **case.options)
    gy = np.ones(shape.y, np.float32)
    for operation, arrays in (
        ("conv2d_forward", (x, weight, None, np.empty_like(gy))),
        ("conv2d_backward_input", (gy, weight, np.empty_like(x))),
        ("conv2d_backward_weight", (x, gy, np.empty_like(weight))),
    ):
        entry = ops.ALGORITHMS[operation]["toeplitz"]
        tracemalloc.start()
        entry.run(*arrays, shape)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= entry.workspace_bytes(shape, x.dtype) + 20_000, operation
