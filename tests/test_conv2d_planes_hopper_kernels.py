"""Convolutions of NCHW images on Hopper's tensor cores: exact on small integers, within float64's bounds; soundness."""

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
from gpucnn.ops import conv, conv_hopper_planes
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
        want = conv.conv2d_forward(x, w, added, shape)
        want = want + addend if residual else want
        want = np.maximum(want, 0) if relu else want
        read, moved = on(device, x.astype(DTYPES[kind]), None if addend is None else addend.astype(DTYPES[kind]))
        offset = on(device, None if added is None else added.astype(np.float32))[0]
        got = devices.empty(shape.y, DTYPES[kind], read)
        assert conv_hopper_planes.takes(operation, shape, read, got)
        conv_hopper_planes.forward(read, weight, offset, moved, got, shape, relu, blocks, form)
    else:
        want = conv.conv2d_backward_input(gy, w, shape)
        read = on(device, gy.astype(DTYPES[kind]))[0]
        got = devices.empty(shape.x, DTYPES[kind], read)
        assert conv_hopper_planes.takes(operation, shape, read, got)
        conv_hopper_planes.backward_input(read, weight, got, shape, blocks, form)
    got = devices.to_numpy(got)
    assert_equal(got, want.astype(np.float32).astype(got.dtype))
    return got


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("tile", TILES)
def test_deep_products_and_tails(device, operation, tile):
    """Every stage is used more than twice; rectangles hang over rows and columns, channels and filters end in a tile."""
    shape = shape_of(2, 72, 9, 24, 136, 3, 3, padding=1)
    kind, width = {"128x256": ("bfloat16", 64), "128x128": ("float16", 16), "64x256": ("bfloat16", 32)}[tile]
    forward = operation == "forward"
    run(device, operation, shape, kind, Form(tile, width), 3, bias=forward, relu=forward)
