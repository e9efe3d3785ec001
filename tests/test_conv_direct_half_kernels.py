"""Direct convolution of bfloat16 and float16 in either layout: exact on integers, bounded, sound, without detours."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.launch import simulator
from gpucnn.ops import conv_direct, conv_direct_half
from gpucnn.ops.shapes import conv_shape
from tests import reference
from tests.check import assert_equal, assert_relative_l2
from tests.kernel_check import assert_sound, assert_two_runs_equal, on
from tests.shapes import ConvCase, parametrize

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
dtypes = pytest.mark.parametrize("dtype", DTYPES)
layouts = pytest.mark.parametrize("layout", ["first", "last"])


def depthwise(size: int, stride: int, x: tuple[int, int, int, int], times: int = 1) -> ConvCase:
    return ConvCase(x, (times * x[1], 1, size, size), stride, size // 2, groups=x[1])


DEPTHWISE = {
    "3": depthwise(3, 1, (2, 6, 9, 24)),  # rows of whole vectors; a strip and a tail
    "3_odd": depthwise(3, 1, (1, 3, 19, 13)),
    "3_stride2": depthwise(3, 2, (2, 4, 17, 24)),
    "3_stride2_even": depthwise(3, 2, (1, 18, 16, 7)),
    "3_tiles_of_channels": depthwise(3, 1, (1, 70, 3, 5)),  # a whole tile and another of three pairs
    "5": depthwise(5, 1, (1, 4, 11, 12)),
    "5_stride2": depthwise(5, 2, (1, 34, 7, 8)),  # 32 lanes of which some are idle
    "7": depthwise(7, 1, (2, 2, 10, 9)),
    "7_stride2": depthwise(7, 2, (2, 2, 10, 12)),
    "twice_the_filters": depthwise(3, 1, (1, 3, 5, 8), times=2),
    "many_items": depthwise(3, 1, (130, 2, 7, 7)),  # several ranges
    "empty": depthwise(3, 1, (0, 2, 5, 5)),
}  # fmt: skip
GROUPS = {
    "groups_of_2": ConvCase((2, 6, 5, 6), (9, 2, 3, 3), padding=1, groups=3),
    "groups_of_5": ConvCase((1, 10, 7, 6), (26, 5, 3, 2), stride=(2, 1), padding=(1, 0), groups=2),
    "groups_dilated": ConvCase((1, 4, 9, 8), (8, 2, 2, 3), dilation=2, padding=2, groups=2),
    "groups_of_one_filter": ConvCase((1, 4, 6, 5), (2, 2, 3, 3), padding=1, groups=2),
    "many_terms_and_filters": ConvCase((3, 24, 6, 7), (80, 12, 3, 3), padding=1, groups=2),
}


def images(device: str, array: np.ndarray, layout: str) -> Any:
    if layout == "first":
        return on(device, array)[0]
    return on(device, np.ascontiguousarray(array.transpose(0, 2, 3, 1)))[0].transpose(0, 3, 1, 2)


def data(case: ConvCase, dtype: str, kind: str = "normal") -> tuple[np.ndarray, ...]:
    """x, weight, bias (float32) and gy, all of them 16-bit values."""
    rng, shape = np.random.default_rng(3), conv_shape(case.x, case.weight, **case.options).y
    gy = rng.integers(-4, 5, shape) if kind == "integers" else rng.standard_normal(shape)
    x, weight, bias = (each.astype(DTYPES[dtype]) for each in case.arrays(np.float32, kind))
    return x, weight, bias, gy.astype(DTYPES[dtype])


def three_passes(
    device: str, case: ConvCase, inputs: tuple[np.ndarray, ...], layout: str, masters: bool = False, relu: bool = False
) -> tuple[Any, ...]:
    """(y, gx, gw) by "direct"; masters: weights, bias and gw are float32."""
    shape, (x, weight, bias, gy) = conv_shape(case.x, case.weight, **case.options), inputs
    kind = np.float32 if masters else x.dtype
    weight, bias = on(device, weight.astype(kind), bias.astype(kind))
    x, gy = images(device, x, layout), images(device, gy, layout)
    return (
        ops.conv2d_forward(x, weight, bias, shape, "direct", relu=relu),
        ops.conv2d_backward_input(gy, weight, shape, "direct"),
        ops.conv2d_backward_weight(x, gy, shape, "direct", dtype=kind),
    )


def definitions(case: ConvCase, inputs: tuple[np.ndarray, ...], relu: bool = False) -> tuple[np.ndarray, ...]:
    x, weight, bias, gy = (each.astype(np.float64) for each in inputs)
    y = reference.conv2d(x, weight, bias, **case.options)
    return (
        np.maximum(y, 0) if relu else y,
        reference.conv2d_backward_input(gy, weight, case.x, **case.options),
        reference.conv2d_backward_weight(x, gy, case.weight, **case.options),
    )


@layouts
@parametrize({**DEPTHWISE, **GROUPS})
def test_exact_on_integers(case, layout, device):
    """Sums are exact in float32, so results are the rounded truth, bit for bit; dtypes, masters and relu in turn."""
    for dtype, masters, relu in (("bfloat16", True, False), ("float16", False, True)):
        inputs = data(case, dtype, "integers")
        found = three_passes(device, case, inputs, layout, masters, relu)
        for got, want in zip(found, definitions(case, inputs, relu), strict=True):
            assert_equal(devices.to_numpy(got).astype(np.float64), want.astype(got.dtype).astype(np.float64))
        for got in found[:2]:
            last = devices.to_numpy(got.transpose(0, 2, 3, 1))
            assert got.dtype == DTYPES[dtype] and (layout == "first" or last.flags.c_contiguous)
        assert found[2].dtype == (np.float32 if masters else DTYPES[dtype])


@dtypes
@layouts
@parametrize({"depthwise": depthwise(5, 1, (3, 8, 15, 16)), "groups": GROUPS["groups_of_5"]})
def test_errors(case, layout, dtype, device):
    """Products summed in float32 and rounded once: half a unit of the last place."""
    inputs, unit = data(case, dtype), {"bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    found = three_passes(device, case, inputs, layout, masters=True)
    for got, want, bound in zip(found, definitions(case, inputs), (unit / 2, unit / 2, 1e-6), strict=True):
        assert_relative_l2(devices.to_numpy(got), want, bound)


@layouts
def test_weight_gradient_of_many_pixels(layout, device, monkeypatch):
    """10^5 terms that are all positive, in one range of which a thread sums as many as it ever does."""
    monkeypatch.setattr(conv_direct, "SPLIT_BLOCKS", 1)
    case = depthwise(3, 1, (8, 2, 112, 112))
    inputs = tuple(abs(each) for each in data(case, "bfloat16"))
    shape = conv_shape(case.x, case.weight, **case.options)
    x, gy = images(device, inputs[0], layout), images(device, inputs[3], layout)
    gw = ops.conv2d_backward_weight(x, gy, shape, "direct", dtype=np.float32)
    assert_relative_l2(devices.to_numpy(gw), definitions(case, inputs)[2], 5e-6)


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        (depthwise(3, 1, (2, 2, 9, 8)), "first"),
        (depthwise(3, 2, (1, 18, 9, 7)), "last"),
        (ConvCase((1, 4, 5, 4), (8, 2, 2, 3), dilation=2, padding=2, groups=2), "last"),
    ],
    ids=["depthwise", "depthwise_last", "groups"],
)
def test_sound(case, layout, device):
    inputs = data(case, "float16")
    assert_two_runs_equal(lambda: three_passes(device, case, inputs, layout), device)
    assert_sound(lambda: three_passes(device, case, inputs, layout, relu=True), device)


def test_mixed_layouts(device):
    """Images of one layout and of the other, and every second row."""
    for case in (DEPTHWISE["3"], GROUPS["groups_of_2"]):
        inputs = data(case, "float16", "integers")
        shape, (x, _, _, gy) = conv_shape(case.x, case.weight, **case.options), inputs
        want = definitions(case, inputs)[2]
        for one, other in (("first", "last"), ("last", "first")):
            there = images(device, x, one), images(device, gy, other)
            got = ops.conv2d_backward_weight(*there, shape, "direct", dtype=np.float32)
            assert_equal(devices.to_numpy(got), want)
        wide = on(device, np.repeat(x, 2, axis=2))[0][:, :, ::2]
        got = ops.conv2d_backward_weight(wide, images(device, gy, "last"), shape, "direct", dtype=np.float32)
        assert_equal(devices.to_numpy(got), want)


def test_channels_last_in_whole_sectors(device):
    """No array is converted or copied, and every access of a warp to images is one run of memory."""
    if device != "sim":
        pytest.skip("the simulator counts")
    case = depthwise(3, 1, (1, 64, 8, 8))
    inputs = data(case, "float16")
    with simulator.profiling() as found:
        three_passes(device, case, inputs, "last", masters=True)
    names = [name.replace("conv2d_", "").replace("_depthwise_last_k3s1_float16", "") for name, _ in found]
    assert names == ["forward", "backward_input", "backward_weight"]
    for _, profile in found:
        images = [c for c in profile.lines.values() if c.space == "global" and c.bytes >= inputs[0].nbytes]
        assert images and all(c.units * 32 == c.bytes for c in images)


def test_which_kernels():
    shapes = {name: conv_shape(case.x, case.weight, **case.options) for name, case in DEPTHWISE.items()}
    last = {name for name, shape in shapes.items() if conv_direct_half._has_last_kernel(shape)}
    assert last == set(DEPTHWISE) - {"3_odd", "7_stride2", "twice_the_filters"}
    large = conv_shape((32, 64, 112, 112), (64, 1, 3, 3), padding=1, groups=64)
    for limit in (None, 1 << 20, 0):
        needed = conv_direct_half.backward_weight_workspace(large, DTYPES["bfloat16"], limit)
        split = conv_direct_half.last_split(large, limit)
        assert needed >= 4 * 64 * 9 * split.ranges and split.size * split.ranges >= 32 * 56 * 28
        assert split.size <= 128 * 4  # strips of a thread
