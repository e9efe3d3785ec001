"""Implicit GEMM on tensor cores: all passes exact on small integers, error bounds, soundness; precisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from check import assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import assert_sound, assert_two_runs_equal, on

import gpucnn
from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import ops
from gpucnn.launch import simulator
from gpucnn.ops import conv_implicit_gemm
from gpucnn.ops.gemm import TENSOR_TILES

PRECISIONS = list(TENSOR_TILES)
PASSES = ("forward", "backward_input", "backward_weight")
precision_names = pytest.mark.parametrize("precision", PRECISIONS)
passes = pytest.mark.parametrize("pass_", PASSES)

# (x, weight), options: whole and left-over channels, strides, dilation, groups, and sizes about the tiles'
CASES = {
    "vgg": (((2, 16, 9, 8), (33, 16, 3, 3)), {"padding": 1}),
    "first_layer": (((2, 3, 11, 13), (20, 3, 5, 4)), {"stride": 2, "padding": 2}),
    "left_over": (((1, 37, 6, 7), (17, 37, 3, 2)), {"padding": (1, 0)}),
    "phases": (((1, 18, 12, 10), (7, 18, 3, 3)), {"stride": (3, 2), "padding": 1}),
    "dilated": (((2, 16, 10, 10), (5, 16, 2, 3)), {"dilation": (3, 2), "padding": 2}),
    "groups": (((2, 34, 5, 6), (6, 17, 3, 3)), {"groups": 2, "padding": 1}),
    "channels_64": (((1, 64, 5, 5), (9, 64, 3, 3)), {"padding": 1}),
    "one": (((1, 1, 1, 1), (1, 1, 1, 1)), {}),
    "empty": (((0, 4, 5, 5), (3, 4, 3, 3)), {}),
}
cases = pytest.mark.parametrize("case", CASES)


def operands(pass_: str, shape: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    sizes = {"forward": (shape.x, shape.weight), "backward_input": (shape.y, shape.weight)}
    one, other = sizes.get(pass_, (shape.x, shape.y))
    return values(one), values(other)


def run(device: str, pass_: str, shape: Any, pair: Any, precision: str, algorithm: str = "implicit_gemm") -> Any:
    one, other = pair if device == "cpu" else on(device, *pair)
    with gpucnn.precision(precision):
        if pass_ == "forward":
            return devices.to_numpy(ops.conv2d_forward(one, other, None, shape, algorithm))
        return devices.to_numpy(getattr(ops, f"conv2d_{pass_}")(one, other, shape, algorithm))


def integers(size: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(sum(size)).integers(-3, 4, size).astype(np.float32)


def reals(size: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(sum(size)).standard_normal(size, np.float32)


def reference(pass_: str, shape: Any, pair: Any) -> np.ndarray:
    return run("cpu", pass_, shape, [each.astype(np.float64) for each in pair], "float32", "im2col")


def shape_of(case: str) -> Any:
    (x, weight), options = CASES[case]
    return ops.conv_shape(x, weight, **options)


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@passes
@precision_names
@cases
def test_exact(device, pass_, precision, case):
    shape = shape_of(case)
    pair = operands(pass_, shape, integers)
    assert_equal(run(device, pass_, shape, pair, precision), reference(pass_, shape, pair))


@passes
@precision_names
def test_large_tiles_are_exact(device, pass_, precision, monkeypatch):
    tiles = {precision: TENSOR_TILES[precision][:1]}
    monkeypatch.setattr(conv_implicit_gemm, "TENSOR_TILES", tiles)
    shape = ops.conv_shape((1, 20, 12, 12), (130, 20, 3, 3), padding=1)
    pair = operands(pass_, shape, integers)
    assert_equal(run(device, pass_, shape, pair, precision), reference(pass_, shape, pair))


@given(
    sizes=st.tuples(*[st.sampled_from([1, 2, 3, 7])] * 2, *[st.sampled_from([1, 3, 16, 19, 33])] * 2),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    pass_=st.sampled_from(PASSES),
)
@settings(max_examples=25)
def test_random_shapes_are_exact(device, sizes, kernel, stride, padding, pass_):
    N, extra, C, K = sizes
    shape = ops.conv_shape((N, C, kernel[0] + extra, kernel[1] + 2), (K, C, *kernel), stride=stride, padding=padding)
    pair = operands(pass_, shape, integers)
    assert_equal(run(device, pass_, shape, pair, "tf32"), reference(pass_, shape, pair))


@passes
def test_errors(device, pass_):
    """float32's with the parts of float32_tensor, 11 bits' without."""
    shape = ops.conv_shape((2, 48, 9, 9), (40, 48, 3, 3), padding=1)
    pair = operands(pass_, shape, reals)
    want = reference(pass_, shape, pair)
    assert relative_l2(run(device, pass_, shape, pair, "float32_tensor"), want) <= 1e-6
    assert 5e-5 < relative_l2(run(device, pass_, shape, pair, "tf32"), want) <= 5e-4


def test_error_of_a_long_weight_gradient(device):
    """1e5 terms that are all positive: sums cut off at every step would lose 1e-5."""
    shape = ops.conv_shape((25, 1, 64, 64), (2, 1, 1, 1))
    pair = [abs(each) for each in operands("backward_weight", shape, reals)]
    got = run(device, "backward_weight", shape, pair, "float32_tensor")
    assert relative_l2(got, reference("backward_weight", shape, pair)) <= 2e-6


@precision_names
def test_bias_and_relu(device, precision):
    shape = ops.conv_shape((2, 16, 6, 6), (10, 16, 3, 3), padding=1)
    x, weight = operands("forward", shape, integers)
    bias = integers((10,))
    with gpucnn.precision(precision):
        y = devices.to_numpy(F.conv2d_relu(*on(device, x, weight, bias), padding=1, algorithm="implicit_gemm"))
    want = reference("forward", shape, (x, weight)) + bias[:, None, None]
    assert_equal(y, np.maximum(want, 0))


@passes
@precision_names
def test_channels_last(device, pass_, precision):
    shape = shape_of("vgg")
    pair = operands(pass_, shape, integers)
    first = np.ascontiguousarray(pair[0].transpose(0, 2, 3, 1))
    one, other = on(device, first, pair[1])
    with gpucnn.precision(precision):
        if pass_ == "forward":
            got = ops.conv2d_forward(one.transpose(0, 3, 1, 2), other, None, shape, "implicit_gemm")
        else:
            got = getattr(ops, f"conv2d_{pass_}")(one.transpose(0, 3, 1, 2), other, shape, "implicit_gemm")
    assert_equal(devices.to_numpy(got), reference(pass_, shape, pair))


@passes
@precision_names
@pytest.mark.parametrize("case", ["vgg", "left_over", "phases"])
def test_sound(pass_, precision, case):
    shape = shape_of(case)
    pair = operands(pass_, shape, reals)

    def once() -> np.ndarray:
        return run("sim", pass_, shape, pair, precision)

    assert_two_runs_equal(once, "sim")
    assert_sound(once, "sim")


@passes
@precision_names
def test_no_bank_conflicts(pass_, precision, monkeypatch):
    monkeypatch.setattr(conv_implicit_gemm, "TENSOR_TILES", {precision: TENSOR_TILES[precision][1:]})
    shape = ops.conv_shape((1, 64, 8, 8), (64, 64, 3, 3), padding=1)
    pair = operands(pass_, shape, reals)
    with simulator.profiling() as profiles:
        run("sim", pass_, shape, pair, precision)
    kernel = next(profile for name, profile in profiles if precision in name)
    reads = [c for c in kernel.lines.values() if c.space == "shared" and not c.writes]
    fragments = [c for c in reads if c.bytes <= 128 * c.requests]
    assert sum(c.requests for c in fragments) > 1000
    assert all(c.units == c.requests for c in fragments)


def test_the_precision_is_a_permission():
    """Before sm_80, and on the CPU, the same calls compute float32."""
    shape = shape_of("vgg")
    pair = operands("forward", shape, reals)
    want = run("sim", "forward", shape, pair, "float32")
    with simulator.configured(architecture="sm_75"):
        assert_equal(run("sim", "forward", shape, pair, "tf32"), want)
    cpu = [run("cpu", "forward", shape, pair, name, "im2col") for name in ("float32", "tf32")]
    assert_equal(*cpu)
