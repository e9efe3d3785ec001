"""Convolutions on Hopper's tensor cores: exact on small integers for all windows, sizes and types; soundness."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from check import assert_close, assert_equal, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import SCHEDULES, on

from gpucnn import device as devices
from gpucnn.launch import simulator
from gpucnn.ops import conv, conv_half, conv_hopper
from gpucnn.ops.gemm_hopper import Form
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
    masters: bool = False, splits: int | None = None,
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
        finish = conv_hopper.Finish(offset, moved, relu)
        conv_hopper.forward(read, weight, other, shape, blocks, finish, form=Form(tile, splits))
        got = other
    elif operation == "backward_input":
        want = conv.conv2d_backward_input(gy, w, shape)
        read = images(gy, kind, device)
        got = output(shape.x, kind, read)
        assert conv_hopper.takes(operation, shape, read, got)
        conv_hopper.backward_input(read, *on(device, w.astype(stored)), got, shape, blocks, form=Form(tile, splits))
    else:
        want = conv.conv2d_backward_weight(x, gy, shape)
        read, other = images(x, kind, device), images(gy, kind, device)
        got = devices.empty(shape.weight, DTYPES[out or kind], read)
        assert conv_hopper.takes(operation, shape, read, other)
        form = Form("pairs_128x128") if tile == "pairs_128x128" else Form()
        conv_hopper.backward_weight(read, other, got, shape, blocks, planes, form)
    got = devices.to_numpy(got)
    assert_equal(got, want.astype(np.float32).astype(got.dtype))
    return got


def shape_of(N, C, H, W, K, R, S, groups=1, **options) -> ConvShape:
    return conv_shape((N, C, H, W), (K, C // groups, R, S), groups=groups, **options)


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
    size=st.tuples(st.integers(1, 3), st.sampled_from([16, 32, 64, 144]), st.integers(3, 9), st.integers(3, 9)),
    filters=st.sampled_from([16, 32, 80]),
    groups=st.sampled_from([1, 2]),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    operation=st.sampled_from(PASSES),
    kind=st.sampled_from(["bfloat16", "float16"]),
)
@settings(max_examples=40)
def test_random_shapes(device, size, filters, groups, window, stride, padding, dilation, operation, kind):
    if any((k - 1) * d + 1 > n + 2 * p for k, d, n, p in zip(window, dilation, size[2:], padding, strict=True)):
        return
    N, C, H, W = size
    run(
        device,
        operation,
        shape_of(N, C, H, W, filters, *window, groups=groups, stride=stride, padding=padding, dilation=dilation),
        kind,
    )


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 4}], ids=["plain", "strided", "grouped"])
def test_errors_of_real_data(device, rng, options):
    """One rounding, and sums cut off once every slice of 16 terms; in one piece and in planes."""
    shape = shape_of(2, 128, 6, 7, 128, 3, 3, padding=1, **options)
    gy, w = (rng.standard_normal(size).astype(ml_dtypes.bfloat16) for size in (shape.y, shape.weight))
    exact, sizes = (
        conv.conv2d_backward_input(f(gy.astype(np.float64)), f(w.astype(np.float64)), shape)
        for f in (lambda x: x, np.abs)
    )
    read, weight = images(gy.astype(np.float64), "bfloat16", device), on(device, w)[0]
    for splits in (1, 2):
        gx = output(shape.x, "bfloat16", read)
        conv_hopper.backward_input(read, weight, gx, shape, 132, form=Form(splits=splits))
        terms = 9 * shape.K // shape.groups
        assert_close(devices.to_numpy(gx), exact, 2.0**-8 * abs(exact) + terms / 8 * 2.0**-23 * sizes)


STRIDED = {
    "3x3": shape_of(2, 72, 9, 11, 136, 3, 3, stride=2, padding=1),
    "1x1": shape_of(3, 16, 7, 10, 24, 1, 1, stride=2),  # three of four phases have no taps
    "7x5": shape_of(1, 8, 23, 14, 16, 7, 5, stride=(4, 3), padding=(2, 0)),
    "dilated": shape_of(2, 8, 13, 12, 16, 4, 3, stride=(4, 2), padding=(1, 2), dilation=(2, 4)),  # odd rows have none
    "border": shape_of(2, 8, 1, 9, 16, 1, 3, stride=(2, 3), padding=1),  # of one row, which no tap meets
}


@pytest.mark.parametrize("shape", STRIDED.values(), ids=STRIDED)
@pytest.mark.parametrize("tile", ["128x128", "128x256"])
def test_phases_of_strides(device, tile, shape):
    run(device, "backward_input", shape, tile=tile, blocks=3)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_sums_in_planes(device, kind):
    """The last split has fewer steps; a phase of fewer steps than splits leaves planes of zeros."""
    shape = shape_of(2, 136, 5, 6, 40, 3, 3, padding=1)
    run(device, "forward", shape, kind, splits=4, bias=True, residual=True, relu=True)
    run(device, "backward_input", shape, kind, splits=2)
    run(device, "backward_input", shape_of(2, 40, 5, 6, 72, 3, 3, stride=2, padding=1), kind, splits=3)


GROUPED = {
    "of 64": dict(size=(2, 128, 6, 7, 128, 3, 3), groups=2),
    "of more": dict(size=(2, 144, 6, 5, 272, 2, 3), groups=2),  # no whole slabs, no whole tiles
    "bundles": dict(size=(2, 96, 7, 6, 48, 3, 3), groups=6),  # of 2 groups of 16 or 3 of 8
    "of 4": dict(size=(1, 32, 7, 6, 32, 3, 2), groups=8),
}


@pytest.mark.parametrize("operation", [*PASSES, "phases"])
@pytest.mark.parametrize("options", GROUPED.values(), ids=GROUPED)
def test_groups(device, operation, options):
    stride = 2 if operation == "phases" else 1
    shape = shape_of(*options["size"], groups=options["groups"], padding=1, stride=stride)
    operation = "backward_input" if operation == "phases" else operation
    tile = "128x64" if shape.K // shape.groups <= 64 else "128x128"
    run(device, operation, shape, tile=tile, blocks=3, bias=True, residual=True, relu=True)


PAIRED = [("128x256", "forward"), ("128x256", "backward_input"), *(("128x128", operation) for operation in PASSES)]


@pytest.mark.parametrize(("tile", "operation"), PAIRED)
def test_pairs_of_blocks(device, tile, operation):
    """Three tiles of pixels or two of filters, most of the last without rows; every stage is used more than twice."""
    shape = shape_of(3, 72, 9, 10, 136, 3, 3, padding=1)
    run(device, operation, shape, tile=f"pairs_{tile}", blocks=2, bias=True, relu=True, residual=True)


def test_pairs_whose_second_block_has_no_rows(device):
    """It starts after the last image, and filters end in the first half of a tile; sums in planes; groups."""
    shape = shape_of(5, 8, 4, 8, 16, 2, 5)
    run(device, "forward", shape, "float16", tile="pairs_128x256", blocks=4, bias=True)
    run(device, "backward_weight", shape, "float16", tile="pairs_128x128", planes=3, blocks=4)
    run(device, "forward", shape_of(2, 136, 5, 6, 40, 3, 3, padding=1), tile="pairs_128x128", splits=4, residual=True)
    grouped = shape_of(*GROUPED["of more"]["size"], groups=2, padding=1)
    run(device, "backward_input", grouped, tile="pairs_128x128", blocks=4)


@pytest.mark.parametrize("operation", ["forward", "backward_weight"])
def test_pairs_are_sound(device, operation):
    if device != "sim":
        pytest.skip("modes of the simulator")
    for schedule in SCHEDULES[1:3]:
        with simulator.configured(mode="race", **schedule):
            run(device, operation, shape_of(1, 8, 12, 13, 136, 2, 2, padding=1), tile="pairs_128x128", blocks=2)


def test_split_sums_of_groups(device):
    shape = shape_of(1, 144, 5, 6, 144, 2, 3, groups=2, padding=1)
    run(device, "forward", shape, splits=2, residual=True)
    run(device, "backward_input", shape, splits=3)
    run(device, "backward_input", shape_of(1, 144, 5, 6, 144, 2, 3, groups=2, stride=2), splits=2)


def test_phases_are_written_in_whole_sectors(device):
    """gx once and nothing else; no access takes more sectors or passes than its bytes."""
    if device != "sim":
        pytest.skip("the simulator counts")
    shape = shape_of(2, 128, 8, 9, 64, 3, 3, stride=2, padding=1)
    with simulator.profiling() as profiles:
        run(device, "backward_input", shape, blocks=4)
    (profile,) = (one for name, one in profiles if name.startswith("conv2d_hopper_phases"))
    assert all(counts.units == counts.least for counts in profile.lines.values())
    written = sum(counts.bytes for counts in profile.lines.values() if counts.space == "global" and counts.writes)
    assert written == 2 * np.prod(shape.x)
    assert profile.flops == 2 * 128 * 128 * 64 * 9  # a tile for each of four phases: no zero between gy's pixels


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


SMALL = {
    "forward": shape_of(1, 16, 9, 9, 16, 4, 4, groups=2, padding=1),  # 16 steps: a tap each
    "backward_input": shape_of(1, 8, 12, 13, 16, 2, 2, padding=1),
    "backward_weight": shape_of(1, 16, 28, 29, 16, 1, 2, groups=2),  # pixels of 13 steps
    "planes": shape_of(1, 136, 6, 7, 8, 2, 2),
    "phases": shape_of(1, 72, 12, 13, 8, 3, 3, stride=2),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("mode", ["asan", "race"])
def test_sound(device, name, mode):
    """Stages are used twice and more; copies come late, and at once."""
    if device != "sim":
        pytest.skip("modes of the simulator")
    operation = {"planes": "forward", "phases": "backward_input"}.get(name, name)
    splits = 2 if name in ("planes", "phases") else None
    tile = "128x64" if name == "forward" else "128x128"
    first = None
    for schedule in (SCHEDULES[1], SCHEDULES[3]):
        with simulator.configured(mode=mode, **schedule):
            got = run(device, operation, SMALL[name], blocks=1, splits=splits, tile=tile)
        first = got if first is None else first
        assert_same_bits(got, first)


def launched(monkeypatch) -> list[str]:
    """Names of what conv_hopper launches from now on."""
    names: list[str] = []
    launch = conv_hopper.launch
    monkeypatch.setattr(
        conv_hopper, "launch", lambda name, *rest, **more: (names.append(name), launch(name, *rest, **more))
    )
    return names


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 8}], ids=["plain", "strided", "grouped"])
def test_operations_use_the_kernels(device, monkeypatch, rng, options):
    """Of channels-last images with enough channels; y and gx are channels-last then."""
    names = launched(monkeypatch)
    shape = shape_of(1, 64, 6, 6, 40, 3, 3, padding=1, **options)
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
    kinds = [name.split("_")[2] for name in names if name.startswith("conv2d_hopper_")]
    gradient = "phases" if "stride" in options else "images"
    assert kinds == ["pack", "images", "pack", gradient, "weights", "add"]


@pytest.mark.parametrize("stride", [1, 2])
def test_few_pixels_are_split(device, monkeypatch, rng, stride):
    """Where a limit of memory leaves room for planes."""
    names = launched(monkeypatch)
    shape = shape_of(1, 512, 4, 5, 512, 3, 3, padding=1, stride=stride)
    w, gy = (rng.integers(-2, 3, size).astype(np.float64) for size in (shape.weight, shape.y))
    weight, right = on(device, w.astype(np.float32))[0], images(gy, "float16", device)
    want = conv.conv2d_backward_input(gy, w, shape).astype(np.float32).astype(np.float16)
    for limit in (None, 0):
        assert_equal(devices.to_numpy(conv_half_input(right, weight, shape, limit)), want)
    name = "conv2d_hopper_images" if stride == 1 else "conv2d_hopper_phases"
    assert sum(n.startswith(f"{name}_float16_planes") for n in names) == 1
    assert sum(n.startswith(f"{name}_float16_128") for n in names) == 1


def conv_half_input(gy, weight, shape: ConvShape, limit: int | None):
    gx = output(shape.x, "float16", gy)
    conv_half.backward_input(gy, weight, gx, shape, limit)
    return gx


def test_what_no_map_has_is_another_kernels(device):
    shape = shape_of(1, 8, 5, 5, 16, 3, 3)
    x = images(np.zeros(shape.x), "bfloat16", device)
    y = output(shape.y, "bfloat16", x)
    assert conv_hopper.takes("forward", shape, x, y)
    assert not conv_hopper.takes("forward", shape, devices.contiguous(x), y)
    assert not conv_hopper.takes("forward", shape, x.astype(np.float32), y)
    assert not conv_hopper.takes("backward_input", shape._replace(stride=(5, 1)), y, x)
    wide = shape_of(1, 8, 300, 5, 16, 280, 1)
    x, y = images(np.zeros(wide.x), "bfloat16", device), images(np.zeros(wide.y), "bfloat16", device)
    assert not conv_hopper.takes("forward", wide, x, y)  # taps are at most 254 rows apart
    odd = shape_of(1, 72, 5, 5, 16, 3, 3, groups=2)  # rows of 36 weights
    x, y = images(np.zeros(odd.x), "bfloat16", device), images(np.zeros(odd.y), "bfloat16", device)
    assert not conv_hopper.takes("forward", odd, x, y)
    assert conv_hopper.takes("backward_weight", odd, x, y)


@pytest.mark.parametrize(
    ("operation", "channels", "filters", "groups", "chosen"),
    [
        (
            "forward",
            128,
            128,
            32,
            True,
        ),  # ResNeXt-50's: bundles of 16 take no more products than a group's tile of 64×64
        ("backward_input", 256, 256, 32, True),
        ("forward", 2048, 2048, 32, True),
        ("backward_weight", 128, 128, 32, True),
        ("backward_weight", 1024, 1024, 32, False),
        ("backward_weight", 1024, 1024, 4, True),
        ("forward", 72, 72, 3, False),  # two of 24 in a slab are more than one step of 32
    ],
)
def test_groups_that_fill_tiles(operation, channels, filters, groups, chosen):
    shape = shape_of(8, channels, 14, 14, filters, 3, 3, groups=groups, padding=1)
    assert conv_hopper.fills_tiles(operation, shape) is chosen
