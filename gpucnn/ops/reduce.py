"""Sums of arrays along axes, in an order that depends on the shape alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from gpucnn import device as devices
from gpucnn.launch import launch, max_pointers

THREADS, WARP_SIZE = 256, 32
SHORT_ROW = 512  # up to here a warp sums a row
ROW_CHUNK, COLUMN_CHUNK = 8192, 512  # numbers that one block sums: at most 64 for each thread, one after the other
SQUARES_BLOCK, SQUARES_BLOCKS = 8192, 1024  # elements for each block, at most so many blocks an array

Axis = int | tuple[int, ...] | None


def sum_over(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Σ x over `axis` (all if None), as NumPy's sum; float32 on kernel devices by kernels with float32 sums."""
    if not (devices.runs_kernels(x) and x.dtype == np.float32):
        return x.sum(axis=axis, keepdims=keepdims)
    axes = range(x.ndim) if axis is None else normalize_axis_tuple(axis, x.ndim)
    kept = [1 if i in axes else n for i, n in enumerate(x.shape)]
    groups = [
        (reduced, math.prod(n for _, n in part))
        for reduced, part in groupby(enumerate(x.shape), lambda item: item[0] in axes)
    ]
    y = _sum_groups(devices.contiguous(x), groups)
    shape = tuple(kept if keepdims else [n for i, n in enumerate(kept) if i not in axes])
    return y if y.shape == shape else y.reshape(shape)


def mean_over_all(x: Any) -> Any:
    """The mean of all elements."""
    if not (devices.runs_kernels(x) and x.dtype == np.float32):
        return x.mean()
    return _sum_middle(devices.contiguous(x), 1, x.size, 1, 1 / x.size if x.size else math.nan).reshape(())


def sum_of_squares(arrays: Sequence[Any]) -> Any:
    """Σ x² over all elements of float32 arrays on one kernel device, as an array () there: few launches, no waiting."""
    parts = []
    for start in range(0, len(arrays), max_pointers()):
        some = [devices.contiguous(array) for array in arrays[start : start + max_pointers()]]
        blocks = min(max(-(-max(array.size for array in some) // SQUARES_BLOCK), 1), SQUARES_BLOCKS)
        part = devices.empty((len(some) * blocks,), np.float32, like=some[0])
        launch("sum_squares", (blocks, len(some)), some, sizes(some), part)
        parts.append(part)
    return sum_over(np.concatenate(parts) if len(parts) > 1 else parts[0])


def sizes(arrays: Sequence[Any]) -> tuple[int, ...]:
    """The numbers of elements, with zeros where a kernel's `Sizes` has place for more."""
    return (*(array.size for array in arrays), *(0,) * (max_pointers() - len(arrays)))


def _sum_groups(y: Any, groups: list[tuple[bool, int]]) -> Any:
    """The sum over the groups of neighbouring axes that are marked, the last first; (marked, elements) of each."""
    extents = [count for _, count in groups]
    for position in reversed(range(len(groups))):
        if groups[position][0]:
            outer, inner = math.prod(extents[:position]), math.prod(extents[position + 1 :])
            y = _sum_middle(y, outer, extents[position], inner)
            extents[position] = 1
    return y


def _sum_middle(x: Any, outer: int, length: int, inner: int, scale: float = 1.0) -> Any:
    """scale · Σ over the middle axis of x (outer, length, inner), C-contiguous: an array of outer · inner."""
    if inner == 1 and length <= SHORT_ROW:
        y = devices.empty((outer,), np.float32, like=x)
        launch("sum_short_rows", -(-outer * WARP_SIZE // THREADS), x, y, outer, length, scale)
        return y
    chunk = ROW_CHUNK if inner == 1 else COLUMN_CHUNK
    chunks = max(-(-length // chunk), 1)
    y = devices.empty((outer * chunks * inner,), np.float32, like=x)
    factor = scale if chunks == 1 else 1.0
    if inner == 1:
        launch("sum_rows", outer * chunks, x, y, length, chunk, factor)
    else:
        launch("sum_columns", outer * chunks * -(-inner // WARP_SIZE), x, y, length, inner, chunk, factor)
    return y if chunks == 1 else _sum_middle(y, outer, chunks, inner, scale)
