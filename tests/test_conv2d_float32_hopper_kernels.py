"""float32_tensor's convolutions on Hopper's tensor cores: exact on small integers, errors, soundness, choice."""

from __future__ import annotations

import numpy as np
import pytest
from check import assert_equal, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import SCHEDULES, on

import gpucnn
from gpucnn import device as devices
from gpucnn.launch import simulator
from gpucnn.ops import conv, conv_hopper_float32, conv_implicit_gemm
from gpucnn.ops.shapes import ConvShape, conv_shape

PASSES = ("forward", "backward_input")


@pytest.fixture(autouse=True)
def hopper(device):
    if device != "sim" and devices.cupy().cuda.Device().compute_capability != "90":
        pytest.skip("these kernels are for compute capability 9.0")


def shape_of(N, C, H, W, K, R, S, **options) -> ConvShape:
    return conv_shape((N, C, H, W), (K, C, R, S), **options)


def images(values: np.ndarray, channels_last: bool, device: str):
    """Values (N,C,H,W) on the device in memory as they are or as (N,H,W,C)."""
    values = values.astype(np.float32)
    if not channels_last:
        return on(device, values)[0]
    return on(device, np.ascontiguousarray(values.transpose(0, 2, 3, 1)))[0].transpose(0, 3, 1, 2)


def compute(device, operation, shape, read, weight, bias=None, relu=False, blocks=132, channels_last=False):
    read = images(read, channels_last, device)
    weight, bias = on(device, weight.astype(np.float32), None if bias is None else bias.astype(np.float32))
    assert conv_hopper_float32.takes(operation, shape)
    out = devices.empty(shape.y if operation == "forward" else shape.x, np.float32, read)
    if operation == "forward":
        conv_hopper_float32.forward(read, weight, bias, out, shape, relu, blocks)
    else:
        conv_hopper_float32.backward_input(read, weight, out, shape, blocks)
    return devices.to_numpy(out)


def reference(operation, shape, read, weight, bias=None, relu=False):
    if operation == "backward_input":
        return conv.conv2d_backward_input(read, weight, shape)
    want = conv.conv2d_forward(read, weight, bias, shape)
    return np.maximum(want, 0) if relu else want


def integers(device, operation, shape, bias=False, relu=False, blocks=132, channels_last=False):
    """Sums below 2^24 are exact, whatever their order."""
    rng = np.random.default_rng(sum(shape[:9]))
    read = rng.integers(-3, 4, shape.x if operation == "forward" else shape.y).astype(np.float64)
    weight = rng.integers(-3, 4, shape.weight).astype(np.float64)
    added = rng.integers(-9, 10, shape.K).astype(np.float64) if bias else None
    got = compute(device, operation, shape, read, weight, added, relu, blocks, channels_last)
    assert_equal(got, reference(operation, shape, read, weight, added, relu))
    return got


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("operation", PASSES)
def test_deep_products_and_tails(device, operation, channels_last):
    """Stages are used several times; an image ends inside a tile, channels inside a step, filters inside a tile."""
    shape = shape_of(2, 41, 12, 13, 131, 3, 3, padding=1)
    integers(device, operation, shape, operation == "forward", operation == "forward", 2, channels_last)


@pytest.mark.parametrize("operation", PASSES)
def test_unequal_sides(device, operation):
    integers(device, operation, shape_of(3, 8, 4, 8, 16, 2, 5))
    integers(device, operation, shape_of(1, 5, 9, 7, 3, 1, 1))


@given(
    size=st.tuples(st.integers(1, 3), st.sampled_from([3, 8, 32, 40]), st.integers(3, 12), st.integers(3, 12)),
    filters=st.sampled_from([8, 33]),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    operation=st.sampled_from(PASSES),
    channels_last=st.booleans(),
)
@settings(max_examples=20)
def test_random_shapes(device, size, filters, window, stride, padding, dilation, operation, channels_last):
    if any((k - 1) * d + 1 > n + 2 * p for k, d, n, p in zip(window, dilation, size[2:], padding, strict=True)):
        return
    stride = (1, 1) if operation == "backward_input" else stride
    shape = shape_of(*size, filters, *window, stride=stride, padding=padding, dilation=dilation)
    if conv_hopper_float32.takes(operation, shape):
        integers(device, operation, shape, channels_last=channels_last)


@pytest.mark.parametrize("operation", PASSES)
def test_errors(device, operation, rng):
    """Float32's: three parts of each value, sums outside the tensor cores."""
    shape = shape_of(1, 64, 9, 9, 40, 3, 3, padding=1)
    read = rng.standard_normal(shape.x if operation == "forward" else shape.y)
    read, weight = read.astype(np.float32), rng.standard_normal(shape.weight).astype(np.float32)
    want = reference(operation, shape, read.astype(np.float64), weight.astype(np.float64))
    got = compute(device, operation, shape, read, weight)
    assert np.linalg.norm(got - want) / np.linalg.norm(want) <= 3e-7


@pytest.mark.parametrize("mode", ["asan", "race"])
def test_sound(device, mode):
    if device != "sim":
        pytest.skip("modes of the simulator")
    shape = shape_of(1, 33, 7, 9, 40, 2, 3, padding=1)
    first = None
    for schedule in SCHEDULES[1:3]:
        with simulator.configured(mode=mode, **schedule):
            got = integers(device, "forward", shape, bias=True, blocks=1)
        first = got if first is None else first
        assert_same_bits(got, first)


def test_two_schedules_give_the_same_bits(device, rng):
    shape = shape_of(2, 70, 12, 11, 40, 3, 3)
    gy, weight = rng.standard_normal(shape.y), rng.standard_normal(shape.weight)
    first = compute(device, "backward_input", shape, gy, weight)
    for schedule in SCHEDULES[1:3] if device == "sim" else ():
        with simulator.configured(**schedule):
            assert_same_bits(compute(device, "backward_input", shape, gy, weight, blocks=2), first)


def test_convolutions_use_the_kernel(device, monkeypatch):
    """implicit_gemm in float32_tensor does, where that is estimated to be faster and the limit has room for parts."""
    names: list[str] = []
    launch = conv_hopper_float32.launch
    monkeypatch.setattr(
        conv_hopper_float32, "launch", lambda name, *rest, **more: (names.append(name), launch(name, *rest, **more))
    )
    monkeypatch.setattr(conv_hopper_float32, "clocks", lambda *_: 0)
    shape = shape_of(1, 32, 16, 16, 24, 3, 3, padding=1)
    rng = np.random.default_rng(0)
    x, w, gy = (rng.integers(-3, 4, size).astype(np.float32) for size in (shape.x, shape.weight, shape.y))
    with gpucnn.precision("float32_tensor"):
        run = {"algorithm": "implicit_gemm"}
        y = conv.conv2d_forward(*on(device, x, w), None, shape, **run)
        assert len(names) == 1
        need = conv_implicit_gemm.forward_workspace(shape, np.dtype(np.float32), 0)
        assert need < conv_hopper_float32.workspace("forward", shape)
        limited = conv.conv2d_forward(*on(device, x, w), None, shape, workspace_limit=need, **run)
    conv.conv2d_forward(*on(device, x, w), None, shape, **run)
    assert names == ["conv2d_hopper_float32_tensor_128x128"]
    for result in (y, limited):
        assert_equal(devices.to_numpy(result), conv.conv2d_forward(x, w, None, shape))
    with gpucnn.precision("float32_tensor"):
        gx = conv.conv2d_backward_input(*on(device, np.pad(gy, ((0, 0), (0, 8), (0, 0), (0, 0))),
                                             np.pad(w, ((0, 8), (0, 0), (0, 0), (0, 0)))),
                                        shape_of(1, 32, 16, 16, 32, 3, 3, padding=1), **run)  # fmt: skip
    assert len(names) == 2
    assert_equal(devices.to_numpy(gx), conv.conv2d_backward_input(gy, w, shape))


def test_choice():
    def suits(operation: str, shape: ConvShape, limit: int | None = None) -> bool:
        product = getattr(conv_implicit_gemm, f"{operation}_product")(shape, "float32_tensor")
        return conv_implicit_gemm._suits_hopper(operation, product, shape, None, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_hopper_float32, "architecture_of", lambda array: 90)
        for operation in PASSES:
            assert suits(operation, shape_of(64, 256, 56, 56, 256, 3, 3, padding=1))
            assert not suits(operation, shape_of(1, 32, 8, 8, 32, 3, 3, padding=1))
            assert not suits(operation, shape_of(64, 256, 56, 56, 256, 3, 3, padding=1), limit=2**20)
            assert not suits(operation, shape_of(64, 256, 56, 56, 256, 3, 3, padding=1, groups=1)._replace(groups=2))
        assert not suits("backward_input", shape_of(64, 256, 56, 56, 256, 3, 3, padding=1, stride=2))
        assert not suits("forward", shape_of(64, 3, 224, 224, 64, 3, 3, padding=1))
        assert not suits("forward", shape_of(64, 512, 7, 7, 8, 1, 1))  # most of a tile were padding
