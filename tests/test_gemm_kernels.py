"""Matrix products on kernels: exact on integers in every tile and layout, error bounds, soundness, layers on top."""

from __future__ import annotations

import numpy as np
import pytest
from check import assert_close, assert_equal, assert_relative_l2, assert_same_bits, check_adjoint, sum_bound
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import assert_sound, assert_two_runs_equal, on

import gpucnn
from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn.launch import simulator
from gpucnn.ops.gemm import TILES, choose_tile, gemm, matmul, multiprocessors

NAMES = [tile.name for tile in TILES]
tiles = pytest.mark.parametrize("tile", NAMES)
layouts = pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])


def operand(rng, shape, transposed, device, kind="integers"):
    """(array in row-major order on the host, the same values on the device, in memory transposed or not)."""
    values = rng.integers(-4, 5, shape) if kind == "integers" else rng.standard_normal(shape)
    values = values.astype(np.float32)
    if transposed:
        return values, on(device, np.ascontiguousarray(values.swapaxes(1, 2)))[0].swapaxes(1, 2)
    return values, on(device, values)[0]


def product(a, b, bias=None, bias_axis="column", relu=False, tile=None, splits=None):
    c = devices.empty((max(len(a), len(b)), a.shape[1], b.shape[2]), np.float32, a)
    gemm(a, b, c, bias, bias_axis, relu, tile, splits)
    return c


def expected(a, b, bias=None, bias_axis="column", relu=False):
    c = a.astype(np.float64) @ b.astype(np.float64)
    if bias is not None:
        c = c + (bias[:, None] if bias_axis == "row" else bias)
    return np.maximum(c, 0) if relu else c


def assert_exact(device, shape, layout="nn", tile=None, splits=None, bias_axis=None, relu=False, shared=""):
    """Integers: every product and sum is exact, so that one wrong index shows."""
    B, M, N, K = shape
    rng = np.random.default_rng(M + N + K)
    a, device_a = operand(rng, (1 if "a" in shared else B, M, K), layout[0] == "t", device)
    b, device_b = operand(rng, (1 if "b" in shared else B, K, N), layout[1] == "t", device)
    bias = rng.integers(-9, 10, M if bias_axis == "row" else N).astype(np.float32) if bias_axis else None
    axis = bias_axis or "column"
    c = devices.empty((B, M, N), np.float32, device_a)
    gemm(device_a, device_b, c, *on(device, bias), axis, relu, tile, splits)
    assert_equal(devices.to_numpy(c), expected(a, b, bias, axis, relu) + np.zeros((B, M, N)))


@tiles
@layouts
@pytest.mark.parametrize("extent", [-1, 0, 1, 4], ids=["below", "equal", "above", "quad_above"])
def test_tails_are_exact(device, tile, layout, extent):
    M, N = map(int, tile.split("x"))
    assert_exact(device, (1, M + extent, N + extent, 32 + extent), layout, tile, 1, "row", True)
    assert_exact(device, (2, M // 2 + extent, N // 2 + extent, 50 + extent), layout, tile, 1, "column")


@tiles
@layouts
def test_small_and_empty(device, tile, layout):
    for shape in ((1, 1, 1, 1), (3, 1, 5, 7), (2, 4, 1, 3), (0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)):
        assert_exact(device, shape, layout, tile, 1, "row", True)


@tiles
@pytest.mark.parametrize("splits", [2, 3, 7])
@pytest.mark.parametrize("bias_axis", [None, "row", "column"])
def test_splits_are_exact(device, tile, splits, bias_axis):
    assert_exact(device, (2, 37, 35, 150), "nt", tile, splits, bias_axis, bias_axis is not None)
    assert_exact(device, (1, 5, 40, 10), "tn", tile, splits, bias_axis)  # fewer steps than splits


@tiles
@layouts
def test_chunks_are_exact(device, tile, layout):
    """More terms than are summed in one go: the rest is added to what stands in c, and bias and ReLU come last."""
    for K in (1024, 1025, 2085):
        assert_exact(device, (1, 9, 34, K), layout, tile, 1, "column", True)


@pytest.mark.parametrize("shared", ["a", "b", "ab"])
def test_shared_matrices(device, shared):
    assert_exact(device, (3, 33, 34, 17), "nn", shared=shared, bias_axis="row", relu=True)
    a = np.random.default_rng(1).integers(-4, 5, (1, 6, 8)).astype(np.float32)
    (device_a,) = on(device, a)
    repeated = np.broadcast_to(device_a, (4, 6, 8))
    assert_equal(
        devices.to_numpy(product(repeated, repeated.swapaxes(1, 2))), expected(a, a.swapaxes(1, 2)).repeat(4, 0)
    )


def test_many_tiles_and_batches(device):
    """More tile rows than neighbours share, and a batch beyond the limit of grid.y."""
    assert_exact(device, (1, 330, 70, 20), tile="32x32", splits=1)
    assert_exact(device, (65_600, 1, 1, 2), tile="32x32", splits=1)


extents = st.sampled_from([1, 2, 3, 4, 5, 8, 16, 17, 31, 32, 33, 36, 63, 64, 65])


@given(
    shape=st.tuples(st.integers(1, 3), extents, extents, extents),
    layout=st.sampled_from(["nn", "nt", "tn", "tt"]),
    tile=st.sampled_from([None, *NAMES]),
    splits=st.sampled_from([None, 1, 2, 5]),
    bias_axis=st.sampled_from([None, "row", "column"]),
    relu=st.booleans(),
)
@settings(max_examples=80)
def test_random_shapes_are_exact(device, shape, layout, tile, splits, bias_axis, relu):
    assert_exact(device, shape, layout, tile, splits, bias_axis, relu)


def strided_views(x):
    """Views of one matrix's values: reversed, stepped (copied first), at addresses not divisible by 16, with gaps."""
    B, M, K = x.shape
    wide = np.zeros((B, M + 1, 2 * K + 3), np.float32)
    wide[:, 1:, 1 : K + 1] = x
    stepped = np.repeat(x, 2, axis=2)
    return {
        "plain": (x, lambda base: base),
        "reversed_rows": (np.ascontiguousarray(x[:, ::-1]), lambda base: base[:, ::-1]),
        "stepped": (stepped, lambda base: base[:, :, ::2]),
        "unaligned": (wide, lambda base: base[:, 1:, 1 : K + 1]),
        "reversed_batch": (np.ascontiguousarray(x[::-1]), lambda base: base[::-1]),
    }


@pytest.mark.parametrize("view", ["plain", "reversed_rows", "stepped", "unaligned", "reversed_batch"])
@tiles
def test_views(device, view, tile):
    rng = np.random.default_rng(5)
    a, b = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((2, 36, 20), (2, 20, 40)))
    base_a, view_a = strided_views(a)[view]
    base_b, view_b = strided_views(b)[view]
    base_a, base_b = on(device, base_a, base_b)
    assert_equal(devices.to_numpy(product(view_a(base_a), view_b(base_b), tile=tile)), expected(a, b))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("order", ["transposed", "wider", "reversed"])
def test_c_of_any_strides(device, order, splits):
    """Also what lies between c's elements keeps its value."""
    rng = np.random.default_rng(6)
    a, b, bias = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((2, 6, 70), (2, 70, 8), (8,)))
    device_a, device_b, device_bias, base = on(device, a, b, bias, np.full((2, 9, 9), 7, np.float32))
    part = base[:, :8, :6].swapaxes(1, 2) if order == "transposed" else base[:, :6, 1:9]
    c = part[:, ::-1] if order == "reversed" else part
    gemm(device_a, device_b, c, device_bias, splits=splits)
    assert_equal(devices.to_numpy(c), expected(a, b, bias))
    assert devices.to_numpy(base).ravel().tolist().count(7) >= 2 * (81 - 48)


@tiles
@pytest.mark.parametrize("kind", ["normal", "positive", "cancelling", "large"])
def test_error_bounds(device, tile, kind):
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((1, 20, 300)), rng.standard_normal((1, 300, 24))
    if kind == "positive":
        a, b = abs(a), abs(b)
    if kind == "cancelling":
        a[:, :, 150:], b[:, 150:] = a[:, :, :150], -b[:, :150]
    if kind == "large":
        a, b = a * 1e4, b * 1e4
    a, b = a.astype(np.float32), b.astype(np.float32)
    size = expected(abs(a), abs(b))
    c = devices.to_numpy(product(*on(device, a, b), tile=tile))
    assert_close(c, expected(a, b), 2 * sum_bound(300, size, np.float32))


@pytest.mark.parametrize("splits", [1, None], ids=["one_block", "chosen"])
def test_sums_of_100_000_terms(device, splits):
    """A float32 loop over all terms misses this bound, as the last line shows: sums are cut into chunks."""
    rng = np.random.default_rng(8)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 4, 100_000), (1, 100_000, 4)))
    want = expected(a, b)
    assert_relative_l2(devices.to_numpy(product(*on(device, a, b), tile="32x32", splits=splits)), want, 2e-6)
    loop = np.add.accumulate(a[0, :, :, None] * b[0], axis=1, dtype=np.float32)[:, -1]
    assert np.linalg.norm(loop - want[0]) > 2e-6 * np.linalg.norm(want)


def test_nan_and_infinity_stay_in_their_row(device):
    a, b = np.ones((1, 40, 20), np.float32), np.ones((1, 20, 36), np.float32)
    a[0, 3, 19], a[0, 5, 0] = np.nan, np.inf
    for tile in NAMES:
        c = devices.to_numpy(product(*on(device, a, b), relu=True, tile=tile))[0]
        assert np.isnan(c[3]).all()
        assert np.isposinf(c[5]).all()
        assert_equal(np.delete(c, [3, 5], axis=0), np.full((38, 36), 20))


@pytest.mark.parametrize(
    ("tile", "shape", "splits"),
    [("128x128", (1, 130, 132, 83), 1), ("64x64", (2, 65, 68, 90), 2), ("32x32", (1, 33, 34, 1060), 1)],
    ids=str,
)
def test_sound(device, tile, shape, splits):
    """More steps than the two stages hold twice, tails in every axis, splits, and a second chunk."""
    B, M, N, K = shape
    rng = np.random.default_rng(9)
    layout = {"128x128": "nn", "64x64": "nt", "32x32": "tn"}[tile]
    _, a = operand(rng, (B, M, K), layout[0] == "t", device, "normal")
    _, b = operand(rng, (B, K, N), layout[1] == "t", device, "normal")
    (bias,) = on(device, rng.standard_normal(M).astype(np.float32))
    assert_sound(lambda: product(a, b, bias, "row", True, tile, splits), device)


@tiles
def test_two_runs_give_the_same_bits(device, tile):
    rng = np.random.default_rng(10)
    _, a = operand(rng, (2, 70, 300), False, device, "normal")
    _, b = operand(rng, (2, 300, 66), False, device, "normal")
    assert_two_runs_equal(lambda: product(a, b, tile=tile, splits=1), device)
    assert_two_runs_equal(lambda: product(a, b, tile=tile, splits=3), device)


@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
def test_counters_of_the_large_tile(device, layout):
    """Every float4 read from shared memory takes 2 passes, words are written in one, and each barrier is one a step."""
    if device != "sim":
        pytest.skip("counters are the simulator's")
    rng = np.random.default_rng(11)
    _, a = operand(rng, (1, 128, 64), layout[0] == "t", device)
    _, b = operand(rng, (1, 64, 128), layout[1] == "t", device)
    with simulator.profiling() as launches:
        product(a, b, tile="128x128", splits=1)
    ((_, found),) = launches
    assert (found.barriers, found.flops) == (64 // 16, 2 * 128 * 128 * 64)
    shared = [counts for counts in found.lines.values() if counts.space == "shared"]
    assert any(not counts.writes for counts in shared)
    assert all(counts.units == 2 * counts.requests for counts in shared if not counts.writes)
    assert all(counts.units == counts.least for counts in shared if counts.writes)
    reads = (counts for counts in found.lines.values() if counts.space == "global" and not counts.writes)
    assert sum(counts.bytes for counts in reads) == 2 * 128 * 64 * 4


def test_choice_of_tile_and_splits():
    def choice(*shape):
        tile, splits = choose_tile(*shape, multiprocessors())
        return tile.name, splits

    assert choice(4096, 4096, 4096, 1) == ("128x128", 1)
    assert choice(1, 1, 1, 1) == ("32x32", 1)
    assert choice(6, 784, 25, 512)[1] == 1  # terms too few to split
    assert choice(64, 64, 100_000, 1)[1] > 16  # one tile, many terms
    assert choice(512, 4608, 12_544, 1)[0] == "128x128"
    assert choice(4096, 4096, 100_000, 1)[1] == 1  # tiles enough: planes of splits would only cost


A, B = np.zeros((2, 3, 4), np.float32), np.zeros((2, 4, 5), np.float32)
ERRORS = [
    ((A[0], B, A), ValueError, "each must have three dimensions"),
    ((A, A, np.zeros((2, 3, 4), np.float32)), ValueError, "do not fit"),
    ((A, B, np.zeros((3, 3, 5), np.float32)), ValueError, "do not fit"),
    ((A, B, np.zeros((2, 3, 5), np.float32), np.zeros(3, np.float32)), ValueError, "one value a column"),
    ((A, B, np.zeros((2, 3, 5), np.float32), np.zeros(5, np.float32), "row"), ValueError, "one value a row"),
    ((A, B, np.zeros((2, 3, 5), np.float32), None, "both"), ValueError, "bias_axis is 'both'"),
    ((A, B, np.zeros((2, 6, 10), np.float32)[:, ::2, ::2]), ValueError, "c has strides .* must be contiguous"),
    ((A.astype(np.float64), B, np.zeros((2, 3, 5))), TypeError, "a is float64 on .* kernels take float32"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ERRORS)
def test_errors(device, arguments, error, message):
    def moved(value):
        if not isinstance(value, np.ndarray):
            return value
        base = value if value.base is None or value.flags.c_contiguous else value.base
        (there,) = on(device, np.ascontiguousarray(base))
        return there if base is value else there[:, ::2, ::2]

    with pytest.raises(error, match="^gemm: .*" + message):
        gemm(*map(moved, arguments))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((5,), (5,)),
        ((5,), (5, 3)),
        ((4, 5), (5,)),
        ((4, 5), (5, 3)),
        ((2, 4, 5), (5, 3)),
        ((4, 5), (2, 5, 3)),
        ((2, 1, 4, 5), (3, 5, 6)),
        ((0, 4, 5), (5, 3)),
    ],
    ids=str,
)
def test_matmul_broadcasts_and_differentiates(device, a, b):
    rng = np.random.default_rng(12)
    arrays = [rng.integers(-4, 5, shape).astype(np.float32) for shape in (a, b)]
    gy = rng.integers(-4, 5, np.matmul(*arrays).shape).astype(np.float32)
    for got, want in zip(differentiate(gpucnn.functional.matmul, arrays, gy, device),
                         differentiate(gpucnn.functional.matmul, arrays, gy, "cpu"), strict=True):  # fmt: skip
        assert_equal(got, want)
    assert_equal(devices.to_numpy(matmul(*on(device, *arrays))), np.matmul(*arrays))


def differentiate(function, arrays, gy, device):
    """[result, gradients…] as NumPy arrays."""
    leaves = [gpucnn.Tensor(array, requires_grad=True) for array in on(device, *arrays)]
    result = function(*leaves)
    result.backward(*on(device, gy))
    assert all(leaf.grad.device.partition(":")[0] == device.partition(":")[0] for leaf in leaves)
    return [result.numpy(), *(leaf.grad.numpy() for leaf in leaves)]


@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3), (0,), (65,)], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 10), (400, 64)])
def test_linear(device, leading, inputs, outputs):
    rng = np.random.default_rng(13)
    shapes = (*leading, inputs), (outputs, inputs), (outputs,), (*leading, outputs)
    x, weight, bias, gy = (rng.integers(-4, 5, shape).astype(np.float32) for shape in shapes)
    results = differentiate(F.linear, (x, weight, bias), gy, device)
    for got, want in zip(results, differentiate(F.linear, (x, weight, bias), gy, "cpu"), strict=True):
        assert_equal(got, want)
    check_adjoint(results[0] - bias, gy, [(x, results[1]), (weight, results[2])], limit=0)


@pytest.mark.parametrize(
    ("x", "filters", "stride", "padding"),
    [((1, 1, 1, 1), (1, 1, 1), 1, 0), ((3, 5, 7, 13), (7, 3, 2), (2, 3), (1, 0)), ((0, 2, 5, 5), (3, 3, 3), 1, 1)],
    ids=str,
)
def test_locally_connected(device, x, filters, stride, padding):
    rng = np.random.default_rng(14)
    K, R, S = filters
    pair = (stride, stride) if isinstance(stride, int) else stride
    pads = (padding, padding) if isinstance(padding, int) else padding
    P, Q = ((n + 2 * p - r) // s + 1 for n, p, r, s in zip(x[2:], pads, (R, S), pair, strict=True))
    shapes = x, (P, Q, K, x[1], R, S), (K, P, Q), (x[0], K, P, Q)
    arrays = [rng.integers(-4, 5, shape).astype(np.float32) for shape in shapes]

    def function(*leaves):
        return F.locally_connected2d(*leaves, stride, padding)

    for got, want in zip(differentiate(function, arrays[:3], arrays[3], device),
                         differentiate(function, arrays[:3], arrays[3], "cpu"), strict=True):  # fmt: skip
        assert_equal(got, want)


def test_device_results_are_the_bits_of_any_schedule(device):
    rng = np.random.default_rng(15)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((9, 700), (20, 700)))
    first, second = (devices.to_numpy(F.linear(*on(device, x, weight))) for _ in range(2))
    assert_same_bits(first, second)
    assert_close(first, F.linear(x, weight), 2 * sum_bound(700, abs(x) @ abs(weight).T, np.float32))
