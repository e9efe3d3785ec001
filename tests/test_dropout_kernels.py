"""The kernel of dropout: bit for bit what the CPU computes, for every seed, offset, rate, size and alignment."""

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
from gpucnn import ops
from gpucnn.launch import launch
from gpucnn.tensor import Tensor

OFFSETS = [0, 1, 2**32 - 2, 2**32, 2**40 + 7, 2**63, 2**64 - 3]  # the last ones wrap around within a call
WORDS = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # block 0 of key 0 (Random123's kat_vectors)
SEEDS = [0, 1, 2**32 + 7, 2**63 - 1]
RATES = [0.0, 1e-9, 0.1, 0.5, 0.75, 0.999, 1 - 1e-12]


def numbers(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.float32)


def compare(device: str, x: np.ndarray, p: float, seed: int, offset: int) -> None:
    assert_same_bits(devices.to_numpy(ops.dropout(on(device, x)[0], p, seed, offset)), ops.dropout(x, p, seed, offset))


def test_known_answer(device):
    """Only the first of the four words is below 2^31."""
    y = ops.dropout(on(device, np.ones(4, np.float32))[0], 0.5, 0, 0)
    assert_equal(devices.to_numpy(y), [0, 2, 2, 2])


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("word", WORDS, ids=hex)
def test_thresholds_of_the_known_answer(device, word, more):
    """A word equal to the threshold is kept, one below it is not."""
    x = on(device, np.ones(4, np.float32))[0]
    y = devices.empty_like(x)
    launch("dropout", 1, x, y, 4, 0, 0, None, word + more, 1.0)
    assert_equal(devices.to_numpy(y), [each >= word + more for each in WORDS])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_masks_of_the_cpu(device, seed, offset):
    for p in RATES:
        compare(device, numbers(103), p, seed, offset)


@pytest.mark.parametrize(
    "shape", [(), (0,), (0, 3), (1,), (2,), (3,), (4,), (5,), (3, 7), (2, 3, 5, 11), (4099,)], ids=str
)
def test_sizes(device, shape):
    compare(device, numbers(int(np.prod(shape))).reshape(shape), 0.4, 11, 5)


@settings(max_examples=30)
@given(
    count=st.integers(0, 70),
    begin=st.integers(0, 4),
    p=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**63 - 1),
    offset=st.integers(0, 2**64 - 1),
)
def test_any_slice(device, count, begin, p, seed, offset):
    x = numbers(begin + count)
    y = ops.dropout(on(device, x)[0][begin:], p, seed, offset)
    assert_same_bits(devices.to_numpy(y), ops.dropout(x[begin:], p, seed, offset))


def test_more_elements_than_threads(device):
    """One block, whose threads take several blocks of words each."""
    x = numbers(5 * 1024 + 3)
    moved = on(device, x)[0]
    y = devices.empty_like(moved)
    launch("dropout", 1, moved, y, x.size, 9, 2**32 - 100, None, 2**31, 2.0)
    assert_same_bits(devices.to_numpy(y), ops.dropout(x, 0.5, 9, 2**32 - 100))


def test_views(device):
    x = numbers(6 * 8 * 5).reshape(6, 8, 5)
    moved = on(device, x)[0]
    for view in (lambda a: a.transpose(2, 0, 1), lambda a: a[::2, :, ::-1]):
        y = ops.dropout(view(moved), 0.5, 3, 0)
        assert_same_bits(devices.to_numpy(y), ops.dropout(view(x), 0.5, 3, 0))


def test_special_values(device):
    """What is dropped is 0, whatever it was."""
    x = np.tile(np.array([np.nan, np.inf, -np.inf, -0.0, 3e38], np.float32), 40)
    with np.errstate(over="ignore"):
        want = ops.dropout(x, 0.5, 1, 0)
    got = devices.to_numpy(ops.dropout(on(device, x)[0], 0.5, 1, 0))
    assert_equal(got, want)
    assert 0 < np.isnan(got).sum() < 40


def test_forward_and_backward_as_on_the_cpu(device):
    x, gy = numbers(60).reshape(3, 20), -numbers(60).reshape(3, 20)
    results = []
    for where in ("cpu", device):
        gpucnn.manual_seed(2**40)
        leaf = Tensor(on(where, x)[0], requires_grad=True)
        F.dropout(leaf, 0.3)
        y = F.dropout(leaf, 0.3)
        y.backward(on(where, gy)[0])
        assert devices.of(y.data) == devices.of(leaf.grad.data) == devices.of(leaf.data)
        results.append((devices.to_numpy(y.data), devices.to_numpy(leaf.grad.data)))
    for want, got in zip(*results, strict=True):
        assert_same_bits(got, want)
    assert_equal(results[1][1] == 0, results[1][0] == 0)


def test_sound(device):
    moved = on(device, numbers(131))[0]
    assert_sound(lambda: ops.dropout(moved, 0.5, 7, 2**33), device)


def test_same_bits_in_every_run(device):
    moved = on(device, numbers(3000))[0]
    assert_two_runs_equal(lambda: ops.dropout(moved, 0.5, 7, 2**33), device)


def test_errors(device):
    moved = on(device, numbers(3))[0]
    with pytest.raises(ValueError, match="dropout: p is 1.0; it must be at least 0 and below 1"):
        ops.dropout(moved, 1.0, 0, 0)
    with pytest.raises(TypeError, match="dropout: x is float64 on .*, where kernels take float32"):
        ops.dropout(moved.astype(np.float64), 0.5, 0, 0)
