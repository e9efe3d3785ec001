"""Convolution in bfloat16 and float16: all passes exact on small integers in every layout, error bounds, soundness."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from check import assert_equal, assert_relative_l2, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import assert_sound, assert_two_runs_equal, on

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.launch import simulator
from gpucnn.ops import conv_half, conv_hopper, conv_hopper_planes

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
PASSES = ("forward", "backward_input", "backward_weight")
LAYOUTS = ("first", "last")
dtypes = pytest.mark.parametrize("dtype", DTYPES)
passes = pytest.mark.parametrize("pass_", PASSES)

# (x, weight), options: whole and odd channels, strides, dilation, groups, sizes about the tiles', rings that go round
CASES = {
    "channels_16": (((2, 16, 7, 8), (40, 16, 3, 3)), {"padding": 1}),
    "channels_8": (((2, 8, 7, 6), (16, 8, 2, 3)), {}),
    "first_layer": (((2, 3, 11, 13), (20, 3, 5, 4)), {"stride": 2, "padding": 2}),
    "odd": (((1, 37, 6, 7), (17, 37, 3, 2)), {"padding": (1, 0)}),
    "phases": (((1, 24, 9, 10), (8, 24, 3, 3)), {"stride": (3, 2), "padding": 1}),
    "no_tap": (((2, 8, 7, 7), (8, 8, 1, 1)), {"stride": 2}),
    "dilated": (((2, 16, 10, 10), (8, 16, 2, 3)), {"dilation": (3, 2), "padding": 2}),
    "groups": (((2, 16, 5, 6), (48, 8, 3, 3)), {"groups": 2, "padding": 1}),
    "odd_groups": (((2, 6, 5, 6), (9, 2, 3, 3)), {"groups": 3, "padding": 1}),
    "many_terms": (((1, 72, 5, 5), (72, 72, 3, 3)), {"padding": 1}),
    "one": (((1, 1, 1, 1), (1, 1, 1, 1)), {}),
    "empty": (((0, 8, 5, 5), (8, 8, 3, 3)), {}),
}
cases = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def no_hopper_kernels(monkeypatch):
    """sm_90 has kernels of its own, which would take over: they have their own tests."""
    for kernels in (conv_hopper, conv_hopper_planes):
        monkeypatch.setattr(kernels, "suits", lambda *_: False)


def shape_of(case: str) -> Any:
    (x, weight), options = CASES[case]
    return ops.conv_shape(x, weight, **options)


def integers(size: tuple[int, ...], dtype: str) -> np.ndarray:
    """So small that every result is exact in bfloat16, too: below 256 in nearly all cases, else rounded alike."""
    return np.random.default_rng(sum(size)).integers(-1, 2, size).astype(DTYPES[dtype])


def reals(size: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng(sum(size)).standard_normal(size, np.float32).astype(DTYPES[dtype])


def operands(pass_: str, shape: Any, values: Any, dtype: str) -> list[np.ndarray]:
    sizes = {"forward": (shape.x, shape.weight), "backward_input": (shape.y, shape.weight)}
    return [values(size, dtype) for size in sizes.get(pass_, (shape.x, shape.y))]


def reference(pass_: str, shape: Any, pair: Any, *more: Any, **options: Any) -> np.ndarray:
    """In float64, of the rounded operands."""
    wide = [None if each is None else each.astype(np.float64) for each in (*pair, *more)]
    function = getattr(ops, f"conv2d_{pass_}")
    return function(*wide, *([None] if pass_ == "forward" and not more else []), shape, "im2col", **options)


def laid_out(array: Any, layout: str) -> Any:
    """The same images with channels first or last in memory."""
    if layout == "first":
        return array
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def images(device: str, array: np.ndarray, layout: str) -> Any:
    if layout == "first":
        return on(device, array)[0]
    return on(device, np.ascontiguousarray(array.transpose(0, 2, 3, 1)))[0].transpose(0, 3, 1, 2)


def empty(shape: tuple[int, ...], like: Any, layout: str) -> Any:
    if layout == "first":
        return devices.empty(shape, like.dtype, like)
    N, C, H, W = shape
    return devices.empty((N, H, W, C), like.dtype, like).transpose(0, 3, 1, 2)


def run(
    device: str, pass_: str, shape: Any, pair: Any, layouts: tuple[str, str] = ("first", "first"), **options: Any
) -> Any:
    """A pass in the given layouts: of input and output, or of x and gy for backward_weight, whose result is float32."""
    one = images(device, pair[0], layouts[0])
    if pass_ == "backward_weight":
        gw = devices.empty(shape.weight, np.float32, one)
        conv_half.backward_weight(one, images(device, pair[1], layouts[1]), gw, shape, **options)
        return devices.to_numpy(gw)
    (weight,) = on(device, pair[1])
    result = empty(shape.y if pass_ == "forward" else shape.x, one, layouts[1])
    if pass_ == "forward":
        conv_half.forward(one, weight, None, result, shape, **options)
    else:
        conv_half.backward_input(one, weight, result, shape, **options)
    return devices.to_numpy(result)


@pytest.mark.parametrize("layouts", [(a, b) for a in LAYOUTS for b in LAYOUTS], ids="-".join)
@passes
@cases
def test_exact(device, pass_, layouts, case):
    shape = shape_of(case)
    pair = operands(pass_, shape, integers, "bfloat16")
    got = run(device, pass_, shape, pair, layouts)
    assert_equal(got.astype(np.float64), reference(pass_, shape, pair).astype(got.dtype).astype(np.float64))


@passes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_tiles_in_float16_are_exact(device, pass_, layout, monkeypatch):
    """More than a tile in each direction, and a ring that goes round more than twice."""
    monkeypatch.setattr(conv_half, "TILES", conv_half.TILES[:1])
    monkeypatch.setattr(conv_half, "multiprocessors", lambda: 1)  # nothing is split
    shape = ops.conv_shape((1, 136, 13, 12), (136, 136, 2, 2), padding=1)
    pair = operands(pass_, shape, integers, "float16")
    got = run(device, pass_, shape, pair, (layout, layout))
    assert_equal(got.astype(np.float64), reference(pass_, shape, pair))


@given(
    sizes=st.tuples(*[st.sampled_from([1, 2, 3, 7])] * 2, *[st.sampled_from([1, 3, 8, 16, 40, 65])] * 2),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    pass_=st.sampled_from(PASSES),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
)
@settings(max_examples=40)
def test_random_shapes_are_exact(device, sizes, kernel, stride, padding, pass_, layouts):
    N, extra, C, K = sizes
    shape = ops.conv_shape((N, C, kernel[0] + extra, kernel[1] + 2), (K, C, *kernel), stride=stride, padding=padding)
    pair = operands(pass_, shape, integers, "float16")
    assert_equal(run(device, pass_, shape, pair, layouts).astype(np.float64), reference(pass_, shape, pair))


@passes
@dtypes
def test_errors(device, pass_, dtype):
    """Sums in float32 of exact products, rounded once: half a unit of the result's last place, and little more."""
    shape = ops.conv_shape((2, 48, 9, 9), (40, 48, 3, 3), padding=1)
    pair = operands(pass_, shape, reals, dtype)
    got = run(device, pass_, shape, pair, ("last", "last"))
    unit = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    assert_relative_l2(got, reference(pass_, shape, pair), 1e-6 if pass_ == "backward_weight" else 0.5 * unit)


def test_error_of_a_long_weight_gradient(device):
    """1e5 products that are all positive: sums cut off all along would lose 4e-4."""
    shape = ops.conv_shape((25, 8, 64, 64), (8, 8, 1, 1))
    pair = [abs(each) for each in operands("backward_weight", shape, reals, "bfloat16")]
    got = run(device, "backward_weight", shape, pair, ("last", "last"))
    assert_relative_l2(got, reference("backward_weight", shape, pair), 5e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("limit", [None, 0])
def test_bias_residual_and_relu(device, layout, limit):
    """In one pass, or after the planes of split sums; the sum is rounded once."""
    shape = ops.conv_shape((2, 72, 6, 5), (19, 72, 3, 3), padding=1)
    x, weight = operands("forward", shape, reals, "float16")
    bias, residual = reals((19,), "float16"), reals(shape.y, "float16")
    arrays = images(device, x, layout), *on(device, weight, bias), images(device, residual, layout)
    y = empty(shape.y, arrays[0], layout)
    conv_half.forward(*arrays[:3], y, shape, True, workspace_limit=limit, residual=arrays[3])
    want = np.maximum(reference("forward", shape, (x, weight), bias) + residual.astype(np.float64), 0)
    np.testing.assert_allclose(devices.to_numpy(y).astype(np.float64), want, rtol=2.0**-11, atol=1e-4)


@pytest.mark.parametrize("kernel_dtype", ["float32", "bfloat16"])
def test_operations(device, kernel_dtype):
    """Layouts of results follow their inputs', weights may be float32 masters, and gradients of them, too."""
    shape = shape_of("channels_16")
    x, weight = operands("forward", shape, integers, "bfloat16")
    gy = integers(shape.y, "bfloat16")
    bias = integers((40,), "bfloat16")
    master = np.dtype(kernel_dtype) if kernel_dtype == "float32" else x.dtype
    for layout in LAYOUTS if device != "cpu" else ("first",):
        x_there, gy_there = images(device, x, layout), images(device, gy, layout)
        w_there, b_there = on(device, weight.astype(master), bias.astype(master))
        y = ops.conv2d_forward(x_there, w_there, b_there, shape)
        gx = ops.conv2d_backward_input(gy_there, w_there, shape)
        gw = ops.conv2d_backward_weight(x_there, gy_there, shape, dtype=master)
        gb = ops.conv2d_backward_bias(gy_there, dtype=master)
        assert (y.dtype, gx.dtype, gw.dtype, gb.dtype) == (x.dtype, x.dtype, master, master)
        for images_there in (y, gx):
            assert devices.to_numpy(images_there.transpose(0, 2, 3, 1)).flags.c_contiguous == (layout == "last")
        wants = (
            reference("forward", shape, (x, weight), bias),
            reference("backward_input", shape, (gy, weight)),
            reference("backward_weight", shape, (x, gy)),
            gy.astype(np.float64).sum((0, 2, 3)),
        )
        for got, want in zip((y, gx, gw, gb), wants, strict=True):
            assert_equal(devices.to_numpy(got).astype(np.float64), want.astype(got.dtype).astype(np.float64))


@dtypes
@pytest.mark.parametrize("algorithm", ["im2col", "direct", "winograd"])
def test_the_cpu_computes_in_float32_and_rounds_once(dtype, algorithm):
    shape = ops.conv_shape((1, 8, 6, 6), (8, 8, 3, 3), padding=1)
    x, weight = operands("forward", shape, reals, dtype)
    wide = ops.conv2d_forward(x.astype(np.float32), weight.astype(np.float32), None, shape, algorithm)
    assert_same_bits(ops.conv2d_forward(x, weight, None, shape, algorithm), wide.astype(x.dtype))


@passes
def test_depthwise(device, pass_):
    """auto takes direct where a tile would hold one filter."""
    shape = ops.conv_shape((2, 6, 7, 8), (6, 1, 3, 3), padding=1, groups=6)
    pair = operands(pass_, shape, integers, "bfloat16")
    if device != "cpu":
        assert ops.choose(f"conv2d_{pass_}", shape, device, pair[0].dtype) == "direct"
    there = on(device, *pair)
    bias = [None] if pass_ == "forward" else []
    got = devices.to_numpy(getattr(ops, f"conv2d_{pass_}")(*there, *bias, shape))
    assert_equal(got.astype(np.float64), reference(pass_, shape, pair).astype(got.dtype).astype(np.float64))


def test_refusals():
    shape = shape_of("channels_16")
    (x, weight) = on("sim", *operands("forward", shape, integers, "float16"))
    assert ops.algorithms("conv2d_forward", shape, np.float16, "sim") == ["implicit_gemm"]
    with pytest.raises(ops.UnsupportedAlgorithm, match="float16 only by implicit_gemm"):
        ops.conv2d_forward(x, weight, None, shape, "winograd")
    with pytest.raises(TypeError, match="weight is bfloat16 but x is float16"):
        ops.conv2d_forward(x, on("sim", integers(shape.weight, "bfloat16"))[0], None, shape)
    with pytest.raises(TypeError, match="float16 images"):
        ops.conv2d_backward_weight(x, on("sim", integers(shape.y, "float16"))[0], shape, dtype=np.float64)
    with simulator.configured(architecture="sm_75"), pytest.raises(ValueError, match="sm_80"):
        ops.conv2d_forward(x, weight, None, shape)


@pytest.mark.parametrize(
    ("pass_", "case", "layout"),
    [
        ("forward", "channels_16", "last"),
        ("forward", "odd", "first"),
        ("backward_input", "phases", "last"),
        ("backward_input", "odd_groups", "first"),
        ("backward_weight", "channels_16", "last"),
        ("backward_weight", "odd", "first"),
    ],
)
def test_sound(pass_, case, layout):
    shape = shape_of(case)
    pair = operands(pass_, shape, reals, "float16")

    def once() -> np.ndarray:
        return run("sim", pass_, shape, pair, (layout, layout))

    assert_two_runs_equal(once, "sim")
    assert_sound(once, "sim")


@pytest.mark.parametrize("pass_", ["forward", "backward_weight"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_bank_conflicts(pass_, layout, monkeypatch):
    """Reads of fragments, writes of stages and of results: each 128 bytes of shared memory in one go."""
    monkeypatch.setattr(conv_half, "multiprocessors", lambda: 1)
    shape = ops.conv_shape((1, 64, 8, 8), (64, 64, 3, 3), padding=1)
    pair = operands(pass_, shape, reals, "float16")
    with simulator.profiling() as profiles:
        run("sim", pass_, shape, pair, (layout, layout))
    kernel = next(profile for name, profile in profiles if "_float16_" in name and "pack" not in name)
    shared = [c for c in kernel.lines.values() if c.space == "shared" and c.requests >= 50]  # a few fill a table
    assert sum(c.requests for c in shared) > 500
    assert all(c.units * 128 <= max(c.bytes, 128 * c.requests) for c in shared)
