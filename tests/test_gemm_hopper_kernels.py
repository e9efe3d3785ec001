"""Matrix products on Hopper's tensor cores: exact on small integers in all types, layouts and tiles; soundness."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from check import assert_close, assert_equal, assert_relative_l2, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import SCHEDULES, on

from gpucnn import device as devices
from gpucnn.launch import simulator
from gpucnn.ops import gemm, gemm_hopper
from gpucnn.precision import precision

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
RELATIVE = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-11}  # half a unit in the last place, of tf32 too
TILES = {tile.name: tile for tile in gemm_hopper.TILES}
PAIRS = {tile.name: tile for tile in gemm_hopper.PAIRS}
HALVES = ("bfloat16", "float16")


@pytest.fixture(autouse=True)
def hopper(device):
    if device != "sim" and devices.cupy().cuda.Device().compute_capability != "90":
        pytest.skip("these kernels are for compute capability 9.0")


def stored(values: np.ndarray, contiguous: int, device: str):
    """The matrices on the device with the axis `contiguous` side by side in memory."""
    if contiguous == 2:
        return on(device, values)[0]
    return on(device, np.ascontiguousarray(values.swapaxes(1, 2)))[0].swapaxes(1, 2)


def product(device, a, b, layout="nt", out=None, bias=None, axis="column", relu=False, form=(), pitch=0, residual=None):
    """c with rows `pitch` elements longer than they need be; none of those may change."""
    a, b = stored(a, 2 if layout[0] == "n" else 1, device), stored(b, 2 if layout[1] == "n" else 1, device)
    B, M, N = max(len(a), len(b)), a.shape[1], b.shape[2]
    whole = devices.empty((B, M, N + pitch), DTYPES[out or a.dtype.name], a)
    c = whole[:, :, :N]
    assert gemm_hopper.takes(a, b, c)
    if residual is not None:
        added = devices.empty(whole.shape, c.dtype, c)
        added[:, :, :N] = on(device, residual)[0]
        residual = added[:, :, :N]
    gemm_hopper.multiply(a, b, c, *on(device, bias), axis == "row", relu, 132, residual, gemm_hopper.Form(*form))
    result = devices.to_numpy(whole)
    assert np.isnan(result[:, :, N:].astype(np.float32)).all()
    return result[:, :, :N]


def integers(
    shape, kind="bfloat16", layout="nt", out=None, axis=None, relu=False, form=(), pitch=0, residual=False, device="sim"
):
    """Sums below 2^24 are exact, whatever their order; then they are rounded to the type of c once."""
    B, M, N, K = shape
    rng = np.random.default_rng(M + N + K)
    a, b = (rng.integers(-4, 5, size).astype(np.float32) for size in ((B, M, K), (B, K, N)))
    bias = rng.integers(-9, 10, M if axis == "row" else N).astype(np.float32) if axis else None
    want = a.astype(np.float64) @ b
    if axis:
        want = want + (bias[:, None] if axis == "row" else bias)
    dtype = DTYPES[out or kind]
    added = rng.integers(-9, 10, want.shape).astype(dtype) if residual else None
    want = want + added.astype(np.float64) if residual else want
    want = np.maximum(want, 0) if relu else want
    a, b = a.astype(DTYPES[kind]), b.astype(DTYPES[kind])
    got = product(device, a, b, layout, out, bias, axis or "column", relu, form, pitch, added)
    assert got.dtype == dtype
    assert_equal(got, want.astype(np.float32).astype(dtype))
    return got


@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
@pytest.mark.parametrize("kind", HALVES)
def test_deep_products_and_tails(device, kind, layout):
    """Stages are used twice, sums leave the tensor cores once; the last step has eight terms, and tiles are cut."""
    integers((1, 136, 136, 17 * 64 + 8), kind, layout, "float32", "row", True, ("128x128", 1, 1), device=device)
    integers((1, 72, 264, 9 * 64 + 8), kind, layout, None, "column", False, ("128x256", 1, 1), device=device)


@pytest.mark.parametrize("tile", TILES)
def test_tf32(device, tile):
    integers((2, 130, 132, 420), "float32", "nt", None, "column", True, (tile, 1, 2), device=device)


@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
@pytest.mark.parametrize("kind", HALVES)
def test_pairs_of_blocks(device, kind, layout):
    """Stages are used more than twice; two tiles, or one and a partner without rows; columns end in either half."""
    integers((1, 136, 136, 13 * 64 + 8), kind, layout, None, "row", True, ("pairs_128x128", 1, 2), device=device)
    integers((1, 72, 264, 9 * 64 + 8), kind, layout, None, "column", False, ("pairs_128x256", 1, 2), device=device)
    integers((1, 16, 72, 17 * 64 + 8), kind, layout, "float32", "row", True, ("pairs_128x128", 1, 2), device=device)


@pytest.mark.parametrize("tile", PAIRS)
def test_pairs_of_tf32(device, tile):
    """Two clusters go round three pairs of tiles of each matrix, the last of them of a tile and a half."""
    integers((2, 650, 36, 420), "float32", "nt", None, "column", True, (tile, 1, 4), device=device)


@pytest.mark.parametrize("pitch", [0, 3])
def test_pairs_with_all_that_products_have(device, pitch):
    """Batches, residual and splits; rows of c that no map has; a launch of more clusters than there is work for."""
    form = ("pairs_128x128", 2, 132)
    integers((2, 130, 72, 136), "bfloat16", "nt", None, "column", True, form, pitch, True, device)
    integers((2, 130, 72, 136), "float16", "nn", "float32", "row", True, ("pairs_128x128", 1, 2), pitch, True, device)


@pytest.mark.parametrize("pitch", [0, 3])
def test_rows_of_c_that_no_map_has(device, pitch):
    integers((2, 5, 9, 16), "bfloat16", "nt", None, "row", False, ("128x128", 1, 1), pitch, device=device)
    integers((1, 129, 131, 24), "float16", "nt", "float32", "column", True, ("128x128", 1, 2), pitch, device=device)


def test_small_shapes(device):
    for shape in ((1, 1, 1, 1), (1, 1, 8, 8), (3, 1, 1, 40)):
        integers(shape, "float32", device=device)
        integers(shape, "bfloat16", "nt", "float32", device=device)


@pytest.mark.parametrize("pitch", [0, 3])
@pytest.mark.parametrize("splits", [1, 2])
def test_residual(device, pitch, splits):
    form = ("128x128", splits, 1)
    integers((2, 130, 72, 136), "bfloat16", "nt", None, "column", True, form, pitch, True, device)


@pytest.mark.parametrize("out", ["float32", None])
def test_splits_are_added_in_order(device, out):
    integers((2, 40, 136, 200), "bfloat16", "nt", out, "column", True, ("128x128", 3, 3), device=device)


@given(
    shape=st.tuples(st.integers(1, 2), *[st.sampled_from([8, 16, 64, 72, 128, 136])] * 3),
    kind=st.sampled_from(HALVES),
    layout=st.sampled_from(["nn", "nt", "tn"]),
    out=st.sampled_from([None, "float32"]),
    axis=st.sampled_from([None, "row", "column"]),
    blocks=st.sampled_from([1, 2, 132]),
)
@settings(max_examples=12)
def test_random_shapes_are_exact(device, shape, kind, layout, out, axis, blocks):
    integers(shape, kind, layout, out, axis, False, ("128x128", 1, blocks), device=device)


def test_a_shared_matrix(device, rng):
    a, b = (rng.integers(-4, 5, size).astype(np.float16) for size in ((3, 20, 24), (1, 24, 16)))
    got = product(device, a, b, "nt", "float32")
    assert_equal(got, a.astype(np.float64) @ b)


@pytest.mark.parametrize("kind", DTYPES)
def test_errors_of_real_data(device, rng, kind):
    """Operands round once each, where they are not of the type already; sums are cut off once every slice."""
    K = 700 if kind == "float32" else 1000
    a, b = (rng.standard_normal(size).astype(DTYPES[kind]) for size in ((1, 64, K), (1, K, 64)))
    got = product(device, a, b, "nt", "float32")
    exact, sizes = (f(a.astype(np.float64)) @ f(b.astype(np.float64)) for f in (lambda x: x, np.abs))
    rounding = 2 * RELATIVE[kind] + RELATIVE[kind] ** 2 if kind == "float32" else 0.0
    assert_close(got, exact, (rounding + K / 8 * 2.0**-23) * sizes)


def test_error_of_many_positive_terms(device, rng):
    """As weights' gradients have; cut off all along, they would lose 5e-5."""
    a, b = (abs(rng.standard_normal(size)).astype(ml_dtypes.bfloat16) for size in ((1, 8, 30_000), (1, 30_000, 8)))
    got = product(device, a, b, "nt", "float32", form=("128x128", 1, 1))
    assert_relative_l2(got, a.astype(np.float64) @ b.astype(np.float64), 5e-6)


@pytest.mark.parametrize("mode", ["asan", "race"])
def test_sound(device, mode):
    """14 steps of two tiles use six stages twice and more; copies come late, and at once."""
    if device != "sim":
        pytest.skip("modes of the simulator")
    first = None
    for schedule in SCHEDULES[1:]:
        with simulator.configured(mode=mode, **schedule):
            got = integers((1, 72, 136, 6 * 32 + 4), "float32", form=("128x128", 1, 1))
        first = got if first is None else first
        assert_same_bits(got, first)


def test_two_schedules_give_the_same_bits(device, rng):
    a, b = (rng.standard_normal(size).astype(ml_dtypes.bfloat16) for size in ((1, 136, 904), (1, 904, 136)))
    first = product(device, a, b, "nt", None, form=("128x128", 2, 1))
    if device == "sim":
        with simulator.configured(**SCHEDULES[1]):
            assert_same_bits(product(device, a, b, "nt", None, form=("128x128", 2, 3)), first)
    else:
        assert_same_bits(product(device, a, b, "nt", None, form=("128x128", 2, 3)), first)


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_products_use_the_kernels(device, monkeypatch, kind):
    """Linear layers do: terms contiguous in both operands, with at least 64 rows and columns."""
    names: list[str] = []
    launch = gemm_hopper.launch
    monkeypatch.setattr(
        gemm_hopper, "launch", lambda name, *rest, **more: (names.append(name), launch(name, *rest, **more))
    )
    values = np.random.default_rng(1).integers(-4, 5, (2, 72, 40))
    x, weight = on(device, *values.astype(DTYPES[kind]))
    with precision("tf32"):
        y = gemm.linear_forward(x, weight, None)
    assert_equal(devices.to_numpy(y), (values[0] @ values[1].T).astype(np.float32).astype(y.dtype))
    assert len(names) == 1 and names[0].startswith("gemm_nt_hopper_")


def test_what_no_map_has_is_another_kernels(device):
    a, b, c = (devices.empty((1, 16, 16), np.float16, on(device, np.zeros(1))[0]) for _ in range(3))
    assert gemm_hopper.takes(a, b, c)
    odd = devices.empty((1, 17, 17), np.float16, a)
    assert not gemm_hopper.takes(odd[:, :16, :16], b, c)  # rows of 34 bytes
    assert not gemm_hopper.takes(odd.reshape(-1)[1:257].reshape(1, 16, 16), b, c)  # an address of 2
    assert not gemm_hopper.takes(a[:, :, ::2], b[:, ::2], c)
    assert not gemm_hopper.takes(a[:, :, :0], b[:, :0], c)
    assert not gemm_hopper.takes(a, b.astype(np.float32), c)
    single = a.astype(np.float32)
    assert not gemm_hopper.takes(single, single, single)  # tf32 has to have b's terms side by side
    assert gemm_hopper.takes(single, single.swapaxes(1, 2), single)


@pytest.mark.parametrize("mode", ["asan", "race"])
def test_pairs_are_sound(device, mode):
    """Six stages are used twice, and one a third time; the second tile has a few rows."""
    if device != "sim":
        pytest.skip("modes of the simulator")
    for schedule in (SCHEDULES[1], SCHEDULES[3]):  # copies come late, and at once
        with simulator.configured(mode=mode, **schedule):
            integers((1, 136, 72, 12 * 32 + 4), "float32", form=("pairs_128x128", 1, 2))


def test_the_halves_of_b_arrive_in_any_order(device):
    """Early, late and in random order, of the one block's copies and of the other's; more steps than two laps take."""
    if device != "sim":
        pytest.skip("schedules of the simulator")
    for schedule in (*SCHEDULES, {"order": "reverse", "late_copies": False}, {"order": "random", "seed": 3}):
        with simulator.configured(**schedule):
            integers((1, 136, 264, 9 * 32 + 4), "float32", form=("pairs_128x256", 1, 2))


def test_pairs_read_b_once(device):
    """Of two tiles of 128 rows, and one step: a's rows, and b's columns for each block or for both."""
    if device != "sim":
        pytest.skip("counters of the simulator")
    for tile, times in (("128x128", 2), ("pairs_128x128", 1)):
        with simulator.profiling(lines=False) as profiles:
            integers((1, 256, 128, 64), form=(tile, 1, 2))
        counts = [count for _, profile in profiles for count in profile.lines.values() if count.space == "global"]
        assert sum(count.bytes for count in counts if not count.writes) == (256 + times * 128) * 64 * 2


@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
def test_rows_of_a_last_round_have_a_launch_of_their_own(device, monkeypatch, layout):
    """Three tiles on two multiprocessors: two, and the terms of the third in two halves."""
    names: list[str] = []
    launch, multiply = gemm_hopper.launch, gemm_hopper.multiply
    monkeypatch.setattr(
        gemm_hopper, "launch", lambda name, *rest, **more: (names.append(name), launch(name, *rest, **more))
    )
    monkeypatch.setattr(gemm_hopper, "multiply", lambda *given: multiply(*given[:6], 2, *given[7:]))
    assert gemm_hopper.whole_rounds(368, 72, 4096, 1, 2, 64) == 256
    integers((1, 368, 72, 4096), "bfloat16", layout, None, "row", True, (), 8, True, device)
    assert [name.partition("bfloat16")[2] for name in names] == ["_bfloat16_pairs_128x128", "_float_128x128", ""]


@given(st.tuples(*[st.integers(1, 9000)] * 3), st.integers(1, 3), st.sampled_from([2, 132]), st.booleans())
@settings(max_examples=60)
def test_whole_rounds(sizes, batch, multiprocessors, in_float32):
    """They are whole tiles, and no launch is added for less than a twentieth; few rows have none."""
    M, N, K = sizes
    rows = gemm_hopper.whole_rounds(M, N, K, batch, multiprocessors, 64, in_float32)
    assert rows == M or (0 < rows < M and rows % 128 == 0)
    assert M > 128 or rows == M


def test_choice_of_rounds():
    assert [gemm_hopper.whole_rounds(size, size, size, 1, 132, 64) for size in (2048, 4096)] == [2048, 4096]
    assert gemm_hopper.whole_rounds(3072, 3072, 3072, 1, 132, 64) == 2816  # 132 pairs of tiles; 12 are left


def test_choice_of_pairs():
    """They take large products; not those of one row of tiles, of which each second block would compute nothing."""
    assert gemm_hopper.choose(8192, 8192, 8192, 1, 132, 64, pairs=True)[0].name == "pairs_128x256"
    assert gemm_hopper.choose(128, 33792, 1024, 1, 132, 64, pairs=True)[0].name == "128x256"
    assert gemm_hopper.choose(128, 256, 1024, 1, 132, 64, pairs=True)[0].name == "128x128"
    assert gemm_hopper.choose(256, 128, 65536, 1, 132, 64, True, pairs=True)[0].name == "pairs_128x128"
    assert gemm_hopper.choose(8192, 8192, 8192, 1, 132, 64)[0].name == "128x256"


@pytest.mark.parametrize("tile", gemm_hopper.TILES + gemm_hopper.PAIRS)
def test_choice(tile):
    """Large products take wide tiles and no splits, few tiles of many terms are split, each split a whole step."""
    assert gemm_hopper.choose(8192, 8192, 8192, 1, 132, 64)[0].name == "128x256"
    assert gemm_hopper.choose(128, 128, 65536, 1, 132, 64)[1] > 8
    assert gemm_hopper.choose(128, 128, 512, 1, 132, 64)[1] == 1
    assert gemm_hopper.split_terms(1000, 3, 64) == 384
    assert tile.shared_bytes <= 227 * 1024
