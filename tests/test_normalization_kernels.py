"""Kernels of local response and batch normalisation against the CPU's operations and float64 references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from check import UNIT_ROUNDOFF, assert_close, assert_equal, assert_relative_l2, assert_same_bits, sum_bound
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import assert_sound, assert_two_runs_equal, on

from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import ops
from gpucnn.ops import normalization_kernels as kernels
from gpucnn.tensor import Tensor

U = UNIT_ROUNDOFF[np.dtype(np.float32)]
LAYOUTS = {  # how values are put into memory, and how x is seen in it
    "contiguous": (lambda x: x, lambda memory: memory),
    "channels_last": (lambda x: np.moveaxis(x, 1, -1), lambda memory: np.moveaxis(memory, -1, 1)),
    "slices": (lambda x: x.repeat(2, axis=0).repeat(2, axis=-1), lambda memory: memory[::2, ..., ::2]),
    "reversed": (lambda x: x[:, ::-1], lambda memory: memory[:, ::-1]),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)
RESPONSE_SHAPES = [(2, 5, 4, 3), (1, 1, 3, 3), (3, 2, 7), (4, 7, 1, 1), (2, 17, 5, 7), (1, 40, 13, 11), (3, 9, 8, 4)]
RESPONSE_OPTIONS = [(5, 1e-4, 0.75, 1.0), (5, 1.0, 0.75, 2.0), (1, 2.0, 0.5, 1.0), (4, 1.0, 0.75, 2.0),
                    (11, 0.5, 1.5, 0.5), (60, 3.0, 0.75, 1.0)]  # fmt: skip
NORM_SHAPES = [(2, 5, 4, 3), (6, 3), (2, 1), (3, 2, 7), (2, 17, 5, 7), (33, 2, 2, 2), (130, 36), (7, 33, 2, 2),
               (3, 4, 16, 16), (2, 3, 37, 41), (5, 64, 1, 1)]  # fmt: skip


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).integers(-8, 9, shape).astype(np.float32)


def placed(x: np.ndarray, device: str, layout: str = "contiguous") -> Any:
    arrange, view = LAYOUTS[layout]
    return view(on(device, np.ascontiguousarray(arrange(x)))[0])


def host(results: Any) -> tuple[np.ndarray, ...]:
    return tuple(devices.to_numpy(result) for result in results)


def response_norm(x: Any, gy: Any, size: int, alpha: float, beta: float, k: float) -> tuple[Any, Any, Any]:
    """(y, scale, gx)"""
    y, scale = ops.local_response_norm_forward(x, size, alpha, beta, k)
    return y, scale, ops.local_response_norm_backward(x, scale, gy, size, alpha, beta)


def compare_response_norm(device: str, x: np.ndarray, gy: np.ndarray, options: Any, layout: str = "contiguous") -> None:
    """Against the same operations in float64; a power of ±beta multiplies relative errors by beta."""
    got = host(response_norm(placed(x, device, layout), placed(gy, device, layout), *options))
    want = response_norm(x.astype(np.float64), gy.astype(np.float64), *options)
    size, alpha, beta, _ = options
    rounding = (12 + min(size, x.shape[1])) * (1 + beta) * U
    assert_close(got[0], want[0], rounding * np.abs(want[0]))
    assert_close(got[1], want[1], rounding * np.abs(want[1]))
    terms = np.abs(gy) * np.abs(x) * want[1] ** (-beta - 1)
    around = np.abs(x) * 2 * alpha * beta / size * windows(terms, (size - 1) // 2, size // 2)
    assert_close(got[2], want[2], 2 * rounding * (np.abs(gy) * want[1] ** -beta + around))


def windows(terms: np.ndarray, before: int, after: int) -> np.ndarray:
    """Sums over the channels from c − before to c + after."""
    return np.stack([terms[:, max(0, c - before) : c + after + 1].sum(axis=1) for c in range(terms.shape[1])], axis=1)


@pytest.mark.parametrize("shape", RESPONSE_SHAPES, ids=str)
@pytest.mark.parametrize("options", RESPONSE_OPTIONS, ids=str)
def test_response_norm(device, shape, options):
    compare_response_norm(device, normal(*shape), normal(*shape, seed=1), options)


@layouts
@pytest.mark.parametrize("size", [1, 4, 5, 30])
def test_response_norm_of_layouts(device, layout, size):
    shape = 2, 33, 6, 7
    compare_response_norm(device, normal(*shape), normal(*shape, seed=1), (size, 1.0, 0.75, 1.0), layout)


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    size=st.integers(1, 50),
    layout=st.sampled_from(list(LAYOUTS)),
    beta=st.sampled_from([0.75, 1.0, 0.5]),
)
def test_response_norm_of_any_shape(device, shape, size, layout, beta):
    compare_response_norm(device, normal(*shape), normal(*shape, seed=1), (size, 0.7, beta, 1.0), layout)


@layouts
@pytest.mark.parametrize("size", [3, 4, 7, 26])
def test_response_norm_of_integers(device, layout, size):
    """alpha = size and k = 1: scale is 1 + Σ x², an integer."""
    x = integers(2, 29, 3, 5)
    scale = devices.to_numpy(ops.local_response_norm_forward(placed(x, device, layout), size, size, 0.75, 1.0)[1])
    assert_equal(scale, 1 + windows(x.astype(np.int64) ** 2, size // 2, (size - 1) // 2))


def test_response_norm_by_hand(device):
    x = placed(np.array([1, 2, 3], np.float32).reshape(1, 3, 1), device)
    assert_close(devices.to_numpy(F.local_response_norm(x, 3, 3, 1, 1)).reshape(-1), [1 / 6, 2 / 15, 3 / 14], 2 * U)


@layouts
def test_response_norm_forgets_large_values(device, layout):
    """Far from a huge channel others are as without it; a running sum would leave its rounding error behind."""
    x = normal(1, 20, 2, 3)
    x[:, 3] = 1e10
    compare_response_norm(device, x, normal(1, 20, 2, 3, seed=1), (5, 1.0, 0.75, 1.0), layout)


@pytest.mark.parametrize("factor", [1e-25, 1e-15, 1e4, 1e15])
def test_response_norm_of_tiny_and_huge_values(device, factor):
    x = np.float32(factor) * normal(2, 9, 3, 4)
    y = devices.to_numpy(F.local_response_norm(placed(x, device), 5, 1.0, 0.75, 1.0))
    want = reference.local_response_norm(x, 5, 1.0, 0.75, 1.0)
    assert_close(y, want, 30 * U * np.abs(want))


@layouts
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_response_norm_of_special_values(device, layout, bad):
    """They reach the channels of their window and no others."""
    x, gy = normal(2, 12, 3, 3), normal(2, 12, 3, 3, seed=1)
    x[1, 6, 2, 1] = bad
    got = host(response_norm(placed(x, device, layout), placed(gy, device, layout), 5, 1.0, 0.75, 1.0))
    with np.errstate(invalid="ignore"):
        want = response_norm(x, gy, 5, 1.0, 0.75, 1.0)
    for mine, theirs in zip(got, want, strict=True):
        assert_equal(np.isnan(mine), np.isnan(theirs))
        assert_equal(np.isinf(mine), np.isinf(theirs))
        assert_close(np.nan_to_num(mine, posinf=0), np.nan_to_num(theirs, posinf=0), 1e-5)


@layouts
def test_response_norm_on_tensors(device, layout):
    x, gy = normal(2, 7, 5, 4), normal(2, 7, 5, 4, seed=1)
    leaf = Tensor(placed(x, device, layout), requires_grad=True)
    y = F.local_response_norm(leaf, 5, 1.0)
    y.backward(on(device, gy)[0])
    oracle = Tensor(x, requires_grad=True)
    F.local_response_norm(oracle, 5, 1.0).backward(gy)
    assert devices.of(leaf.grad.data) == devices.of(y.data) == devices.of(leaf.data)
    assert_relative_l2(leaf.grad.numpy(), oracle.grad.numpy(), 1e-6)


def test_layout_of_results(device):
    """Results lie as x does: contiguous, or channels-last."""
    for layout in ("contiguous", "channels_last"):
        x = placed(normal(2, 3, 4, 5), device, layout)
        statistics = ops.batch_norm_statistics(x, 1e-5)
        results = (*response_norm(x, x, 3, 1.0, 0.75, 1.0), ops.batch_norm_apply(x, *statistics, None, None),
                   ops.batch_norm_backward(x, x, *statistics, None, True)[0])  # fmt: skip
        assert [result.strides for result in results] == [x.strides] * 5


def test_choice_of_segments():
    """Few pixels and many channels: the channels are cut; many pixels: they are not."""
    layout = kernels.Layout(1, 256, 169, False)
    assert kernels._window(layout, 2, 2) == (169, 256, 169, 2, 2, 20)
    assert kernels._window(layout._replace(N=1000), 2, 2)[-1] == 256


# Batch normalisation.


def batch_norm(x: Any, gy: Any, weight: Any, bias: Any, training: bool = True, eps: float = 1e-3) -> tuple[Any, ...]:
    """(mean, inverse_std, y, gx, gweight, gbias)"""
    mean, inverse_std = ops.batch_norm_statistics(x, eps)
    y = ops.batch_norm_apply(x, mean, inverse_std, weight, bias)
    return mean, inverse_std, y, *ops.batch_norm_backward(x, gy, mean, inverse_std, weight, training)


def compare_batch_norm(device: str, x: np.ndarray, gy: np.ndarray, layout: str = "contiguous", affine: bool = True, training: bool = True) -> None:  # fmt: skip # noqa: E501
    """Against the CPU's operations in float64 with the kernel's own (rounded) mean and inverse_std."""
    vectors = (normal(x.shape[1], seed=2), normal(x.shape[1], seed=3)) if affine else (None, None)
    moved = on(device, *vectors)
    got = host(batch_norm(placed(x, device, layout), placed(gy, device, layout), *moved, training=training))
    check_statistics(got[0], got[1], x, 1e-3)
    statistics = tuple(part.astype(np.float64) for part in got[:2])
    exact = tuple(None if vector is None else vector.astype(np.float64) for vector in vectors)
    x, gy = x.astype(np.float64), gy.astype(np.float64)
    y = ops.batch_norm_apply(x, *statistics, *exact)
    gx, gweight, gbias = ops.batch_norm_backward(x, gy, *statistics, exact[0], training)
    offset = 0 if exact[1] is None else np.abs(column(exact[1], x))
    assert_close(got[2], y, 6 * U * (np.abs(y) + 2 * offset))
    axes, count = (0, *range(2, x.ndim)), x.size // x.shape[1]
    normalised = np.abs((x - column(statistics[0], x)) * column(statistics[1], x))
    assert_close(got[4], gweight, sum_bound(min(count, 40), (np.abs(gy) * normalised).sum(axes), np.float32))
    assert_close(got[5], gbias, sum_bound(min(count, 40), np.abs(gy).sum(axes), np.float32))
    factor = np.abs(statistics[1] * (1 if exact[0] is None else exact[0]))
    means = np.abs(gy).mean(axes), (np.abs(gy) * normalised).mean(axes)
    magnitude = np.abs(gy) + training * (column(means[0], x) + normalised * column(means[1], x))
    assert_close(got[3], gx, 30 * U * column(factor, x) * magnitude)


def column(vector: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.asarray(vector).reshape(-1, *[1] * (x.ndim - 2))


def check_statistics(mean: np.ndarray, inverse_std: np.ndarray, x: np.ndarray, eps: float) -> None:
    """Rounding errors of a few units of the mean and the standard deviation: none grow with the number of elements."""
    exact, axes = x.astype(np.float64), (0, *range(2, x.ndim))
    variance = exact.var(axes)
    assert_close(mean, exact.mean(axes), U * (np.abs(exact.mean(axes)) + 4 * np.sqrt(variance)))
    want = 1 / np.sqrt(variance + eps)
    assert_close(inverse_std, want, 8 * U * want)


@pytest.mark.parametrize("shape", NORM_SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(device, shape, training):
    compare_batch_norm(device, 3 * normal(*shape) + 1, normal(*shape, seed=1), training=training)
    compare_batch_norm(device, 3 * normal(*shape) + 1, normal(*shape, seed=1), affine=False, training=training)


@layouts
def test_batch_norm_of_layouts(device, layout):
    for shape in ((3, 36, 5, 4), (3, 5, 7)):
        compare_batch_norm(device, normal(*shape), normal(*shape, seed=1), layout)


@settings(max_examples=40)
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 150), st.integers(1, 40)),
        st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 33), st.integers(1, 33)),
    ),
    layout=st.sampled_from(list(LAYOUTS)),
    affine=st.booleans(),
    training=st.booleans(),
)
def test_batch_norm_of_any_shape(device, shape, layout, affine, training):
    compare_batch_norm(device, normal(*shape), normal(*shape, seed=1), layout, affine, training)


@layouts
@pytest.mark.parametrize("shape", [(3, 5, 8, 9), (2, 33, 1, 3), (4, 2, 64, 32)], ids=str)
def test_batch_norm_of_integers(device, layout, shape):
    """Sums of integers are exact, and so is the mean of whole groups of 16, but for its rounding."""
    x, gy = integers(*shape), integers(*shape, seed=1)
    got = host(batch_norm(placed(x, device, layout), placed(gy, device, layout), None, None))
    want = x.astype(np.float64).mean((0, 2, 3))
    groups = x.size // shape[1] % 2048 == 0
    assert_close(got[0], want, U * np.abs(want) + (1e-12 if groups else 4 * U * x.std((0, 2, 3))))
    assert_equal(got[5], gy.astype(np.int64).sum((0, 2, 3)))


@layouts
@pytest.mark.parametrize("split", [2, 7])
def test_batch_norm_of_many_splits(device, layout, split, monkeypatch):
    """Sums over more blocks; a channel of 7 splits is the last of which some threads have none."""
    monkeypatch.setattr(kernels, "GROUP", 1)
    monkeypatch.setattr(kernels, "MANY_BLOCKS", 5 * split)
    compare_batch_norm(device, normal(5, 5, 24, 25) + 2, normal(5, 5, 24, 25, seed=1), layout)


def test_batch_norm_of_more_splits_than_threads(device):
    """One channel of rows: 150 splits, of which the finishing block's threads take two."""
    compare_batch_norm(device, normal(9600, 1), normal(9600, 1, seed=1))
    assert kernels._norm_shape(kernels.Layout(9600, 1, 1, True))[0][3] == 150


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mean", [100, 1e4, 1e6])
def test_large_mean_does_not_cancel(device, layout, mean):
    x = (normal(8, 3, 16, 20).astype(np.float64) + mean).astype(np.float32)
    check_statistics(*host(ops.batch_norm_statistics(placed(x, device, layout), 0.0)), x, 0.0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_value_far_off(device, layout):
    """At the first place, where a shift by the first value would lose the others."""
    for place in (0, -1):
        x = normal(8, 3, 16, 20)
        x[place, :, place, place] = 1e5
        check_statistics(*host(ops.batch_norm_statistics(placed(x, device, layout), 0.0)), x, 0.0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-30, 3e38])
def test_constant_channels(device, value):
    """The variance is 0 but for rounding, and y is the bias."""
    x = np.full((3, 2, 5, 7), value, np.float32)
    bias = on(device, np.array([1, -2], np.float32))[0]
    mean, inverse_std = ops.batch_norm_statistics(placed(x, device), 1e-5)
    y = devices.to_numpy(ops.batch_norm_apply(placed(x, device), mean, inverse_std, None, bias))
    assert_same_bits(devices.to_numpy(mean), x[0, :, 0, 0])
    assert_close(devices.to_numpy(inverse_std), np.full(2, 1e-5**-0.5), 1e-4)
    assert_equal(y, np.broadcast_to(np.float32([1, -2]).reshape(2, 1, 1), x.shape))


@pytest.mark.parametrize("factor", [1e-18, 1e-10, 1e10, 1e18])
def test_tiny_and_huge_values(device, factor):
    x = np.float32(factor) * normal(4, 3, 9, 10)
    check_statistics(*host(ops.batch_norm_statistics(placed(x, device), 0.0)), x, 0.0)


@layouts
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_special_values_stay_in_their_channel(device, layout, bad):
    x, gy = normal(3, 6, 5, 4), normal(3, 6, 5, 4, seed=1)
    x[2, 4, 3, 1] = bad
    got = host(batch_norm(placed(x, device, layout), placed(gy, device, layout), None, None))
    for result, axis in zip(got[:5], (0, 0, 1, 1, 0), strict=True):
        others = np.delete(result, 4, axis=axis)
        assert np.isfinite(others).all()
    assert np.isnan(got[2][:, 4]).all() and np.isnan(got[3][:, 4]).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 7), (3, 5, 4, 6)], ids=str)
def test_functional_as_on_the_cpu(device, shape, training):
    """Outputs, gradients and running statistics; the same function on both devices."""
    results = []
    for where in ("cpu", device):
        x, weight, bias = (Tensor(array, requires_grad=True) for array in on(where, 2 * normal(*shape) + 1, normal(5, seed=1), normal(5, seed=2)))  # fmt: skip # noqa: E501
        running = on(where, normal(5, seed=3), 1 + normal(5, seed=4) ** 2)
        y = F.batch_norm(x, *running, weight, bias, training=training, momentum=0.3)
        y.backward(on(where, normal(*shape, seed=5))[0])
        grads = [leaf.grad.data for leaf in (x, weight, bias)]
        assert {devices.of(array) for array in (y.data, *grads, *running)} == {devices.of(x.data)}
        results.append(host((y.data, *grads, *running)))
    for want, got in zip(*results, strict=True):
        assert_relative_l2(got, want, 1e-6)


def test_running_statistics_by_hand(device):
    """1, 2, 3, 6: mean 3, unbiased variance 14/3; 3/4 of what was there remains."""
    x = placed(np.array([1, 2, 3, 6], np.float32).reshape(2, 1, 1, 2), device)
    mean, variance = on(device, np.array([10], np.float32), np.array([20], np.float32))
    y = F.batch_norm(x, mean, variance, training=True, momentum=0.25, eps=0.5)
    assert_close(devices.to_numpy(y).reshape(-1), np.array([-2, -1, 0, 3]) / 2, 2 * U)
    assert_equal(devices.to_numpy(mean), [8.25])
    assert_close(devices.to_numpy(variance), [15 + 0.25 * 14 / 3], 20 * U)


def test_running_statistics_may_move_between_forward_and_backward(device):
    (x, mean, variance), weight = (
        on(device, normal(4, 2, 3), *np.float32([[0, 0], [1, 1]])),
        Tensor(on(device, np.ones(2, np.float32))[0], requires_grad=True),
    )
    y = F.batch_norm(x, mean, variance, weight, eps=0.0)
    mean[...], variance[...] = 5, 100
    y.backward(on(device, np.ones((4, 2, 3), np.float32))[0])
    assert_close(weight.grad.numpy(), normal(4, 2, 3).sum(axis=(0, 2)), 1e-5)


def test_weights_may_be_views(device):
    x, gy, both = on(device, normal(3, 4, 8), normal(3, 4, 8, seed=1), normal(4, 2))
    views = batch_norm(x, gy, both[:, 0], both[:, 1])
    copies = batch_norm(x, gy, *(devices.contiguous(both[:, i]) for i in (0, 1)))
    for one, other in zip(host(views), host(copies), strict=True):
        assert_same_bits(one, other)


def test_empty_batch(device):
    x = Tensor(on(device, np.zeros((0, 4, 2, 2), np.float32))[0], requires_grad=True)
    weight = Tensor(on(device, np.ones(4, np.float32))[0], requires_grad=True)
    mean, variance = on(device, np.zeros(4, np.float32), np.ones(4, np.float32))
    F.batch_norm(F.local_response_norm(x, 3), mean, variance, weight).backward(x.data)
    assert x.grad.shape == x.shape
    assert_equal(weight.grad.numpy(), np.zeros(4))
    with pytest.raises(ValueError, match=r"batch_norm_statistics: x has no elements \(shape \(0, 4, 2, 2\)\)"):
        F.batch_norm(x, None, None)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_sound(device, layout):
    shape = 2, 5, 3, 4
    x, gy = placed(normal(*shape), device, layout), placed(normal(*shape, seed=1), device, layout)
    weight, bias = on(device, normal(5), normal(5, seed=1))
    assert_sound(lambda: batch_norm(x, gy, weight, bias), device)
    assert_sound(lambda: response_norm(x, gy, 3, 1.0, 0.75, 1.0), device)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_in_every_run(device, layout):
    shape = 3, 33, 9, 16
    x, gy = placed(normal(*shape), device, layout), placed(normal(*shape, seed=1), device, layout)
    assert_two_runs_equal(lambda: batch_norm(x, gy, None, None), device)
    assert_two_runs_equal(lambda: response_norm(x, gy, 5, 1.0, 0.75, 1.0), device)


def test_errors(device):
    x, mean = on(device, normal(2, 3, 4), np.zeros(3))
    with pytest.raises(TypeError, match="running_mean is float64; the kernel takes float32"):
        F.batch_norm(x, mean, mean)
    with pytest.raises(TypeError, match="batch_norm: weight is on cpu but x is on"):
        F.batch_norm(x, None, None, np.ones(3, np.float32))
    with pytest.raises(TypeError, match="local_response_norm: x is float64 on .*, where kernels take float32"):
        F.local_response_norm(x.astype(np.float64), 3)
