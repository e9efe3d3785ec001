"""Convolutions of NCHW images on Hopper's tensor cores: exact on small integers, within float64's bounds; soundness."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from check import assert_equal, assert_relative_l2, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import SCHEDULES, on

from gpucnn import device as devices
from gpucnn.launch import simulator
from gpucnn.ops import conv, conv_hopper_planes
from gpucnn.ops.conv_hopper import Finish
from gpucnn.ops.conv_hopper_planes import Form
from gpucnn.ops.shapes import ConvShape, conv_shape

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
PASSES = ("forward", "backward_input")
TILES = ("128x256", "128x128", "64x256")


@pytest.fixture(autouse=True)
def hopper(device):
    if device != "sim" and devices.cupy().cuda.Device().compute_capability != "90":
        pytest.skip("these kernels are for compute capability 9.0")


def shape_of(N, C, H, W, K, R, S, **options) -> ConvShape:
    return conv_shape((N, C, H, W), (K, C, R, S), **options)


def run(
    device, operation: str, shape: ConvShape, kind: str = "bfloat16", form: Form = conv_hopper_planes.ANY,
    blocks: int = 132, bias: bool = False, relu: bool = False, residual: bool = False, masters: bool = False,
):  # fmt: skip
    """The pass of small integers, compared with the sums of the CPU in float64, rounded once."""
    rng = np.random.default_rng(sum(shape[:9]))
    x, w, gy = (rng.integers(-3, 4, size).astype(np.float64) for size in (shape.x, shape.weight, shape.y))
    weight = on(device, w.astype(np.float32 if masters else DTYPES[kind]))[0]
    if operation == "forward":
        added = rng.integers(-9, 10, shape.K).astype(np.float64) if bias else None
        addend = rng.integers(-5, 6, shape.y).astype(np.float64) if residual else None
        want = conv.conv2d_forward(x, w, added, shape, "im2col")
        want = want + addend if residual else want
        want = np.maximum(want, 0) if relu else want
        read, moved = on(device, x.astype(DTYPES[kind]), None if addend is None else addend.astype(DTYPES[kind]))
        offset = on(device, None if added is None else added.astype(np.float32))[0]
        got = devices.empty(shape.y, DTYPES[kind], read)
        assert conv_hopper_planes.takes(operation, shape, read, got)
        conv_hopper_planes.forward(read, weight, got, shape, blocks, Finish(offset, moved, relu), form)
    else:
        want = conv.conv2d_backward_input(gy, w, shape, "im2col")
        read = on(device, gy.astype(DTYPES[kind]))[0]
        got = devices.empty(shape.x, DTYPES[kind], read)
        assert conv_hopper_planes.takes(operation, shape, read, got)
        conv_hopper_planes.backward_input(read, weight, got, shape, blocks, form)
    got = devices.to_numpy(got)
    assert_equal(got, want.astype(np.float32).astype(got.dtype))
    return got


def run_weights(device, shape: ConvShape, kind: str = "bfloat16", out: str = "float32", blocks: int = 132, **options):
    """The weight gradient of small integers, compared as in `run`."""
    rng = np.random.default_rng(sum(shape[:9]))
    x, gy = (rng.integers(-3, 4, size).astype(np.float64) for size in (shape.x, shape.y))
    want = conv.conv2d_backward_weight(x, gy, shape, "im2col")
    images, gradients = on(device, x.astype(DTYPES[kind]), gy.astype(DTYPES[kind]))
    got = devices.empty(shape.weight, DTYPES[out], images)
    assert conv_hopper_planes.takes("backward_weight", shape, images, gradients)
    conv_hopper_planes.backward_weight(images, gradients, got, shape, blocks, **options)
    got = devices.to_numpy(got)
    assert_equal(got, want.astype(np.float32).astype(got.dtype))
    return got


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("tile", TILES)
def test_deep_products_and_tails(device, operation, tile):
    """Every stage is used more than twice; rectangles hang over the borders, channels and filters end in a tile."""
    shape = shape_of(2, 72, 9, 24, 136, 3, 3, padding=1)
    kind, width = {"128x256": ("bfloat16", 64), "128x128": ("float16", 16), "64x256": ("bfloat16", 32)}[tile]
    forward = operation == "forward"
    run(device, operation, shape, kind, Form(tile, width), 3, bias=forward, relu=forward)


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("size", [(9, 13), (8, 24), (4, 6)])
def test_a_filter_of_one_tap_takes_planes_for_rows(device, operation, size):
    """13 columns of 9 rows are no multiple of 8 pixels, and are copied; others are cut anew, whatever their rows."""
    shape = shape_of(3, 16, *size, 24, 1, 1)
    x = on(device, np.zeros(shape.x, np.float16))[0]
    assert conv_hopper_planes.copy_bytes(shape, x) == (0 if size[0] * size[1] % 8 == 0 else 3 * 16 * 9 * 16 * 2)
    forward = operation == "forward"
    run(device, operation, shape, "float16", bias=forward, residual=forward)


@given(
    size=st.tuples(st.integers(1, 3), st.sampled_from([8, 16, 72]), st.integers(3, 9), st.sampled_from([7, 8, 18, 24])),
    filters=st.sampled_from([5, 8, 40]),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    form=st.builds(Form, st.sampled_from([None, *TILES]), st.sampled_from([None, 16, 32, 64])),
    residual=st.booleans(),
    masters=st.booleans(),
)
@settings(max_examples=20)
def test_random_forward(device, size, filters, window, padding, dilation, form, residual, masters):
    """Rows of any length: those of x that are no multiple of 8 are copied, those of y stored thread by thread."""
    if any((k - 1) * d + 1 > n + 2 * p for k, d, n, p in zip(window, dilation, size[2:], padding, strict=True)):
        return
    N, C, H, W = size
    shape = shape_of(N, C, H, W, filters, *window, padding=padding, dilation=dilation)
    run(device, "forward", shape, "bfloat16", form, bias=True, relu=True, residual=residual, masters=masters)


@given(
    size=st.tuples(st.integers(1, 3), st.sampled_from([5, 16, 72]), st.integers(3, 9), st.sampled_from([7, 8, 18, 24])),
    filters=st.sampled_from([8, 40]),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    form=st.builds(Form, st.sampled_from([None, *TILES]), st.sampled_from([None, 16, 32, 64])),
)
@settings(max_examples=20)
def test_random_backward_input(device, size, filters, window, padding, dilation, form):
    """Rows of gy are given; those of gx follow."""
    N, C, P, Q = size
    H, W = ((n - 1) + (k - 1) * d + 1 - 2 * p for n, k, d, p in zip((P, Q), window, dilation, padding, strict=True))
    if min(H, W) < 1:
        return
    run(device, "backward_input", shape_of(N, C, H, W, filters, *window, padding=padding, dilation=dilation),
        "float16", form)  # fmt: skip


def test_deep_weight_gradient(device):
    """Stages go round twice and more: 2·9·2 steps; filters and channels end in a tile, rows in a segment."""
    run_weights(device, shape_of(2, 72, 9, 72, 136, 3, 3, padding=1), "float16", blocks=3, planes=1)


def test_weight_gradient_in_splits(device):
    run_weights(device, shape_of(3, 8, 17, 65, 8, 2, 3), "bfloat16", "bfloat16")


@given(
    size=st.tuples(st.integers(1, 3), st.sampled_from([3, 8, 72]), st.integers(3, 9), st.sampled_from([7, 8, 24, 70])),
    filters=st.sampled_from([5, 40]),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
@settings(max_examples=20)
def test_random_weight_gradient(device, size, filters, window, padding, dilation):
    if any((k - 1) * d + 1 > n + 2 * p for k, d, n, p in zip(window, dilation, size[2:], padding, strict=True)):
        return
    N, C, H, W = size
    run_weights(device, shape_of(N, C, H, W, filters, *window, padding=padding, dilation=dilation))


@pytest.mark.parametrize("mode", ["asan", "race"])
def test_sound_weight_gradient(device, mode):
    if device != "sim":
        pytest.skip("modes of the simulator")
    first = None
    for schedule in SCHEDULES[1:3]:
        with simulator.configured(mode=mode, **schedule):
            got = run_weights(device, shape_of(1, 8, 14, 9, 8, 2, 1, padding=(0, 1)), blocks=1)
        first = got if first is None else first
        assert_same_bits(got, first)


@pytest.mark.parametrize("mode, tile", [("asan", "128x128"), ("race", "64x256")])
def test_sound(device, mode, tile):
    if device != "sim":
        pytest.skip("modes of the simulator")
    shape = shape_of(2, 8, 9, 17, 72, 2, 2, padding=(1, 0))
    first = None
    for schedule in SCHEDULES[1:3]:
        with simulator.configured(mode=mode, **schedule):
            got = run(device, "forward", shape, form=Form(tile, 16), blocks=1, bias=True, residual=True)
        first = got if first is None else first
        assert_same_bits(got, first)


@pytest.mark.parametrize("kind, limit", [("bfloat16", 2**-9), ("float16", 2**-12)])
@pytest.mark.parametrize("operation", PASSES)
def test_real_numbers(device, rng, operation, kind, limit):
    """Sums are float32 and rounded once: half a unit in the last place of the result, in the mean less."""
    shape = shape_of(1, 136, 8, 16, 136, 3, 3, padding=1)
    forward = operation == "forward"
    values, weight = (
        rng.standard_normal(size).astype(DTYPES[kind]) for size in (shape.x if forward else shape.y, shape.weight)
    )
    read, packed = on(device, values, weight)
    got = devices.empty(shape.y if forward else shape.x, DTYPES[kind], read)
    wide, taps = values.astype(np.float64), weight.astype(np.float64)
    if forward:
        conv_hopper_planes.forward(read, packed, got, shape, 132)
        want = conv.conv2d_forward(wide, taps, None, shape)
    else:
        conv_hopper_planes.backward_input(read, packed, got, shape, 132)
        want = conv.conv2d_backward_input(wide, taps, shape)
    assert_relative_l2(devices.to_numpy(got), want, limit)


def test_arrays_that_begin_at_no_word(device):
    """Residual and images that start 2 bytes off are read by single values."""
    shape = shape_of(1, 8, 4, 8, 8, 1, 1)
    x, weight = on(device, np.ones(shape.x, np.float16), np.zeros(shape.weight, np.float16))
    count = int(np.prod(shape.y))
    values = np.arange(count + 1).astype(np.float16)
    residual = on(device, values)[0][1:].reshape(shape.y)
    y = devices.empty(shape.y, np.float16, x)
    conv_hopper_planes.forward(x, weight, y, shape, 132, Finish(residual=residual))
    assert_equal(devices.to_numpy(y), values[1:].reshape(shape.y))
    weight = on(device, np.eye(8, dtype=np.float16).reshape(shape.weight))[0]
    assert conv_hopper_planes.copy_bytes(shape, residual) == 2 * count
    conv_hopper_planes.forward(residual, weight, y, shape, 132)
    assert_equal(devices.to_numpy(y), values[1:].reshape(shape.y))


def test_rectangles_waste_least():
    """224 columns are seven 32s, 112 seven 16s; 3136 pixels of a plane are 49 rows of 64; few filters, few rows."""
    assert conv_hopper_planes.choose(256, 16, (224, 224), 9, 132, False)[1] == (224, 32)
    assert conv_hopper_planes.choose(128, 16, (112, 112), 9, 132, False)[1] == (112, 16)
    assert conv_hopper_planes.choose(256, 64, (56, 56), 1, 132, True)[1] == (64, 64)
    assert conv_hopper_planes.choose(64, 16, (224, 224), 9, 132, False)[0].name == "64x256"
    assert conv_hopper_planes.choose(256, 16, (224, 224), 9, 132, False)[0].name == "128x256"


def test_operations_use_the_kernels(device, monkeypatch, rng):
    """Of NCHW images with enough channels; y and gx are NCHW then."""
    names: list[str] = []
    launch = conv_hopper_planes.launch
    monkeypatch.setattr(
        conv_hopper_planes, "launch", lambda name, *rest, **more: (names.append(name), launch(name, *rest, **more))
    )
    shape = shape_of(1, 64, 6, 28, 40, 3, 3, padding=1)
    x, w, gy = (rng.integers(-3, 4, size).astype(np.float64) for size in (shape.x, shape.weight, shape.y))
    left, weight, right = on(device, x.astype(DTYPES["bfloat16"]), w.astype(np.float32), gy.astype(DTYPES["bfloat16"]))
    got = (
        conv.conv2d_forward(left, weight, None, shape, "implicit_gemm"),
        conv.conv2d_backward_input(right, weight, shape, "implicit_gemm"),
        conv.conv2d_backward_weight(left, right, shape, "implicit_gemm", dtype=np.float32),
    )
    want = (
        conv.conv2d_forward(x, w, None, shape, "im2col"),
        conv.conv2d_backward_input(gy, w, shape, "im2col"),
        conv.conv2d_backward_weight(x, gy, shape, "im2col"),
    )
    for one, other in zip(got, want, strict=True):
        assert_equal(devices.to_numpy(one), other.astype(np.float32).astype(one.dtype))
    assert len([name for name in names if name.startswith("conv2d_hopper_plane")]) == 3


def test_what_no_map_has_is_another_kernels(device):
    shape = shape_of(1, 8, 5, 8, 16, 3, 3)
    x, y = on(device, np.zeros(shape.x, np.float16), np.zeros(shape.y, np.float16))
    assert conv_hopper_planes.takes("forward", shape, x, y)
    assert not conv_hopper_planes.takes("forward", shape._replace(groups=2), x, y)
    assert not conv_hopper_planes.takes("forward", shape._replace(stride=(1, 2)), x, y)
    assert not conv_hopper_planes.takes("forward", shape, x.astype(np.float32), y)
    assert not conv_hopper_planes.takes("forward", shape, x.transpose(0, 1, 3, 2), y)
    assert not conv_hopper_planes.takes("forward", shape_of(1, 6, 5, 8, 16, 3, 3), x[:, :6], y)


def test_a_copy_within_the_limit(device):
    shape = shape_of(1, 32, 5, 7, 32, 3, 3)
    x, y = on(device, np.zeros(shape.x, np.float16), np.zeros(shape.y, np.float16))
    size = 32 * 5 * 8 * 2
    assert conv_hopper_planes.suits("forward", shape, x, y, size)
    assert not conv_hopper_planes.suits("forward", shape, x, y, size - 1)
    even = shape_of(1, 32, 5, 8, 32, 3, 3)
    x, y = on(device, np.zeros(even.x, np.float16), np.zeros(even.y, np.float16))
    assert conv_hopper_planes.suits("forward", even, x, y, -1)


@pytest.mark.parametrize("width, columns", [(16, 64), (32, 30), (64, 64)])
def test_no_bank_conflicts(device, width, columns):
    """The way out, residual and sums: each 128 bytes of shared memory in one go, whatever the swizzle."""
    if device != "sim":
        pytest.skip("counters of the simulator")
    with simulator.profiling() as profiles:
        shape = shape_of(1, 8, 8, columns, 64, 1, 3, padding=(0, 1))
        run(device, "forward", shape, form=Form("64x256", width), residual=True)
    kernel = next(profile for name, profile in profiles if "_planes_" in name)
    shared = [c for c in kernel.lines.values() if c.space == "shared" and c.requests >= 50]
    assert sum(c.requests for c in shared) > 200
    assert all(c.units * 128 <= max(c.bytes, 128 * c.requests) for c in shared)
