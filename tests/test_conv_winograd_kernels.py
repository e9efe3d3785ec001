"""Winograd's F(2×2,3×3) where kernels run: exact on integers, bounded on real data, sound, and within its budgets.

Its factors are halves, so small integers are transformed, multiplied and summed without rounding.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gpucnn import UnsupportedAlgorithm, ops
from gpucnn import device as devices
from gpucnn.launch import simulator
from gpucnn.ops import conv_winograd
from gpucnn.ops.shapes import conv_shape
from tests import reference
from tests.check import UNIT_ROUNDOFF, assert_equal, assert_relative_l2, assert_same_bits, check_adjoint
from tests.kernel_check import SCHEDULES, assert_sound, assert_two_runs_equal, on
from tests.shapes import CONV_CASES, ConvCase, parametrize

FLOAT = np.dtype(np.float32)
PASSES = "conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight"


def shape_of(case: ConvCase):
    return conv_shape(case.x, case.weight, **case.options)


CASES = {
    **{name: case for name, case in CONV_CASES.items() if conv_winograd.supports(shape_of(case), FLOAT, "sim") is None},
    "one_pixel": ConvCase((1, 1, 1, 1), (1, 1, 3, 3), padding=1),
    "padding_beyond_the_filter": ConvCase((2, 3, 3, 2), (4, 3, 3, 3), padding=(4, 3)),  # gy is cropped
    "no_padding": ConvCase((2, 3, 6, 9), (4, 3, 3, 3)),
    "two_blocks_of_everything": ConvCase((3, 33, 9, 11), (65, 33, 3, 3), padding=1),
    "whole_blocks": ConvCase((1, 32, 16, 8), (64, 32, 3, 3), padding=1),
    "many_steps": ConvCase((1, 43, 5, 4), (3, 43, 3, 3), padding=1),
    "thin": ConvCase((2, 5, 1, 37), (3, 5, 3, 3), padding=1),
    "two_groups": ConvCase((2, 10, 7, 6), (14, 5, 3, 3), padding=1, groups=2),
    "chunks_of_channels": ConvCase((1, 521, 3, 4), (7, 521, 3, 3), padding=1),
    "chunks_of_tiles": ConvCase((2, 3, 47, 46), (5, 3, 3, 3), padding=1),
}


@pytest.fixture(params=[96, 48], ids=["96KB", "48KB"])
def form(request, monkeypatch):
    """Both forms of the kernels, whatever the device allows: terms at a step."""
    monkeypatch.setattr(conv_winograd, "shared_limit", lambda array: request.param << 10)
    return request.param // 12


def data(case: ConvCase, kind: str = "normal") -> tuple[np.ndarray, ...]:
    """x, weight, bias and gy."""
    rng, shape = np.random.default_rng(3), shape_of(case).y
    gy = rng.integers(-4, 5, shape) if kind == "integers" else rng.standard_normal(shape)
    return *case.arrays(np.float32, kind), gy.astype(np.float32)


def three_passes(device, case, x, weight, bias, gy, relu=False):
    """(y, gx, gw) by the algorithm "winograd", on the device."""
    shape = shape_of(case)
    x, weight, bias, gy = on(device, x, weight, bias, gy)
    return (
        ops.conv2d_forward(x, weight, bias, shape, "winograd", relu=relu),
        ops.conv2d_backward_input(gy, weight, shape, "winograd"),
        ops.conv2d_backward_weight(x, gy, shape, "winograd"),
    )


def definitions(case, x, weight, bias, gy):
    return (
        reference.conv2d(x, weight, bias, **case.options),
        reference.conv2d_backward_input(gy, weight, case.x, **case.options),
        reference.conv2d_backward_weight(x, gy, case.weight, **case.options),
    )


def assert_exact(case, device):
    inputs = data(case, "integers")
    for got, want in zip(three_passes(device, case, *inputs), definitions(case, *inputs), strict=True):
        assert got.dtype == np.float32 and devices.of(got).startswith(device)
        assert_equal(devices.to_numpy(got), want)


@parametrize(CASES)
def test_exact_on_integers(case, form, device):
    assert_exact(case, device)


@given(
    N=st.integers(0, 3), size=st.tuples(st.integers(1, 13), st.integers(1, 13)), C=st.integers(1, 11),
    K=st.integers(1, 9), groups=st.sampled_from([1, 1, 1, 2]), padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    memory=st.sampled_from([96, 48]),
)  # fmt: skip
@example(N=1, size=(2, 2), C=1, K=67, groups=1, padding=(1, 1), memory=96)
@example(N=2, size=(3, 70), C=37, K=1, groups=1, padding=(0, 2), memory=48)
@settings(max_examples=40)
def test_any_shape_is_exact(device, N, size, C, K, groups, padding, memory):
    assume(all(n + 2 * p >= 3 for n, p in zip(size, padding, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_winograd, "shared_limit", lambda array: memory << 10)
        assert_exact(ConvCase((N, groups * C, *size), (groups * K, C, 3, 3), padding=padding, groups=groups), device)


def test_small_shared_memory_takes_the_small_form(device):
    if device != "sim":
        pytest.skip("a GPU has the memory that it has")
    used = {}
    for architecture in simulator.SHARED_LIMITS:
        with simulator.configured(architecture=architecture):
            assert_exact(CASES["no_padding"], device)
            used[architecture] = conv_winograd.stage(on(device, np.zeros(1, FLOAT))[0])
    assert used.pop("sm_75") == (4, 48 << 10) and set(used.values()) == {(8, 96 << 10)}


def error_units(got, want, magnitude):
    """The largest error in units of u · Σ|x||w|."""
    return float((np.abs(got - want) / (UNIT_ROUNDOFF[FLOAT] * magnitude)).max())


@pytest.mark.parametrize("kind", ["normal", "relu"])
@parametrize(
    {
        "256_channels": ConvCase((1, 256, 8, 8), (32, 256, 3, 3), padding=1),
        "3_channels": ConvCase((2, 3, 17, 16), (64, 3, 3, 3), padding=1),
        "2048_channels": ConvCase((1, 2048, 4, 4), (4, 2048, 3, 3), padding=1),
        "2048_filters": ConvCase((1, 4, 4, 4), (2048, 4, 3, 3), padding=1),
    }
)
def test_errors_are_bounded(case, kind, device):
    """Of few terms, those of one output may be far smaller than what its tile is computed from: their errors are not
    compared with them."""
    x, weight, bias, gy = data(case)
    terms = case.x[1], case.weight[0], gy[:, 0].size // 4
    x = np.maximum(x, 0) if kind == "relu" else x
    results = map(devices.to_numpy, three_passes(device, case, x, weight, bias, gy))
    wanted, sizes = (
        definitions(case, *arrays) for arrays in ((x, weight, bias, gy), map(np.abs, (x, weight, bias, gy)))
    )
    for operation, got, want, size, count in zip(PASSES, results, wanted, sizes, terms, strict=True):
        assert_relative_l2(got, want, 1e-6)
        assert count < 256 or error_units(got, want, size) <= 8, operation


@pytest.mark.parametrize("factor", [1e4, 1e-15])
def test_errors_scale(factor, device):
    case = ConvCase((2, 20, 9, 8), (24, 20, 3, 3), padding=1)
    x, weight, _, gy = data(case)
    inputs = x * np.float32(factor), weight, None, gy * np.float32(factor)
    for got, want in zip(three_passes(device, case, *inputs), definitions(case, *inputs), strict=True):
        assert_relative_l2(devices.to_numpy(got), want, 1e-6)


@pytest.mark.parametrize("parts", [1, None], ids=["one_part", "chosen"])
def test_long_sums_of_the_weight_gradient(parts, device, monkeypatch):
    """1e5 terms: one chain of float32 sums is off by more."""
    if parts:
        monkeypatch.setattr(conv_winograd, "multiprocessors", lambda: 1)
    case = ConvCase((8, 1, 112, 112), (2, 1, 3, 3), padding=1)
    shape = shape_of(case)
    assert (conv_winograd.backward_weight_split(shape).parts == 1) == (parts == 1)
    x, _, _, gy = data(case)
    for first, second, limit in ((x, gy, 2e-6), (np.abs(x), np.abs(gy), 1e-6)):
        got = ops.conv2d_backward_weight(*on(device, first, second), shape, "winograd")
        assert_relative_l2(
            devices.to_numpy(got), reference.conv2d_backward_weight(first, second, shape.weight, padding=1), limit
        )


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_every_split_is_exact(parts, device, monkeypatch):
    case = CASES["chunks_of_tiles"]
    tiles = -(-(2 * 24 * 23) // (8 * parts)) * 8
    monkeypatch.setattr(
        conv_winograd, "backward_weight_split", lambda shape, limit=None: conv_winograd.Split(parts, tiles)
    )
    assert_exact(case, device)


def test_workspace():
    shape = shape_of(ConvCase((16, 64, 56, 56), (128, 64, 3, 3), padding=1))
    transformed = 128 * 64 * 16 * 4
    assert conv_winograd.forward_workspace(shape, FLOAT) == transformed
    assert conv_winograd.backward_input_workspace(shape, FLOAT) == transformed
    plane = 128 * 64 * 9 * 4
    whole = conv_winograd.backward_weight_workspace(shape, FLOAT)
    assert whole == plane * conv_winograd.backward_weight_split(shape).parts > 8 * plane
    assert conv_winograd.backward_weight_workspace(shape, FLOAT, 5 * plane + 1) <= 5 * plane
    assert conv_winograd.backward_weight_workspace(shape, FLOAT, plane) == 0
    for limit in (None, 0, plane, 3 * plane, 1 << 40):
        parts, tiles = conv_winograd.backward_weight_split(shape, limit)
        assert (parts - 1) * tiles < 16 * 28 * 28 <= parts * tiles and tiles % 8 == 0


def test_a_limit_of_workspace_gives_the_same_sums(device):
    case = CASES["chunks_of_tiles"]
    shape, (x, _, _, gy) = shape_of(case), data(case, "integers")
    gw = on(device, np.zeros(shape.weight, FLOAT))[0]
    conv_winograd.backward_weight(*on(device, x, gy), gw, shape, workspace_limit=0)
    assert_equal(devices.to_numpy(gw), reference.conv2d_backward_weight(x, gy, shape.weight, **case.options))


@parametrize({name: CASES[name] for name in ("vgg", "two_groups", "padding_beyond_the_filter", "many_steps")})
def test_adjoint_and_schedules(case, form, device):
    x, weight, _, gy = data(case)
    assert_two_runs_equal(lambda: three_passes(device, case, x, weight, None, gy), device)
    y, gx, gw = (devices.to_numpy(a).astype(np.float64) for a in three_passes(device, case, x, weight, None, gy))
    check_adjoint(y, gy.astype(np.float64), [(x, gx), (weight, gw)], limit=1e-6)


@parametrize(
    {
        "five_steps": ConvCase((2, 40, 9, 7), (3, 40, 3, 3), padding=1),
        "two_blocks": ConvCase((1, 3, 2, 3), (66, 3, 3, 3), padding=1),
        "groups": ConvCase((1, 6, 4, 5), (4, 3, 3, 3), padding=(0, 3), groups=2),
    }
)
def test_sound(case, form, device):
    inputs = data(case)
    assert_sound(lambda: three_passes(device, case, *inputs, relu=True), device)


def test_chunks_have_no_races(device):
    """Results lie where stages of the chunk before and after them do."""
    channels, tiles = (
        conv_shape((1, 513, 1, 1), (1, 513, 3, 3), padding=1),
        conv_shape((1, 1, 1, 1026), (1, 1, 3, 3), padding=1),
    )
    rng = np.random.default_rng(1)
    x, weight, wide, gy = (
        rng.integers(-4, 5, size).astype(FLOAT) for size in (channels.x, channels.weight, tiles.x, tiles.y)
    )
    with simulator.configured(mode="race", **SCHEDULES[1]):
        y = ops.conv2d_forward(*on(device, x, weight), None, channels, "winograd")
        gw = ops.conv2d_backward_weight(*on(device, wide, gy), tiles, "winograd")
    assert_equal(devices.to_numpy(y), reference.conv2d(x, weight, None, padding=1))
    assert_equal(devices.to_numpy(gw), reference.conv2d_backward_weight(wide, gy, tiles.weight, padding=1))


@parametrize({name: CASES[name] for name in ("vgg", "two_groups", "chunks_of_channels")})
def test_bias_and_relu(case, device):
    inputs = data(case, "integers")
    x, weight, bias, gy = inputs
    want = definitions(case, *inputs)[0]
    assert_equal(devices.to_numpy(three_passes(device, case, *inputs, relu=True)[0]), np.maximum(want, 0))
    y = three_passes(device, case, x, weight, None, gy, relu=True)[0]
    assert_equal(devices.to_numpy(y), np.maximum(definitions(case, x, weight, None, gy)[0], 0))


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


@pytest.mark.parametrize("layout", ["channels_last", "part", "flipped", "transposed"])
def test_any_layout_gives_the_same_bits(layout, form, device):
    case = ConvCase((2, 13, 9, 8), (70, 13, 3, 3), padding=1)
    x, weight, bias, gy = data(case)
    want = three_passes(device, case, x, weight, bias, gy)
    views = [view(on(device, memory)[0]) for memory, view in (layouts(a)[layout] for a in (x, gy))]
    shape, (weight, bias) = shape_of(case), on(device, weight, bias)
    got = (
        ops.conv2d_forward(views[0], weight, bias, shape, "winograd"),
        ops.conv2d_backward_input(views[1], weight, shape, "winograd"),
        ops.conv2d_backward_weight(*views, shape, "winograd"),
    )
    for one, other in zip(got, want, strict=True):
        assert_same_bits(devices.to_numpy(one), devices.to_numpy(other))


def test_one_number_as_gradient_is_read_without_a_copy(device):
    case = CASES["vgg"]
    x, weight, bias, gy = data(case, "integers")
    shape, ones = shape_of(case), np.ones_like(gy)
    broadcast = np.broadcast_to(on(device, np.ones((1, 1, 1, 1), FLOAT))[0], shape.y)
    x, weight = on(device, x, weight)
    _, gx, gw = definitions(case, *map(devices.to_numpy, (x, weight)), bias, ones)
    assert_equal(devices.to_numpy(ops.conv2d_backward_input(broadcast, weight, shape, "winograd")), gx)
    assert_equal(devices.to_numpy(ops.conv2d_backward_weight(x, broadcast, shape, "winograd")), gw)


def test_values_that_are_not_finite_reach_all_that_read_them(device):
    """And beyond them only their tiles."""
    case = ConvCase((2, 3, 8, 9), (4, 3, 3, 3), padding=1)
    x, weight, bias, gy = data(case)
    x[0, 1, 3, 4], gy[1, 2, 0, 8] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        wanted = definitions(case, x, weight, bias, gy)
    results = [devices.to_numpy(a) for a in three_passes(device, case, x, weight, bias, gy)]
    for got, want in zip(results, wanted, strict=True):
        assert (~np.isfinite(got) | np.isfinite(want)).all()
    y, gx, gw = (~np.isfinite(result) for result in results)
    assert not y[1].any() and not y[0, :, :2].any() and not y[0, :, 6:].any()
    assert not gx[0].any() and not gx[1, :, 2:].any()
    assert not gw[[0, 1, 3]][:, [0, 2]].any()


def test_relu_keeps_nan_and_zeros_have_no_sign(device):
    case = CASES["vgg"]
    x, weight, bias, gy = data(case)
    x[0, 0, 4, 4] = np.nan
    y = devices.to_numpy(three_passes(device, case, x, weight, bias, gy, relu=True)[0])
    assert np.isnan(y[0, :, 3:6, 3:6]).all() and not np.isnan(y[1]).any()
    for got in three_passes(device, case, -0.0 * data(case)[0], weight, None, -0.0 * gy, relu=True):
        assert_same_bits(devices.to_numpy(got), np.zeros(got.shape, FLOAT))


@pytest.mark.parametrize(
    ("weight", "options", "reason"),
    [
        ((4, 3, 5, 5), {}, r"it needs 3x3 kernels, not \(5, 5\)"),
        ((4, 3, 3, 3), {"stride": 2}, r"it needs stride 1, not \(2, 2\)"),
        ((4, 3, 3, 3), {"dilation": (1, 2)}, r"it needs dilation 1, not \(1, 2\)"),
    ],
)
def test_refusals(weight, options, reason, device):
    shape = conv_shape((2, 3, 8, 8), weight, **options)
    x, weight = on(device, np.zeros(shape.x, FLOAT), np.zeros(shape.weight, FLOAT))
    with pytest.raises(UnsupportedAlgorithm, match=reason):
        ops.conv2d_forward(x, weight, None, shape, "winograd")


def test_more_tiles_than_31_bits_count_are_refused():
    shape = conv_shape((2**13, 1, 2**10, 2**10), (1, 1, 3, 3), padding=1)
    for device in ("sim", "cuda"):
        assert (
            conv_winograd.supports(shape, FLOAT, device) == "it counts tiles of 2x2 pixels in 31 bits: split the batch"
        )
    assert conv_winograd.supports(shape._replace(N=2**12), FLOAT, "sim") is None
    assert "float32, not float64" in (conv_winograd.supports(shape, np.dtype(np.float64), "sim") or "")


def traffic(profile):
    """{(space, "read" or "write", bytes a lane): counts}, counts of whole and partial requests together."""
    totals: dict[tuple[str, str, int], Counter[str]] = {}
    for counts in profile.lines.values():
        size = -(-counts.bytes // (32 * counts.requests))
        total = totals.setdefault((counts.space, "write" if counts.writes else "read", size), Counter())
        total.update(requests=counts.requests, bytes=counts.bytes, units=counts.units)
    return totals


def bytes_of(profile, space, writes):
    return sum(c.bytes for c in profile.lines.values() if c.space == space and c.writes == writes)


def inside(tiles, size, padding):
    """Pixels along an axis that tiles of 4, 2 apart, read inside an image."""
    return sum(0 <= 2 * tile - padding + i < size for tile in range(tiles) for i in range(4))


def simulated(device, run):
    """The profiles of the launches of `run`, by kernel."""
    if device != "sim":
        pytest.skip("the simulator counts")
    with simulator.profiling() as launches:
        run()
    return dict(launches)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("pass_", ["forward", "backward_input"])
def test_memory_traffic(pass_, layout, form, device):
    """64 filters × 32 tiles a block; nothing but y is written, and no bank has to wait."""
    case = ConvCase((1, 24, 4, 64), (72, 24, 3, 3), padding=1)
    shape = shape_of(case)
    x, weight, bias, gy = data(case)
    source, weight, bias = on(device, x if pass_ == "forward" else gy, weight, bias)
    if layout == "NHWC":
        source = devices.contiguous(source.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    run = {
        "forward": lambda: ops.conv2d_forward(source, weight, bias, shape, "winograd"),
        "backward_input": lambda: ops.conv2d_backward_input(source, weight, shape, "winograd"),
    }[pass_]
    profiles = simulated(device, run)
    filters, channels = (72, 24) if pass_ == "forward" else (24, 72)
    filter_blocks, tile_blocks, steps = -(-filters // 64), 2, channels // form
    transform = profiles.pop("winograd_filters" if pass_ == "forward" else "winograd_filters_rotated")
    assert bytes_of(transform, "global", True) == filter_blocks * 64 * channels * 16 * 4
    assert bytes_of(transform, "global", False) == weight.nbytes
    (kernel,) = profiles.values()
    assert kernel.flops == filter_blocks * tile_blocks * 2 * 16 * 64 * 32 * channels
    assert kernel.barriers == filter_blocks * tile_blocks * (steps + 1 + 7)
    assert bytes_of(kernel, "global", True) == 4 * filters * 4 * 64
    counts = traffic(kernel)
    assert counts["global", "write", 8]["units"] == 8 * counts["global", "write", 8]["requests"]
    bias_bytes = 4 * filters * 32 if pass_ == "forward" else 0  # a lane for each tile
    images = filter_blocks * tile_blocks * channels * 16 * 64 * 4
    pixels = filter_blocks * channels * inside(2, 4, 1) * inside(32, 64, 1) * 4
    assert bytes_of(kernel, "global", False) == images + pixels + tile_blocks * bias_bytes
    assert counts["shared", "read", 16]["units"] == 2 * counts["shared", "read", 16]["requests"]
    assert counts["shared", "read", 4]["units"] == counts["shared", "read", 4]["requests"]
    assert counts["shared", "write", 4]["units"] == counts["shared", "write", 4]["requests"]
    assert counts["shared", "write", 16]["units"] == 4 * counts["shared", "write", 16]["requests"]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_memory_traffic_of_the_weight_gradient(layout, form, device, monkeypatch):
    case = ConvCase((2, 40, 8, 16), (72, 40, 3, 3), padding=1)
    shape, (x, _, _, gy) = shape_of(case), data(case)
    x, gy = on(device, x, gy)
    if layout == "NHWC":
        x, gy = (devices.contiguous(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in (x, gy))
    monkeypatch.setattr(conv_winograd, "backward_weight_split", lambda shape, limit=None: conv_winograd.Split(2, 32))
    profiles = simulated(device, lambda: ops.conv2d_backward_weight(x, gy, shape, "winograd"))
    kernel = profiles[f"winograd_backward_weight_64x32x{form}"]
    blocks, tiles = 2 * 2, 2 * 4 * 8
    assert kernel.flops == blocks * 2 * 16 * 64 * 32 * tiles
    assert kernel.barriers == 2 * blocks * (32 // form + 1 + 7 + 1)
    assert bytes_of(kernel, "global", True) == 2 * 72 * 40 * 9 * 4
    pixels = 2 * 2 * 40 * inside(4, 8, 1) * inside(8, 16, 1) * 4
    assert bytes_of(kernel, "global", False) == pixels + 2 * gy.nbytes
    assert bytes_of(profiles["gemm_add_splits"], "global", False) == 2 * 72 * 40 * 9 * 4
    counts = traffic(kernel)
    assert counts["shared", "read", 16]["units"] == 2 * counts["shared", "read", 16]["requests"]
    assert counts["shared", "read", 4]["units"] == counts["shared", "read", 4]["requests"]
    assert counts["shared", "write", 4]["units"] == counts["shared", "write", 4]["requests"]
    assert counts["shared", "write", 16]["units"] == 4 * counts["shared", "write", 16]["requests"]
