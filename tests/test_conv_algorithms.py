"""Algorithms that take some convolutions only: bounded, adjoint, repeatable, truly others, and clear in refusing.

Their rounding errors spread over tiles, so bounds are relative to the largest sum of magnitudes, not to each pixel's.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import reference
from check import (
    assert_close,
    assert_equal,
    assert_relative_l2,
    assert_same_bits,
    check_adjoint,
    check_gradients,
    rounding_bound,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shapes import ConvCase, parametrize

import gpucnn
from gpucnn import functional as F
from gpucnn import ops, tensor

# Rounding errors in units of u · Σ|x||w|, and the relative L2 error in float32.
BOUNDS = {"winograd": (16, 1e-6), "winograd4": (128, 2e-6), "fft": (16, 1e-6)}
algorithms = pytest.mark.parametrize("algorithm", BOUNDS)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])

CASES = {
    "one_tile": ConvCase((1, 1, 3, 3), (1, 1, 3, 3)),
    "vgg": ConvCase((2, 8, 9, 9), (16, 8, 3, 3), padding=1),
    "primes": ConvCase((3, 5, 13, 11), (7, 5, 3, 3), padding=1),
    "uneven_padding": ConvCase((2, 3, 6, 10), (4, 3, 3, 3), padding=(0, 2)),
    "wide_padding": ConvCase((1, 2, 4, 4), (2, 2, 3, 3), padding=4),  # output pixels of padding alone
    "empty_batch": ConvCase((0, 3, 5, 5), (4, 3, 3, 3), padding=1),
    "many_channels": ConvCase((2, 70, 18, 17), (66, 70, 3, 3), padding=1),  # more than one block of channels and tiles
}
LARGE = {
    "long_sums": ConvCase((2, 300, 14, 14), (32, 300, 3, 3), padding=1),
    "many_pixels": ConvCase((8, 16, 60, 60), (24, 16, 3, 3), padding=1),
    "several_chunks": ConvCase((2, 96, 70, 70), (96, 96, 3, 3), padding=1),
}


def three_passes(case, x, weight, bias, gy, algorithm):
    """(y, gx, gw) of conv2d on Tensors."""
    leaves = [tensor(array, requires_grad=True) for array in (x, weight, bias)]
    y = F.conv2d(*leaves, **case.options, algorithm=algorithm)
    y.backward(gy)
    return y.data, leaves[0].grad.data, leaves[1].grad.data


def reference_passes(case, x, weight, bias, gy):
    return (
        reference.conv2d(x, weight, bias, **case.options),
        reference.conv2d_backward_input(gy, weight, case.x, **case.options),
        reference.conv2d_backward_weight(x, gy, case.weight, **case.options),
    )


def arrays_of(case, dtype, kind="normal"):
    """x, weight, bias and gy."""
    arrays = case.arrays(dtype, kind)
    shape, rng = ops.conv_shape(case.x, case.weight, **case.options).y, np.random.default_rng(2)
    gy = rng.integers(-4, 5, shape) if kind == "integers" else rng.standard_normal(shape)
    return *arrays, gy.astype(dtype)


def check_bounds(case, dtype, algorithm):
    arrays = arrays_of(case, dtype)
    magnitudes = reference_passes(case, *map(np.abs, arrays))
    for got, want, magnitude in zip(
        three_passes(case, *arrays, algorithm), reference_passes(case, *arrays), magnitudes, strict=True
    ):
        assert got.dtype == dtype
        assert_close(got, want, rounding_bound(BOUNDS[algorithm][0], magnitude.max(initial=0), dtype))


@parametrize(CASES)
@algorithms
@dtypes
def test_error_bounds(case, algorithm, dtype):
    check_bounds(case, dtype, algorithm)


@st.composite
def cases(draw):
    kernel = (3, 3)
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    size = draw(st.tuples(st.integers(1, 19), st.integers(1, 19)))
    extents = st.sampled_from([1, 2, 3, 8, 15, 33])
    batch, channels, filters = draw(st.integers(0, 3)), draw(extents), draw(extents)
    assume(all(n + 2 * p >= k for n, p, k in zip(size, padding, kernel, strict=True)))
    return ConvCase((batch, channels, *size), (filters, channels, *kernel), 1, padding)


@algorithms
@given(case=cases())
@settings(max_examples=50)
def test_random_shapes(algorithm, case):
    check_bounds(case, np.float32, algorithm)


FFT_CASES = {
    "lenet_c1": ConvCase((2, 1, 28, 28), (6, 1, 5, 5), padding=2),
    "even_kernel": ConvCase((3, 5, 13, 11), (7, 5, 4, 2), padding=(2, 1)),
    "pointwise": ConvCase((2, 7, 5, 6), (11, 7, 1, 1)),
    "kernel_larger_than_image": ConvCase((1, 2, 3, 2), (3, 2, 5, 4), padding=(2, 2)),
    "convnet_l3": ConvCase((2, 8, 32, 32), (9, 8, 9, 9)),
    "tiles": ConvCase((3, 4, 100, 83), (5, 4, 9, 7), padding=(4, 1)),  # in both directions, the last ones cut
    "one_row": ConvCase((2, 3, 1, 90), (4, 3, 1, 5), padding=(0, 2)),
    "one_column": ConvCase((2, 3, 70, 1), (4, 3, 8, 1)),
    "longer_than_64": ConvCase((1, 2, 80, 90), (3, 2, 70, 66), padding=1),
    "padding_beyond_the_kernel": ConvCase((1, 2, 5, 5), (2, 2, 5, 2), padding=6),
}
FFT_LARGE = {
    "several_chunks": ConvCase((40, 1, 100, 100), (64, 1, 5, 5)),
    "long_sums": ConvCase((40, 40, 24, 24), (24, 40, 9, 9)),
}


@parametrize(FFT_CASES)
@dtypes
def test_fft_takes_any_kernel(case, dtype):
    check_bounds(case, dtype, "fft")


@parametrize(FFT_LARGE)
def test_relative_error_of_fft(case):
    test_relative_error(case, "fft")


def test_fft_does_not_mix_images():
    """Transforms run on many tiles at a time, yet a small image keeps its accuracy beside a large one."""
    case = ConvCase((2, 3, 20, 20), (4, 3, 5, 5))
    x, weight, bias, _ = arrays_of(case, np.float32)
    alone = F.conv2d(x[1:], weight, bias, algorithm="fft")
    x[0] *= 1e20
    assert_same_bits(F.conv2d(x, weight, bias, algorithm="fft")[1:], alone)


@algorithms
def test_bits_do_not_depend_on_threads(algorithm):
    case = FFT_CASES["tiles"] if algorithm == "fft" else CASES["many_channels"]
    arrays, before, results = arrays_of(case, np.float32), gpucnn.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            gpucnn.set_num_threads(threads)
            results.append(b"".join(out.tobytes() for out in three_passes(case, *arrays, algorithm)))
    finally:
        gpucnn.set_num_threads(before)
    assert results[0] == results[1] == results[2]


@parametrize(LARGE)
@algorithms
def test_relative_error(case, algorithm):
    arrays = arrays_of(case, np.float32)
    for got, want in zip(three_passes(case, *arrays, algorithm), reference_passes(case, *arrays), strict=True):
        assert_relative_l2(got, want, BOUNDS[algorithm][1])


@parametrize(CASES)
@dtypes
def test_winograd_is_exact_on_integers(case, dtype):
    """All factors of its transforms are 0, ±1/2 or ±1."""
    arrays = arrays_of(case, dtype, "integers")
    for got, want in zip(three_passes(case, *arrays, "winograd"), reference_passes(case, *arrays), strict=True):
        assert_equal(got, want)


@parametrize(CASES)
@algorithms
def test_two_runs_give_the_same_bits(case, algorithm):
    arrays = arrays_of(case, np.float32)
    first, second = (three_passes(case, *arrays, algorithm) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("pair", list(itertools.combinations(["im2col", *BOUNDS], 2)), ids=" ".join)
def test_algorithms_are_not_each_other_in_disguise(pair):
    arrays = arrays_of(CASES["many_channels"], np.float32)
    for a, b in zip(*(three_passes(CASES["many_channels"], *arrays, name) for name in pair), strict=True):
        assert (a != b).mean() > 0.3


@parametrize(CASES)
@algorithms
def test_adjoint(case, algorithm):
    x, weight, bias, gy = arrays_of(case, np.float64)
    y, gx, gw = three_passes(case, x, weight, 0 * bias, gy, algorithm)
    check_adjoint(y, gy, [(x, gx), (weight, gw)])


@parametrize({name: CASES[name] for name in ("one_tile", "uneven_padding", "empty_batch")})
@algorithms
def test_gradients(case, algorithm):
    check_gradients(
        lambda x, weight, bias: F.conv2d(x, weight, bias, **case.options, algorithm=algorithm),
        case.arrays(np.float64),
    )


@parametrize(CASES)
@algorithms
def test_as_pytorch(torch, case, algorithm):
    x, weight, bias, gy = arrays_of(case, np.float64)
    leaves = [torch.tensor(array, requires_grad=True) for array in (x, weight)]
    oracle = torch.nn.functional.conv2d(*leaves, torch.tensor(bias), **case.options)
    oracle.backward(torch.tensor(gy))
    wanted = (oracle.detach(), *(leaf.grad for leaf in leaves))
    for got, want in zip(three_passes(case, x, weight, bias, gy, algorithm), wanted, strict=True):
        assert_relative_l2(got, want.numpy(), 1e-13)


@algorithms
def test_not_finite_values_reach_every_output_that_reads_them(algorithm):
    """And possibly others of the same tile."""
    x, weight = np.ones((2, 1, 9, 9)), np.ones((1, 1, 3, 3))
    x[0, 0, 4, 4] = np.nan
    y = F.conv2d(x, weight, padding=1, algorithm=algorithm)
    assert np.isnan(y[0, 0, 3:6, 3:6]).all()
    assert np.isfinite(y[1]).all()


@algorithms
def test_outputs_are_overwritten(algorithm):
    case = CASES["primes"]
    x, weight, bias, gy = arrays_of(case, np.float32)
    shape = ops.conv_shape(case.x, case.weight, **case.options)
    for operation, arrays, like in (
        ("conv2d_forward", (x, weight, bias), gy),
        ("conv2d_backward_input", (gy, weight), x),
        ("conv2d_backward_weight", (x, gy), weight),
    ):
        out = np.full_like(like, np.nan)
        ops.ALGORITHMS[operation][algorithm].run(*arrays, out, shape)
        assert np.isfinite(out).all(), operation


X, WEIGHT = np.zeros((2, 4, 8, 8), np.float32), np.zeros((6, 4, 3, 3), np.float32)
REFUSED = [
    ("winograd", np.zeros((6, 4, 5, 5), np.float32), {}, r"it needs 3x3 kernels, not \(5, 5\)"),
    ("winograd4", np.zeros((6, 4, 3, 1), np.float32), {}, r"it needs 3x3 kernels, not \(3, 1\)"),
    ("winograd", WEIGHT, {"stride": (1, 2)}, r"it needs stride 1, not \(1, 2\)"),
    ("winograd4", WEIGHT, {"dilation": 2}, r"it needs dilation 1, not \(2, 2\)"),
    ("winograd", WEIGHT[:, :2], {"groups": 2}, "it needs groups 1, not 2"),
    ("fft", WEIGHT[:, :2], {"groups": 2}, "it needs groups 1, not 2"),
    ("fft", WEIGHT, {"stride": 2}, r"it needs stride 1, not \(2, 2\)"),
    ("fft", WEIGHT, {"dilation": (2, 1)}, r"it needs dilation 1, not \(2, 1\)"),
]


@pytest.mark.parametrize(("algorithm", "weight", "options", "message"), REFUSED)
def test_refusals_say_why_and_what_would_work(algorithm, weight, options, message):
    pattern = f"conv2d_forward: algorithm '{algorithm}': {message}; these would work: direct, im2col, toeplitz"
    with pytest.raises(gpucnn.UnsupportedAlgorithm, match=pattern):
        F.conv2d(X, weight, **options, algorithm=algorithm)
    shape = ops.conv_shape(X.shape, weight.shape, **options)
    with pytest.raises(gpucnn.UnsupportedAlgorithm, match=f"conv2d_backward_weight: .*{message}"):
        ops.conv2d_backward_weight(X, np.zeros(shape.y, np.float32), shape, algorithm)


def test_auto_takes_less_workspace_where_memory_is_short(monkeypatch):
    """An algorithm that auto chose and that runs out of memory gives way to the one with the least workspace."""
    shape = ops.conv_shape((1, 3, 5, 5), (4, 3, 3, 3))
    x, w, b = np.ones(shape.x, np.float32), np.ones(shape.weight, np.float32), np.ones(4, np.float32)

    def full(*arguments: object, **options: object) -> None:
        raise MemoryError("8 GiB do not fit")

    table = dict(ops.ALGORITHMS["conv2d_forward"])
    chosen = ops.choose("conv2d_forward", shape)
    assert chosen != "direct" and table["direct"].workspace_bytes(shape, x.dtype) == 0
    monkeypatch.setitem(ops.ALGORITHMS["conv2d_forward"], chosen, replace(table[chosen], run=full))
    assert_equal(ops.conv2d_forward(x, w, b, shape), np.full(shape.y, 28))
    with pytest.raises(MemoryError, match="conv2d_forward: 8 GiB do not fit"):
        ops.conv2d_forward(x, w, b, shape, chosen)
    monkeypatch.setitem(ops.ALGORITHMS["conv2d_forward"], "direct", replace(table["direct"], run=full))
    with pytest.raises(MemoryError, match="conv2d_forward: 8 GiB do not fit"):
        ops.conv2d_forward(x, w, b, shape, "direct")
