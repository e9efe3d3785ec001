"""winograd4 on tensor cores: its products exactly, whole passes with float32's errors, and when it takes them."""

from __future__ import annotations

import numpy as np
import pytest

import gpucnn
from gpucnn import device as devices
from gpucnn import ops
from gpucnn.launch import launch, simulator
from gpucnn.ops import conv_winograd4 as winograd4
from gpucnn.ops.gemm import TENSOR_TILES
from gpucnn.ops.shapes import conv_shape
from tests.check import assert_equal, assert_relative_l2, assert_same_bits
from tests.kernel_check import assert_sound, assert_two_runs_equal, on

PASSES = ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight")
ELEMENTS = 36


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """The names of the kernels that winograd4 launches."""
    names: list[str] = []
    monkeypatch.setattr(winograd4, "launch", lambda name, *a, **o: names.append(name) or launch(name, *a, **o))
    return names


def products(device, layout, a, b, splits=1, add=None):
    """Planes of a[n] · b[n], for a (36,M,K) and b (36,K,N), in the memory layouts of the kernels."""
    M, K, N = *a.shape[1:], b.shape[2]
    if layout == "tn":  # rows of K in whole float4
        a = np.concatenate([a.swapaxes(1, 2), np.full((ELEMENTS, K, -M % 4), np.nan, np.float32)], 2)
        strides = (a.shape[2], a[0].size), (N, K * N)
    else:
        b, strides = b.swapaxes(1, 2), ((K, M * K), (K, N * K))
    arrays = on(device, np.ascontiguousarray(a), np.ascontiguousarray(b))
    c = devices.empty((splits, ELEMENTS, M, N), np.float32, arrays[0])
    if add is not None:
        c[...] = add
    with gpucnn.precision("float32_tensor"):
        winograd4.multiply(layout, *arrays, c, (M, N, K), *strides, N, splits, add is not None)
    return devices.to_numpy(c)


@pytest.mark.parametrize("layout", ["tn", "nt"])
@pytest.mark.parametrize(
    ("tile", "M", "N", "K", "splits"),
    [(0, 5, 32, 3, 1), (0, 130, 32, 65, 1), (1, 66, 32, 16, 1), (1, 9, 96, 33, 1), (1, 7, 32, 200, 3)],
)
def test_products_are_exact(layout, tile, M, N, K, splits, device, rng, monkeypatch, launched):
    kind = TENSOR_TILES["float32_tensor"][tile]
    monkeypatch.setattr(winograd4, "choose_tile", lambda *arguments: (kind, 1))
    a, b = (rng.integers(-4, 5, size).astype(np.float32) for size in ((ELEMENTS, M, K), (ELEMENTS, K, N)))
    want = a.astype(np.float64) @ b
    assert_equal(products(device, layout, a, b, splits).sum(0), want)
    assert_equal(products(device, layout, a, b, splits, add=2).sum(0), want + 2 * splits)
    assert set(launched) == {f"gemm_{layout}_flush_float32_tensor_{kind.name}"}


@pytest.mark.parametrize("layout", ["tn", "nt"])
def test_long_sums_round_like_short_ones(layout, device, rng):
    a, b = (rng.random(size, np.float32) for size in ((ELEMENTS, 2, 1600), (ELEMENTS, 1600, 8)))
    assert_relative_l2(products(device, layout, a, b)[0], a.astype(np.float64) @ b, 2e-7)


CASES = {
    "smallest": ((1, 1, 1, 1), (1, 1, 3, 3), 1),
    "primes": ((3, 5, 13, 11), (7, 5, 3, 3), (0, 1)),
    "wide_padding": ((1, 2, 4, 5), (3, 2, 3, 3), (5, 3)),
    "channels": ((1, 300, 5, 4), (6, 300, 3, 3), 1),
    "filters": ((1, 9, 6, 6), (131, 9, 3, 3), 1),
    "empty": ((0, 3, 5, 5), (4, 3, 3, 3), 1),
}
cases = pytest.mark.parametrize("case", CASES)


def shape_of(case):
    x, weight, padding = CASES[case]
    return conv_shape(x, weight, 1, padding)


def operands(operation, shape, rng):
    sizes = {"conv2d_forward": (shape.x, shape.weight), "conv2d_backward_input": (shape.y, shape.weight)}
    return [rng.standard_normal(size, np.float32) for size in sizes.get(operation, (shape.x, shape.y))]


def run(device, operation, shape, pair, precision, limit=None):
    arrays = pair if device == "cpu" else on(device, *pair)
    bias = (None,) if operation == "conv2d_forward" else ()
    algorithm = "im2col" if device == "cpu" else "winograd4"
    with gpucnn.precision(precision):
        return getattr(ops, operation)(*arrays, *bias, shape, algorithm, workspace_limit=limit)


@cases
@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("kind", ["normal", "relu"])
def test_errors_are_like_float32s(case, operation, kind, device, rng):
    shape = shape_of(case)
    one, other = operands(operation, shape, rng)
    pair = (np.maximum(one, 0) if kind == "relu" else one), other
    want = run("cpu", operation, shape, [array.astype(np.float64) for array in pair], "float32")
    got = devices.to_numpy(run(device, operation, shape, pair, "float32_tensor"))
    assert got.shape == want.shape
    if want.size and np.linalg.norm(want):
        assert_relative_l2(got, want, 2e-6)


def test_many_pixels_and_chunks(device, rng):
    """10,000 pixels for the gradient of the weights, in one chunk and in a chunk an image."""
    shape = conv_shape((4, 1, 50, 50), (2, 1, 3, 3), 1, 1)
    pair = operands("conv2d_backward_weight", shape, rng)
    want = run("cpu", "conv2d_backward_weight", shape, [array.astype(np.float64) for array in pair], "float32")
    for limit in (
        None,
        ops.table("conv2d_backward_weight", "sim")["winograd4"].workspace_bytes(shape, pair[0].dtype, 0),
    ):
        got = run(device, "conv2d_backward_weight", shape, pair, "float32_tensor", limit)
        assert_relative_l2(devices.to_numpy(got), want, 2e-6)


def test_in_tf32_it_is_as_accurate_as_in_float32_tensor(device, rng, launched):
    """Rounded to tf32, transformed values would lose 4.6 times what a direct convolution loses."""
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
    entry, shape = ops.table(operation, "sim")["winograd4"], conv_shape((64, 256, 56, 56), (256, 256, 3, 3), 1, 1)
    with gpucnn.precision("float32_tensor"):
        tensor = entry.workspace_bytes(shape, np.dtype(np.float32), 1 << 27)
    assert tensor == entry.workspace_bytes(shape, np.dtype(np.float32), 1 << 27) <= 1 << 27


@pytest.mark.parametrize("layout", ["tn", "nt"])
def test_two_runs_are_equal_and_sound(layout, device, rng):
    a, b = (rng.standard_normal(size, np.float32) for size in ((ELEMENTS, 3, 48), (ELEMENTS, 48, 32)))
    assert_two_runs_equal(lambda: products(device, layout, a, b, 2), device)
    assert_sound(lambda: products(device, layout, a, b, 2), device)
