"""Matrix products on tensor cores: exact on small integers in every tile and layout, errors, soundness, choice."""

from __future__ import annotations

import numpy as np
import pytest
from check import assert_equal, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import assert_sound, assert_two_runs_equal, on

import gpucnn
from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn.launch import simulator
from gpucnn.ops.gemm import TENSOR_TILES, gemm

PRECISIONS = list(TENSOR_TILES)
precision_names = pytest.mark.parametrize("precision", PRECISIONS)
tiles = pytest.mark.parametrize("tile", ["128x128", "64x64"])
layouts = pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])


def stored(values: np.ndarray, layout: str, device: str):
    """The matrices on the device, in memory as they are or transposed."""
    if layout == "n":
        return on(device, values)[0]
    return on(device, np.ascontiguousarray(values.swapaxes(1, 2)))[0].swapaxes(1, 2)


def product(device, a, b, precision, layout="nn", tile=None, splits=None, bias=None, axis="column", relu=False):
    a, b = stored(a, layout[0], device), stored(b, layout[1], device)
    c = devices.empty((max(len(a), len(b)), a.shape[1], b.shape[2]), np.float32, a)
    gemm(a, b, c, *on(device, bias), axis, relu, tile, splits, precision)
    return devices.to_numpy(c)


def assert_exact(device, shape, precision, layout="nn", tile=None, splits=None, axis=None, relu=False):
    """Integers that tf32 holds exactly, with sums below 2^24."""
    B, M, N, K = shape
    rng = np.random.default_rng(M + N + K)
    a, b = (rng.integers(-4, 5, size).astype(np.float32) for size in ((B, M, K), (B, K, N)))
    bias = rng.integers(-9, 10, M if axis == "row" else N).astype(np.float32) if axis else None
    want = a.astype(np.float64) @ b
    if axis:
        want = want + (bias[:, None] if axis == "row" else bias)
    got = product(device, a, b, precision, layout, tile, splits, bias, axis or "column", relu)
    assert_equal(got, np.maximum(want, 0) if relu else want)


@precision_names
@tiles
@layouts
def test_tails_are_exact(device, precision, tile, layout):
    M, N = map(int, tile.split("x"))
    assert_exact(device, (1, M + 1, N - 1, 33), precision, layout, tile, 1, "row", True)
    assert_exact(device, (2, M // 2, N // 2 + 3, 50), precision, layout, tile, 1, "column")


@precision_names
def test_small_empty_and_many_terms(device, precision):
    for shape in ((1, 1, 1, 1), (3, 1, 5, 7), (0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 4, 0)):
        assert_exact(device, shape, precision, axis="row", relu=True)
    for K in (1024, 1025, 2085):
        assert_exact(device, (1, 9, 34, K), precision, "nt", "64x64", 1, "column", True)
    assert_exact(device, (2, 37, 35, 150), precision, "tn", "64x64", 3, "row", True)


@given(
    shape=st.tuples(st.integers(1, 2), *[st.sampled_from([1, 2, 3, 5, 8, 17, 32, 63, 64, 65])] * 3),
    precision=st.sampled_from(PRECISIONS),
    layout=st.sampled_from(["nn", "nt", "tn", "tt"]),
    tile=st.sampled_from([None, "64x64"]),
    splits=st.sampled_from([None, 1, 2]),
    axis=st.sampled_from([None, "row", "column"]),
)
@settings(max_examples=30)
def test_random_shapes_are_exact(device, shape, precision, layout, tile, splits, axis):
    assert_exact(device, shape, precision, layout, tile, splits, axis)


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def reals(K: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((1, 40, K), np.float32), rng.standard_normal((1, K, 24), np.float32)


@pytest.mark.parametrize("K", [16, 576, 5_000])
def test_errors(device, K):
    """Float32's error with the parts of float32_tensor, 11 bits without; and neither is the other in disguise."""
    a, b = reals(K)
    want = a.astype(np.float64) @ b
    assert relative_l2(product(device, a, b, "float32_tensor"), want) <= 1e-6
    single = relative_l2(product(device, a, b, "tf32"), want)
    assert 5e-5 < single <= 5e-4


def test_error_of_positive_terms(device):
    """Sums that only grow: cut off in the tensor core they would lose a part of each term, all in one direction."""
    a, b = (abs(values) for values in reals(4_096))
    want = a.astype(np.float64) @ b
    assert relative_l2(product(device, a, b, "float32_tensor", splits=1), want) <= 2e-6


def test_error_of_1e5_terms(device):
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((1, 3, 100_000), np.float32), rng.standard_normal((1, 100_000, 2), np.float32)
    got = product(device, a, b, "float32_tensor", layout="nt")
    assert relative_l2(got, a.astype(np.float64) @ b) <= 2e-6


def test_tf32_is_rounded_and_not_cut_off(device):
    """Cut off, every product of positive numbers would be too small by 5e-4 on average, and so would the sum."""
    a, b = (abs(values) for values in reals(512))
    want = a.astype(np.float64) @ b
    assert abs((product(device, a, b, "tf32", splits=1) / want - 1).mean()) < 3e-5


@precision_names
def test_nan_and_infinity(device, precision):
    a, b = reals(20)
    a[0, 3, 5], a[0, 7, 0] = np.nan, np.inf
    got = product(device, a, b, precision)
    assert np.isnan(got[0, 3]).all() and not np.isfinite(got[0, 7]).any()
    assert np.isfinite(np.delete(got, (3, 7), axis=1)).all()


@precision_names
@layouts
def test_sound(precision, layout):
    a, b = reals(70)

    def run() -> np.ndarray:
        return product("sim", a[:, :9], b, precision, layout, "64x64")

    assert_two_runs_equal(run, "sim")
    assert_sound(run, "sim")


@precision_names
def test_no_bank_conflicts_in_the_main_loop(precision):
    a, b = (np.zeros((1, 128, 64), np.float32), np.zeros((1, 64, 128), np.float32))
    for layout in ("nn", "nt", "tn"):
        with simulator.profiling() as profiles:
            product("sim", a, b, precision, layout, "128x128", 1)
        shared = [c for c in profiles[0][1].lines.values() if c.space == "shared"]
        reads = [c for c in shared if not c.writes]
        assert reads and all(c.units == c.requests for c in reads)
        assert all(c.units == c.least for c in shared if c.writes)


def test_precision_in_force(device):
    """A policy is for all products on devices that run kernels, and stands in one place."""
    a, b = reals(300)
    want = product(device, a, b, "tf32")
    assert gpucnn.get_precision() == "float32"
    with gpucnn.precision("tf32"):
        assert_same_bits(product(device, a, b, None), want)
        x, weight = gpucnn.tensor(a[0]).to(device), gpucnn.tensor(b[0].T.copy()).to(device)
        assert_same_bits(F.linear(x, weight).numpy(), want[0])
    assert not np.array_equal(product(device, a, b, None), want)


def test_errors_of_use(device):
    a, b = reals(8)
    with pytest.raises(ValueError, match="precision: 'float64' is unknown; use one of float32, float32_tensor, tf32"):
        product(device, a, b, "float64")
    with pytest.raises(ValueError, match="unknown"):
        gpucnn.precision("tf33")
    assert gpucnn.get_precision() == "float32"


def test_before_sm_80():
    a, b = reals(8)
    with simulator.configured(architecture="sm_75"):
        with pytest.raises(ValueError, match="needs tensor cores of sm_80 or later"):
            product("sim", a, b, "tf32")
        with gpucnn.precision("tf32"):
            assert_same_bits(product("sim", a, b, None), product("sim", a, b, "float32"))


def test_generations_differ_in_the_last_bits_only():
    a, b = reals(64)
    hopper = product("sim", a, b, "tf32")
    with simulator.configured(architecture="sm_80"):
        ampere = product("sim", a, b, "tf32")
    assert (ampere != hopper).any() and relative_l2(ampere, hopper) < 1e-6
