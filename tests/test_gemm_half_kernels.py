"""Matrix products of bfloat16 and float16 on tensor cores: exact on integers everywhere, errors, soundness, use."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from check import assert_equal, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import assert_sound, assert_two_runs_equal, on

from gpucnn import device as devices
from gpucnn.launch import simulator
from gpucnn.ops.gemm import HALF_STEP, LONG_TERMS, gemm, linear_backward_weight, linear_forward, matmul

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}
names = pytest.mark.parametrize("name", list(DTYPES))
outputs = pytest.mark.parametrize("output", ["half", "float32"])
layouts = pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])


def stored(values: np.ndarray, layout: str, device: str, gap: int = 0):
    """Matrices on the device, as they are or transposed in memory, with `gap` values after each line."""
    memory = values if layout == "n" else values.swapaxes(1, 2)
    memory = np.pad(memory, ((0, 0), (0, 0), (0, gap)))
    array = on(device, np.ascontiguousarray(memory))[0][:, :, : memory.shape[2] - gap]
    return array if layout == "n" else array.swapaxes(1, 2)


def product(
    device, a, b, output="half", layout="nn", tile=None, splits=None, bias=None, axis="column", relu=False,
    residual=None, gap=0,
):  # fmt: skip
    """a · b of values of 16 bits; c and residual in their type or float32."""
    dtype = a.dtype if output == "half" else np.dtype(np.float32)
    left, right = stored(a, layout[0], device, gap), stored(b, layout[1], device, gap)
    c = devices.empty((max(len(a), len(b)), a.shape[1], b.shape[2]), dtype, left)
    if residual is not None:
        residual = stored(residual.astype(dtype), "n", device, gap)
    gemm(left, right, c, *on(device, bias), axis, relu, tile, splits, None, residual)
    return devices.to_numpy(c)


def assert_exact(
    device, shape, name, output="half", layout="nn", tile=None, splits=None, axis=None, relu=False, add=False, gap=0
):
    """Integers whose sums both types hold exactly: at most 256."""
    B, M, N, K = shape
    rng = np.random.default_rng(M + N + K)
    # Few terms are not zero, and all places have some, so that a sum stays small and each term counts.
    share = min(1.0, 40 / max(K, 1))
    a, b = (rng.integers(-2, 3, size).astype(DTYPES[name]) for size in ((B, M, K), (B, K, N)))
    a *= rng.random(a.shape) < share
    bias = rng.integers(-9, 10, M if axis == "row" else N).astype(np.float32) if axis else None
    residual = rng.integers(-9, 10, (B, M, N)).astype(np.float32) if add else None
    want = a.astype(np.float64) @ b.astype(np.float64)
    if axis:
        want = want + (bias[:, None] if axis == "row" else bias)
    if add:
        want = want + residual
    assert abs(want).max(initial=0) <= 256
    got = product(device, a, b, output, layout, tile, splits, bias, axis or "column", relu, residual, gap)
    assert got.dtype == (DTYPES[name] if output == "half" else np.float32)
    assert_equal(got.astype(np.float64), np.maximum(want, 0) if relu else want)


@names
@outputs
@layouts
@pytest.mark.parametrize("tile", ["128x128", "64x64"])
def test_tails_are_exact(device, name, output, layout, tile):
    """Copies by 16 bytes, and by values; more steps than the ring has stages, twice over; each tail."""
    M, N = map(int, tile.split("x"))
    assert_exact(device, (1, M + 8, N - 8, 9 * HALF_STEP + 8), name, output, layout, tile, 1, "row", True, True)
    assert_exact(device, (1, M + 1, N - 1, 33), name, output, layout, tile, 1, "column")


@names
@layouts
@pytest.mark.parametrize("odd", ["M", "N", "K"])
def test_one_odd_extent_is_exact(device, name, layout, odd):
    shape = {"M": 40, "N": 72, "K": 24}
    shape[odd] += 3
    assert_exact(device, (2, *shape.values()), name, "half", layout, "64x64", 1, "row", add=True)


@names
def test_small_empty_and_many_terms(device, name):
    for shape in ((1, 1, 1, 1), (3, 1, 5, 7), (0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 4, 0)):
        assert_exact(device, shape, name, axis="row", relu=True, add=True)
    for K in (512, 513, 1100):  # chunks
        assert_exact(device, (1, 9, 34, K), name, "float32", "nt", "64x64", 1, "column", True)
    for output in ("half", "float32"):
        assert_exact(device, (2, 37, 35, 150), name, output, "tn", "64x64", 3, "row", True, True)
    assert_exact(device, (2, 16, 24, 160), name, "half", "nn", "64x64", 2)
    assert_exact(device, (1, 8, 16, LONG_TERMS + 8), name, "half", "nt", "64x64", 1, add=True)


@given(
    shape=st.tuples(st.integers(1, 2), *[st.sampled_from([1, 2, 3, 8, 16, 17, 32, 40, 63, 64, 65, 72])] * 3),
    name=st.sampled_from(list(DTYPES)),
    output=st.sampled_from(["half", "float32"]),
    layout=st.sampled_from(["nn", "nt", "tn", "tt"]),
    tile=st.sampled_from([None, "64x64"]),
    splits=st.sampled_from([None, 1, 2]),
    axis=st.sampled_from([None, "row", "column"]),
    add=st.booleans(),
    gap=st.sampled_from([0, 1, 8]),
)
@settings(max_examples=30)
def test_random_shapes_are_exact(device, shape, name, output, layout, tile, splits, axis, add, gap):
    assert_exact(device, shape, name, output, layout, tile, splits, axis, add=add, gap=gap)


def test_shared_matrices_transposed_results_and_other_addresses(device):
    rng = np.random.default_rng(5)
    a, b = (rng.integers(-2, 3, size).astype(np.float16) for size in ((1, 16, 24), (3, 24, 40)))
    want = a.astype(np.float64) @ b.astype(np.float64)
    assert_equal(product(device, a, b).astype(np.float64), want)
    c = devices.empty((3, 40, 16), np.float16, on(device, a)[0]).swapaxes(1, 2)
    residual = stored(np.ones((3, 16, 40), np.float16), "t", device)
    gemm(*on(device, a, b), c, residual=residual)
    assert_equal(devices.to_numpy(c).astype(np.float64), want + 1)
    moved = on(device, np.pad(a, ((0, 0), (0, 0), (8, 8))))[0]
    for first in (8, 7, 5):  # 16 bytes in, and 2 or 6 less
        left = moved[:, :, first : first + 24]
        c = devices.empty((3, 16, 40), np.float16, left)
        gemm(left, *on(device, b), c)
        assert_equal(devices.to_numpy(c).astype(np.float64), devices.to_numpy(left).astype(np.float64) @ b)


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def reals(K: int, name: str, M: int = 40, N: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(K)
    return tuple(rng.standard_normal(size).astype(np.float32).astype(DTYPES[name]) for size in ((1, M, K), (1, K, N)))


@names
@outputs
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("K", [16, 576, 4_000])
def test_errors(device, name, output, K, architecture):
    """Of the rounded operands: twice float32's bound, for the tensor core, and one rounding of the result."""
    if device != "sim" and architecture == "sm_80":
        pytest.skip("a GPU is what it is")
    a, b = reals(K, name)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    want, size = wide_a @ wide_b, abs(wide_a) @ abs(wide_b)
    with simulator.configured(architecture=architecture):
        got = product(device, a, b, output, splits=1).astype(np.float64)
    rounding = ROUNDING[name if output == "half" else "float32"]
    bound = 2 * min(K + 2, 8 + 2 * K**0.5) * 2.0**-24 * size + rounding * abs(want)
    assert (abs(got - want) <= bound).all()
    if output == "float32":
        assert relative_l2(got, want) <= 2e-6


@pytest.mark.parametrize("signs", ["both", "one"])
def test_error_of_1e5_terms(device, signs):
    """As weights' gradients have; cut off without chunks, positive ones would lose 4e-4."""
    a, b = reals(100_000, "bfloat16", 3, 2)
    if signs == "one":
        a, b = abs(a), abs(b)
    got = product(device, a, b, "float32", "nt", splits=1)
    assert relative_l2(got, a.astype(np.float64) @ b.astype(np.float64)) <= (2e-6 if signs == "both" else 5e-6)


@names
def test_nan_and_infinity(device, name):
    a, b = reals(20, name)
    a[0, 3, 5], a[0, 7, 0] = np.nan, np.inf
    got = product(device, a, b).astype(np.float32)
    assert np.isnan(got[0, 3]).all() and not np.isfinite(got[0, 7]).any()
    assert np.isfinite(np.delete(got, (3, 7), axis=1)).all()


@layouts
@pytest.mark.parametrize("K", [168, 35])
def test_sound(layout, K):
    """Both kinds of copies, with more steps than stages, and an epilogue of everything."""
    a, b = reals(K, "bfloat16")
    bias, residual = np.ones(24, np.float32), np.ones((1, 8, 24), np.float32)

    def run() -> np.ndarray:
        return product("sim", a[:, :8], b, "half", layout, "64x64", bias=bias, relu=True, residual=residual)

    assert_two_runs_equal(run, "sim")
    assert_sound(run, "sim")


def test_splits_and_chunks_are_sound():
    a, b = reals(600, "bfloat16", 8, 8)
    assert_two_runs_equal(lambda: product("sim", a, b, "half", splits=4), "sim")
    assert_sound(lambda: product("sim", a, b, "float32", "nt", "64x64", 1), "sim")


@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
def test_no_bank_conflicts_and_full_sectors_in_the_main_loop(layout):
    a, b = (np.zeros(size, DTYPES["bfloat16"]) for size in ((1, 128, 160), (1, 160, 128)))
    with simulator.profiling() as profiles:
        product("sim", a, b, "half", layout, "128x128", 1)
    counts = profiles[0][1].lines.values()
    conflicts = [c for c in counts if c.space == "shared" and c.units != c.least]
    # Of the epilogue alone: its reads of the sums, two times half of 64 KB.
    assert [(c.writes, c.bytes, c.units) for c in conflicts] == [(False, 32768, 2 * c.least) for c in conflicts]
    assert len(conflicts) == 2
    memory = [c for c in counts if c.space == "global"]
    assert memory and all(c.units == c.least for c in memory)


@names
def test_matmul_and_linear_on_every_device(device, name):
    rng = np.random.default_rng(7)
    x, weight = (rng.integers(-2, 3, size).astype(DTYPES[name]) for size in ((2, 5, 12), (7, 12)))
    gy, bias = rng.integers(-2, 3, (2, 5, 7)).astype(DTYPES[name]), rng.integers(-5, 6, 7).astype(np.float32)
    wide = x.astype(np.float64) @ weight.astype(np.float64).T + bias
    for where in ("cpu", device):
        there = (lambda *arrays: arrays) if where == "cpu" else (lambda *arrays: on(device, *arrays))
        y = linear_forward(*there(x, weight, bias))
        assert y.dtype == DTYPES[name]
        assert_equal(devices.to_numpy(y).astype(np.float64), wide)
        gw = linear_backward_weight(*there(x, gy))
        assert gw.dtype == np.float32
        assert_equal(devices.to_numpy(gw), np.einsum("nio,nic->oc", gy.astype(np.float64), x.astype(np.float64)))
        assert matmul(*there(x, weight.T), dtype=np.float32).dtype == np.float32


def test_float32_with_a_residual(device):
    rng = np.random.default_rng(8)
    a, b, residual = (rng.integers(-4, 5, s).astype(np.float32) for s in ((2, 9, 20), (2, 20, 13), (2, 9, 13)))
    want = np.maximum(a.astype(np.float64) @ b + residual, 0)
    for precision in ("float32", "tf32"):
        for splits in (1, 2):
            c = devices.empty((2, 9, 13), np.float32, on(device, a)[0])
            gemm(*on(device, a, b), c, relu=True, splits=splits, precision=precision, residual=on(device, residual)[0])
            assert_equal(devices.to_numpy(c), want)


def test_errors_of_use(device):
    a, b = reals(8, "bfloat16")
    left, right, narrow = on(device, a, b, b.astype(np.float16))
    c = devices.empty((1, 40, 24), a.dtype, left)
    with pytest.raises(TypeError, match="b is float16 beside a of bfloat16; it must be bfloat16"):
        gemm(left, narrow, c)
    with pytest.raises(TypeError, match="c is float16 beside a of bfloat16; it must be bfloat16 or float32"):
        gemm(left, right, devices.empty((1, 40, 24), np.float16, left))
    with pytest.raises(TypeError, match="bias is bfloat16 beside a of bfloat16; it must be float32"):
        gemm(left, right, c, *on(device, b[0, 0]))
    with pytest.raises(TypeError, match="residual is float32 .* it must be bfloat16"):
        gemm(left, right, c, residual=on(device, np.zeros((1, 40, 24), np.float32))[0])
    with pytest.raises(ValueError, match=r"residual has shape \(1, 40, 40\); it must be c's"):
        gemm(left, right, c, residual=on(device, np.zeros((1, 40, 40), a.dtype))[0])


def test_before_sm_80():
    a, b = reals(8, "float16")
    with simulator.configured(architecture="sm_75"):
        with pytest.raises(ValueError, match="float16 needs tensor cores of sm_80 or later"):
            product("sim", a, b)


def test_tile_fits_the_smallest_shared_memory():
    a, b = reals(16, "float16")
    with simulator.configured(architecture="sm_86"):
        got = product("sim", a, b, tile="128x128")
    assert_same_bits(got, product("sim", a, b, tile="64x64"))
