"""Convolutions on Hopper's tensor cores: exact on small integers for all windows, sizes and types; soundness."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from check import assert_equal, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import SCHEDULES, on

from gpucnn import device as devices
from gpucnn.launch import simulator
from gpucnn.ops import conv, conv_hopper
from gpucnn.ops.shapes import ConvShape, conv_shape

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
PASSES = ("forward", "backward_input", "backward_weight")


@pytest.fixture(autouse=True)
def hopper(device):
    if device != "sim" and devices.cupy().cuda.Device().compute_capability != "90":
        pytest.skip("these kernels are for compute capability 9.0")


def images(values: np.ndarray, kind: str, device: str):
    """Values (N,C,H,W) on the device in memory as (N,H,W,C)."""
    return on(device, np.ascontiguousarray(values.transpose(0, 2, 3, 1)).astype(DTYPES[kind]))[0].transpose(0, 3, 1, 2)


def output(size, kind: str, like):
    N, C, H, W = size
    return devices.empty((N, H, W, C), DTYPES[kind], like).transpose(0, 3, 1, 2)


def run(
    device, operation: str, shape: ConvShape, kind: str = "bfloat16", out: str | None = None, tile: str = "128x128",
    blocks: int = 132, planes: int = 64, bias: bool = False, relu: bool = False, residual: bool = False,
    masters: bool = False,
):  # fmt: skip
    """The pass of small integers, compared with the sums of the CPU in float64, rounded once."""
    rng = np.random.default_rng(sum(shape[:9]))
    x, w, gy = (rng.integers(-3, 4, size).astype(np.float64) for size in (shape.x, shape.weight, shape.y))
    stored = np.float32 if masters else DTYPES[kind]
    added = rng.integers(-9, 10, shape.K).astype(np.float64) if bias else None
    if operation == "forward":
        want = conv.conv2d_forward(x, w, added, shape)
        addend = rng.integers(-5, 6, shape.y).astype(np.float64) if residual else None
        want = want + addend if residual else want
        want = np.maximum(want, 0) if relu else want
        read, other = images(x, kind, device), None
        other = output(shape.y, kind, read)
        assert conv_hopper.takes(operation, shape, read, other)
        weight, offset = on(device, w.astype(stored), None if added is None else added.astype(np.float32))
        moved = images(addend, kind, device) if residual else None
        conv_hopper.forward(read, weight, offset, moved, other, shape, relu, blocks, tile)
        got = other
    elif operation == "backward_input":
        want = conv.conv2d_backward_input(gy, w, shape)
        read = images(gy, kind, device)
        got = output(shape.x, kind, read)
        assert conv_hopper.takes(operation, shape, read, got)
        conv_hopper.backward_input(read, *on(device, w.astype(stored)), got, shape, blocks, tile)
    else:
        want = conv.conv2d_backward_weight(x, gy, shape)
        read, other = images(x, kind, device), images(gy, kind, device)
        got = devices.empty(shape.weight, DTYPES[out or kind], read)
        assert conv_hopper.takes(operation, shape, read, other)
        conv_hopper.backward_weight(read, other, got, shape, blocks, planes)
    got = devices.to_numpy(got)
    assert_equal(got, want.astype(np.float32).astype(got.dtype))
    return got


def shape_of(N, C, H, W, K, R, S, **options) -> ConvShape:
    return conv_shape((N, C, H, W), (K, C, R, S), **options)


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("tile", ["128x128", "128x256"])
def test_deep_products_and_tails(device, operation, tile):
    """Every stage is used more than twice; pixels end inside a tile, and channels inside a slab of 64."""
    shape = shape_of(2, 72, 9, 10, 136, 3, 3, padding=1)
    run(
        device,
        operation,
        shape,
        "bfloat16" if tile == "128x128" else "float16",
        tile=tile,
        blocks=2,
        bias=True,
        relu=True,
    )


@pytest.mark.parametrize("operation", PASSES)
def test_pixels_reach_over_images(device, operation):
    """Windows of unequal sides, no border; 5 images of 3×4 outputs share one tile."""
    run(device, operation, shape_of(5, 8, 4, 8, 16, 2, 5), "float16")


@given(
    size=st.tuples(st.integers(1, 3), st.sampled_from([8, 16, 64, 72]), st.integers(3, 9), st.integers(3, 9)),
    filters=st.sampled_from([8, 16, 40]),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    operation=st.sampled_from(PASSES),
    kind=st.sampled_from(["bfloat16", "float16"]),
)
@settings(max_examples=25)
def test_random_shapes(device, size, filters, window, stride, padding, dilation, operation, kind):
    if any((k - 1) * d + 1 > n + 2 * p for k, d, n, p in zip(window, dilation, size[2:], padding, strict=True)):
        return
    stride = (1, 1) if operation == "backward_input" else stride
    N, C, H, W = size
    run(
        device,
        operation,
        shape_of(N, C, H, W, filters, *window, stride=stride, padding=padding, dilation=dilation),
        kind,
    )


def test_filters_that_no_map_has(device):
    """Rows of y that do not begin at 16 bytes are stored thread by thread."""
    run(device, "forward", shape_of(2, 16, 7, 8, 13, 3, 3, padding=1), bias=True, relu=True, residual=True)


def test_residual_and_float32_weights(device):
    shape = shape_of(2, 16, 7, 8, 40, 3, 3, padding=1)
    run(device, "forward", shape, "float16", bias=True, relu=True, residual=True, masters=True)
    run(device, "backward_input", shape, masters=True)


@pytest.mark.parametrize("out", ["bfloat16", "float32"])
def test_weight_gradient_in_splits(device, out):
    """The pixels' sums are split where there are few tiles; the last split has fewer, the last step a few."""
    run(device, "backward_weight", shape_of(9, 8, 17, 17, 8, 3, 3), out=out)


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("mode", ["asan", "race"])
def test_sound(device, operation, mode):
    """Six stages are used twice and more (backward_input is forward's kernel); copies come late, and at once."""
    if device != "sim":
        pytest.skip("modes of the simulator")
    window = (2, 2) if operation == "backward_input" else (4, 4)  # a step a tap
    shape = shape_of(1, 8, 9, 9, 16, *window, padding=1)
    if operation == "backward_weight":
        shape = shape_of(1, 8, 28, 29, 16, 1, 2)  # pixels of 13 steps
    first = None
    for schedule in (SCHEDULES[1], SCHEDULES[3]):
        with simulator.configured(mode=mode, **schedule):
            got = run(device, operation, shape, blocks=1, planes=1)
        first = got if first is None else first
        assert_same_bits(got, first)


def test_operations_use_the_kernels(device, monkeypatch, rng):
    """Of channels-last images with enough channels; y and gx are channels-last then."""
    names: list[str] = []
    launch = conv_hopper.launch
    monkeypatch.setattr(
        conv_hopper, "launch", lambda name, *rest, **more: (names.append(name), launch(name, *rest, **more))
    )
    shape = shape_of(1, 64, 6, 6, 40, 3, 3, padding=1)
    x, w, gy = (rng.integers(-3, 4, size).astype(np.float64) for size in (shape.x, shape.weight, shape.y))
    weight = on(device, w.astype(np.float32))[0]
    left, right = images(x, "bfloat16", device), images(gy, "bfloat16", device)
    got = (
        conv.conv2d_forward(left, weight, None, shape, "implicit_gemm"),
        conv.conv2d_backward_input(right, weight, shape, "implicit_gemm"),
        conv.conv2d_backward_weight(left, right, shape, "implicit_gemm", dtype=np.float32),
    )
    want = (
        conv.conv2d_forward(x, w, None, shape),
        conv.conv2d_backward_input(gy, w, shape),
        conv.conv2d_backward_weight(x, gy, shape),
    )
    for one, other in zip(got, want, strict=True):
        assert_equal(devices.to_numpy(one), other.astype(np.float32).astype(one.dtype))
    assert len([name for name in names if name.startswith(("conv2d_hopper_images", "conv2d_hopper_weights"))]) == 3


def test_what_no_map_has_is_another_kernels(device):
    shape = shape_of(1, 8, 5, 5, 16, 3, 3)
    x = images(np.zeros(shape.x), "bfloat16", device)
    y = output(shape.y, "bfloat16", x)
    assert conv_hopper.takes("forward", shape, x, y)
    assert not conv_hopper.takes("forward", shape._replace(groups=2), x, y)
    assert not conv_hopper.takes("forward", shape, devices.contiguous(x), y)
    assert not conv_hopper.takes("forward", shape, x.astype(np.float32), y)
    assert not conv_hopper.takes("backward_input", shape._replace(stride=(2, 2)), y, x)
    wide = shape_of(1, 8, 300, 5, 16, 280, 1)
    x, y = images(np.zeros(wide.x), "bfloat16", device), images(np.zeros(wide.y), "bfloat16", device)
    assert not conv_hopper.takes("forward", wide, x, y)  # taps are at most 254 rows apart
