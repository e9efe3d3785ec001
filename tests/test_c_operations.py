"""The extension's operations apart from convolution and pooling, called directly and compared with their definitions.

At the end all of them, pooling too: the same bits at every thread count, empty batches, arguments that are refused.

Every output starts as NaN (or −7 where it holds integers), so that an element left out is seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from check import assert_close, assert_equal, assert_same_bits, rounding_bound

from gpucnn import _C

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = _C.get_num_threads()
    yield
    _C.set_num_threads(threads)


def unset(shape: Any, dtype: Any = np.float64) -> np.ndarray:
    return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else -7, dtype)


# ---- normalisation ----


def response_norm(x: np.ndarray, gy: np.ndarray, size: int, alpha: float, beta: float, k: float) -> tuple[Any, ...]:
    """(y, scale, gx) by loops over channels; a window reaches size//2 back and (size−1)//2 ahead, as torch's."""
    x, gy, channels = x.astype(np.float64), gy.astype(np.float64), x.shape[1]
    windows = [range(max(0, c - size // 2), min(channels, c + (size - 1) // 2 + 1)) for c in range(channels)]
    scale = np.stack([k + alpha / size * sum(x[:, j] ** 2 for j in window) for window in windows], axis=1)
    gx = gy * scale**-beta
    for j, window in enumerate(windows):
        for c in window:
            gx[:, c] -= 2 * alpha * beta / size * x[:, c] * gy[:, j] * x[:, j] * scale[:, j] ** (-beta - 1)
    return x * scale**-beta, scale, gx


@pytest.mark.parametrize("shape", [(2, 1, 5), (2, 7, 300), (1, 3, 256), (1, 40, 257), (0, 3, 4), (70, 5, 9)])
@pytest.mark.parametrize(
    "options", [(5, 1e-4, 0.75, 1.0), (4, 0.3, 0.75, 2.0), (3, 0.5, 0.5, 1.0), (99, 0.2, 1.3, 1.5)]
)
@dtypes
def test_local_response_norm(shape, options, dtype, rng):
    x, gy = 2 * rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).astype(dtype)
    y, scale, gx = (unset(shape, dtype) for _ in range(3))
    _C.local_response_norm_forward(x, y, scale, *options)
    _C.local_response_norm_backward(x, scale, gy, gx, *options[:3])
    want_y, want_scale, want_gx = response_norm(x, gy, *options)
    terms = 2 * min(options[0], shape[1]) + 20
    assert_close(scale, want_scale, rounding_bound(terms, np.abs(want_scale), dtype))
    assert_close(y, want_y, rounding_bound(terms, np.abs(want_y), dtype))
    assert_close(gx, want_gx, rounding_bound(terms, np.abs(gy) + np.abs(x) * np.abs(gy).max(initial=0), dtype))


def test_response_norm_of_even_size_as_pytorch(torch, rng):
    x = rng.standard_normal((2, 9, 6))
    y, scale = unset(x.shape), unset(x.shape)
    for size in range(1, 8):
        _C.local_response_norm_forward(x, y, scale, size, 0.7, 0.75, 1.5)
        want = torch.nn.functional.local_response_norm(torch.tensor(x), size, 0.7, 0.75, 1.5)
        assert_close(y, want.numpy(), rounding_bound(40, np.abs(y), np.float64))


BATCHES = pytest.mark.parametrize("shape", [(2, 1, 1), (5, 3, 1), (4, 5, 15), (3, 2, 16), (2, 3, 17), (7, 4, 200)])


@BATCHES
@dtypes
def test_batch_norm_statistics(shape, dtype, rng):
    x = (3 * rng.standard_normal(shape) + 7).astype(dtype)
    mean, variance = unset(shape[1], dtype), unset(shape[1], dtype)
    _C.batch_norm_statistics(x, mean, variance)
    exact = x.astype(np.longdouble)
    assert_close(mean, exact.mean(axis=(0, 2)), rounding_bound(4, np.abs(exact).mean(axis=(0, 2)), dtype))
    assert_close(variance, exact.var(axis=(0, 2)), rounding_bound(40, exact.var(axis=(0, 2)) + 1e-9, dtype))


def test_statistics_of_integers_are_exact_however_large_the_mean():
    x = 1e6 + np.tile(np.array([-3, -1, 1, 3], np.float32), (2, 3, 50))
    mean, variance = unset(3, np.float32), unset(3, np.float32)
    _C.batch_norm_statistics(x.astype(np.float32), mean, variance)
    assert_equal(mean, [1e6] * 3)
    assert_equal(variance, [5] * 3)


@BATCHES
@pytest.mark.parametrize("affine", [True, False])
@dtypes
def test_batch_norm_apply_and_backward(shape, affine, dtype, rng):
    x, gy = rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).astype(dtype)
    mean, weight, bias = rng.standard_normal((3, shape[1])).astype(dtype)
    inverse_std = (0.5 + rng.random(shape[1])).astype(dtype)
    m, s, w, b, g = (np.float64(a)[:, None] for a in (mean, inverse_std, weight, bias, 0 * bias))
    w, b = (w, b) if affine else (g + 1, g)
    normalised, count = (x - m) * s, shape[0] * shape[2]
    gbias, gweight = gy.sum(axis=(0, 2), dtype=np.float64), (gy * normalised).sum(axis=(0, 2))
    training = w * s * (gy - gbias[:, None] / count - normalised * gweight[:, None] / count)

    y, parameters = unset(shape, dtype), (weight, bias) if affine else (None, None)
    _C.batch_norm_apply(x, mean, inverse_std, *parameters, y)
    assert_close(y, normalised * w + b, rounding_bound(8, np.abs(normalised * w) + np.abs(b) + 2, dtype))
    for run, want in (
        (_C.batch_norm_backward_training, training),
        (_C.batch_norm_backward_inference, w * s * gy),
    ):
        gx = unset(shape, dtype)
        got = (unset(shape[1], dtype), unset(shape[1], dtype)) if affine else (None, None)
        run(x, gy, mean, inverse_std, parameters[0], gx, *got)
        magnitude = np.abs(w * s) * (np.abs(gy) + np.abs(gy).mean() + np.abs(normalised).max() ** 2 + 1)
        assert_close(gx, want, rounding_bound(16, magnitude, dtype))
        if affine:
            assert_close(got[1], gbias, rounding_bound(2, np.abs(gy).sum(axis=(0, 2)), dtype))
            assert_close(got[0], gweight, rounding_bound(8, np.abs(gy * normalised).sum(axis=(0, 2)) + 1, dtype))


# ---- element-wise, random numbers, optimiser steps ----


@dtypes
def test_relu_of_special_values(dtype):
    x = np.array([np.nan, -np.inf, -1, -0.0, 0.0, 1e-40, 2, np.inf], dtype)
    y, gx = unset(8, dtype), unset(8, dtype)
    _C.relu_forward(x, y)
    assert_equal(y, np.where(x <= 0, 0, x))
    assert not np.signbit(y[1:]).any()  # −0 becomes +0
    _C.relu_backward(y, np.arange(1, 9).astype(dtype), gx)
    assert_equal(gx, [1, 0, 0, 0, 0, 6, 7, 8])


SIZES = pytest.mark.parametrize("size", [0, 1, 7, 63, 1000, 16384, 16385, 70001])


@SIZES
@dtypes
def test_relu(size, dtype, rng):
    x, gy = rng.standard_normal(size).astype(dtype), rng.standard_normal(size).astype(dtype)
    y, gx = unset(size, dtype), unset(size, dtype)
    _C.relu_forward(x, y)
    _C.relu_backward(y, gy, gx)
    assert_same_bits(y, np.where(x > 0, x, 0).astype(dtype))
    assert_same_bits(gx, np.where(x > 0, gy, 0).astype(dtype))


# Random123's known answers: counter, key, result
PHILOX = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), PHILOX)
def test_philox_known_answers(counter, key, result):
    assert tuple(_C.philox4x32(counter, key)) == result


@pytest.mark.parametrize("offset", [0, 5, 2**32 - 3, 2**64 - 1])
@SIZES
def test_philox_words_are_those_of_their_blocks(size, offset):
    seed, words = 0x0123456789ABCDEF, np.zeros(size, np.uint32)
    _C.philox_uint32(words, seed, offset)
    for i in [*range(min(size, 300)), *range(16380, min(size, 16400)), *range(max(0, size - 5), size)]:
        block = (offset + i // 4) % 2**64
        assert words[i] == _C.philox4x32((block % 2**32, block >> 32, 0, 0), (seed % 2**32, seed >> 32))[i % 4]


@SIZES
@dtypes
def test_dropout_follows_the_words(size, dtype, rng):
    x, y, words = rng.standard_normal(size).astype(dtype), unset(size, dtype), np.zeros(size, np.uint32)
    _C.philox_uint32(words, 3, 11)
    for threshold in (0, 1 << 31, 2**32 - 1, *map(int, words[:1])):  # a word equal to it is kept
        _C.dropout(x, y, 3, 11, threshold, 1.5)
        assert_same_bits(y, np.where(words >= threshold, x * dtype(1.5), dtype(0)))


def test_dropout_drops_nan():
    x, y = unset(1000), unset(1000)
    _C.dropout(x, y, 0, 0, 1 << 31, 2.0)
    assert set(np.unique(y[~np.isnan(y)])) == {0.0}
    assert 400 < np.isnan(y).sum() < 600


SGD = list(itertools.product((0.0, 0.9), (0.0, 0.3), (False, True), (0.0, 0.01)))


@pytest.mark.parametrize(("momentum", "dampening", "nesterov", "decay"), [c for c in SGD if c[0] or not any(c[1:3])])
@dtypes
def test_sgd_update(momentum, dampening, nesterov, decay, dtype, rng):
    p = rng.standard_normal(20_003).astype(dtype)
    want, buffer, velocity = p.astype(np.float64), unset(p.shape, dtype) if momentum else None, None
    for step in range(5):
        g = rng.standard_normal(p.shape).astype(dtype)
        before = g.copy()
        _C.sgd_update(p, g, buffer, 0.1, momentum, dampening, nesterov, decay, step == 0)
        assert_same_bits(g, before)
        gradient = g + decay * want
        velocity = gradient if velocity is None else momentum * velocity + (1 - dampening) * gradient
        direction = gradient + momentum * velocity if nesterov else velocity if momentum else gradient
        want = want - 0.1 * direction
    assert_close(p, want, rounding_bound(60, 1 + np.abs(want), dtype))
    if buffer is not None:
        assert_close(buffer, velocity, rounding_bound(60, 1 + np.abs(velocity), dtype))


@pytest.mark.parametrize(("decoupled", "decay"), [(False, 0.0), (False, 0.02), (True, 0.02)])
@dtypes
def test_adam_update(decoupled, decay, dtype, rng):
    p = rng.standard_normal(20_003).astype(dtype)
    m, v = np.zeros_like(p), np.zeros_like(p)
    want, first, second = p.astype(np.float64), np.zeros(p.size), np.zeros(p.size)
    for step in range(1, 6):
        g = rng.standard_normal(p.shape).astype(dtype)
        _C.adam_update(p, g, m, v, 0.01, 0.8, 0.95, 1e-6, decay, decoupled, step)
        gradient = g + (0 if decoupled else decay * want)
        want = want * (1 - 0.01 * decay if decoupled else 1)
        first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient**2
        want = want - 0.01 * (first / (1 - 0.8**step)) / (np.sqrt(second / (1 - 0.95**step)) + 1e-6)
    assert_close(p, want, rounding_bound(100, 1 + np.abs(want), dtype))
    assert_close(m, first, rounding_bound(100, 1, dtype))
    assert_close(v, second, rounding_bound(100, 1, dtype))


# ---- batches ----


@pytest.mark.parametrize("size", [(6, 7), (4, 5), (9, 12), (1, 1), (3, 40)])
@pytest.mark.parametrize("batch", [0, 1, 9])
def test_gather_batch(size, batch, rng):
    images = rng.integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)
    indices, flips = rng.integers(0, 5, batch), rng.integers(0, 2, batch, dtype=np.uint8)
    offsets = rng.integers(-8, 9, (batch, 2))
    scale, shift = np.array([0.5, 1, 2], np.float32), np.array([-1, 0, 0.25], np.float32)  # exact in float32
    out = unset((batch, 3, *size), np.float32)
    _C.gather_batch(images, indices, out, offsets, flips, scale, shift, 17)
    for b, i, j in np.ndindex(batch, *size):
        y, x = i + offsets[b, 0], (size[1] - 1 - j if flips[b] else j) + offsets[b, 1]
        inside = 0 <= y < 6 and 0 <= x < 7
        pixel = images[indices[b], :, y, x].astype(float) if inside else np.full(3, 17.0)
        assert_equal(out[b, :, i, j], pixel * scale + shift)


@pytest.mark.parametrize("far", [2**62, -(2**62), 2**63 - 1, -(2**63)])
def test_gathering_from_far_outside_fills(far):
    images, out = np.full((1, 1, 4, 4), 200, np.uint8), unset((2, 1, 3, 3), np.float32)
    ones, zeros = np.ones(1, np.float32), np.zeros(1, np.float32)
    _C.gather_batch(
        images, np.zeros(2, np.int64), out, np.array([[far, 0], [0, far]]), np.zeros(2, np.uint8), ones, zeros, 9
    )
    assert_equal(out, np.full(out.shape, 9))


@pytest.mark.parametrize("index", [-1, 5, 2**40])
def test_gathering_checks_all_indices_before_it_writes(index):
    images, out = np.zeros((5, 1, 2, 2), np.uint8), unset((2, 1, 2, 2), np.float32)
    ones = np.ones(1, np.float32)
    with pytest.raises(ValueError, match="gather_batch: an index lies outside the images"):
        _C.gather_batch(
            images, np.array([0, index]), out, np.zeros((2, 2), np.int64), np.zeros(2, np.uint8), ones, ones, 0
        )
    assert np.isnan(out).all()


# ---- all of them ----


def operations(rng: np.random.Generator) -> dict[str, Callable[[], list[np.ndarray]]]:
    """Each operation on arrays large enough for several workers; a call returns what it wrote."""
    x, gy = rng.standard_normal((2, 9, 11, 40, 37)).astype(np.float32)
    x3, gy3, pooled = (
        x.reshape(9, 11, -1),
        gy.reshape(9, 11, -1),
        rng.standard_normal((9, 11, 20, 19)).astype(np.float32),
    )
    c, positive = rng.standard_normal((4, 11)).astype(np.float32), 1 + np.abs(x)
    window = (3, 3, 2, 2, 1, 1, 1, 1)
    indices = unset(pooled.shape, np.int64)
    _C.max_pool2d_forward(x, np.empty_like(pooled), indices, window)

    def writing(function: Callable[..., None], *arguments: Any) -> Callable[[], list[np.ndarray]]:
        """Arguments that are pairs (shape, dtype) stand for outputs."""

        def call() -> list[np.ndarray]:
            given = [unset(*a) if isinstance(a, tuple) and isinstance(a[-1], type) else a for a in arguments]
            given = [a.copy() if isinstance(a, np.ndarray) else a for a in given]
            function(*given)
            return [a for a in given if isinstance(a, np.ndarray)]

        return call

    f = np.float32
    full, flat, small, channel = (x.shape, f), (x3.shape, f), (pooled.shape, f), (11, f)
    return {
        "max_forward": writing(_C.max_pool2d_forward, x, small, (pooled.shape, np.int64), window),
        "max_backward": writing(_C.max_pool2d_backward, pooled, indices, full),
        "avg_forward": writing(_C.avg_pool2d_forward, x, small, window, True),
        "avg_backward": writing(_C.avg_pool2d_backward, pooled, full, window, False),
        "adaptive_forward": writing(_C.adaptive_avg_pool2d_forward, x, ((9, 11, 6, 7), f)),
        "adaptive_backward": writing(_C.adaptive_avg_pool2d_backward, pooled, full),
        "lrn_forward": writing(_C.local_response_norm_forward, x3, flat, flat, 5, 0.1, 0.75, 1.0),
        "lrn_backward": writing(
            _C.local_response_norm_backward, x3, positive.reshape(x3.shape), gy3, flat, 4, 0.1, 0.6
        ),
        "statistics": writing(_C.batch_norm_statistics, x3, channel, channel),
        "apply": writing(_C.batch_norm_apply, x3, *c, flat),
        "training": writing(_C.batch_norm_backward_training, x3, gy3, *c[:3], flat, channel, channel),
        "inference": writing(_C.batch_norm_backward_inference, x3, gy3, *c[:3], flat, channel, channel),
        "relu_forward": writing(_C.relu_forward, x, full),
        "relu_backward": writing(_C.relu_backward, x, gy, full),
        "philox": writing(_C.philox_uint32, np.zeros(50_001, np.uint32), 5, 6),
        "dropout": writing(_C.dropout, x, full, 5, 6, 1 << 30, 1.25),
        "sgd": writing(_C.sgd_update, x, gy, positive, 0.1, 0.9, 0.1, True, 0.01, False),
        "adam": writing(_C.adam_update, x, gy, gy, positive, 0.1, 0.9, 0.99, 1e-8, 0.01, False, 3),
    }


@pytest.mark.parametrize("name", operations(np.random.default_rng(0)))
def test_bits_do_not_depend_on_run_or_threads(name, rng):
    call = operations(rng)[name]
    results = []
    for threads in (2, 2, 1, 3):
        _C.set_num_threads(threads)
        results.append(call())
    assert not any(np.isnan(array).any() for array in results[0])
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            assert_same_bits(got, want)


@dtypes
def test_empty_batches(dtype):
    x, y, indices = unset((0, 3, 8, 8), dtype), unset((0, 3, 4, 4), dtype), unset((0, 3, 4, 4), np.int64)
    window = (2, 2, 2, 2, 0, 0, 1, 1)
    _C.max_pool2d_forward(x, y, indices, window)
    _C.max_pool2d_backward(y, indices, x)
    _C.avg_pool2d_forward(x, y, window, True)
    _C.avg_pool2d_backward(y, x, window, True)
    _C.adaptive_avg_pool2d_forward(x, y)
    _C.adaptive_avg_pool2d_backward(y, x)
    gweight, gbias, one, x3 = unset(3, dtype), unset(3, dtype), np.ones(3, dtype), x.reshape(0, 3, 64)
    _C.batch_norm_apply(x3, one, one, one, one, x3.copy())
    _C.batch_norm_backward_training(x3, x3, one, one, one, x3.copy(), gweight, gbias)
    assert_equal([gweight, gbias], np.zeros((2, 3)))
    with pytest.raises(ValueError, match="batch_norm_statistics: x has no elements"):
        _C.batch_norm_statistics(x3, gweight, gbias)


X, Y, INDICES = np.zeros((2, 3, 4, 4)), np.zeros((2, 3, 2, 2)), np.zeros((2, 3, 2, 2), np.int64)
X3, C3, WINDOW = X.reshape(2, 3, 16), np.zeros(3), (2, 2, 2, 2, 0, 0, 1, 1)
WRONG = {
    "input and output must be": lambda: _C.max_pool2d_forward(X, Y[:1], INDICES[:1], WINDOW),
    "max_pool2d_forward: indices has another shape": lambda: _C.max_pool2d_forward(X, Y, INDICES[:1], WINDOW),
    "max_pool2d_forward: kernel, stride": lambda: _C.max_pool2d_forward(X, Y, INDICES, (2, 2, 0, 2, 0, 0, 1, 1)),
    "avg_pool2d_forward: dilation must be 1": lambda: _C.avg_pool2d_forward(X, Y, (2, 2, 1, 1, 0, 0, 2, 2), True),
    "adaptive_avg_pool2d_forward: the input has no": lambda: _C.adaptive_avg_pool2d_forward(X[:, :, :0], Y),
    "local_response_norm_forward: x must be": lambda: _C.local_response_norm_forward(X, X, X, 5, 1.0, 0.75, 1.0),
    "local_response_norm_forward: size": lambda: _C.local_response_norm_forward(X3, X3, X3, 0, 1.0, 0.75, 1.0),
    "local_response_norm_backward: gy": lambda: _C.local_response_norm_backward(X3, X3, X3[:1], X3, 5, 1.0, 0.75),
    "batch_norm_statistics: mean has": lambda: _C.batch_norm_statistics(X3, C3[:2], C3),
    "batch_norm_apply: weight has": lambda: _C.batch_norm_apply(X3, C3, C3, C3[:2], C3, X3),
    "batch_norm_backward_training: gy has": lambda: _C.batch_norm_backward_training(X3, X, C3, C3, C3, X3, C3, C3),
    "relu_forward: y has": lambda: _C.relu_forward(X, Y),
    "relu_backward: gx has": lambda: _C.relu_backward(X, X, X[:1]),
    "dropout: y has": lambda: _C.dropout(X, Y, 0, 0, 0, 1.0),
    "sgd_update: g has": lambda: _C.sgd_update(X, Y, None, 0.1, 0.0, 0.0, False, 0.0, True),
    "sgd_update: momentum_buffer must": lambda: _C.sgd_update(X, X, None, 0.1, 0.9, 0.0, False, 0.0, True),
    "adam_update: v has": lambda: _C.adam_update(X, X, X, Y, 0.1, 0.9, 0.99, 1e-8, 0.0, False, 1),
    "adam_update: step counts": lambda: _C.adam_update(X, X, X, X, 0.1, 0.9, 0.99, 1e-8, 0.0, False, 0),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_refused(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_wrong_dtypes_layouts_and_read_only_outputs_are_refused():
    x, y = np.zeros((4, 6)), np.zeros((4, 6))
    for wrong in (y.astype(np.float32), np.zeros((6, 4)).T, y.astype(np.int64)):
        with pytest.raises(TypeError):
            _C.relu_forward(x, wrong)
    with pytest.raises(TypeError):
        _C.philox_uint32(np.zeros(4, np.int32), 0, 0)
    with pytest.raises(TypeError):
        _C.philox_uint32(np.zeros(4, np.uint32), -1, 0)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="read-only|not writeable"):
        _C.relu_forward(x, y)
