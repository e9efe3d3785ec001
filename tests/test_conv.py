"""conv2d: worked examples, options, what it accepts and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from check import assert_equal, assert_same_bits
from shapes import CONV_CASES

import gpucnn
from gpucnn import functional as F
from gpucnn import ops, tensor
from gpucnn.ops.shapes import output_size

algorithms = pytest.mark.parametrize("algorithm", ["auto", "direct", "im2col", "toeplitz"])  # all that take any shape

EDGES = np.array([[int(digit) for digit in row] for row in "100001 010010 001100 100010 010010 001010".split()])
DIAGONAL = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
VERTICAL = np.array([[-1, 1, -1], [-1, 1, -1], [-1, 1, -1]])


def images(*arrays: object) -> np.ndarray:
    """Two-dimensional arrays as (N, 1, H, W), or as filters (K, 1, R, S)."""
    return np.array(arrays, np.float32)[:, None]


@algorithms
def test_diagonal_filter(algorithm):
    y = F.conv2d(images(EDGES), images(DIAGONAL, VERTICAL), algorithm=algorithm)
    assert_equal(y[0, 0], [[3, -1, -3, -1], [-3, 1, 0, -3], [-3, -3, 0, 1], [3, -2, -2, -1]])
    assert_equal(y[0, 1], [[-1, -1, -1, -1], [-1, -1, -2, 1], [-1, -1, -2, 1], [-1, 0, -4, 3]])
    assert_equal(F.max_pool2d(y, 2), [[[[3, 0], [3, 1]], [[-1, 1], [0, 3]]]])


@algorithms
def test_diagonal_filter_stride_2(algorithm):
    y = F.conv2d(images(EDGES), images(DIAGONAL), stride=2, algorithm=algorithm)
    assert_equal(y, [[[[3, -3], [-3, 0]]]])


@algorithms
def test_filter_over_5x5(algorithm):
    x = images([[3, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1]])
    weight = images([[0, 1, 2], [2, 2, 0], [0, 1, 2]])
    assert_equal(F.conv2d(x, weight, algorithm=algorithm), [[[[12, 12, 17], [10, 17, 19], [9, 6, 14]]]])


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "output"),
    [
        (5, 3, 1, 0, 3),  # valid
        (5, 3, 2, 0, 2),
        (5, 3, 1, 1, 5),  # same
        (5, 3, 2, 1, 3),
        (7, 3, 1, 0, 5),
        (7, 3, 2, 0, 3),
        (7, 3, 3, 0, 2),  # (7 − 3)/3 + 1 = 2.33: floor
        (224, 11, 4, 2, 55),  # AlexNet: (224 + 4 − 11)/4 + 1 = 55.25
        (227, 11, 4, 0, 55),
        (128, 3, 1, 1, 128),
        (32, 5, 1, 0, 28),  # LeNet-5
    ],
)
def test_output_sizes(size, kernel, stride, padding, output):
    assert output_size(size, kernel, stride, padding, 1) == output
    y = F.conv2d(np.zeros((1, 1, size, size)), np.zeros((1, 1, kernel, kernel)), None, stride, padding)
    assert y.shape == (1, 1, output, output)


@pytest.mark.parametrize(("stride", "output"), [(1, [-1, -1, -1, -1, 5]), (2, [-1, -1, 5])])
def test_one_dimensional(stride, output):
    """Five inputs, a filter of three, padding 1: five outputs with stride 1, three with stride 2; y_i = x_i − x_i+1."""
    x, weight = np.array([[[[1.0, 2, 3, 4, 5]]]]), np.array([[[[0.0, 1, -1]]]])
    assert_equal(F.conv2d(x, weight, stride=(1, stride), padding=(0, 1)), [[[output]]])


def test_parameters_and_units_of_a_layer():
    layer = gpucnn.nn.Conv2d(3, 64, 3, padding=1)
    assert sum(p.size for p in layer.parameters()) == 64 * 3 * 3 * 3 + 64 == 1792
    shape = ops.conv_shape((1, 3, 128, 128), layer.weight.shape, padding=1)
    units, inputs = shape.K * shape.P * shape.Q, shape.C * shape.H * shape.W
    assert units == 64 * 128 * 128 == 1_048_576
    assert units * inputs + units == 51_540_656_128  # the fully connected layer of the same size


def test_weights_of_dense_local_and_shared_connections():
    pixels, hidden, window = 200 * 200, 40_000, 10 * 10
    assert pixels * hidden == 1_600_000_000
    assert hidden * window == 4_000_000
    assert gpucnn.nn.Conv2d(1, 100, 10, bias=False).weight.size == 100 * window == 10_000


def test_edge_filter():
    x = np.arange(320.0 * 280).reshape(1, 1, 280, 320) % 7
    weight = np.array([[[[1.0, -1.0]]]])
    y = F.conv2d(x, weight)
    assert y.shape == (1, 1, 280, 319)
    assert_equal(y[0, 0], x[0, 0, :, :-1] - x[0, 0, :, 1:])
    shape = ops.conv_shape(x.shape, weight.shape)
    outputs = shape.P * shape.Q
    assert shape.multiply_adds + outputs == 267_960  # two products and one addition for each output
    assert 2 * outputs == 178_640  # stored values of the sparse matrix
    assert 2 * outputs * x.size > 16e9  # operations with the dense matrix


@algorithms
def test_view_of_the_bias(algorithm):
    x, weight, bias = CONV_CASES["vgg"].arrays(np.float32, "integers")
    y = F.conv2d(x, weight, np.repeat(bias, 2)[::-2], padding=1, algorithm=algorithm)
    assert_equal(y, reference.conv2d(x, weight, bias[::-1], padding=1))


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@algorithms
def test_not_finite_values_reach_every_output_that_reads_them(special, algorithm):
    x, weight = np.ones((1, 1, 5, 5)), np.ones((1, 1, 3, 3))
    x[0, 0, 1, 1] = special
    y = F.conv2d(x, weight, padding=1, algorithm=algorithm)
    assert_equal(y, reference.conv2d(x, weight, padding=1))
    assert np.isfinite(y).sum() == 25 - 9
    assert np.isnan(F.conv2d(x, 0 * weight, algorithm=algorithm)).sum() == 4  # 0·∞ is NaN, and is not skipped


def test_tensors_and_arrays():
    x, weight, bias = CONV_CASES["vgg"].arrays(np.float32)
    arrays = F.conv2d(x, weight, bias, 1, 1)
    assert type(arrays) is np.ndarray
    mixed = F.conv2d(x, tensor(weight, requires_grad=True), bias, 1, 1)
    assert isinstance(mixed, gpucnn.Tensor) and mixed.requires_grad
    assert_same_bits(mixed, arrays)
    mixed.sum().backward()


def test_only_wanted_gradients_are_computed(monkeypatch):
    """The first layer of a network needs no gradient of the images."""
    for unwanted in ("conv2d_backward_input", "conv2d_backward_bias"):
        monkeypatch.delattr(ops, unwanted)
    x, weight, bias = map(tensor, CONV_CASES["vgg"].arrays(np.float32))
    weight.requires_grad = True
    F.conv2d(x, weight, bias).sum().backward()
    assert x.grad is None and bias.grad is None and weight.grad.shape == weight.shape


def test_choice_of_algorithm():
    def choice(x: tuple[int, ...], weight: tuple[int, ...], groups: int = 1) -> str:
        return ops.choose("conv2d_forward", ops.conv_shape(x, weight, groups=groups))

    assert choice((8, 64, 58, 58), (64, 64, 3, 3)) == "winograd4"
    assert choice((4, 512, 16, 16), (512, 512, 3, 3)) == "winograd4"  # 64 tiles of 4×4 outputs
    assert choice((3, 512, 16, 16), (512, 512, 3, 3)) == "winograd"  # 48 of them, 147 of 2×2
    assert choice((1, 512, 16, 16), (512, 512, 3, 3)) == "winograd"  # 49 tiles
    assert choice((1, 512, 14, 14), (512, 512, 3, 3)) == "im2col"
    assert choice((8, 32, 58, 58), (32, 32, 3, 3)) == "im2col"
    assert choice((8, 3, 226, 226), (64, 3, 3, 3)) == "im2col"
    assert choice((8, 64, 31, 31), (128, 64, 5, 5)) == "fft"
    assert choice((4, 48, 28, 28), (64, 48, 5, 5)) == "fft"
    assert choice((4, 32, 28, 28), (64, 32, 5, 5)) == "im2col"
    assert choice((4, 128, 16, 16), (128, 128, 7, 7)) == "fft"  # convnet-benchmarks' L4
    assert choice((4, 3, 128, 128), (96, 3, 11, 11)) == "fft"  # L1: few channels, but 121 taps
    assert choice((1, 64, 31, 31), (128, 64, 5, 5)) == "im2col"
    assert choice((8, 512, 31, 31), (512, 512, 5, 5)) == "im2col"  # spectra of the filters would fill a gigabyte
    assert choice((64, 64, 56, 56), (64, 64, 1, 1)) == "im2col"
    assert choice((64, 128, 58, 58), (128, 64, 3, 3), groups=2) == "im2col"
    assert choice((8, 1, 28, 28), (6, 1, 5, 5)) == "im2col"
    assert choice((8, 32, 14, 14), (32, 1, 3, 3), groups=32) == "direct"


def test_table_of_algorithms():
    shape = ops.conv_shape((4, 8, 14, 14), (16, 8, 3, 3))
    entries = [entry for table in ops.ALGORITHMS.values() for entry in table.values()]
    assert len(entries) == 18
    assert all(entry.deterministic for entry in entries)
    assert all(entry.workspace_bytes(shape, np.dtype(np.float32)) >= 0 for entry in entries)


X, WEIGHT = np.zeros((2, 4, 8, 8), np.float32), np.zeros((6, 4, 3, 3), np.float32)
ERRORS = [
    ((X[:, :3], WEIGHT), {}, ValueError, r"x has 3 channels but weight expects 4 \(weight.shape=\(6, 4, 3, 3\)\)"),
    ((X[0], WEIGHT), {}, ValueError, r"x has shape \(4, 8, 8\); it must have 4 dimensions .*: x\[None\]"),
    ((X, WEIGHT[0]), {}, ValueError, r"weight has shape \(4, 3, 3\); it must have 4 dimensions \(K, C/groups, R, S\)$"),
    ((X, WEIGHT, np.zeros(5, np.float32)), {}, ValueError, r"bias has shape \(5,\) but weight has 6 filters"),
    ((X, WEIGHT), {"stride": 0}, ValueError, "stride is 0; it must be at least 1"),
    ((X, WEIGHT), {"stride": (1, 2, 3)}, ValueError, r"stride is \(1, 2, 3\); it must be an integer or a pair"),
    ((X, WEIGHT), {"stride": 1.5}, ValueError, "stride is 1.5; it must be an integer or a pair"),
    ((X, WEIGHT), {"padding": -1}, ValueError, "padding is -1; it must be at least 0"),
    ((X, WEIGHT), {"padding": "same"}, ValueError, "padding is 'same'; it must be an integer or a pair"),
    ((X, WEIGHT), {"dilation": 0}, ValueError, "dilation is 0; it must be at least 1"),
    ((X, WEIGHT), {"dilation": 4}, ValueError, "output would be empty: the kernel reaches over 9x9 .* only 8x8"),
    ((X[:, :, :2], WEIGHT), {}, ValueError, "output would be empty"),
    ((X, WEIGHT), {"groups": 3}, ValueError, r"in_channels \(=4\) must be divisible by groups \(=3\)"),
    ((X, WEIGHT[:5]), {"groups": 2}, ValueError, r"out_channels \(=5\) must be divisible by groups \(=2\)"),
    ((X, WEIGHT), {"groups": 2}, ValueError, "x has 4 channels but weight expects 8"),
    ((X, WEIGHT), {"groups": 0}, ValueError, "groups is 0; it must be a positive integer"),
    ((X, WEIGHT.astype(float)), {}, TypeError, "weight is float64 but x is float32; convert one of them"),
    ((X.astype(int), WEIGHT), {}, TypeError, "x is int64; it must be float32 or float64"),
    ((X.tolist(), WEIGHT), {}, TypeError, "x is list; it must be a Tensor or an array"),
    (
        (X, WEIGHT),
        {"algorithm": "none"},
        gpucnn.UnsupportedAlgorithm,
        "'none' is unknown; use 'auto' or one of direct",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), ERRORS)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match="conv2d.*: .*" + message):
        F.conv2d(*arguments, **options)
