"""Conversions of the 16-bit dtypes, against NumPy's and ml_dtypes'."""

import ml_dtypes
import numpy as np
import pytest

from gpucnn import device as devices
from gpucnn.launch import grid_for, launch

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def cast(x, target, device):
    moved = devices.move(x, device)
    y = devices.empty(x.shape, DTYPES[target], moved)
    launch(f"cast_{x.dtype.name}_{target}", grid_for(x.size), moved, y, x.size)
    return devices.to_numpy(y)


def assert_same(found, expected):
    """Bit for bit, but that any NaN will do for a NaN."""
    bits = f"u{found.dtype.itemsize}"
    nan = np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(found.astype(np.float32)), nan)
    np.testing.assert_array_equal(found.view(bits)[~nan], expected.view(bits)[~nan])


@pytest.mark.parametrize(
    ("source", "target"),
    [("float16", "float32"), ("float16", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "float16")],
)
def test_every_16_bit_value(source, target, device):
    values = np.arange(2**16, dtype=np.uint16).view(DTYPES[source])
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float32).astype(DTYPES[target])
    assert_same(cast(values, target, device), expected)


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_float32_is_rounded_to_nearest_even(target, device):
    rng = np.random.default_rng(0)
    near = np.arange(2**16, dtype=np.uint16).view(DTYPES[target]).astype(np.float32).view(np.uint32)
    halfway = {"float16": 0x1000, "bfloat16": 0x8000}[target]
    bits = np.concatenate(
        [near + np.uint32(halfway + d) for d in (-1, 0, 1)] + [rng.integers(0, 2**32, 2**16, np.uint32)]
    )
    values = bits.astype(np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(DTYPES[target])
    assert_same(cast(values, target, device), expected)
