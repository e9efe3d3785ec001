"""winograd4 on kernels: every stage against its definition, exactly where its numbers are short; then whole passes.

Filters' transforms divide by 2·p·(p − q), which is no binary fraction, so whole passes are bounded, not exact.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from gpucnn import device as devices
from gpucnn import ops
from gpucnn.launch import launch, simulator
from gpucnn.ops import conv_winograd4 as winograd4
from gpucnn.ops.shapes import conv_shape
from tests import reference
from tests.check import assert_close, assert_equal, assert_relative_l2, assert_same_bits, check_adjoint
from tests.kernel_check import assert_sound, assert_two_runs_equal, on
from tests.shapes import ConvCase, parametrize

U = 2.0**-24
FLOAT32 = np.dtype(np.float32)
POINTS = [Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)]


def powers(count, scaled):
    """Row i: 1, x, x², … of point i (over the product of its differences to the others), and infinity's."""
    rows = []
    for point in POINTS:
        scale = Fraction(1)
        for other in POINTS:
            scale *= point - other if other != point else 1
        rows.append([float(point**j / (scale if scaled else 1)) for j in range(count)])
    return np.array([*rows, [0] * (count - 1) + [1]])


def image_matrix():
    """Bᵀ: row i has the coefficients of Π (x − other points), the last one those of Π (x − points)."""
    rows = []
    for left_out in [*POINTS, None]:
        polynomial = [Fraction(1)]
        for point in POINTS:
            if point != left_out:
                low = [-point * c for c in polynomial] + [Fraction(0)]
                polynomial = [a + b for a, b in zip(low, [Fraction(0), *polynomial], strict=True)]
        rows.append([float(c) for c in polynomial] + [0.0] * (6 - len(polynomial)))
    return np.array(rows)


IMAGE, FILTER, GRADIENT = image_matrix(), powers(3, True), powers(4, True)
OUTPUT, WEIGHT = powers(4, False).T, powers(3, False).T


def tiles_of(images, side, padding, rows, columns):
    """(channels, tiles, side, side): the tiles in reading order, zeros outside the images."""
    N, C, H, W = images.shape
    found = np.zeros((C, N, rows, columns, side, side))
    for i, j, a, b in np.ndindex(rows, columns, side, side):
        h, w = 4 * i + a - padding[0], 4 * j + b - padding[1]
        if 0 <= h < H and 0 <= w < W:
            found[:, :, i, j, a, b] = images[:, :, h, w].T
    return found.reshape(C, -1, side, side)


def in_layout(device, array, last):
    """The array on the device, in memory with channels last or as it is."""
    moved = on(device, np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if last else array)[0]
    return moved.transpose(0, 3, 1, 2) if last else moved


def transformed(device, name, images, shape, size, padding, last):
    """What winograd4_image or winograd4_gradient write: (36, channels, padded tiles)."""
    grid = winograd4.tile_grid(shape, slice(0, shape.N), images.shape[1], size, padding)
    source = in_layout(device, images, last)
    out = devices.empty((36, images.shape[1], grid[1]), np.float32, source)
    winograd4.transform(name, source, out, grid)
    return devices.to_numpy(out)


GEOMETRIES = {
    "same": ((3, 5, 9, 11), (1, 1)),
    "none": ((2, 3, 14, 6), (0, 0)),
    "wide": ((1, 2, 4, 5), (3, 2)),
    "many_tiles": ((2, 9, 33, 29), (1, 0)),
    "smallest": ((1, 1, 1, 1), (1, 1)),
}
geometries = pytest.mark.parametrize(("size", "padding"), GEOMETRIES.values(), ids=GEOMETRIES)
layouts = pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])


@geometries
@layouts
def test_tiles_of_images_are_exact(size, padding, last, device, rng):
    shape = conv_shape(size, (1, size[1], 3, 3), 1, padding)
    x = rng.integers(-4, 5, size).astype(np.float32)
    for given_shape, border in ((shape, padding), (winograd4.turned(shape), (2 - padding[0], 2 - padding[1]))):
        rows, columns = -(-given_shape.P // 4), -(-given_shape.Q // 4)
        want = IMAGE @ tiles_of(x, 6, border, rows, columns) @ IMAGE.T
        got = transformed(device, "image", x, given_shape, size[2:], border, last)
        tiles = want.shape[1]
        assert_equal(got[:, :, :tiles], want.transpose(2, 3, 0, 1).reshape(36, size[1], -1))
        assert_equal(got[:, :, tiles:], np.zeros_like(got[:, :, tiles:]))
        assert got.shape[2] % 32 == 0


@geometries
@layouts
def test_tiles_of_gradients(size, padding, last, device, rng):
    shape = conv_shape(size, (3, size[1], 3, 3), 1, padding)
    gy = rng.standard_normal(shape.y).astype(np.float32)
    pixels = tiles_of(gy, 4, (0, 0), -(-shape.P // 4), -(-shape.Q // 4))
    want, magnitude = (H @ d @ H.T for H, d in ((GRADIENT, pixels), (np.abs(GRADIENT), np.abs(pixels))))
    got = transformed(device, "gradient", gy, shape, shape.y[2:], (0, 0), last)
    order, flat = (2, 3, 0, 1), (36, 3, -1)
    tiles = want.shape[1]
    assert_close(
        got[:, :, :tiles], want.transpose(order).reshape(flat), 10 * U * magnitude.transpose(order).reshape(flat)
    )
    assert_equal(got[:, :, tiles:], np.zeros_like(got[:, :, tiles:]))


@pytest.mark.parametrize("turned", [False, True], ids=["forward", "turned"])
def test_filters(turned, device, rng):
    K, C = 7, 5
    w = rng.standard_normal((K, C, 3, 3)).astype(np.float32)
    rows, columns, strides = (K, C, (C * 9, 9)) if turned else (C, K, (9, C * 9))
    pitch = columns + 3
    (source,) = on(device, w)
    u = devices.full_like(devices.empty((36, rows, pitch), np.float32, source), 99)
    launch("winograd4_filter", 1, source, u, rows, columns, pitch, *strides, turned)
    taps = w[:, :, ::-1, ::-1] if turned else w.swapaxes(0, 1)
    want, magnitude = (G @ t @ G.T for G, t in ((FILTER, taps), (np.abs(FILTER), np.abs(taps))))
    order, flat = (2, 3, 0, 1), (36, rows, columns)
    got = devices.to_numpy(u)
    assert_close(
        got[:, :, :columns], want.transpose(order).reshape(flat), 8 * U * magnitude.transpose(order).reshape(flat)
    )
    assert (got[:, :, columns:] == 99).all()


@pytest.mark.parametrize("size", [(2, 3, 8, 12), (1, 2, 9, 7), (3, 1, 4, 6), (1, 1, 1, 1), (5, 4, 14, 14)])
@pytest.mark.parametrize("relu", [False, True])
def test_outputs_are_exact(size, relu, device, rng):
    shape = conv_shape((size[0], 1, *size[2:]), (size[1], 1, 3, 3), 1, 1)
    grid = winograd4.tile_grid(shape, slice(0, shape.N), shape.K, shape.y[2:], (0, 0))
    products = rng.integers(-1, 2, (36, shape.K, grid[1])).astype(np.float32)
    bias = rng.integers(-4, 5, shape.K).astype(np.float32)
    tiles = products[:, :, : grid[0]].reshape(6, 6, shape.K, -1).transpose(2, 3, 0, 1).astype(np.float64)
    rows, columns = -(-shape.P // 4), -(-shape.Q // 4)
    want = (OUTPUT @ tiles @ OUTPUT.T).reshape(shape.K, shape.N, rows, columns, 4, 4)
    want = want.transpose(1, 0, 2, 4, 3, 5).reshape(shape.N, shape.K, 4 * rows, 4 * columns)[:, :, : shape.P, : shape.Q]
    for added in (bias, None):
        arrays = on(device, products, added)
        y = devices.empty(shape.y, np.float32, arrays[0])
        launch("winograd4_output", shape.K * grid[1] // 256 + 1, *arrays, y, grid, relu)
        wanted = want if added is None else want + bias[:, None, None]
        assert_equal(devices.to_numpy(y), np.maximum(wanted, 0) if relu else wanted)


@pytest.mark.parametrize("planes", [0, 1, 3])
def test_gradients_of_weights_are_exact(planes, device, rng):
    K, C = 5, 61
    sums = rng.integers(-1, 2, (planes, 36, K, C)).astype(np.float32)
    (source,) = on(device, sums)
    gw = devices.empty((K, C, 3, 3), np.float32, source)
    launch("winograd4_weight", 2, source, gw, K * C, planes)
    elements = sums.sum(0, np.float64).reshape(6, 6, K, C).transpose(2, 3, 0, 1)
    assert_equal(devices.to_numpy(gw), WEIGHT @ elements @ WEIGHT.T)


def products(device, layout, a, b, splits=1, add=None, c_stride=None):
    """Planes of a[n] · b[n], for a (36,M,K) and b (36,K,N), in the memory layouts of the kernels."""
    M, K, N = *a.shape[1:], b.shape[2]
    if layout == "tn":  # rows of K in whole float4
        a = np.concatenate([a.swapaxes(1, 2), np.full((36, K, -M % 4), np.nan, np.float32)], 2)
        strides = (a.shape[2], a[0].size), (N, K * N)
    else:
        b, strides = b.swapaxes(1, 2), ((K, M * K), (K, N * K))
    arrays = on(device, np.ascontiguousarray(a), np.ascontiguousarray(b))
    c = devices.empty((splits, 36, M, N), np.float32, arrays[0])
    if add is not None:
        c[...] = add
    winograd4.multiply(layout, *arrays, c, (M, N, K), *strides, N, splits, add is not None)
    return devices.to_numpy(c)


tiles_of_products = pytest.mark.parametrize("tile", winograd4.TILES, ids=lambda tile: tile.name)


@tiles_of_products
@pytest.mark.parametrize(
    ("M", "N", "K", "splits"), [(5, 32, 3, 1), (66, 160, 64, 1), (130, 96, 65, 1), (7, 32, 400, 3)]
)
def test_products_are_exact(tile, M, N, K, splits, device, rng, monkeypatch):
    monkeypatch.setattr(winograd4, "choose_tile", lambda *arguments: (tile, 1))
    for layout in ("tn", "nt"):
        terms = K if layout == "tn" else -(-K // 16) * 16
        a, b = (rng.integers(-4, 5, size).astype(np.float32) for size in ((36, M, terms), (36, terms, N)))
        want = a.astype(np.float64) @ b
        assert_equal(products(device, layout, a, b, splits).sum(0), want)
        assert_equal(products(device, layout, a, b, splits, add=2).sum(0), want + 2 * splits)


@tiles_of_products
def test_sums_have_two_levels(tile, device, rng, monkeypatch):
    """4096 positive products: a chain of them in float32 is off by ten times as much."""
    monkeypatch.setattr(winograd4, "choose_tile", lambda *arguments: (tile, 1))
    a, b = (rng.random(size, np.float32) for size in ((36, 2, 4096), (36, 4096, 32)))
    for layout in ("tn", "nt"):
        got = products(device, layout, a, b)[0]
        assert_relative_l2(got, a.astype(np.float64) @ b, 1.5e-7)


CASES = {
    "smallest": ConvCase((1, 1, 1, 1), (1, 1, 3, 3), padding=1),
    "one_output": ConvCase((3, 5, 3, 3), (4, 5, 3, 3)),
    "vgg": ConvCase((2, 8, 9, 9), (16, 8, 3, 3), padding=1),
    "whole_tiles": ConvCase((2, 3, 8, 12), (4, 3, 3, 3), padding=1),
    "primes": ConvCase((3, 5, 13, 11), (7, 5, 3, 3), padding=(0, 1)),
    "wide_padding": ConvCase((1, 2, 4, 5), (3, 2, 3, 3), padding=(5, 3)),
    "kernel_larger_than_image": ConvCase((2, 3, 2, 1), (2, 3, 3, 3), padding=1),
    "one_channel": ConvCase((2, 1, 15, 17), (9, 1, 3, 3), padding=1),
    "one_filter": ConvCase((2, 9, 10, 6), (1, 9, 3, 3), padding=1),
    "flushes": ConvCase((1, 130, 6, 6), (67, 130, 3, 3), padding=1),
    "many_channels": ConvCase((1, 515, 5, 4), (6, 515, 3, 3), padding=1),
    "many_images": ConvCase((70, 2, 6, 5), (3, 2, 3, 3)),
    "empty_batch": ConvCase((0, 3, 5, 5), (4, 3, 3, 3), padding=1),
}


def shape_of(case):
    return conv_shape(case.x, case.weight, **case.options)


def data(case):
    """x, weight, bias and gy."""
    gy = np.random.default_rng(3).standard_normal(shape_of(case).y)
    return *case.arrays(np.float32), gy.astype(np.float32)


def three_passes(device, case, x, weight, bias, gy, limit=None, relu=False):
    """(y, gx, gw)"""
    shape = shape_of(case)
    x, weight, bias, gy = on(device, x, weight, bias, gy)
    y, gx, gw = (devices.empty(size, np.float32, x) for size in (shape.y, shape.x, shape.weight))
    winograd4.forward(x, weight, bias, y, shape, relu, workspace_limit=limit)
    winograd4.backward_input(gy, weight, gx, shape, workspace_limit=limit)
    winograd4.backward_weight(x, gy, gw, shape, workspace_limit=limit)
    return y, gx, gw


def definitions(case, x, weight, bias, gy):
    return (
        reference.conv2d(x, weight, bias, **case.options),
        reference.conv2d_backward_input(gy, weight, case.x, **case.options),
        reference.conv2d_backward_weight(x, gy, case.weight, **case.options),
    )


def assert_accurate(device, case, arrays, limit=None):
    """As accurate as a direct convolution: 2e-6 of the norm, and 16 u of the largest Σ|x||w|, or 64 u of short sums,
    where the transforms' errors are not small beside a few products.
    """
    wanted, sizes = definitions(case, *arrays), definitions(case, *map(np.abs, arrays))
    shape = shape_of(case)
    terms = shape.C, shape.K, shape.N * shape.P * shape.Q // 9
    for got, want, size, count in zip(three_passes(device, case, *arrays, limit), wanted, sizes, terms, strict=True):
        assert devices.of(got).startswith(device.split(":")[0])
        assert_close(devices.to_numpy(got), want, (16 if count >= 64 else 64) * U * size.max(initial=0))
        assert_relative_l2(devices.to_numpy(got), want, 2e-6)


@parametrize(CASES)
@pytest.mark.parametrize("kind", ["normal", "relu", "large"])
def test_errors_are_bounded(case, kind, device):
    x, *rest = data(case)
    assert_accurate(device, case, ({"normal": x, "relu": np.maximum(x, 0), "large": x * np.float32(1e4)}[kind], *rest))


@given(
    N=st.integers(0, 3), C=st.integers(1, 9), K=st.integers(1, 9), H=st.integers(1, 19), W=st.integers(1, 19),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)), limit=st.sampled_from([None, 0, 40_000]),
)  # fmt: skip
@settings(max_examples=40)
def test_any_shape(device, N, C, K, H, W, padding, limit):
    H, W = (max(size, 3 - 2 * p) for size, p in zip((H, W), padding, strict=True))
    case = ConvCase((N, C, H, W), (K, C, 3, 3), padding=padding)
    assert_accurate(device, case, data(case), limit)


def test_long_sums(device, rng):
    """1e5 pixels for the gradient of the weights, in several chunks, and 1,100 channels."""
    case = ConvCase((8, 1, 113, 112), (2, 1, 3, 3), padding=1)
    arrays = data(case)
    shape = shape_of(case)
    x, gy = on(device, arrays[0], arrays[3])
    gw = devices.empty(shape.weight, np.float32, x)
    for limit in (None, 0):
        winograd4.backward_weight(x, gy, gw, shape, workspace_limit=limit)
        want = reference.conv2d_backward_weight(arrays[0], arrays[3], case.weight, **case.options)
        assert_relative_l2(devices.to_numpy(gw), want, 2e-6)
    assert_accurate(device, wide := ConvCase((1, 1100, 4, 4), (4, 1100, 3, 3), padding=1), data(wide))


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("limit", [None, 4 * 36 * (3 * 24 + 8 * 128)], ids=["one_chunk", "two_chunks"])
def test_products_of_tiles_add_up(planes, limit, device, monkeypatch):
    """In chunks of images, and of their tiles in chains, of which the last leaves a plane without terms."""
    case = ConvCase((9, 3, 17, 18), (5, 3, 3, 3), padding=1)
    arrays, names = data(case), []
    want = definitions(case, *arrays)[2]
    monkeypatch.setattr(winograd4, "CHAIN", 64)
    monkeypatch.setattr(winograd4, "choose_tile", lambda *arguments: (winograd4.TILES[1], planes))
    monkeypatch.setattr(winograd4, "launch", lambda name, *a, **o: names.append(name) or launch(name, *a, **o))
    assert_relative_l2(devices.to_numpy(three_passes(device, case, *arrays, limit)[2]), want, 2e-6)
    launches = {(1, None): 4, (3, None): 2, (1, limit): 4, (3, limit): 2}[planes, limit]
    assert names.count("gemm_nt_flush_64x64") == launches
    assert names.count("winograd4_gradient_rows") == (1 if limit is None else 2)


@parametrize(CASES)
def test_adjoint_and_schedules(case, device):
    x, weight, _, gy = data(case)
    assert_two_runs_equal(lambda: three_passes(device, case, x, weight, None, gy), device)
    y, gx, gw = (devices.to_numpy(a).astype(np.float64) for a in three_passes(device, case, x, weight, None, gy))
    check_adjoint(y, gy.astype(np.float64), [(x, gx), (weight, gw)], limit=2e-6)


@parametrize(
    {
        "chunks": ConvCase((2, 2, 6, 5), (3, 2, 3, 3), padding=(0, 1)),
        "whole_tiles": ConvCase((1, 1, 4, 4), (2, 1, 3, 3), padding=1),
    }
)
def test_sound(case, device):
    inputs = data(case)
    assert_sound(lambda: three_passes(device, case, *inputs, limit=0, relu=True), device)


@tiles_of_products
def test_products_are_sound(tile, device, rng, monkeypatch):
    monkeypatch.setattr(winograd4, "choose_tile", lambda *arguments: (tile, 1))
    monkeypatch.setattr(winograd4, "ELEMENTS", 1)
    a, b = (rng.integers(-4, 5, size).astype(np.float32) for size in ((36, 5, 144), (36, 144, 32)))
    assert_sound(lambda: tuple(products(device, layout, a, b, 1, add=1) for layout in ("tn", "nt")), device)


def test_chunks_of_images_give_the_same_bits(device):
    case = ConvCase((7, 5, 13, 9), (6, 5, 3, 3), padding=1)
    arrays, shape = data(case), shape_of(case)
    whole = three_passes(device, case, *arrays)
    one = winograd4.forward_workspace(shape, FLOAT32, 0)
    for limit in (0, 2 * one, 3 * one):
        assert winograd4.forward_workspace(shape, FLOAT32, limit) <= max(limit, one)
        for got, want in zip(three_passes(device, case, *arrays, limit)[:2], whole[:2], strict=True):
            assert_same_bits(devices.to_numpy(got), devices.to_numpy(want))


@pytest.mark.parametrize("operation", ["conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight"])
@pytest.mark.parametrize("limit", [None, 0, 100_000, 400_000])
def test_workspace_is_what_is_allocated(operation, limit, device, monkeypatch):
    case = ConvCase((9, 6, 13, 9), (10, 6, 3, 3), padding=1)
    shape = shape_of(case)
    x, weight, gy = on(device, *(data(case)[i] for i in (0, 1, 3)))
    target = devices.empty(dict(zip(ops.KERNEL_ALGORITHMS, (shape.y, shape.x, shape.weight), strict=True))[operation],
                           np.float32, x)  # fmt: skip
    sources = {"forward": (x, weight, None), "backward_input": (gy, weight), "backward_weight": (x, gy)}
    name = operation.removeprefix("conv2d_")
    sizes, empty = [], devices.empty
    monkeypatch.setattr(devices, "empty", lambda *a: sizes.append(empty(*a).nbytes) or empty(*a))
    getattr(winograd4, name)(*sources[name], target, shape, workspace_limit=limit)
    said = getattr(winograd4, f"{name}_workspace")(shape, FLOAT32, limit)
    spare = 4 * 36 * (10 + 6) * 2  # filters' rows are counted as whole float4 in every pass
    assert said - spare <= sum(sizes) <= said
    least = getattr(winograd4, f"{name}_workspace")(shape, FLOAT32, 0)
    assert limit is None or said <= max(limit, least)
    assert ops.KERNEL_ALGORITHMS[operation]["winograd4"].workspace_bytes(shape, FLOAT32) <= 256 << 20


def test_workspaces_of_vgg():
    """Chunks of at least 2,000 tiles where 256 MiB allow it, of equal size."""
    shape = conv_shape((64, 256, 56, 56), (256, 256, 3, 3), 1, 1)
    assert 200 << 20 < winograd4.forward_workspace(shape, FLOAT32) <= 256 << 20
    assert 200 << 20 < winograd4.backward_weight_workspace(shape, FLOAT32) <= 256 << 20
    large = conv_shape((64, 64, 2000, 2000), (64, 64, 3, 3), 1, 1)
    assert winograd4.forward_workspace(large, FLOAT32) == 4 * 36 * (64 * 64 + 128 * 250_016)  # one image
    assert winograd4.forward_workspace(shape._replace(N=0), FLOAT32) == 0


def test_one_pixel(device, rng):
    """Tiles that do not read it are exactly the bias; the others hold the turned filters, rounded a few times."""
    case = ConvCase((1, 2, 16, 16), (3, 2, 3, 3), padding=1)
    _, weight, bias, gy = data(case)
    x = np.zeros(case.x, np.float32)
    x[0, 1, 5, 6] = 1
    y = devices.to_numpy(three_passes(device, case, x, weight, bias, gy)[0])
    want = definitions(case, x, weight, bias, gy)[0]
    untouched = np.ones(y.shape, bool)
    untouched[:, :, 4:8, 4:8] = False
    assert_equal(y[untouched], np.broadcast_to(bias[:, None, None], y.shape)[untouched].reshape(-1))
    assert_close(y, want, 16 * U * (np.abs(weight).max() + np.abs(bias).max()))


def test_values_that_are_not_finite(device):
    """They reach at least the outputs that read them, and no other tile; ReLU keeps NaN."""
    case = ConvCase((2, 3, 12, 13), (4, 3, 3, 3), padding=1)
    x, weight, bias, gy = data(case)
    x[0, 1, 5, 6], gy[1, 2, 0, 12] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        wanted = definitions(case, x, weight, bias, gy)
    for got, want in zip(three_passes(device, case, x, weight, bias, gy, relu=True), wanted, strict=True):
        spoilt = ~np.isfinite(devices.to_numpy(got))
        assert (spoilt | np.isfinite(want)).all() and not spoilt.all()
    y, gx, _ = map(devices.to_numpy, three_passes(device, case, x, weight, bias, gy, relu=True))
    assert np.isnan(y[0, :, 4:8, 4:8]).all() and np.isfinite(y[1]).all() and np.isfinite(y[0, :, 8:]).all()
    assert np.isfinite(gx[0]).all()


def test_bias_and_relu(device):
    case = CASES["primes"]
    arrays = data(case)
    plain, activated = (devices.to_numpy(three_passes(device, case, *arrays, relu=relu)[0]) for relu in (False, True))
    assert_same_bits(activated, np.where(plain < 0, np.float32(0), plain))
    assert (plain < 0).any()
    shifted = devices.to_numpy(three_passes(device, case, arrays[0], arrays[1], None, arrays[3])[0])
    assert_close(shifted + arrays[2][:, None, None], plain, 4 * U * np.abs(plain).max())


def views(array):
    """The same values channels-last, as part of a larger array, flipped, and transposed."""
    padded = np.zeros((array.shape[0], array.shape[1] + 1, array.shape[2] + 2, 2 * array.shape[3]), array.dtype)
    padded[:, 1:, 1:-1, ::2] = array
    return {
        "channels_last": (np.ascontiguousarray(array.transpose(0, 2, 3, 1)), lambda a: a.transpose(0, 3, 1, 2)),
        "part": (padded, lambda a: a[:, 1:, 1:-1, ::2]),
        "flipped": (np.ascontiguousarray(array[:, :, ::-1]), lambda a: a[:, :, ::-1]),
        "transposed": (np.ascontiguousarray(array.swapaxes(2, 3)), lambda a: a.swapaxes(2, 3)),
    }


@pytest.mark.parametrize("layout", ["channels_last", "part", "flipped", "transposed"])
def test_any_layout_gives_the_same_bits(layout, device):
    case = ConvCase((2, 7, 9, 10), (5, 7, 3, 3), padding=1)
    x, weight, bias, gy = data(case)
    want = three_passes(device, case, x, weight, bias, gy)
    shape = shape_of(case)
    strided_x, strided_gy = (view(on(device, memory)[0]) for memory, view in (views(x)[layout], views(gy)[layout]))
    w, b = on(device, weight, bias)
    got = (
        ops.conv2d_forward(strided_x, w, b, shape, "winograd4"),
        ops.conv2d_backward_input(strided_gy, w, shape, "winograd4"),
        ops.conv2d_backward_weight(strided_x, strided_gy, shape, "winograd4"),
    )
    for one, other in zip(got, want, strict=True):
        assert_same_bits(devices.to_numpy(one), devices.to_numpy(other))


@pytest.mark.parametrize(
    ("weight", "options", "reason"),
    [
        ((6, 4, 5, 5), {}, r"it needs 3x3 kernels, not \(5, 5\)"),
        ((6, 4, 3, 3), {"stride": 2}, r"it needs stride 1, not \(2, 2\)"),
        ((6, 4, 3, 3), {"dilation": (1, 2)}, r"it needs dilation 1, not \(1, 2\)"),
        ((6, 2, 3, 3), {"groups": 2}, "it needs groups 1, not 2"),
    ],
)
def test_what_is_not_supported(weight, options, reason, device):
    x, w = on(device, np.zeros((1, 4, 8, 8), np.float32), np.zeros(weight, np.float32))
    with pytest.raises(gpucnn.UnsupportedAlgorithm, match=reason):
        ops.conv2d_forward(x, w, None, conv_shape(x.shape, weight, **options), "winograd4")


def test_dtypes_and_devices():
    shape = shape_of(CASES["vgg"])
    assert winograd4.supports(shape, np.dtype(np.float64), "sim") == "its kernels compute in float32, not float64"
    assert "device cpu" in str(winograd4.supports(shape, FLOAT32, "cpu"))
    assert winograd4.supports(shape, FLOAT32, "cuda:0") is None


def test_little_shared_memory(device, monkeypatch):
    """sm_75 has 64 KB a block, too few for the sums of the large tile; the bits are the same."""
    if device != "sim":
        pytest.skip("a GPU is of one architecture")
    case = ConvCase((1, 72, 8, 8), (128, 72, 3, 3), padding=1)
    x, weight, bias, _ = on(device, *data(case))
    names, results = [], []
    monkeypatch.setattr(winograd4, "choose_tile", lambda *arguments: (winograd4.TILES[0], 1))
    monkeypatch.setattr(winograd4, "launch", lambda name, *a, **o: names.append(name) or launch(name, *a, **o))
    for architecture in ("sm_90", "sm_75"):
        with simulator.configured(architecture=architecture):
            results.append(ops.conv2d_forward(x, weight, bias, shape_of(case), "winograd4"))
    assert_same_bits(*map(devices.to_numpy, results))
    assert [name for name in names if "gemm" in name] == ["gemm_tn_flush_128x128", "gemm_tn_flush_64x64"]


def global_counts(found, kernel):
    """(reads, writes) of global memory of the launches of a kernel."""
    counts = [c for name, profile in found if name == kernel for c in profile.lines.values() if c.space == "global"]
    return [c for c in counts if not c.writes], [c for c in counts if c.writes]


@layouts
def test_memory_traffic(last, device, rng):
    """Whole sectors of transformed tiles, each once; y and M once; of x a sector for two tiles, or four channels."""
    if device != "sim":
        pytest.skip("the simulator counts")
    case = ConvCase((2, 8, 32, 32), (64, 8, 3, 3), padding=1)
    shape, (x, weight) = shape_of(case), data(case)[:2]
    source = in_layout(device, x, last)
    with simulator.profiling() as found:
        ops.conv2d_forward(source, *on(device, weight, None), shape, "winograd4")
    tiles = 2 * 64
    reads, writes = global_counts(found, "winograd4_image_channels" if last else "winograd4_image_rows")
    assert sum(c.bytes for c in writes) == 4 * 36 * tiles * 8
    assert all(c.units == c.least == 4 * c.requests for c in writes)
    assert sum(c.bytes for c in reads) <= 36 / 16 * x.nbytes  # each pixel for up to 2.25 tiles, from L1
    assert sum(c.units for c in reads) <= (10 if last else 18) * sum(c.requests for c in reads)
    reads, writes = global_counts(found, "winograd4_output")
    assert sum(c.bytes for c in reads) == 4 * 36 * tiles * 64 and all(c.units == 4 * c.requests for c in reads)
    assert sum(c.bytes for c in writes) == 4 * tiles * 16 * 64 and all(c.units == c.least for c in writes)
    reads, writes = global_counts(found, "gemm_tn_flush_64x64")
    assert sum(c.bytes for c in reads) == 4 * 36 * (2 * 64 * 8 + tiles * 8)  # two tiles of columns, one of rows
    assert sum(c.bytes for c in writes) == 4 * 36 * 64 * tiles
    assert all(c.units == 16 * c.requests for c in (*reads, *writes))
    (profile,) = (p for name, p in found if name.startswith("gemm_tn_flush"))
    shared = [c for c in profile.lines.values() if c.space == "shared" and not c.writes]
    assert all(c.units == 2 * c.requests for c in shared)
    assert profile.flops == 2 * 36 * 64 * tiles * 16  # a step has 16 channels, of which 8 exist
