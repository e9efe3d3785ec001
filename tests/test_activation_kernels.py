"""Kernels of the element-wise activations against the CPU's operations, forwards and backwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from check import assert_close, assert_equal, assert_same_bits, rounding_bound
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import assert_sound, assert_two_runs_equal, on

from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn.launch import launch
from gpucnn.tensor import Tensor

FUNCTIONS = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.25),
    "elu": lambda x: F.elu(x, 1.5),
    "tanh": F.tanh,
    "sigmoid": F.sigmoid,
}
EXACT = {"relu", "leaky_relu"}  # no rounding, or the same single one
functions = pytest.mark.parametrize("name", FUNCTIONS)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return 3 * np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def run(name: str, x: Any, gy: Any) -> tuple[Any, Any]:
    """(y, gx)"""
    leaf = Tensor(x, requires_grad=True)
    y = FUNCTIONS[name](leaf)
    y.backward(gy)
    assert leaf.grad is not None
    return y.data, leaf.grad.data


def compare(name: str, x: np.ndarray, gy: np.ndarray, moved_x: Any, moved_gy: Any) -> None:
    y, gx = run(name, moved_x, moved_gy)
    assert devices.of(y) == devices.of(gx) == devices.of(moved_x)
    want_y, want_gx = run(name, x, gy)
    if name in EXACT:
        assert_same_bits(devices.to_numpy(y), want_y)
        assert_same_bits(devices.to_numpy(gx), want_gx)
    assert_close(devices.to_numpy(y), want_y, rounding_bound(8, 1.5, np.float32) + 1e-6 * np.abs(want_y))
    assert_close(devices.to_numpy(gx), want_gx, rounding_bound(24, 1.5 * np.abs(gy), np.float32))


@functions
@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (5,), (0, 3), (), (2, 3, 5, 7), (1025,)], ids=str)
def test_as_on_the_cpu(device, name, shape):
    x, gy = normal(*shape), normal(*shape, seed=1)
    compare(name, x, gy, *on(device, x, gy))


@functions
def test_rates_by_hand(device, name):
    """At 0 and at ln 2 the values and slopes are known."""
    (x,) = on(device, np.array([0, np.log(2), 40, -40], np.float32))
    (gy,) = on(device, np.ones(4, np.float32))
    y, gx = map(devices.to_numpy, run(name, x, gy))
    values = {"relu": (0, np.log(2), 40, 0), "leaky_relu": (0, np.log(2), 40, -10), "elu": (0, np.log(2), 40, -1.5),
              "tanh": (0, 0.6, 1, -1), "sigmoid": (0.5, 2 / 3, 1, 0)}  # fmt: skip
    slopes = {"relu": (0, 1, 1, 0), "leaky_relu": (0.25, 1, 1, 0.25), "elu": (1.5, 1, 1, 0),
              "tanh": (1, 0.64, 0, 0), "sigmoid": (0.25, 2 / 9, 0, 0)}  # fmt: skip
    assert_close(y, np.array(values[name]), 5e-6)
    assert_close(gx, np.array(slopes[name]), 5e-7)


@functions
@settings(max_examples=15)
@given(count=st.integers(0, 300), begin=st.integers(0, 5), gradient_begin=st.integers(0, 4))
def test_any_size_and_alignment(device, name, count, begin, gradient_begin):
    """Slices that start anywhere: 16 bytes at a time only where memory allows it."""
    x, gy = normal(begin + count), normal(gradient_begin + count, seed=1)
    moved_x, moved_gy = on(device, x, gy)
    compare(name, x[begin:], gy[gradient_begin:], moved_x[begin:], moved_gy[gradient_begin:])


@functions
def test_views(device, name):
    x, gy = normal(6, 8, 5), normal(5, 6, 8, seed=1)
    moved_x, moved_gy = on(device, x, gy)
    compare(name, x.transpose(2, 0, 1), gy, moved_x.transpose(2, 0, 1), moved_gy)
    compare(name, gy.transpose(1, 2, 0)[::2], x[::2], moved_gy.transpose(1, 2, 0)[::2], moved_x[::2])


@functions
def test_more_elements_than_threads(device, name):
    """A grid of 4096 blocks takes 4 million elements at once; here a grid of one block takes 5 · 1024 + 3."""
    count, inputs = 5 * 1024 + 3, {"leaky_relu": (0.25,), "elu": (1.5,)}
    x = normal(count)
    (moved,) = on(device, x)
    y = devices.empty_like(moved)
    launch(f"{name}_forward", 1, moved, y, count, *inputs.get(name, ()))
    assert_close(devices.to_numpy(y), FUNCTIONS[name](x), rounding_bound(8, 1 + np.abs(x), np.float32))


@functions
def test_special_values(device, name):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 89, -89, 104, -104, 720, -720], np.float32)
    y = devices.to_numpy(FUNCTIONS[name](on(device, x)[0]))
    assert_equal(np.isnan(y), np.isnan(x))
    assert_close(y[1:], FUNCTIONS[name](x)[1:], 1e-6)
    if name in EXACT:
        assert_same_bits(y[1:], FUNCTIONS[name](x)[1:])


@functions
def test_gradients_of_special_values(device, name):
    x, gy = (
        np.array([np.nan, 100, -100, 1, -1, 1], np.float32),
        np.array([1, 1, 1, np.nan, np.inf, -np.inf], np.float32),
    )
    with np.errstate(invalid="ignore"):
        want = run(name, x, gy)[1]
    assert_close(
        np.nan_to_num(devices.to_numpy(run(name, *on(device, x, gy))[1]), nan=7), np.nan_to_num(want, nan=7), 1e-6
    )


@functions
def test_tiny_values(device, name):
    """Near 0 the functions are linear, so relative errors stay small; numbers below 1e-38 may be flushed on a GPU."""
    x = np.array([1e-30, -1e-30, 1e-20, -1e-20, 1e-6, -1e-6], np.float32)
    want = FUNCTIONS[name](x)
    assert_close(devices.to_numpy(FUNCTIONS[name](on(device, x)[0])), want, rounding_bound(6, np.abs(want), np.float32))


@functions
def test_sound(device, name):
    moved = on(device, normal(2, 131), normal(2, 131, seed=1))
    assert_sound(lambda: run(name, *moved), device)
    unaligned = [array[1:] for array in on(device, normal(1101), normal(1101, seed=1))]  # two blocks
    assert_sound(lambda: run(name, *unaligned), device)


@functions
def test_same_bits_in_every_run(device, name):
    moved = on(device, normal(3, 7, 100), normal(3, 7, 100, seed=1))
    assert_two_runs_equal(lambda: run(name, *moved), device)


def test_float64_is_refused(device):
    x = devices.move(np.zeros(3), device)
    with pytest.raises(TypeError, match="elu: x is float64 on .*, where kernels take float32"):
        F.elu(x)


def test_output_may_be_the_input(device):
    x = normal(103)
    (moved,) = on(device, x)
    launch("tanh_forward", 1, moved, moved, x.size)
    assert_close(devices.to_numpy(moved), np.tanh(x), 1e-6)
