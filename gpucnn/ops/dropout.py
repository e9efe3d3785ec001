"""Dropout of arrays, with a mask that is a pure function of (seed, offset)."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.launch import grid_for, launch, random_stream
from gpucnn.ops.cast import in_float32, kernel_of
from gpucnn.ops.shapes import require_float


@in_float32(native=True)
def dropout(x: Any, p: float, seed: int, offset: int) -> np.ndarray:
    """y = x / (1 − p) where the Philox word of the element is at least p·2^32, else 0 (Srivastava et al. 2014).

    The same (seed, offset) gives the same mask, so the backward pass is this function applied to gy.
    Raises ValueError unless 0 ≤ p < 1.
    """
    require_float("dropout", halves=True, x=x)
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p is {p}; it must be at least 0 and below 1")
    threshold = min(round(p * 2**32), 2**32 - 1)
    x = devices.contiguous(x)
    y = devices.empty_like(x)
    if devices.runs_kernels(x):
        offset, stream = random_stream(offset, x)
        launch(
            kernel_of("dropout", x),
            grid_for(-(-x.size // 4)),
            x,
            y,
            x.size,
            seed,
            offset,
            stream,
            threshold,
            1 / (1 - p),
        )
        return y
    _C.dropout(x.reshape(-1), y.reshape(-1), seed, offset, threshold, 1 / (1 - p))
    return y
