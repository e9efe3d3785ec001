"""Convolution in bfloat16 and float16: all passes exact on small integers in every layout, error bounds, soundness."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from check import assert_equal, assert_relative_l2, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import assert_sound, assert_two_runs_equal, on

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.launch import simulator
from gpucnn.ops import conv_half

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
PASSES = ("forward", "backward_input", "backward_weight")
LAYOUTS = ("first", "last")
dtypes = pytest.mark.parametrize("dtype", DTYPES)
passes = pytest.mark.parametrize("pass_", PASSES)

# (x, weight), options: whole and odd channels, strides, dilation, groups, sizes about the tiles', and rings that go round
CASES = {
    "channels_16": (((2, 16, 7, 8), (40, 16, 3, 3)), {"padding": 1}),
    "channels_8": (((2, 8, 7, 6), (16, 8, 2, 3)), {}),
    "first_layer": (((2, 3, 11, 13), (20, 3, 5, 4)), {"stride": 2, "padding": 2}),
    "odd": (((1, 37, 6, 7), (17, 37, 3, 2)), {"padding": (1, 0)}),
    "phases": (((1, 24, 9, 10), (8, 24, 3, 3)), {"stride": (3, 2), "padding": 1}),
    "no_tap": (((2, 8, 7, 7), (8, 8, 1, 1)), {"stride": 2}),
    "dilated": (((2, 16, 10, 10), (8, 16, 2, 3)), {"dilation": (3, 2), "padding": 2}),
    "groups": (((2, 16, 5, 6), (48, 8, 3, 3)), {"groups": 2, "padding": 1}),
    "odd_groups": (((2, 6, 5, 6), (9, 2, 3, 3)), {"groups": 3, "padding": 1}),
    "many_terms": (((1, 72, 5, 5), (72, 72, 3, 3)), {"padding": 1}),
    "one": (((1, 1, 1, 1), (1, 1, 1, 1)), {}),
    "empty": (((0, 8, 5, 5), (8, 8, 3, 3)), {}),
}
cases = pytest.mark.parametrize("case", CASES)


def shape_of(case: str) -> Any:
    (x, weight), options = CASES[case]
    return ops.conv_shape(x, weight, **options)


def integers(size: tuple[int, ...], dtype: str) -> np.ndarray:
    """So small that every result is exact in bfloat16, too: below 256 in nearly all cases, else rounded alike."""
    return np.random.default_rng(sum(size)).integers(-1, 2, size).astype(DTYPES[dtype])


def reals(size: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng(sum(size)).standard_normal(size, np.float32).astype(DTYPES[dtype])


def operands(pass_: str, shape: Any, values: Any, dtype: str) -> list[np.ndarray]:
    sizes = {"forward": (shape.x, shape.weight), "backward_input": (shape.y, shape.weight)}
    return [values(size, dtype) for size in sizes.get(pass_, (shape.x, shape.y))]


def reference(pass_: str, shape: Any, pair: Any, *more: Any, **options: Any) -> np.ndarray:
    """In float64, of the rounded operands."""
    wide = [None if each is None else each.astype(np.float64) for each in (*pair, *more)]
    function = getattr(ops, f"conv2d_{pass_}")
    return function(*wide, *([None] if pass_ == "forward" and not more else []), shape, "im2col", **options)


def laid_out(array: Any, layout: str) -> Any:
    """The same images with channels first or last in memory."""
    if layout == "first":
        return array
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def images(device: str, array: np.ndarray, layout: str) -> Any:
    if layout == "first":
        return on(device, array)[0]
    return on(device, np.ascontiguousarray(array.transpose(0, 2, 3, 1)))[0].transpose(0, 3, 1, 2)


def empty(shape: tuple[int, ...], like: Any, layout: str) -> Any:
    if layout == "first":
        return devices.empty(shape, like.dtype, like)
    N, C, H, W = shape
    return devices.empty((N, H, W, C), like.dtype, like).transpose(0, 3, 1, 2)


def run(device: str, pass_: str, shape: Any, pair: Any, layouts: tuple[str, str] = ("first", "first"), **options: Any) -> Any:
    """A pass in the given layouts: of input and output, or of x and gy for backward_weight, whose result is float32."""
    one = images(device, pair[0], layouts[0])
    if pass_ == "backward_weight":
        gw = devices.empty(shape.weight, np.float32, one)
        conv_half.backward_weight(one, images(device, pair[1], layouts[1]), gw, shape, **options)
        return devices.to_numpy(gw)
    (weight,) = on(device, pair[1])
    result = empty(shape.y if pass_ == "forward" else shape.x, one, layouts[1])
    if pass_ == "forward":
        conv_half.forward(one, weight, None, result, shape, **options)
    else:
        conv_half.backward_input(one, weight, result, shape, **options)
    return devices.to_numpy(result)


@pytest.mark.parametrize("layouts", [(a, b) for a in LAYOUTS for b in LAYOUTS], ids="-".join)
@passes
@cases
def test_exact(device, pass_, layouts, case):
    shape = shape_of(case)
    pair = operands(pass_, shape, integers, "bfloat16")
    got = run(device, pass_, shape, pair, layouts)
    assert_equal(got.astype(np.float64), reference(pass_, shape, pair).astype(got.dtype).astype(np.float64))
