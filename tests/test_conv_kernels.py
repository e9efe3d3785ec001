"""Convolutions on kernels: every algorithm and pass exact on integers, bounded on real data, sound.

References are the CPU's direct loops, float64 definitions, and the adjoint identity, which needs none.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference
from check import assert_close, assert_equal, assert_relative_l2, assert_same_bits, check_adjoint, sum_bound
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_check import on
from shapes import CONV_CASES, ConvCase, parametrize

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.ops import conv_im2col, conv_implicit_gemm

ALGORITHMS = ("implicit_gemm", "im2col")
algorithms = pytest.mark.parametrize("algorithm", ALGORITHMS)
TILED = {
    "two_tiles_of_filters": ConvCase((2, 5, 9, 8), (130, 5, 3, 3), padding=1),
    "two_tiles_of_columns": ConvCase((3, 15, 8, 8), (3, 15, 3, 3), padding=1),
    "chunks_of_terms": ConvCase((1, 130, 6, 6), (5, 130, 3, 3), padding=1),
    "chunks_of_pixels": ConvCase((3, 3, 23, 21), (4, 3, 3, 3), stride=2, padding=2, dilation=2),
    "two_taps_a_tile": ConvCase((2, 64, 6, 7), (5, 64, 3, 2), padding=1),
    "left_over_channels": ConvCase((2, 40, 7, 6), (38, 20, 3, 3), stride=2, padding=1, groups=2),
    "one_group_a_tile": ConvCase((2, 12, 9, 7), (6, 4, 3, 2), stride=(2, 3), padding=1, groups=3),
}


def integer_arrays(case):
    """x, weight, bias, gy; sums of up to 10^6 products of them are exact in float32."""
    shape = ops.conv_shape(case.x, case.weight, **case.options)
    gy = np.random.default_rng(3).integers(-4, 5, shape.y).astype(np.float32)
    return *case.arrays(np.float32, "integers"), gy, shape


def passes(x, weight, bias, gy, shape, algorithm):
    """(y, gx, gw, gb)"""
    return (
        ops.conv2d_forward(x, weight, bias, shape, algorithm),
        ops.conv2d_backward_input(gy, weight, shape, algorithm),
        ops.conv2d_backward_weight(x, gy, shape, algorithm),
        ops.conv2d_backward_bias(gy),
    )


def assert_exact(case, algorithm, device):
    *arrays, shape = integer_arrays(case)
    got = passes(*on(device, *arrays), shape, algorithm)
    for result, want in zip(got, passes(*arrays, shape, "direct"), strict=True):
        assert devices.of(result).startswith(device.split(":")[0]) and result.flags.c_contiguous
        assert_equal(devices.to_numpy(result), want)


@algorithms
@parametrize(CONV_CASES | TILED)
def test_exact_on_integers(case, algorithm, device):
    assert_exact(case, algorithm, device)


@pytest.mark.parametrize("tile", conv_implicit_gemm.TILES, ids=lambda tile: tile.name)
@pytest.mark.parametrize("splits", [1, 3])
@parametrize(TILED)
def test_every_tile_and_split_is_exact(case, tile, splits, device, monkeypatch):
    monkeypatch.setattr(conv_implicit_gemm, "choose_tile", lambda *arguments: (tile, splits))
    assert_exact(case, "implicit_gemm", device)


@algorithms
@given(data=st.data())
@settings(max_examples=40)
def test_any_shape_is_exact(algorithm, device, data):
    draw = data.draw
    groups, channels, filters = (draw(st.integers(1, 3), label=name) for name in ("groups", "channels", "filters"))
    size = tuple(draw(st.integers(1, 17), label=name) for name in "HW")
    kernel = tuple(draw(st.integers(1, 7), label=name) for name in "RS")
    stride, dilation = (tuple(draw(st.integers(1, 3)) for _ in "hw") for _ in range(2))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    assume(all(n + 2 * p >= d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    x = (draw(st.sampled_from([0, 1, 2, 5])), groups * channels, *size)
    assert_exact(
        ConvCase(x, (groups * filters, channels, *kernel), stride, padding, dilation, groups), algorithm, device
    )


def layouts(array):
    """The same values channels-last, as part of a larger array, with flipped rows, and transposed."""
    padded = np.zeros((array.shape[0], array.shape[1] + 1, array.shape[2] + 2, 2 * array.shape[3]), array.dtype)
    padded[:, 1:, 1:-1, ::2] = array
    return {
        "channels_last": (np.ascontiguousarray(array.transpose(0, 2, 3, 1)), lambda a: a.transpose(0, 3, 1, 2)),
        "part": (padded, lambda a: a[:, 1:, 1:-1, ::2]),
        "flipped": (np.ascontiguousarray(array[:, :, ::-1]), lambda a: a[:, :, ::-1]),
        "transposed": (np.ascontiguousarray(array.swapaxes(2, 3)), lambda a: a.swapaxes(2, 3)),
    }


@algorithms
@pytest.mark.parametrize("layout", ["channels_last", "part", "flipped", "transposed"])
def test_any_layout_gives_the_same_bits(layout, algorithm, device, rng):
    case = ConvCase((2, 6, 9, 8), (4, 3, 3, 2), stride=(1, 2), padding=1, groups=2)
    shape = ops.conv_shape(case.x, case.weight, **case.options)
    x, weight, bias = case.arrays(np.float32)
    gy = rng.standard_normal(shape.y).astype(np.float32)
    want = passes(*on(device, x, weight, bias, gy), shape, algorithm)
    views = [view(on(device, memory)[0]) for memory, view in (layouts(x)[layout], layouts(gy)[layout])]
    got = passes(views[0], *on(device, weight, bias), views[1], shape, algorithm)
    for one, other in zip(got, want, strict=True):
        assert_same_bits(devices.to_numpy(one), devices.to_numpy(other))


def test_gradients_that_are_one_number_are_read_without_a_copy(device):
    case = ConvCase((2, 3, 6, 5), (4, 3, 3, 3), padding=1)
    x, weight, bias, _, shape = integer_arrays(case)
    ones = np.ones(shape.y, np.float32)
    broadcast = np.broadcast_to(on(device, np.ones((1, 1, 1, 1), np.float32))[0], shape.y)
    for got, want in zip(
        passes(*on(device, x, weight, bias), broadcast, shape, "implicit_gemm"),
        passes(x, weight, bias, ones, shape, "direct"),
        strict=True,
    ):
        assert_equal(devices.to_numpy(got), want)


KINDS = {
    "normal": lambda a: a,
    "relu": lambda a: np.maximum(a, 0),
    "large": lambda a: a * np.float32(1e4),
    "tiny": lambda a: a * np.float32(1e-22),
}


@algorithms
@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_bounded(kind, algorithm, device, rng):
    case = ConvCase((2, 40, 12, 11), (24, 20, 3, 3), stride=(1, 2), padding=1, groups=2)
    shape = ops.conv_shape(case.x, case.weight, **case.options)
    x, weight, bias = case.arrays(np.float32)
    x, gy = KINDS[kind](x), rng.standard_normal(shape.y).astype(np.float32)
    got = passes(*on(device, x, weight, bias, gy), shape, algorithm)

    def definition(x, weight, bias, gy):
        return (
            reference.conv2d(x, weight, bias, **case.options),
            reference.conv2d_backward_input(gy, weight, case.x, **case.options),
            reference.conv2d_backward_weight(x, gy, case.weight, **case.options),
            gy.astype(np.float64).sum((0, 2, 3)),
        )

    terms = (20 * 9 + 1, 12 * 9, 2 * shape.P * shape.Q, 2 * shape.P * shape.Q)
    wanted, magnitudes = definition(x, weight, bias, gy), definition(*map(np.abs, (x, weight, bias, gy)))
    for result, want, magnitude, count in zip(got, wanted, magnitudes, terms, strict=True):
        smallest = count * 2.0**-149  # of a product that is not normal
        assert_close(devices.to_numpy(result), want, sum_bound(count, magnitude, np.float32) + smallest)
        if kind != "tiny":
            assert_relative_l2(devices.to_numpy(result), want, 2e-6)


@algorithms
@pytest.mark.parametrize("splits", [1, None], ids=["one_split", "chosen"])
def test_long_sums_of_the_weight_gradient(algorithm, splits, device, rng, monkeypatch):
    """1e5 terms: a plain loop in float32 is off by 6e-6."""
    if splits:
        tile = conv_implicit_gemm.TILES[1]
        monkeypatch.setattr(conv_implicit_gemm, "choose_tile", lambda *arguments: (tile, splits))
    shape = ops.conv_shape((8, 1, 112, 112), (2, 1, 2, 2), padding=1)
    x, gy = (rng.standard_normal(size).astype(np.float32) for size in (shape.x, shape.y))
    assert gy.size / 2 > 1e5
    want = reference.conv2d_backward_weight(x, gy, shape.weight, padding=1)
    # |gw| is far smaller than its terms, so errors are compared with a sum of ones against them.
    ones, scale = np.abs(gy), np.abs(x)
    got = ops.conv2d_backward_weight(*on(device, scale, ones), shape, algorithm)
    assert_relative_l2(
        devices.to_numpy(got), reference.conv2d_backward_weight(scale, ones, shape.weight, padding=1), 1e-6
    )
    assert_relative_l2(devices.to_numpy(ops.conv2d_backward_weight(*on(device, x, gy), shape, algorithm)), want, 2e-6)
    assert_relative_l2(
        devices.to_numpy(ops.conv2d_backward_bias(on(device, ones)[0])), ones.sum((0, 2, 3), np.float64), 1e-6
    )


@algorithms
def test_passes_are_adjoint(algorithm, device, rng):
    case = ConvCase((3, 8, 10, 9), (6, 4, 3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2)
    shape = ops.conv_shape(case.x, case.weight, **case.options)
    x, weight, _ = case.arrays(np.float32)
    gy = rng.standard_normal(shape.y).astype(np.float32)
    y, gx, gw, _ = passes(*on(device, x, weight, None, gy), shape, algorithm)
    y, gx, gw = (devices.to_numpy(a).astype(np.float64) for a in (y, gx, gw))
    check_adjoint(y, gy, [(x, gx), (weight, gw)], limit=1e-6)


@algorithms
def test_values_that_are_not_finite_reach_all_that_read_them(algorithm, device, rng):
    case = ConvCase((2, 3, 8, 9), (4, 3, 3, 3), padding=1)
    shape = ops.conv_shape(case.x, case.weight, **case.options)
    x, weight, bias = case.arrays(np.float32)
    gy = rng.standard_normal(shape.y).astype(np.float32)
    x[0, 1, 3, 4], gy[1, 2, 0, 8] = np.nan, np.inf
    got = passes(*on(device, x, weight, bias, gy), shape, algorithm)
    with np.errstate(invalid="ignore"):
        wanted = passes(x, weight, bias, gy, shape, "direct")
    for result, want in zip(got, wanted, strict=True):
        spoilt = ~np.isfinite(devices.to_numpy(result))
        assert not spoilt.all() and (spoilt | np.isfinite(want)).all()
    assert_equal(np.isfinite(devices.to_numpy(got[0])), np.isfinite(wanted[0]))


@algorithms
def test_relu_in_the_same_pass(algorithm, device):
    for case in (CONV_CASES["vgg"], CONV_CASES["groups"], TILED["chunks_of_terms"]):
        x, weight, bias, _, shape = integer_arrays(case)
        x[0, 0, 0, 0] = np.nan
        want = np.maximum(ops.conv2d_forward(x, weight, bias, shape, "direct"), 0)
        got = ops.conv2d_forward(*on(device, x, weight, bias), shape, algorithm, relu=True)
        assert_equal(devices.to_numpy(got), want)
        assert_equal(ops.conv2d_forward(x, weight, bias, shape, "direct", relu=True), want)


def test_im2col_in_chunks_of_images(device, monkeypatch):
    monkeypatch.setattr(conv_im2col, "CHUNK_BYTES", 2 * 3 * 9 * 48 * 4 + 300)
    monkeypatch.setattr(conv_im2col, "CHUNK_TERMS", 13)
    assert_exact(ConvCase((5, 3, 8, 6), (4, 3, 3, 3), padding=1), "im2col", device)
