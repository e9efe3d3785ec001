"""Dropout: masks known from Philox, their rate, and that a seed means a mask, forwards and backwards."""

from __future__ import annotations

import numpy as np
import pytest
from check import assert_equal, assert_same_bits

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, ops, tensor

# Philox4x32-10 of counter 0 and key 0: the first known-answer vector of Salmon et al. (Random123's kat_vectors).
PHILOX_ZERO = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def philox(counter: int, seed: int) -> list[int]:
    """The four words of one block, by the paper's definition in Python integers."""
    words = [counter >> 32 * i & 0xFFFFFFFF for i in range(4)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * words[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * words[2], 2**32)
        words = [high1 ^ words[1] ^ key[0], low1, high0 ^ words[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return words


def mask(count: int, p: float, seed: int, offset: int) -> np.ndarray:
    """Which elements are kept."""
    words = [word for block in range(-(-count // 4)) for word in philox(offset + block, seed)]
    return np.array(words[:count]) >= p * 2**32


def test_known_answer():
    assert philox(0, 0) == PHILOX_ZERO


def test_first_mask_of_seed_zero():
    """Words above 2^31 keep their element at p = 0.5: 0x6627E8D5 is below, the other three are above."""
    gpucnn.manual_seed(0)
    assert_equal(F.dropout(np.ones(4), 0.5), [0, 2, 2, 2])


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 7, 2**63 - 1])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 7), (2, 3, 5, 11)], ids=str)
def test_masks_by_definition(seed, p, shape):
    gpucnn.manual_seed(seed)
    x = np.arange(1.0, np.prod(shape) + 1).reshape(shape)
    for offset in (0, -(-x.size // 4)):  # the second call takes the words after those of the first
        kept = mask(x.size, p, seed, offset).reshape(shape)
        assert_equal(F.dropout(x, p), np.where(kept, x * (1 / (1 - p)), 0))


@pytest.mark.parametrize("offset", [1, 2**32 - 1, 2**40, 2**63])
def test_far_offsets(offset):
    assert_equal(ops.dropout(np.ones(9), 0.5, 3, offset), 2 * mask(9, 0.5, 3, offset))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.8])
def test_rate_and_scale(p):
    y = F.dropout(np.ones(200_000, np.float32), p)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / (1 - p))}
    assert abs((y == 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / y.size)
    assert abs(y.mean() - 1) < 5 * np.sqrt(p / (1 - p) / y.size)


def test_same_seed_same_mask():
    x = np.ones((4, 50), np.float32)
    gpucnn.manual_seed(5)
    first, second = F.dropout(x), F.dropout(x)
    gpucnn.manual_seed(5)
    assert_same_bits(F.dropout(x), first)
    assert_same_bits(F.dropout(x), second)
    assert (first != second).any()
    gpucnn.manual_seed(6)
    assert (F.dropout(x) != first).any()


def test_masks_do_not_depend_on_the_dtype():
    gpucnn.manual_seed(5)
    single = F.dropout(np.ones(100, np.float32))
    gpucnn.manual_seed(5)
    assert_equal(F.dropout(np.ones(100)), single)


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_backward_uses_the_same_mask(p):
    x = tensor(np.ones((6, 7)), requires_grad=True)
    y = F.dropout(x, p)
    F.dropout(x, p)  # another mask in between changes nothing
    y.backward(np.full((6, 7), 10.0))
    assert_equal(x.grad, 10 * y.data)
    assert 0 < (y.data == 0).sum() < y.size


def test_gradient_may_be_a_view():
    x = tensor(np.ones((6, 8)), requires_grad=True)
    y = F.dropout(x)
    gy = np.arange(48.0).reshape(8, 6).T
    y.backward(gy)
    assert_equal(x.grad, gy * y.data)


def test_views():
    x = np.arange(48.0).reshape(8, 6).T
    gpucnn.manual_seed(1)
    want = F.dropout(np.ascontiguousarray(x))
    gpucnn.manual_seed(1)
    assert_same_bits(F.dropout(x), want)


def test_evaluation_and_zero_rate_change_nothing():
    x = tensor([1.0, 2.0])
    state = gpucnn.random.default_generator.get_state()
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x
    assert nn.Dropout(0.7).eval()(x) is x
    assert gpucnn.random.default_generator.get_state() == state


def test_rate_close_to_one():
    y = F.dropout(np.ones(1000), 1 - 1e-12)
    assert_equal(y, np.zeros(1000))


def test_state_of_the_generator():
    F.dropout(np.ones(10))
    state = gpucnn.random.default_generator.get_state()
    first = F.dropout(np.ones(100)), nn.init.uniform((5,), 1.0)
    gpucnn.random.default_generator.set_state(state)
    second = F.dropout(np.ones(100)), nn.init.uniform((5,), 1.0)
    assert_same_bits(first[0], second[0])
    assert_same_bits(first[1], second[1])


@pytest.mark.parametrize("shape", [(), (0,), (0, 3)], ids=str)
def test_shapes(shape):
    assert F.dropout(np.ones(shape)).shape == shape


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda: F.dropout(np.ones(3), 1.0), ValueError, "dropout: p is 1.0; it must be at least 0 and below 1"),
        (lambda: F.dropout(np.ones(3), -0.1), ValueError, "dropout: p is -0.1"),
        (lambda: F.dropout(np.ones(3), float("nan")), ValueError, "dropout: p is nan"),
        (lambda: nn.Dropout(1.5), ValueError, "Dropout: p is 1.5"),
        (lambda: F.dropout(np.ones(3, int)), TypeError, "dropout: x is int64; it must be float32 or float64"),
        (lambda: F.dropout([1.0]), TypeError, "dropout: x is list; it must be a Tensor or an array"),
        (lambda: gpucnn.manual_seed(-1), ValueError, r"manual_seed: seed is -1; it must be from 0 to 2\*\*63 - 1"),
        (lambda: gpucnn.manual_seed(2**63), ValueError, "manual_seed: seed is 9223372036854775808"),
    ],
)
def test_errors(function, error, message):
    with pytest.raises(error, match=message):
        function()
