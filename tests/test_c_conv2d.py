"""The extension's convolutions and matrix product, called directly: exact on integers, bounded in floating point."""

import itertools

import numpy as np
import pytest

from gpucnn import _C

ALGORITHMS = ("im2col", "direct")
DTYPES = (np.float32, np.float64)

# (N, C, H, W, K, R, S, stride, padding, dilation, groups): tails of every tile, borders wider than the image, and so on
SHAPES = {
    "one_pixel": (1, 1, 1, 1, 1, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "pointwise": (2, 5, 7, 6, 9, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "same_3x3": (3, 4, 9, 11, 15, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "same_5x5_small_image": (2, 3, 2, 3, 4, 5, 5, (1, 1), (2, 2), (1, 1), 1),
    "border_wider_than_image": (2, 2, 1, 2, 3, 3, 5, (1, 1), (4, 6), (1, 1), 1),
    "lenet_first": (4, 1, 28, 28, 6, 5, 5, (1, 1), (2, 2), (1, 1), 1),
    "lenet_second": (5, 6, 14, 14, 16, 5, 5, (1, 1), (0, 0), (1, 1), 1),
    "alexnet_first": (1, 3, 35, 39, 8, 11, 11, (4, 4), (2, 2), (1, 1), 1),
    "strides_differ": (2, 3, 10, 13, 5, 3, 2, (2, 3), (1, 0), (1, 1), 1),
    "stride_past_kernel": (2, 2, 9, 8, 3, 2, 1, (3, 4), (0, 0), (1, 1), 1),
    "unused_border": (1, 2, 8, 8, 2, 3, 3, (3, 3), (0, 0), (1, 1), 1),
    "dilated": (2, 3, 12, 11, 4, 3, 3, (1, 1), (2, 3), (2, 3), 1),
    "dilated_strided": (2, 2, 13, 12, 3, 3, 3, (2, 2), (2, 1), (3, 2), 1),
    "even_stride_even_dilation": (1, 2, 9, 9, 2, 2, 2, (2, 2), (0, 1), (2, 4), 1),
    "groups": (3, 6, 6, 5, 9, 3, 3, (1, 1), (1, 1), (1, 1), 3),
    "groups_strided": (2, 4, 7, 7, 6, 3, 3, (2, 2), (1, 1), (1, 1), 2),
    "depthwise": (2, 7, 8, 9, 7, 3, 3, (1, 1), (1, 1), (1, 1), 7),
    "depthwise_multiplied": (2, 3, 5, 5, 6, 3, 3, (1, 1), (0, 0), (1, 1), 3),
    "many_filters": (2, 3, 6, 6, 67, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "deep_sum": (2, 71, 4, 5, 13, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "one_output_pixel": (9, 8, 5, 5, 17, 5, 5, (1, 1), (0, 0), (1, 1), 1),
    "many_pixels": (3, 2, 40, 41, 3, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "empty_batch": (0, 3, 5, 5, 4, 3, 3, (1, 1), (1, 1), (1, 1), 1),
}
shapes = pytest.mark.parametrize("name", SHAPES)
algorithms = pytest.mark.parametrize("algorithm", ALGORITHMS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def restored_threads():
    threads = _C.get_num_threads()
    yield
    _C.set_num_threads(threads)


def flat_shape(case):
    n, c, h, w, k, r, s, stride, padding, dilation, groups = case
    p = (h + 2 * padding[0] - dilation[0] * (r - 1) - 1) // stride[0] + 1
    q = (w + 2 * padding[1] - dilation[1] * (s - 1) - 1) // stride[1] + 1
    return (n, c, h, w, k, r, s, p, q, *stride, *padding, *dilation, groups)


def windows(x, shape):
    """The windows (N, C, R, S, P, Q) of x, which is padded: (N, C, H + 2 * padding, W + 2 * padding); a view."""
    r, s, p, q, sh, sw, dh, dw = (*shape[5:11], *shape[13:15])
    n, c, h, w = x.strides
    return np.lib.stride_tricks.as_strided(x, (*x.shape[:2], r, s, p, q), (n, c, h * dh, w * dw, h * sh, w * sw))


def padded(x, shape):
    ph, pw = shape[11:13]
    return np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))


def reference(x, w, bias, gy, shape):
    """y, gx, gw, gb in the arrays' own dtype (int64 is exact), by the definition: group by group, tap by tap."""
    groups, ph, pw = shape[15], *shape[11:13]
    x = padded(x, shape)
    gx, gw, y = np.zeros_like(x), np.zeros_like(w), np.zeros_like(gy) + bias[:, None, None]
    channels, filters = x.shape[1] // groups, w.shape[0] // groups
    for g, r, s in itertools.product(range(groups), range(w.shape[2]), range(w.shape[3])):
        source, out = slice(g * channels, (g + 1) * channels), slice(g * filters, (g + 1) * filters)
        under_tap = windows(x[:, source], shape)[:, :, r, s]
        y[:, out] += np.einsum("ncpq,kc->nkpq", under_tap, w[out, :, r, s])
        gw[out, :, r, s] = np.einsum("ncpq,nkpq->kc", under_tap, gy[:, out])
        windows(gx[:, source], shape)[:, :, r, s] += np.einsum("nkpq,kc->ncpq", gy[:, out], w[out, :, r, s])
    gx = gx[:, :, ph : gx.shape[2] - ph, pw : gx.shape[3] - pw]
    return y, gx, gw, gy.sum(axis=(0, 2, 3))


def make_operands(shape, draw):
    n, c, h, w, k, r, s, p, q = shape[:9]
    return draw((n, c, h, w)), draw((k, c // shape[15], r, s)), draw((k,)), draw((n, k, p, q))


def integers(seed=0):
    """Small integers of either sign, never zero: all sums are exact in float32."""
    generator = np.random.default_rng(seed)
    return lambda size: generator.integers(1, 9, size) * generator.choice([-1, 1], size)


def run(algorithm, x, w, bias, gy, shape):
    """y, gx, gw, gb by _C, into outputs filled with NaN."""
    y, gx, gw, gb = (np.full_like(a, np.nan) for a in (gy, x, w, bias))
    getattr(_C, f"conv2d_forward_{algorithm}")(x, w, bias, y, shape)
    getattr(_C, f"conv2d_backward_input_{algorithm}")(gy, w, gx, shape)
    getattr(_C, f"conv2d_backward_weight_{algorithm}")(x, gy, gw, shape)
    _C.conv2d_backward_bias(gy, gb)
    return y, gx, gw, gb


def assert_all_equal(results, expected):
    for result, value, name in zip(results, expected, ("y", "gx", "gw", "gb"), strict=True):
        np.testing.assert_array_equal(result, value, err_msg=name)


@dtypes
@algorithms
@shapes
def test_integers_are_exact(name, algorithm, dtype):
    shape = flat_shape(SHAPES[name])
    operands = make_operands(shape, integers())
    results = run(algorithm, *(a.astype(dtype) for a in operands), shape)
    assert_all_equal(results, reference(*operands, shape))


@algorithms
def test_without_bias(algorithm):
    shape = flat_shape(SHAPES["same_3x3"])
    x, w, _, gy = make_operands(shape, integers())
    y = np.full(gy.shape, np.nan, np.float32)
    getattr(_C, f"conv2d_forward_{algorithm}")(x.astype(np.float32), w.astype(np.float32), None, y, shape)
    np.testing.assert_array_equal(y, reference(x, w, np.zeros(shape[4], int), gy, shape)[0])


@pytest.mark.parametrize("case", range(60))
def test_random_shapes_are_exact(case):
    generator = np.random.default_rng(case)
    sizes = (1, 2, 3, 5, 8, 13, 14, 15, 17, 31, 32, 33)
    while True:
        n, groups = generator.integers(0, 4), int(generator.choice((1, 1, 2, 3)))
        c, k = (groups * int(generator.choice(sizes[:8])) for _ in range(2))
        h, w, r, s = *generator.integers(1, 34, 2), *generator.integers(1, 8, 2)
        stride, padding, dilation = (
            generator.integers(1, 4, 2),
            generator.integers(0, 8, 2),
            generator.integers(1, 4, 2),
        )
        shape = flat_shape((n, c, h, w, k, r, s, stride, padding, dilation, groups))
        if min(shape[7:9]) >= 1:
            break
    operands = make_operands(shape, integers(case))
    expected = reference(*operands, shape)
    for algorithm in ALGORITHMS:
        assert_all_equal(run(algorithm, *(a.astype(np.float32) for a in operands), shape), expected)


def bound(terms):
    """Rounding errors allowed, in units of 2**-24 times the sum of the terms' magnitudes."""
    return min(terms + 2, 8 + 2 * np.sqrt(terms))


@algorithms
@pytest.mark.parametrize("rectified", (False, True))
@pytest.mark.parametrize("channels", (16, 64))
def test_rounding_is_bounded(channels, rectified, algorithm):
    shape = flat_shape((2, channels, 13, 12, 24, 3, 3, (1, 1), (1, 1), (1, 1), 1))
    generator = np.random.default_rng(1)

    def draw(size):
        values = generator.standard_normal(size).astype(np.float32).astype(np.float64)
        return np.maximum(values, 0) if rectified else values

    operands = make_operands(shape, draw)
    results = run(algorithm, *(a.astype(np.float32) for a in operands), shape)
    exact = reference(*operands, shape)
    magnitudes = reference(*(np.abs(a) for a in operands), shape)
    pixels = 2 * 13 * 12
    for result, value, magnitude, terms in zip(
        results, exact, magnitudes, (channels * 9, 24 * 9, pixels, pixels), strict=True
    ):
        assert np.all(np.abs(result - value) <= bound(terms) * 2.0**-24 * magnitude)
        assert np.linalg.norm(result - value) <= 2e-6 * np.linalg.norm(value)


@algorithms
def test_weight_gradient_of_a_hundred_thousand_pixels(algorithm):
    shape = flat_shape((10, 1, 100, 100, 2, 3, 3, (1, 1), (1, 1), (1, 1), 1))
    generator = np.random.default_rng(2)
    operands = make_operands(
        shape, lambda size: np.abs(generator.standard_normal(size)).astype(np.float32).astype(float)
    )
    results = run(algorithm, *(a.astype(np.float32) for a in operands), shape)
    for result, value in zip(results[2:], reference(*operands, shape)[2:], strict=True):
        assert np.linalg.norm(result - value) <= 2e-6 * np.linalg.norm(value)


@algorithms
def test_double_precision(algorithm):
    shape = flat_shape(SHAPES["deep_sum"])
    operands = make_operands(shape, np.random.default_rng(3).standard_normal)
    magnitudes = reference(*(np.abs(a) for a in operands), shape)
    results = run(algorithm, *operands, shape)
    for result, value, magnitude in zip(results, reference(*operands, shape), magnitudes, strict=True):
        assert np.all(np.abs(result - value) <= 1e-14 * magnitude)


@algorithms
@pytest.mark.parametrize("name", ("lenet_second", "alexnet_first", "groups_strided", "many_pixels", "deep_sum"))
def test_bits_do_not_depend_on_run_or_threads(name, algorithm):
    shape = flat_shape(SHAPES[name])
    generator = np.random.default_rng(4)
    operands = make_operands(shape, lambda size: generator.standard_normal(size).astype(np.float32))
    results = []
    for threads in (2, 2, 1, 3):
        _C.set_num_threads(threads)
        results.append([array.tobytes() for array in run(algorithm, *operands, shape)])
    assert all(result == results[0] for result in results[1:])


@algorithms
def test_nan_and_infinity_propagate(algorithm):
    shape = flat_shape(SHAPES["same_3x3"])
    x, w, bias, gy = (a.astype(np.float32) for a in make_operands(shape, integers()))
    x[1, 2, 4, 5], gy[0, 3, 4, 5] = np.nan, np.inf  # inside: 0 · ∞ in the padding may be left out
    with np.errstate(invalid="ignore"):
        y, gx, gw, gb = run(algorithm, x, w, bias, gy, shape)
        expected = reference(x, w, bias, gy, shape)
    assert np.all(np.isnan(y[1, :, 3:6, 4:7])) and np.count_nonzero(np.isnan(y)) == 9 * shape[4]
    for result, value in zip((y, gx, gw, gb), expected, strict=True):
        np.testing.assert_array_equal(np.isfinite(result), np.isfinite(value))


@algorithms
def test_zero_times_infinity_is_not_skipped(algorithm):
    shape = flat_shape((1, 1, 3, 3, 1, 1, 1, (1, 1), (0, 0), (1, 1), 1))
    x, w, y = (
        np.full(size, value, np.float32)
        for size, value in (((1, 1, 3, 3), np.inf), ((1, 1, 1, 1), 0), ((1, 1, 3, 3), 1))
    )
    getattr(_C, f"conv2d_forward_{algorithm}")(x, w, None, y, shape)
    assert np.all(np.isnan(y))


@algorithms
def test_wrong_arguments_are_refused(algorithm):
    shape = flat_shape(SHAPES["groups"])
    x, w, bias, gy = (a.astype(np.float32) for a in make_operands(shape, integers()))
    forward = getattr(_C, f"conv2d_forward_{algorithm}")
    with pytest.raises(ValueError, match=f"conv2d_forward_{algorithm}: x has another shape"):
        forward(x[:1], w, bias, gy, shape)
    with pytest.raises(ValueError, match="bias has another shape"):
        forward(x, w, bias[1:], gy, shape)
    with pytest.raises(ValueError, match="multiples of groups"):
        forward(x, w, bias, gy, (*shape[:15], 4))
    with pytest.raises(ValueError, match="inside the padded image"):
        forward(x, w, bias, gy, (*shape[:7], shape[7] + 1, *shape[8:]))
    with pytest.raises(ValueError, match="must be positive"):
        forward(x, w, bias, gy, (*shape[:9], 0, *shape[10:]))
    with pytest.raises(TypeError):
        forward(x, w.astype(np.float64), bias, gy, shape)
    with pytest.raises(TypeError):
        forward(x[:, ::-1], w, bias, gy, shape)
    gy.flags.writeable = False
    with pytest.raises(ValueError, match="read-only|not writeable"):
        forward(x, w, bias, gy, shape)


def strided(array, layout):
    """The same values in another layout of memory."""
    if layout == "transposed":
        return np.ascontiguousarray(array.transpose(0, 2, 1)).transpose(0, 2, 1)
    if layout == "reversed":
        return np.ascontiguousarray(array[:, ::-1, ::-1])[:, ::-1, ::-1]
    if layout == "sliced":
        larger = np.zeros((array.shape[0], 2 * array.shape[1], 3 * array.shape[2]), array.dtype)
        larger[:, ::2, ::3] = array
        return larger[:, ::2, ::3]
    return array


@dtypes
@pytest.mark.parametrize(
    "size",
    (
        (1, 1, 1, 1),
        (2, 7, 5, 3),
        (1, 33, 257, 65),
        (3, 14, 16, 32),
        (1, 128, 84, 10),
        (1, 1, 600, 70),
        (2, 5, 50, 37),
        (1, 14, 16, 66),
        (1, 8, 333, 3),
        (2, 3, 0, 4),
        (0, 3, 2, 4),
        (1, 0, 2, 4),
        (1, 40, 530, 17),
    ),
)
def test_gemm_is_exact_in_every_layout(size, dtype):
    batch, m, k, n = size
    draw = integers(5)
    a, b, bias = draw((batch, m, k)), draw((batch, k, n)), draw((n,))
    layouts = ("plain", "transposed", "reversed", "sliced")
    for left, right, with_bias in itertools.product(layouts, layouts, (False, True)):
        c = np.full((batch, m, n), np.nan, dtype)
        _C.gemm(
            strided(a.astype(dtype), left),
            strided(b.astype(dtype), right),
            c,
            bias.astype(dtype) if with_bias else None,
        )
        np.testing.assert_array_equal(c, a @ b + (bias if with_bias else 0), err_msg=f"{left} @ {right}")


def test_gemm_broadcasts_by_zero_strides():
    draw = integers(6)
    a, b = draw((1, 5, 9)), draw((4, 9, 20))
    c = np.full((4, 5, 20), np.nan, np.float32)
    _C.gemm(np.broadcast_to(a.astype(np.float32), (4, 5, 9)), b.astype(np.float32), c)
    np.testing.assert_array_equal(c, a @ b)


@pytest.mark.parametrize("layout", ("plain", "transposed"))
@pytest.mark.parametrize("rows", (3, 14, 150))
def test_gemm_bits_do_not_depend_on_threads(rows, layout):
    generator = np.random.default_rng(7)
    a, b = generator.standard_normal((1, rows, 700)), generator.standard_normal((1, 700, 270))
    results = []
    for threads in (1, 2, 5):
        _C.set_num_threads(threads)
        c = np.full((1, rows, 270), np.nan)
        _C.gemm(a, strided(b, layout), c)
        results.append(c.tobytes())
    assert results[0] == results[1] == results[2]
    assert np.all(np.abs(c - a @ b) <= 1e-13 * (np.abs(a) @ np.abs(b)))


def test_gemm_refuses_wrong_shapes():
    a, b, c = (np.zeros(size, np.float32) for size in ((1, 2, 3), (1, 3, 4), (1, 2, 4)))
    with pytest.raises(ValueError, match="gemm: b has another shape"):
        _C.gemm(a, np.zeros((1, 4, 4), np.float32), c)
    with pytest.raises(ValueError, match="gemm: c has another shape"):
        _C.gemm(a, b, np.zeros((1, 2, 5), np.float32))
    with pytest.raises(ValueError, match="gemm: bias has another shape"):
        _C.gemm(a, b, c, np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="gemm: a and b must be"):
        _C.gemm(a[0], b, c)
    with pytest.raises(TypeError):
        _C.gemm(a, b.astype(np.float64), c)
