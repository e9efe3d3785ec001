"""fft on tensor cores: its products exactly, whole passes with float32's errors, and when it takes them."""

from __future__ import annotations

import numpy as np
import pytest

import gpucnn
from gpucnn import device as devices
from gpucnn import ops
from gpucnn.launch import launch, simulator
from gpucnn.ops import conv_fft
from gpucnn.ops.shapes import conv_shape
from tests.check import assert_equal, assert_relative_l2, assert_same_bits
from tests.kernel_check import assert_sound, assert_two_runs_equal, on

PASSES = ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight")
BINS = 3


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """The names of the kernels that fft launches."""
    names: list[str] = []
    monkeypatch.setattr(conv_fft, "launch", lambda name, *a, **o: names.append(name) or launch(name, *a, **o))
    return names


def parts(z):
    return np.stack([z.real, z.imag], -1)


def products(device, a, b, splits=1, columns=None, add=None):
    """Planes of the parts of Σ_k a (bins,k,m) · conj(b (bins,k,n)); of the columns only so many."""
    pair = on(device, *(parts(z)[None].astype(np.float32) for z in (a, b)))
    size = splits, len(a), columns or b.shape[2], a.shape[2], 2
    c = devices.empty(size, np.float32, pair[0])
    if add is not None:
        c[...] = add
    with gpucnn.precision("float32_tensor"):
        conv_fft._multiply(*pair, c, add is not None)
    return devices.to_numpy(c)


def integers(rng, largest, size):
    real, imaginary = rng.integers(-largest, largest + 1, (2, *size))
    return real + 1j * imaginary


def definition(a, b):
    return parts(np.einsum("zkm,zkn->znm", a, b.conj()))


@pytest.mark.parametrize("tile", conv_fft.PRODUCT_TILES)
@pytest.mark.parametrize(
    ("rows", "columns", "terms", "splits", "largest"),
    [
        (2, 2, 1, 1, (4095, 15)),
        (36, 34, 8, 1, (15, 4095)),
        (130, 66, 57, 1, (4095, 15)),  # more terms than twice the stages and one
        (30, 10, 100, 3, (15, 4095)),
        (6, 4, 9, 4, (4095, 15)),  # the last splits have no terms
    ],
)
def test_products_are_exact(tile, rows, columns, terms, splits, largest, device, rng, monkeypatch, launched):
    """12 bits of one factor take both of its parts; sums stay below 2^24."""
    monkeypatch.setattr(conv_fft, "_product_tile", lambda *sizes: tile)
    a, b = (integers(rng, most, (BINS, terms, n)) for most, n in zip(largest, (rows, columns), strict=True))
    want = definition(a, b)
    assert_equal(products(device, a, b, splits).sum(0), want)
    assert_equal(products(device, a, b, splits, columns - 1).sum(0), want[:, :-1])
    assert_equal(products(device, a, b, splits, add=2).sum(0), want + 2 * splits)
    assert set(launched) == {f"fft_multiply_float32_tensor_{tile}"}


@pytest.mark.parametrize("terms", [2048, 2056, 4100])
def test_more_terms_than_a_chain_are_exact(terms, device, rng):
    a, b = (integers(rng, 9, (1, terms, 2)) for _ in "ab")
    assert_equal(products(device, a, b)[0], definition(a, b))
    assert_equal(products(device, a, b, add=1)[0], definition(a, b) + 1)


def test_long_sums_round_like_short_ones(device, rng):
    a, b = ((rng.random((2, 6000, 4)) + 1j * rng.random((2, 6000, 4))).astype(np.complex64) for _ in "ab")
    got, want = products(device, a, b)[0], definition(a.astype(np.complex128), b.astype(np.complex128))
    assert_relative_l2(got, want, 3e-7)


CASES = {  # x, weight, padding, tile
    "primes": ((3, 5, 13, 11), (7, 5, 3, 3), (0, 1), 16),
    "several_tiles": ((2, 3, 37, 20), (3, 3, 3, 5), (1, 2), 32),
    "largest_tile": ((1, 2, 40, 40), (4, 2, 9, 9), 4, 64),
    "channels": ((1, 120, 5, 4), (6, 120, 3, 3), 1, 16),
    "filters": ((1, 3, 6, 6), (67, 3, 3, 3), 1, 16),
    "empty": ((0, 3, 5, 5), (4, 3, 3, 3), 1, 16),
}


def shape_of(case):
    x, weight, padding, _ = CASES[case]
    return conv_shape(x, weight, 1, padding)


def operands(operation, shape, rng):
    sizes = {"conv2d_forward": (shape.x, shape.weight), "conv2d_backward_input": (shape.y, shape.weight)}
    return [rng.standard_normal(size, np.float32) for size in sizes.get(operation, (shape.x, shape.y))]


def run(device, operation, shape, pair, precision, limit=None):
    arrays = pair if device == "cpu" else on(device, *pair)
    bias = (None,) if operation == "conv2d_forward" else ()
    algorithm = "im2col" if device == "cpu" else "fft"
    with gpucnn.precision(precision):
        return getattr(ops, operation)(*arrays, *bias, shape, algorithm, workspace_limit=limit)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("kind", ["normal", "relu"])
def test_errors_are_like_float32s(case, operation, kind, device, rng, monkeypatch):
    """At most one and a half times those of the float32 units, where these are more than single roundings."""
    monkeypatch.setattr(conv_fft, "TILES", CASES[case][-1:])
    shape = shape_of(case)
    one, other = operands(operation, shape, rng)
    pair = (np.maximum(one, 0) if kind == "relu" else one), other
    want = run("cpu", operation, shape, [array.astype(np.float64) for array in pair], "float32")
    got, units = (devices.to_numpy(run(device, operation, shape, pair, name)) for name in ("float32_tensor", "float32"))
    assert got.shape == want.shape
    if want.size and np.linalg.norm(want):
        error = np.linalg.norm(units - want) / np.linalg.norm(want)
        assert_relative_l2(got, want, min(2e-6, 1.5 * max(error, 1e-7)))


def test_ampere_too(rng, monkeypatch):
    """Its tensor cores cut sums off twice as often."""
    monkeypatch.setattr(conv_fft, "TILES", (16,))
    shape = shape_of("channels")
    pair = operands("conv2d_forward", shape, rng)
    want = run("cpu", "conv2d_forward", shape, [array.astype(np.float64) for array in pair], "float32")
    with simulator.configured(architecture="sm_80"):
        assert_relative_l2(run("sim", "conv2d_forward", shape, pair, "float32_tensor"), want, 2.5e-7)


def test_many_pixels_in_chunks_and_splits(device, rng, monkeypatch):
    """20,000 pixels for the gradient of the weights, in one chunk and in a chunk an image."""
    monkeypatch.setattr(conv_fft, "TILES", (16,))
    monkeypatch.setattr(conv_fft, "SPLIT_TERMS", 32)
    shape = conv_shape((3, 1, 80, 85), (2, 1, 3, 3), 1, 1)
    assert conv_fft._weight_plan(shape, None).splits > 1
    pair = operands("conv2d_backward_weight", shape, rng)
    want = run("cpu", "conv2d_backward_weight", shape, [array.astype(np.float64) for array in pair], "float32")
    assert conv_fft._weight_plan(shape, 1 << 19).images < 3
    for limit in (None, 1 << 19):
        got = run(device, "conv2d_backward_weight", shape, pair, "float32_tensor", limit)
        assert_relative_l2(devices.to_numpy(got), want, 1e-6)


def test_values_that_are_not_finite_become_nan_in_their_tile(device, rng):
    shape = conv_shape((3, 2, 9, 9), (3, 2, 3, 3), 1, 1)
    x, weight = operands("conv2d_forward", shape, rng)
    clean = devices.to_numpy(run(device, "conv2d_forward", shape, (x, weight), "float32_tensor"))
    x[0, 1, 2, 3], x[2, 0, 4, 4] = np.nan, np.inf
    got = devices.to_numpy(run(device, "conv2d_forward", shape, (x, weight), "float32_tensor"))
    assert np.isnan(got[[0, 2]]).all()
    assert_same_bits(got[1], clean[1])


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000, 0x7F800000])
def test_no_nan_is_lost_in_parts(bits, device):
    """Rounded by bits, 0x7FFFFFFF alone would be -0."""
    a = np.array([bits, 0, bits, 0], np.uint32).view(np.complex64).reshape(1, 1, 2)
    assert np.isnan(products(device, a, np.ones((1, 1, 2)))).all()


def test_in_tf32_it_is_as_accurate_as_in_float32_tensor(device, rng, launched):
    shape = shape_of("primes")
    pair = operands("conv2d_forward", shape, rng)
    one, other = (run(device, "conv2d_forward", shape, pair, name) for name in ("tf32", "float32_tensor"))
    assert_same_bits(devices.to_numpy(one), devices.to_numpy(other))
    assert sum("_float32_tensor_" in name for name in launched) == 2


def test_float32_and_old_gpus_multiply_in_float32(rng, launched):
    shape = shape_of("primes")
    pair = operands("conv2d_forward", shape, rng)
    want = run("sim", "conv2d_forward", shape, pair, "float32")
    with simulator.configured(architecture="sm_75"):
        assert_same_bits(run("sim", "conv2d_forward", shape, pair, "float32_tensor"), want)
    assert not any("tensor" in name for name in launched)


@pytest.mark.parametrize("operation", PASSES)
def test_the_workspace_is_that_of_float32(operation):
    entry, shape = ops.table(operation, "sim")["fft"], conv_shape((64, 96, 27, 27), (256, 96, 5, 5), 1, 2)
    with gpucnn.precision("float32_tensor"):
        tensor = entry.workspace_bytes(shape, np.dtype(np.float32), 1 << 27)
    assert tensor == entry.workspace_bytes(shape, np.dtype(np.float32), 1 << 27) <= 1 << 27


@pytest.mark.parametrize("tile", conv_fft.PRODUCT_TILES)
def test_counters_of_the_product(tile, device, rng, monkeypatch):
    """What is read and written is each tile's, once; every access to shared memory takes the passes of its bytes."""
    if device != "sim":
        pytest.skip("counters are the simulator's")
    monkeypatch.setattr(conv_fft, "_product_tile", lambda *sizes: tile)
    rows, columns = conv_fft.PRODUCT_TILES[tile]
    a, b = (integers(rng, 9, (BINS, 24, n)) for n in (rows, columns))
    with simulator.profiling() as launches:
        products(device, a, b)
    ((_, profile),) = launches

    def total(space, writes):
        lines = [line for line in profile.lines.values() if line.space == space and line.writes == writes]
        return [sum(getattr(line, name) for line in lines) for name in ("requests", "bytes", "units", "least")]

    assert profile.flops == 3 * 8 * BINS * 24 * rows * columns
    assert profile.barriers == BINS * 24 // 8
    requests, _, wavefronts, least = total("shared", writes=False)
    assert requests > 0 and wavefronts == least == 4 * requests
    _, _, wavefronts, least = total("shared", writes=True)
    assert wavefronts == least > 0
    for writes, numbers in ((False, 24 * (rows + columns)), (True, rows * columns)):
        _, moved, sectors, least = total("global", writes)
        assert moved == 8 * BINS * numbers and sectors == least


@pytest.mark.parametrize("tile", conv_fft.PRODUCT_TILES)
def test_two_runs_are_equal_and_sound(tile, device, rng, monkeypatch):
    """Seven steps and a tail, where there are three stages."""
    monkeypatch.setattr(conv_fft, "_product_tile", lambda *sizes: tile)
    a, b = (integers(rng, 9, (1, 59, n)) for n in (10, 6))
    assert_two_runs_equal(lambda: products(device, a, b), device)
    assert_sound(lambda: products(device, a, b, 2, 5), device)
