"""Dtypes: which ones there are, where, and what they are called. The one place for these rules.

- float32: everywhere, the default; float64: on the CPU
- bfloat16, float16: storage in 16 bits, everywhere. All arithmetic is float32's, and a result is rounded once, to the
  nearest, ties to even. bfloat16 (ml_dtypes') has float32's range and 8 bits of precision; float16 has 11, from 6e-8 to
  65504
- integers and bool: labels, indices and masks; not differentiated
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
BFLOAT16, FLOAT16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
FLOATS = (FLOAT32, FLOAT64)
HALVES = (BFLOAT16, FLOAT16)


def resolve(dtype: Any) -> np.dtype:
    """The dtype that `dtype` ("bfloat16", np.float32, …) names; raises TypeError for one that is not supported."""
    try:
        found = BFLOAT16 if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not is_supported(found):
        raise TypeError(
            f"dtype {dtype!r} is not supported; use 'float32', 'float64', 'bfloat16', 'float16', integers or bool"
        )
    return found


def is_supported(dtype: np.dtype) -> bool:
    """Whether a Tensor may have this dtype."""
    return is_float(dtype) or dtype.kind in "iub"


def is_float(dtype: np.dtype) -> bool:
    """Whether values of this dtype can be differentiated."""
    return dtype in FLOATS or dtype in HALVES


def wide(dtype: np.dtype) -> np.dtype:
    """The dtype of sums of such values: float32 of 16-bit ones, else their own."""
    return FLOAT32 if dtype in HALVES else dtype


def is_half(array: Any) -> bool:
    """Whether an array or a Tensor is of a 16-bit floating-point dtype."""
    return getattr(array, "dtype", None) in HALVES
