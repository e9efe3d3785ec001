"""conv1d, conv3d, conv_transpose2d: worked examples, exact on integers, bounds, gradients, PyTorch; and errors."""

from __future__ import annotations

from collections.abc import Callable
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
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shapes import parametrize

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, ops, tensor

algorithms = pytest.mark.parametrize("algorithm", ["auto", "direct", "im2col"])
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


class Case(NamedTuple):
    """A function by its name, x and weight, and the function's options."""

    function: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    options: dict[str, Any] = {}

    @property
    def call(self) -> Callable[..., Any]:
        return getattr(F, self.function)

    @property
    def reference(self) -> Callable[..., Any]:
        return reference.conv_transpose2d if self.function == "conv_transpose2d" else reference.convolution

    @property
    def filters(self) -> int:
        transposed = self.function == "conv_transpose2d"
        return self.weight[1] * self.options.get("groups", 1) if transposed else self.weight[0]

    def arrays(self, dtype: Any, kind: str = "normal") -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(sum(self.x) + sum(self.weight))
        shapes = self.x, self.weight, (self.filters,)
        if kind == "integers":
            return tuple(rng.integers(-4, 5, shape).astype(dtype) for shape in shapes)
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


CASES = {
    "conv1d_smallest": Case("conv1d", (1, 1, 1), (1, 1, 1)),
    "conv1d_speech": Case("conv1d", (2, 3, 101), (5, 3, 9), {"stride": 2, "padding": 4}),
    "conv1d_primes": Case("conv1d", (3, 5, 13), (7, 5, 3), {"stride": (3,), "padding": (2,), "dilation": (2,)}),
    "conv1d_groups": Case("conv1d", (2, 6, 11), (9, 2, 4), {"groups": 3}),
    "conv1d_depthwise": Case("conv1d", (2, 5, 16), (5, 1, 3), {"groups": 5, "padding": 1}),
    "conv1d_empty_batch": Case("conv1d", (0, 2, 7), (3, 2, 3)),
    "conv3d_smallest": Case("conv3d", (1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    "conv3d_video": Case("conv3d", (2, 3, 5, 9, 8), (4, 3, 3, 3, 3), {"padding": 1}),
    "conv3d_primes": Case(
        "conv3d", (1, 3, 7, 5, 11), (5, 3, 3, 2, 3), {"stride": (2, 1, 3), "padding": (2, 1, 0), "dilation": (2, 1, 2)}
    ),
    "conv3d_groups": Case("conv3d", (2, 4, 4, 5, 6), (6, 2, 2, 3, 3), {"groups": 2, "stride": 2}),
    "conv3d_depthwise": Case("conv3d", (2, 3, 4, 5, 6), (3, 1, 3, 3, 3), {"groups": 3, "padding": 1}),
    "conv3d_taps_in_padding": Case("conv3d", (1, 2, 1, 4, 4), (3, 2, 5, 3, 3), {"padding": (2, 1, 1)}),
    "conv3d_output_of_padding": Case("conv3d", (1, 2, 2, 3, 3), (2, 2, 2, 3, 3), {"padding": 3}),
    "conv3d_empty_batch": Case("conv3d", (0, 2, 3, 4, 4), (3, 2, 2, 2, 2)),
    "transposed_smallest": Case("conv_transpose2d", (1, 1, 1, 1), (1, 1, 1, 1)),
    "transposed_doubling": Case("conv_transpose2d", (2, 6, 7, 5), (6, 3, 4, 4), {"stride": 2, "padding": 1}),
    "transposed_output_padding": Case(
        "conv_transpose2d", (1, 3, 5, 4), (3, 5, 3, 3), {"stride": (2, 3), "padding": 1, "output_padding": (1, 2)}
    ),
    "transposed_dilated": Case(
        "conv_transpose2d", (2, 2, 5, 3), (2, 3, 3, 2), {"dilation": (3, 2), "padding": 1, "output_padding": (2, 1)}
    ),
    "transposed_gaps": Case("conv_transpose2d", (1, 2, 3, 4), (2, 3, 2, 1), {"stride": 3}),  # pixels nothing reaches
    "transposed_groups": Case("conv_transpose2d", (2, 6, 4, 5), (6, 2, 3, 3), {"groups": 3, "padding": 2}),
    "transposed_depthwise": Case("conv_transpose2d", (2, 5, 4, 5), (5, 1, 4, 4), {"groups": 5, "stride": 2}),
    "transposed_primes": Case("conv_transpose2d", (3, 7, 13, 11), (7, 5, 3, 2), {"padding": (1, 0)}),
    "transposed_empty_batch": Case("conv_transpose2d", (0, 3, 4, 4), (3, 2, 3, 3)),
}
cases = parametrize(CASES)


def passes(case: Case, data: tuple[np.ndarray, ...], make_gy: Any, algorithm: str = "auto") -> list[np.ndarray]:
    """[y, gy, gx, gw, gb], all arrays; gy is made from y's shape."""
    leaves = [tensor(array, requires_grad=True) for array in data]
    y = case.call(*leaves, **case.options, algorithm=algorithm)
    gy = make_gy(y.shape).astype(data[0].dtype)
    y.backward(gy)
    return [y.data, gy, *(leaf.grad.data for leaf in leaves)]


@pytest.mark.parametrize(("stride", "output"), [(1, [-1, -1, -1, -1, 5]), (2, [-1, -1, 5])])
def test_five_inputs_and_a_filter_of_three(stride, output):
    """Padding 1: stride 1 gives five outputs, stride 2 gives three; y_i = x_i − x_i+1."""
    y = F.conv1d(np.array([[[1.0, 2, 3, 4, 5]]]), np.array([[[0.0, 1, -1]]]), stride=stride, padding=1)
    assert_equal(y, [[output]])


def test_conv1d_is_conv2d_of_height_one():
    x, weight, bias = CASES["conv1d_speech"].arrays(np.float32)
    y = F.conv1d(x, weight, bias, 2, 4)
    assert_same_bits(y, F.conv2d(x[:, :, None], weight[:, :, None], bias, (1, 2), (0, 4))[:, :, 0])


def test_conv3d_sums_over_the_depth():
    """A kernel of ones over a block of ones counts the voxels inside."""
    y = F.conv3d(np.ones((1, 1, 3, 3, 3)), np.ones((1, 1, 3, 3, 3)), padding=1)
    corner, edge, face, centre = 8, 12, 18, 27
    assert_equal(y[0, 0, 0], [[corner, edge, corner], [edge, face, edge], [corner, edge, corner]])
    assert_equal(y[0, 0, 1], [[edge, face, edge], [face, centre, face], [edge, face, edge]])


def test_transposed_convolution_spreads_its_filter():
    """Each pixel adds its filter: with stride 2 the filters of 3 overlap in one row and one column."""
    x, weight = np.array([[[[1.0, 2], [3, 4]]]]), np.ones((1, 1, 3, 3))
    y = [[1, 1, 3, 2, 2], [1, 1, 3, 2, 2], [4, 4, 10, 6, 6], [3, 3, 7, 4, 4], [3, 3, 7, 4, 4]]
    assert_equal(F.conv_transpose2d(x, weight, stride=2), [[y]])
    assert_equal(F.conv_transpose2d(x, weight, stride=2, padding=1), [[np.array(y)[1:4, 1:4]]])
    padded = F.conv_transpose2d(x, weight, np.array([0.5]), stride=2, padding=1, output_padding=1)
    assert_equal(padded, [[np.array(y)[1:5, 1:5] + 0.5]])


def test_transposed_convolution_undoes_sizes():
    """27 and 28 pixels come to 14 with stride 2; output_padding says which of them comes back."""
    weight = np.zeros((2, 2, 3, 3))
    for size, more in ((27, 0), (28, 1)):
        down = F.conv2d(np.zeros((1, 2, size, size)), weight, None, 2, 1)
        assert down.shape[2:] == (14, 14)
        assert F.conv_transpose2d(down, weight, None, 2, 1, more).shape[2:] == (size, size)


@cases
@algorithms
@dtypes
def test_exact_on_integers(case, algorithm, dtype):
    data = case.arrays(dtype, "integers")
    rng = np.random.default_rng(3)
    y, gy, gx, gw, gb = passes(case, data, lambda shape: rng.integers(-4, 5, shape), algorithm)
    x, weight, bias = data
    want = case.reference(x, weight, bias, **case.options)
    assert_equal(y, want)
    assert all(array.dtype == dtype for array in (y, gx, gw, gb))
    linear = want - bias.reshape(-1, *(1,) * (y.ndim - 2))
    check_adjoint(linear, gy, [(x, gx), (weight, gw)], limit=0)
    assert_equal(gb, gy.sum(axis=(0, *range(2, gy.ndim))))


@cases
@dtypes
def test_error_bounds(case, dtype):
    data = case.arrays(dtype)
    want = case.reference(*data, **case.options)
    size = case.reference(*map(np.abs, data), **case.options)
    y = case.call(*data, **case.options)
    terms = 1 + int(np.prod(case.weight)) * case.x[1] // case.filters
    assert_close(y, want, sum_bound(terms, size, dtype) + sum_bound(terms, size, np.float64))
    assert_relative_l2(y, want, 2e-6)


@cases
def test_two_runs_give_the_same_bits(case):
    data = case.arrays(np.float32)
    first, second = (passes(case, data, lambda s: np.random.default_rng(5).random(s)) for _ in "12")
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)


@cases
def test_adjoint(case):
    x, weight, bias = case.arrays(np.float64)
    y, gy, gx, gw, _ = passes(case, (x, weight, 0 * bias), np.random.default_rng(6).standard_normal)
    check_adjoint(y, gy, [(x, gx), (weight, gw)])


@cases
def test_gradients(case):
    check_gradients(lambda *data: case.call(*data, **case.options), case.arrays(np.float64))


@cases
@dtypes
def test_as_pytorch(torch, case, dtype):
    data = case.arrays(dtype)
    y, gy, *gradients = passes(case, data, np.random.default_rng(8).standard_normal)
    leaves = [torch.tensor(array, requires_grad=True) for array in data]
    oracle = getattr(torch.nn.functional, case.function)(*leaves, **case.options)
    oracle.backward(torch.tensor(gy))
    limit = {np.float32: 3e-6, np.float64: 1e-14}[dtype]
    for got, want in zip((y, *gradients), (oracle.detach(), *(leaf.grad for leaf in leaves)), strict=True):
        assert_relative_l2(got, want.numpy(), limit)


@st.composite
def random_cases(draw):
    function = draw(st.sampled_from(["conv1d", "conv3d", "conv_transpose2d"]))
    axes = {"conv1d": 1, "conv3d": 3, "conv_transpose2d": 2}[function]

    def each(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * axes))

    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, filters = (draw(st.sampled_from([1, 2, 3, 5, 7])) for _ in "12")
    batch, kernel, size = draw(st.sampled_from([0, 1, 2, 3])), each(1, 4), each(1, 9)
    stride, dilation, padding = each(1, 3), each(1, 3), each(0, 3)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    x = (batch, channels * groups, *size)
    if function == "conv_transpose2d":
        limits = [max(s, d) for s, d in zip(stride, dilation, strict=True)]
        options["output_padding"] = tuple(draw(st.integers(0, limit - 1)) for limit in limits)
        sizes = zip(size, stride, padding, reach, options["output_padding"], strict=True)
        assume(all((n - 1) * s - 2 * p + r + more >= 1 for n, s, p, r, more in sizes))
        return Case(function, x, (channels * groups, filters, *kernel), options)
    assume(all(n + 2 * p >= r for n, p, r in zip(size, padding, reach, strict=True)))
    return Case(function, x, (filters * groups, channels, *kernel), options)


@given(case=random_cases())
@settings(max_examples=200)
def test_random_shapes_are_exact(case):
    data = case.arrays(np.float32, "integers")
    rng = np.random.default_rng(9)
    y, gy, gx, gw, gb = passes(case, data, lambda shape: rng.integers(-4, 5, shape))
    want = case.reference(*data, **case.options)
    assert_equal(y, want)
    check_adjoint(want - data[2].reshape(-1, *(1,) * (y.ndim - 2)), gy, [(data[0], gx), (data[1], gw)], limit=0)
    assert_equal(gb, gy.sum(axis=(0, *range(2, gy.ndim))))


@pytest.mark.parametrize("name", ["conv1d_groups", "conv3d_groups", "transposed_groups"])
def test_views(name):
    case = CASES[name]
    x, weight, bias = case.arrays(np.float32, "integers")
    backwards = (slice(None, None, -1),) * x.ndim
    want = case.reference(x[backwards], weight[backwards], bias[::-1], **case.options)
    assert_equal(case.call(x[backwards], weight[backwards], bias[::-1], **case.options), want)
    channels_last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    assert_same_bits(case.call(channels_last, weight, bias, **case.options), case.call(x, weight, bias, **case.options))


@pytest.mark.parametrize("name", ["conv1d_speech", "conv3d_video", "transposed_doubling"])
def test_only_wanted_gradients_are_computed(name):
    case = CASES[name]
    leaves = [tensor(array) for array in case.arrays(np.float32)]
    leaves[1].requires_grad = True
    case.call(*leaves, **case.options).sum().backward()
    assert leaves[0].grad is None and leaves[2].grad is None
    assert leaves[1].grad is not None and leaves[1].grad.shape == case.weight


LAYERS = {
    "conv1d": (lambda m: m.Conv1d(4, 6, 3), (2, 4, 9)),
    "conv1d_options": (lambda m: m.Conv1d(4, 6, 3, 2, 1, 2, 2, False), (2, 4, 9)),
    "conv3d": (lambda m: m.Conv3d(2, 3, 3), (2, 2, 4, 5, 6)),
    "conv3d_options": (lambda m: m.Conv3d(4, 6, (1, 2, 3), (2, 1, 1), 1, (1, 2, 1), 2, False), (1, 4, 4, 5, 6)),
    "transposed": (lambda m: m.ConvTranspose2d(4, 6, 3), (2, 4, 5, 6)),
    "transposed_options": (lambda m: m.ConvTranspose2d(4, 6, (3, 2), 2, 1, 1, 2, False, 2), (2, 4, 5, 6)),
}


@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
def test_layer_as_pytorch(torch, build, shape):
    """The same state, positional order and results; weights start uniform within PyTorch's bound."""
    layer, oracle = build(nn), build(torch.nn)
    state = {name: value.numpy() for name, value in oracle.state_dict().items()}
    bound = 1 / np.prod(layer.weight.shape[1:]) ** 0.5
    assert 0.5 * bound < np.abs(layer.weight.numpy()).max()
    assert all(np.abs(parameter.numpy()).max() <= bound for parameter in layer.parameters())
    layer.load_state_dict(state)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    assert_relative_l2(layer(x), oracle(torch.tensor(x)).detach().numpy(), 2e-6)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv1d(3, 8, 5, 2), "Conv1d(3, 8, kernel_size=(5,), stride=(2,))"),
        (nn.Conv1d(2, 2, 3, groups=2), "Conv1d(2, 2, kernel_size=(3,), stride=(1,), groups=2)"),
        (
            nn.Conv3d(1, 2, 3, padding=(1, 0, 0), algorithm="direct"),
            "Conv3d(1, 2, kernel_size=(3, 3, 3), stride=(1, 1, 1), padding=(1, 0, 0), algorithm='direct')",
        ),
        (
            nn.ConvTranspose2d(4, 2, 3, 2, 0, 1, bias=False),
            "ConvTranspose2d(4, 2, kernel_size=(3, 3), stride=(2, 2), output_padding=(1, 1), bias=False)",
        ),
    ],
)
def test_repr(layer, text):
    assert repr(layer) == text


def test_depthwise_layer_takes_the_direct_algorithm(torch):
    layer, oracle = nn.Conv2d(32, 32, 3, padding=1, groups=32), torch.nn.Conv2d(32, 32, 3, padding=1, groups=32)
    layer.load_state_dict({name: value.numpy() for name, value in oracle.state_dict().items()})
    x = np.random.default_rng(2).standard_normal((2, 32, 14, 14)).astype(np.float32)
    shape = ops.conv_shape(x.shape, layer.weight.shape, padding=1, groups=32)
    assert all(ops.choose(operation, shape) == "direct" for operation in ops.ALGORITHMS)
    assert_same_bits(layer(x), F.conv2d(x, layer.weight, layer.bias, 1, 1, 1, 32, algorithm="direct"))
    assert_relative_l2(layer(x), oracle(torch.tensor(x)).detach().numpy(), 2e-6)


X1, W1 = np.zeros((2, 4, 8), np.float32), np.zeros((6, 4, 3), np.float32)
X3, W3 = np.zeros((2, 4, 5, 6, 7), np.float32), np.zeros((6, 4, 3, 3, 3), np.float32)
X2, WT = np.zeros((2, 4, 8, 8), np.float32), np.zeros((4, 6, 3, 3), np.float32)
ERRORS = [
    (
        F.conv1d,
        (X1[0], W1),
        {},
        ValueError,
        r"conv1d: x has shape \(4, 8\); it must have 3 dimensions \(N, C, L\).*None",
    ),
    (F.conv1d, (X1, W3), {}, ValueError, r"conv1d: weight has shape .* 3 dimensions \(K, C/groups, S\)"),
    (
        F.conv1d,
        (X1[:, :3], W1),
        {},
        ValueError,
        r"conv1d: x has 3 channels but weight expects 4 .* must be \(N, C, L\)",
    ),
    (F.conv1d, (X1, W1), {"stride": (1, 2)}, ValueError, r"conv1d: stride is \(1, 2\); it must be an integer$"),
    (F.conv1d, (X1, W1), {"dilation": 4}, ValueError, "conv1d: the output would be empty: the kernel reaches over 9 "),
    (F.conv1d, (X1, W1, W1[0, 0]), {}, ValueError, r"conv1d: bias has shape \(3,\) but weight has 6 filters"),
    (F.conv1d, (X1, W1.astype(float)), {}, TypeError, "conv1d: weight is float64 but x is float32"),
    (F.conv1d, (X1.tolist(), W1), {}, TypeError, "conv1d: x is list; it must be a Tensor or an array"),
    (F.conv1d, (X1, W1), {"algorithm": "no"}, gpucnn.UnsupportedAlgorithm, "'no' is unknown"),
    (F.conv3d, (X3[0], W3), {}, ValueError, r"conv3d: x has shape .* must have 5 dimensions \(N, C, D, H, W\)"),
    (
        F.conv3d,
        (X3, W1),
        {},
        ValueError,
        r"conv3d: weight has shape .* must have 5 dimensions \(K, C/groups, T, R, S\)",
    ),
    (F.conv3d, (X3, W3[:, :3]), {}, ValueError, "conv3d: x has 4 channels but weight expects 3"),
    (
        F.conv3d,
        (X3, W3),
        {"padding": (1, 1)},
        ValueError,
        r"conv3d: padding is \(1, 1\); .* an integer or three integers",
    ),
    (F.conv3d, (X3, W3), {"dilation": (3, 1, 1)}, ValueError, "conv3d: .* reaches over 7x3x3 pixels .* only 5x6x7"),
    (F.conv3d, (X3, W3), {"groups": 0}, ValueError, "conv3d: groups is 0; it must be a positive integer"),
    (F.conv3d, (X3, W3, W1[0, 0]), {}, ValueError, r"conv3d: bias has shape \(3,\)"),
    (F.conv3d, (X3.astype(int), W3), {}, TypeError, "conv3d: x is int64"),
    (F.conv3d, (X3, W3), {"algorithm": "no"}, gpucnn.UnsupportedAlgorithm, "'no' is unknown"),
    (F.conv_transpose2d, (X2[0], WT), {}, ValueError, r"conv_transpose2d: x has shape \(4, 8, 8\)"),
    (F.conv_transpose2d, (X2, WT[0]), {}, ValueError, r"must have 4 dimensions \(C, K/groups, R, S\)"),
    (
        F.conv_transpose2d,
        (X2[:, :3], WT),
        {},
        ValueError,
        r"x has 3 channels but weight expects 4 .*in_channels, out_ch",
    ),
    (F.conv_transpose2d, (X2, WT), {"groups": 3}, ValueError, r"in_channels \(=4\) must be divisible by groups \(=3\)"),
    (F.conv_transpose2d, (X2, WT), {"groups": -1}, ValueError, "groups is -1"),
    (F.conv_transpose2d, (X2, WT), {"stride": 0}, ValueError, "stride is 0; it must be at least 1"),
    (F.conv_transpose2d, (X2, WT), {"output_padding": 1}, ValueError, "output_padding is 1; it must be smaller than"),
    (F.conv_transpose2d, (X2[..., :1], WT), {"padding": 2}, ValueError, "the output would be 6x-1 for x of 8x1"),
    (F.conv_transpose2d, (X2, WT, W1[0, 0]), {}, ValueError, r"bias has shape \(3,\) but weight has 6 filters"),
    (F.conv_transpose2d, (X2, WT.astype(float)), {}, TypeError, "conv_transpose2d: weight is float64 but x is float32"),
    (F.conv_transpose2d, (X2, WT), {"algorithm": "no"}, gpucnn.UnsupportedAlgorithm, "'no' is unknown"),
    (nn.Conv1d, (3, 4, 3), {"groups": 2}, ValueError, r"Conv1d: in_channels \(=3\) must be positive and divisible"),
    (nn.Conv1d, (3, 4, (3, 3)), {}, ValueError, r"Conv1d: kernel_size is \(3, 3\); it must be an integer"),
    (nn.Conv3d, (3, 4, 0), {}, ValueError, "Conv3d: kernel_size is 0; it must be at least 1"),
    (nn.Conv3d, (3, 0, 1), {}, ValueError, r"Conv3d: out_channels \(=0\) must be positive"),
    (nn.ConvTranspose2d, (4, 3, 3), {"groups": 2}, ValueError, r"ConvTranspose2d: out_channels \(=3\) must be"),
    (nn.ConvTranspose2d, (4, 3, 3), {"output_padding": -1}, ValueError, "ConvTranspose2d: output_padding is -1"),
]


@pytest.mark.parametrize(("function", "arguments", "options", "error", "message"), ERRORS)
def test_errors(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
