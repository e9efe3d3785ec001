"""float32_tensor's products on Hopper's tensor cores: parts, exactness, errors beside float32's, soundness, choice."""

from __future__ import annotations

import numpy as np
import pytest
from check import assert_equal, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import SCHEDULES, on

from gpucnn import device as devices
from gpucnn.launch import simulator
from gpucnn.ops import gemm, gemm_hopper_float32
from gpucnn.precision import precision

LAYOUTS = ("nn", "nt", "tn", "tt")
ONE = gemm_hopper_float32.Form(1, 1)


@pytest.fixture(autouse=True)
def hopper(device):
    if device != "sim" and devices.cupy().cuda.Device().compute_capability != "90":
        pytest.skip("these kernels are for compute capability 9.0")


def stored(values: np.ndarray, layout: str, device: str):
    if layout == "n":
        return on(device, values)[0]
    return on(device, np.ascontiguousarray(values.swapaxes(1, 2)))[0].swapaxes(1, 2)


def product(device, a, b, layout="nt", bias=None, axis="column", relu=False, form=ONE, pitch=0, residual=None):
    """c with rows `pitch` elements longer than they need be; none of those may change."""
    a, b = stored(a, layout[0], device), stored(b, layout[1], device)
    whole = devices.empty((max(len(a), len(b)), a.shape[1], b.shape[2] + pitch), np.float32, a)
    c = whole[:, :, : b.shape[2]]
    assert gemm_hopper_float32.takes(a, b, c)
    if residual is not None:
        added = devices.empty(whole.shape, np.float32, c)
        added[:, :, : b.shape[2]] = on(device, residual)[0]
        residual = added[:, :, : b.shape[2]]
    gemm_hopper_float32.multiply(a, b, c, *on(device, bias), axis == "row", relu, 132, residual, form)
    result = devices.to_numpy(whole)
    assert np.isnan(result[:, :, b.shape[2] :]).all()
    return result[:, :, : b.shape[2]]


def integers(device, shape, layout="nt", axis=None, relu=False, form=ONE, pitch=0, residual=False):
    """Sums below 2^24 are exact, whatever their order."""
    B, M, N, K = shape
    rng = np.random.default_rng(M + N + K)
    a, b = (rng.integers(-4, 5, size).astype(np.float32) for size in ((B, M, K), (B, K, N)))
    bias = rng.integers(-9, 10, M if axis == "row" else N).astype(np.float32) if axis else None
    want = a.astype(np.float64) @ b
    if axis:
        want = want + (bias[:, None] if axis == "row" else bias)
    added = rng.integers(-9, 10, want.shape).astype(np.float32) if residual else None
    want = want + added if residual else want
    got = product(device, a, b, layout, bias, axis or "column", relu, form, pitch, added)
    assert_equal(got, np.maximum(want, 0) if relu else want)
    return got


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def reals(K: int, M: int = 40, N: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(K)
    return rng.standard_normal((1, M, K), np.float32), rng.standard_normal((1, K, N), np.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_deep_products_and_tails(device, layout):
    """Stages are used twice and more; the last step has five terms, and tiles are cut."""
    integers(device, (1, 136, 131, 9 * 32 + 5), layout, "row", True)
    integers(device, (2, 63, 72, 10 * 32 + 8), layout, "column", form=gemm_hopper_float32.Form(1, 3))


def test_few_terms_and_small_shapes(device):
    for shape in ((1, 1, 1, 1), (3, 1, 5, 32), (1, 2, 8, 33), (1, 9, 4, 64), (1, 5, 3, 65), (1, 129, 2, 7)):
        integers(device, shape)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("pitch", [0, 3])
def test_residual_and_splits(device, pitch, splits):
    form = gemm_hopper_float32.Form(splits, 2)
    integers(device, (2, 70, 136, 200), "nn", "column", True, form, pitch, residual=True)


@given(
    shape=st.tuples(st.integers(1, 2), *[st.sampled_from([1, 7, 8, 31, 33, 64, 127, 130])] * 3),
    layout=st.sampled_from(LAYOUTS),
    axis=st.sampled_from([None, "row", "column"]),
    form=st.sampled_from([ONE, gemm_hopper_float32.Form(2, 1), gemm_hopper_float32.ANY]),
)
@settings(max_examples=12)
def test_random_shapes_are_exact(device, shape, layout, axis, form):
    integers(device, shape, layout, axis, False, form)


def test_shared_matrices_and_strides(device, rng):
    a, b = (rng.integers(-4, 5, size).astype(np.float32) for size in ((3, 20, 48), (1, 24, 16)))
    want = a[:, :, ::2].astype(np.float64) @ b
    x, y = on(device, a, b)
    c = devices.empty((3, 20, 16), np.float32, x)
    gemm_hopper_float32.multiply(x[:, :, ::2], np.broadcast_to(y, (3, 24, 16)), c, None, False, False, 132)
    assert_equal(devices.to_numpy(c), want)


@pytest.mark.parametrize("layout", ["n", "t"])
def test_parts_add_up(device, layout):
    """Exactly, for all normal numbers that are not the smallest; the first is the nearest of bfloat16."""
    rng = np.random.default_rng(5)
    values = np.ldexp(rng.uniform(-1, 1, (2, 33, 69)), rng.integers(-60, 127, (2, 33, 69))).astype(np.float32)
    values[0, 0, :2] = np.finfo(np.float32).max, np.finfo(np.float32).min
    parts = devices.to_numpy(gemm_hopper_float32.split(stored(values, layout, device)))
    assert parts.shape == (3, 2, 33, 72) and not parts[..., 69:].any()
    assert_equal(parts[..., :69].astype(np.float64).sum(0), values)
    assert_equal(parts[0, ..., 2:69], values[..., 2:].astype(parts.dtype))


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("K", [32, 576, 4_000])
def test_errors(device, K, positive):
    """Float32's: a product of parts left out would add 2^-18, sums that are cut off all along 1e-7 for each slice."""
    a, b = (abs(values) if positive else values for values in reals(K))
    want = a.astype(np.float64) @ b
    assert relative_l2(product(device, a, b), want) <= 3e-7


def test_errors_beside_float32(device):
    a, b = reals(3_000, 16, 16)
    want = a.astype(np.float64) @ b
    c = devices.empty((1, 16, 16), np.float32, on(device, a)[0])
    gemm.gemm(*on(device, a, b), c, precision="float32")
    assert relative_l2(product(device, a, b, "nn"), want) <= relative_l2(devices.to_numpy(c), want)


def test_each_bit_of_a_value_counts(device):
    """Products with ones and zeros are the values themselves."""
    rng = np.random.default_rng(2)
    values = (rng.integers(2**23, 2**24, (1, 24, 24)) * rng.choice([-1, 1], (1, 24, 24))).astype(np.float32)
    ones = np.eye(24, dtype=np.float32)[None]
    assert_equal(product(device, values, ones), values)
    assert_equal(product(device, ones, values), values)


def test_error_of_1e5_terms(device):
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((1, 3, 100_000), np.float32), rng.standard_normal((1, 100_000, 2), np.float32)
    got = product(device, a, b, form=gemm_hopper_float32.ANY)
    assert relative_l2(got, a.astype(np.float64) @ b) <= 5e-7


def test_nan_infinity_and_the_largest(device):
    a, b = reals(20)
    a[0, 3, 5], a[0, 7, 0], a[0, 9] = np.nan, np.inf, 0
    a[0, 9, 0], b[0, 0, 0] = np.finfo(np.float32).max, 1
    got = product(device, a, b)
    assert np.isnan(got[0, 3]).all() and not np.isfinite(got[0, 7]).any()
    assert np.isfinite(np.delete(got[0], (3, 7, 9), axis=0)).all()
    assert got[0, 9, 0] == np.finfo(np.float32).max


@pytest.mark.parametrize("mode", ["asan", "race"])
def test_sound(device, mode):
    if device != "sim":
        pytest.skip("modes of the simulator")
    first = None
    for schedule in SCHEDULES[1:3]:
        with simulator.configured(mode=mode, **schedule):
            got = integers(device, (1, 72, 70, 9 * 32 + 4), "nn")
        first = got if first is None else first
        assert_same_bits(got, first)


def test_two_schedules_give_the_same_bits(device):
    a, b = reals(904, 136, 70)
    first = product(device, a, b, "tn", form=gemm_hopper_float32.Form(2, 1))
    for schedule in SCHEDULES[1:] if device == "sim" else ():
        with simulator.configured(**schedule):
            assert_same_bits(product(device, a, b, "tn", form=gemm_hopper_float32.Form(2, 3)), first)


def test_products_use_the_kernels(device, monkeypatch):
    """Linear layers do in float32_tensor, where that is estimated to be faster; a tile that is asked for stays."""
    names: list[str] = []
    launch = gemm_hopper_float32.launch
    monkeypatch.setattr(
        gemm_hopper_float32, "launch", lambda name, *rest, **more: (names.append(name), launch(name, *rest, **more))
    )
    monkeypatch.setattr(gemm_hopper_float32.gemm_hopper, "LAUNCH_CLOCKS", 0)
    gemm_hopper_float32.choose.cache_clear()
    values = np.random.default_rng(1).integers(-4, 5, (2, 130, 600)).astype(np.float32)
    x, weight = on(device, *values)
    with precision("float32_tensor"):
        y = gemm.linear_forward(x, weight, None)
        assert len(names) == 3 and names[-1] == "gemm_hopper_float32_tensor_128x128"
        c = devices.empty((1, 130, 130), np.float32, x)
        gemm.gemm(x[None], weight.T[None], c, tile="64x64")
    gemm_hopper_float32.choose.cache_clear()
    assert len(names) == 3
    for result in (y, c[0]):
        assert_equal(devices.to_numpy(result), values[0] @ values[1].T)


def test_choice(device):
    def suits(M, N, K):
        a, b, c = (Shaped(size) for size in ((1, M, K), (1, K, N), (1, M, N)))
        tile, splits = gemm.choose_tile(M, N, K, 1, 132, gemm.TENSOR_TILES["float32_tensor"])
        clocks = gemm.estimated_clocks(tile, splits, M, N, K, 1, 132)
        return gemm_hopper_float32.suits(a, b, c, None, 132, clocks)

    class Shaped:
        """As much of an array as a choice looks at."""

        def __init__(self, shape):
            self.shape, self.size, self.itemsize, self.dtype = shape, int(np.prod(shape)), 4, np.dtype(np.float32)
            self.strides = (4 * shape[1] * shape[2], 4 * shape[2], 4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemm_hopper_float32, "architecture_of", lambda array: 90)
        assert suits(4096, 4096, 4096) and suits(1024, 1024, 1024) and suits(256, 256, 65536)
        assert not suits(64, 64, 64) and not suits(256, 256, 256)
        assert not suits(40_000, 20_000, 20_000)  # parts of more than 2 GB
    assert gemm_hopper_float32.choose(8192, 8192, 8192, 1, 132)[0] == 1
    assert gemm_hopper_float32.choose(128, 128, 65536, 1, 132)[0] > 8
    assert gemm_hopper_float32.SHARED_BYTES <= 227 * 1024
