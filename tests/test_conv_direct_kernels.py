"""Direct convolution where kernels run: exact on integers, bounded in floating point, sound in every schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.launch import simulator
from gpucnn.ops import conv_direct
from gpucnn.ops.shapes import conv_shape
from tests import reference
from tests.check import assert_close, assert_equal, assert_relative_l2, assert_same_bits, check_adjoint, sum_bound
from tests.kernel_check import assert_sound, assert_two_runs_equal, on
from tests.shapes import CONV_CASES, ConvCase, parametrize

PASSES = "conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight"

FAST_CASES = {
    "depthwise3": ConvCase((2, 3, 9, 24), (3, 1, 3, 3), padding=1, groups=3),  # rows of float4; a strip and a tail
    "depthwise3_odd": ConvCase((1, 3, 19, 13), (3, 1, 3, 3), padding=1, groups=3),
    "depthwise3_stride2": ConvCase((2, 2, 17, 24), (2, 1, 3, 3), stride=2, padding=1, groups=2),
    "depthwise3_stride2_even": ConvCase((2, 2, 16, 7), (2, 1, 3, 3), stride=2, padding=1, groups=2),
    "depthwise5": ConvCase((1, 4, 11, 12), (4, 1, 5, 5), padding=2, groups=4),
    "depthwise5_stride2": ConvCase((1, 2, 13, 16), (2, 1, 5, 5), stride=2, padding=2, groups=2),
    "depthwise7": ConvCase((2, 2, 10, 9), (2, 1, 7, 7), padding=3, groups=2),
    "depthwise7_stride2": ConvCase((2, 2, 10, 12), (2, 1, 7, 7), stride=2, padding=3, groups=2),
    "depthwise_twice_the_filters": ConvCase((1, 3, 5, 8), (6, 1, 3, 3), padding=1, groups=3),
    "depthwise_many_items": ConvCase((130, 2, 7, 7), (2, 1, 3, 3), padding=1, groups=2),  # several ranges
    "first_layer3": ConvCase((1, 3, 6, 64), (64, 3, 3, 3), padding=1),
    "first_layer3_tails": ConvCase((2, 2, 7, 101), (55, 2, 3, 3), padding=1),
    "first_layer3_half": ConvCase((1, 2, 4, 124), (60, 2, 3, 3), padding=1),  # a row ends in half a thread's pixels
    "first_layer3_stride2": ConvCase((1, 1, 9, 99), (63, 1, 3, 3), stride=2),
    "first_layer5": ConvCase((1, 4, 8, 70), (64, 4, 5, 5), padding=2),
    "first_layer5_stride2": ConvCase((1, 2, 9, 130), (40, 2, 5, 5), stride=2, padding=1),
    "first_layer7": ConvCase((1, 1, 9, 66), (64, 1, 7, 7), padding=2),
    "first_layer7_stride2": ConvCase((1, 3, 13, 113), (61, 3, 7, 7), stride=2, padding=3),  # two channels, then one
    "first_layer11": ConvCase((1, 2, 12, 72), (48, 2, 11, 11), padding=1),
    "first_layer11_stride4": ConvCase((1, 3, 27, 223), (64, 3, 11, 11), stride=4, padding=2),
}  # fmt: skip


def shape_of(case: ConvCase):
    return conv_shape(case.x, case.weight, **case.options)


def three_passes(device: str, case: ConvCase, x, weight, bias, gy, relu: bool = False) -> tuple[Any, ...]:
    """(y, gx, gw) by the algorithm "direct", on the device."""
    shape = shape_of(case)
    x, weight, bias, gy = on(device, x, weight, bias, gy)
    return (
        ops.conv2d_forward(x, weight, bias, shape, "direct", relu=relu),
        ops.conv2d_backward_input(gy, weight, shape, "direct"),
        ops.conv2d_backward_weight(x, gy, shape, "direct"),
    )


def definitions(case: ConvCase, x, weight, bias, gy) -> tuple[np.ndarray, ...]:
    return (
        reference.conv2d(x, weight, bias, **case.options),
        reference.conv2d_backward_input(gy, weight, case.x, **case.options),
        reference.conv2d_backward_weight(x, gy, case.weight, **case.options),
    )


def data(case: ConvCase, kind: str = "normal") -> tuple[np.ndarray, ...]:
    """x, weight, bias and gy."""
    rng, shape = np.random.default_rng(3), shape_of(case).y
    gy = rng.integers(-4, 5, shape) if kind == "integers" else rng.standard_normal(shape)
    return *case.arrays(np.float32, kind), gy.astype(np.float32)


@parametrize({**CONV_CASES, **FAST_CASES})
def test_exact_on_integers(case, device):
    inputs = data(case, "integers")
    for got, want in zip(three_passes(device, case, *inputs), definitions(case, *inputs), strict=True):
        assert got.dtype == np.float32 and devices.of(got).startswith(device)
        assert_equal(devices.to_numpy(got), want)


@parametrize({**CONV_CASES, **FAST_CASES})
def test_error_bounds(case, device):
    inputs = data(case)
    (K, C, R, S), pixels = case.weight, inputs[3].size // case.weight[0]
    terms = C * R * S + 1, K // case.groups * R * S, pixels
    wanted, sizes = definitions(case, *inputs), definitions(case, *map(np.abs, inputs))
    for got, want, size, count in zip(three_passes(device, case, *inputs), wanted, sizes, terms, strict=True):
        assert_close(
            devices.to_numpy(got), want, sum_bound(count, size, np.float32) + sum_bound(count, size, np.float64)
        )
        assert_relative_l2(devices.to_numpy(got), want, 2e-6)


sizes = st.integers(1, 33)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    N=st.integers(0, 3), H=sizes, W=sizes, groups=st.sampled_from([1, 1, 2, 3]), C=st.integers(1, 9),
    K=st.sampled_from([1, 2, 3, 4, 7, 8, 9]), kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)), stride=pairs,
    padding=st.tuples(st.integers(0, 7), st.integers(0, 7)), dilation=pairs,
)  # fmt: skip
@example(N=1, H=5, W=5, groups=1, C=1, K=65, kernel=(1, 1), stride=(3, 3), padding=(0, 0), dilation=(1, 1))
@example(N=1, H=9, W=9, groups=1, C=2, K=3, kernel=(3, 3), stride=(2, 3), padding=(2, 2), dilation=(3, 2))
@settings(max_examples=60)
def test_any_shape(device, N, H, W, groups, C, K, kernel, stride, padding, dilation):
    assume(all(size + 2 * p > d * (k - 1) for size, p, d, k in zip((H, W), padding, dilation, kernel, strict=True)))
    case = ConvCase((N, C * groups, H, W), (K * groups, C, *kernel), stride, padding, dilation, groups)
    inputs = data(case, "integers")
    for got, want in zip(three_passes(device, case, *inputs), definitions(case, *inputs), strict=True):
        assert_equal(devices.to_numpy(got), want)


@parametrize({**CONV_CASES, **FAST_CASES})
def test_adjoint_and_schedules(case, device):
    x, weight, _, gy = data(case)
    assert_two_runs_equal(lambda: three_passes(device, case, x, weight, None, gy), device)
    y, gx, gw = (devices.to_numpy(a).astype(np.float64) for a in three_passes(device, case, x, weight, None, gy))
    check_adjoint(y, gy.astype(np.float64), [(x, gx), (weight, gw)], limit=1e-5)


@parametrize(
    {
        "general": ConvCase((2, 3, 5, 6), (9, 3, 3, 3), stride=2, padding=1),
        "general_groups": ConvCase((1, 4, 5, 4), (8, 2, 2, 3), dilation=2, padding=2, groups=2),
        "general_one": ConvCase((1, 2, 6, 4), (2, 1, 3, 2), padding=1, groups=2),
        "general_rows": ConvCase((3, 5, 8, 8), (11, 5, 3, 3), padding=1),
        "many_filters": ConvCase((1, 2, 9, 8), (34, 2, 2, 2)),
        "many_terms": ConvCase((1, 60, 3, 4), (3, 60, 3, 3), padding=1),  # more than the tile of weights holds
        "depthwise": ConvCase((2, 2, 9, 8), (2, 1, 3, 3), padding=1, groups=2),
        "depthwise_stride2": ConvCase((1, 2, 9, 7), (2, 1, 3, 3), stride=2, padding=1, groups=2),
        "first_layer": ConvCase((1, 3, 4, 40), (64, 3, 3, 3), padding=1),
        "first_layer_staged": ConvCase((1, 2, 19, 139), (64, 2, 11, 11), stride=4, padding=2),
    }
)
def test_sound(case, device):
    inputs = data(case)
    assert_sound(lambda: three_passes(device, case, *inputs, relu=True), device)


@pytest.mark.parametrize("blocks", [1, conv_direct.SPLIT_BLOCKS], ids=["one_range", "chosen"])
def test_weight_gradient_of_many_pixels(device, blocks, monkeypatch):
    """10^5 terms: a single float32 sum of them would fail, also in one block."""
    monkeypatch.setattr(conv_direct, "SPLIT_BLOCKS", blocks)
    rng = np.random.default_rng(8)
    for case in (
        ConvCase((8, 2, 112, 112), (3, 2, 1, 1)),
        ConvCase((8, 1, 112, 112), (33, 1, 1, 2), padding=(0, 1)),
        ConvCase((8, 2, 112, 112), (2, 1, 3, 3), padding=1, groups=2),
    ):
        shape = shape_of(case)
        x, gy = (rng.standard_normal(s).astype(np.float32) for s in (shape.x, shape.y))
        gw = ops.conv2d_backward_weight(*on(device, x, gy), shape, "direct")
        assert_relative_l2(
            devices.to_numpy(gw), reference.conv2d_backward_weight(x, gy, case.weight, **case.options), 2e-6
        )


def test_long_sums_over_channels(device):
    case = ConvCase((1, 700, 3, 3), (5, 700, 3, 3), padding=1)  # 6,300 terms: several chunks of weights
    inputs = data(case)
    for got, want in zip(three_passes(device, case, *inputs), definitions(case, *inputs), strict=True):
        assert_relative_l2(devices.to_numpy(got), want, 1e-6)


paths = parametrize(
    {name: FAST_CASES[name] for name in ("depthwise3", "first_layer3")} | {"general": CONV_CASES["vgg"]}
)


@paths
def test_bias_and_relu(case, device):
    inputs = data(case, "integers")
    want = definitions(case, *inputs)[0]
    assert_equal(devices.to_numpy(three_passes(device, case, *inputs, relu=True)[0]), np.maximum(want, 0))
    x, weight, _, gy = inputs
    y = three_passes(device, case, x, weight, None, gy, relu=True)[0]
    assert_equal(devices.to_numpy(y), np.maximum(definitions(case, x, weight, None, gy)[0], 0))


@paths
def test_nan_and_infinity(case, device):
    """They reach exactly the outputs that read them; ReLU keeps NaN, and −∞ is 0 after it."""
    x, weight, bias, gy = data(case, "integers")
    weight = np.abs(weight) + 1
    x[0, 0, 2, 3], x[0, 0, 0, -1] = np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        want = definitions(case, x, weight, bias, gy)[0]
    y, _, gw = three_passes(device, case, x, weight, bias, gy)
    assert_equal(devices.to_numpy(y), want)
    assert np.isnan(devices.to_numpy(gw)).any()
    activated = devices.to_numpy(three_passes(device, case, x, weight, bias, gy, relu=True)[0])
    assert_equal(activated, np.where(np.isnan(want), want, np.maximum(want, 0)))
    gy[0, 0, 1, 1] = np.nan
    gx = devices.to_numpy(three_passes(device, case, x, weight, bias, gy)[1])
    assert_equal(np.isnan(gx), np.isnan(definitions(case, x, weight, bias, gy)[1]))


@paths
def test_zeros_have_no_sign(case, device):
    x, weight, _, gy = data(case)
    for got in three_passes(device, case, -0.0 * x, weight, None, -0.0 * gy, relu=True):
        array = devices.to_numpy(got)
        assert_same_bits(array, np.zeros_like(array))


@paths
def test_any_strides(case, device):
    """Channels last, and every second row, give the bits of contiguous arrays."""
    x, weight, bias, gy = data(case)
    want = three_passes(device, case, x, weight, bias, gy)
    shape = shape_of(case)
    wide, last_x, last_gy = on(
        device, np.repeat(x, 2, axis=2), x.transpose(0, 2, 3, 1).copy(), gy.transpose(0, 2, 3, 1).copy()
    )
    w, b = on(device, weight, bias)
    last_x, last_gy = (a.transpose(0, 3, 1, 2) for a in (last_x, last_gy))
    got = (
        ops.conv2d_forward(last_x, w, b, shape, "direct"),
        ops.conv2d_backward_input(last_gy, w, shape, "direct"),
        ops.conv2d_backward_weight(wide[:, :, ::2], last_gy, shape, "direct"),
    )
    for one, other in zip(got, want, strict=True):
        assert_same_bits(devices.to_numpy(one), devices.to_numpy(other))


@parametrize(FAST_CASES)
def test_fast_paths(case):
    depthwise, twice = case.groups > 1, case.weight[0] > case.x[1]
    spills = (case.weight[2], case.stride) == (7, 2)
    expected = ["depthwise", "general" if twice else "depthwise", "general" if spills else "depthwise"]
    chosen = [conv_direct.path(operation, shape_of(case)) for operation in PASSES]
    assert chosen == (expected if depthwise else ["first_layer", "general", "general"])


@parametrize(
    {
        "other_padding": ConvCase((1, 2, 9, 9), (2, 1, 3, 3), groups=2),
        "dilated": ConvCase((1, 2, 9, 9), (2, 1, 3, 3), padding=1, dilation=2, groups=2),
        "stride3": ConvCase((1, 2, 9, 9), (2, 1, 3, 3), stride=3, padding=1, groups=2),
        "rectangular": ConvCase((1, 2, 9, 9), (2, 1, 3, 1), padding=(1, 0), groups=2),
        "narrow_image": ConvCase((8, 3, 28, 28), (64, 3, 5, 5)),
        "few_filters": ConvCase((8, 3, 64, 64), (20, 3, 3, 3), padding=1),
        "five_channels": ConvCase((8, 5, 64, 64), (64, 5, 3, 3), padding=1),
    }
)
def test_general_path(case):
    assert all(conv_direct.path(operation, shape_of(case)) == "general" for operation in PASSES)


@pytest.mark.parametrize(
    ("case", "wins"),
    [
        (ConvCase((8, 64, 56, 56), (64, 1, 3, 3), padding=1, groups=64), (True, True, True)),
        (ConvCase((8, 3, 224, 224), (64, 3, 3, 3), padding=1), (True, False, True)),
        (ConvCase((8, 3, 224, 224), (64, 3, 11, 11), stride=4, padding=2), (True, False, True)),
        (ConvCase((8, 128, 56, 56), (128, 4, 3, 3), padding=1, groups=32), (True, True, True)),
        (ConvCase((8, 64, 56, 56), (64, 64, 3, 3), padding=1), (False, False, False)),
        (ConvCase((8, 64, 56, 56), (64, 32, 3, 3), padding=1, groups=2), (False, False, False)),
    ],
)
def test_choice(case, wins):
    assert tuple(ops.choose(operation, shape_of(case), "cuda:0") == "direct" for operation in PASSES) == wins


def test_workspace():
    small, first = shape_of(CONV_CASES["vgg"]), shape_of(ConvCase((64, 3, 224, 224), (64, 3, 3, 3), padding=1))
    float32 = np.dtype(np.float32)
    assert conv_direct.backward_weight_split(first).ranges == 1004
    assert conv_direct.backward_weight_workspace(first, float32) == 1004 * 1728 * 4
    assert conv_direct.backward_weight_workspace(shape_of(CONV_CASES["pointwise"]), float32) == 0
    assert conv_direct.forward_workspace(small, float32) == conv_direct.backward_input_workspace(small, float32) == 0
    for limit in (100 * 1728 * 4, 2 * 1728 * 4, 1728 * 4, 0):
        ranges = conv_direct.backward_weight_split(first, limit).ranges
        assert conv_direct.backward_weight_workspace(first, float32, limit) <= limit
        assert ranges > limit // (1728 * 4) // 2


def test_what_is_not_supported():
    shape = shape_of(CONV_CASES["vgg"])
    assert "float32, not float64" in str(conv_direct.supports(shape, np.dtype(np.float64), "sim"))
    assert "cpu" in str(conv_direct.supports(shape, np.dtype(np.float32), "cpu"))
    large = shape._replace(C=1 << 10, H=1 << 11, W=1 << 10)
    assert conv_direct.supports(large, np.dtype(np.float32), "sim") == "an image of x passes 2^31 elements"


def test_flops_are_the_formula(device):
    if device != "sim":
        pytest.skip("the simulator counts")
    for name, rows, columns in (("depthwise3", 16, 24), ("depthwise7", 12, 12)):  # strips and quads, tails included
        case = FAST_CASES[name]
        shape, (x, weight) = shape_of(case), on(device, *data(case)[:2])
        with simulator.profiling() as found:
            ops.conv2d_forward(x, weight, None, shape, "direct")
        assert found[0][1].flops == 2 * shape.N * shape.K * rows * columns * shape.R * shape.S
