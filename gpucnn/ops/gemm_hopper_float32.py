"""Matrix products of float32 arrays with float32's errors on the tensor cores of sm_90: float32_tensor's there.

Operands of any strides are split into three bfloat16 parts first (kernels/split_hopper.cu), which takes 6 bytes a value
of workspace; then six products of parts are one kernel's (kernels/gemm_float32_hopper.cu). Products that are too small
for that to pay stay with the kernels of mma.sync.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from gpucnn import device as devices
from gpucnn.dtypes import BFLOAT16
from gpucnn.launch import Strided, architecture_of, grid_for, launch, tensor_map
from gpucnn.ops import gemm_hopper

TILE, STAGES, PARTS = 128, 4, 3
STEP, ROW_BYTES = 32, 64  # terms of a step, and their bytes in shared memory
SHARED_BYTES = STAGES * (PARTS * 2 * TILE * ROW_BYTES + 16) + gemm_hopper.EPILOGUE_BYTES
UNIT, SPLIT_ROWS, SPLIT_TERMS = 8, 32, 64  # terms that a thread of split_hopper.cu writes; a block's rows and terms
LIMIT = 2**31 - 1  # of units of all matrices of an operand, and of bytes of the parts of both
STEP_CLOCKS = 900  # 768 at the tensor cores' full rate
LONG_TERMS = 2**15  # sums of more are split where there is room: a sum is one chain of additions, one for each step
VALUE_BYTES = 10  # of a value that is split: read, and three parts written


class Form(NamedTuple):
    """How a product is launched; None for what is chosen, or a block for each multiprocessor."""

    splits: int | None = None
    blocks: int | None = None


ANY = Form()


@cache
def choose(M: int, N: int, K: int, B: int, multiprocessors: int) -> tuple[int, int]:
    """(splits of the terms, clocks) by the estimate for the busiest multiprocessor, without splitting values."""
    tiles = B * -(-M // TILE) * -(-N // TILE)
    splits = [1]
    for count in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
        if count * gemm_hopper.SPLIT_TERMS <= K and count * B * M * N <= gemm_hopper.SPLIT_FLOATS:
            splits.append(count)

    def clocks(count: int) -> int:
        steps = gemm_hopper.split_terms(K, count, STEP) // STEP
        result = -(-tiles * count // multiprocessors) * (steps * STEP_CLOCKS + gemm_hopper.TILE_CLOCKS)
        if count > 1:
            moved = gemm_hopper.SPLIT_BYTES * B * M * N * count
            result += gemm_hopper.LAUNCH_CLOCKS + moved // (multiprocessors * gemm_hopper.BYTES_PER_CLOCK)
        return result

    best = min([count for count in splits if count * LONG_TERMS >= K] or splits[-1:], key=clocks)
    return best, clocks(best)


def suits(a: Any, b: Any, c: Any, residual: Any, multiprocessors: int, other_clocks: int) -> bool:
    """Whether the kernels are chosen for a product in float32_tensor: on sm_90, where they and splitting the operands
    take fewer than `other_clocks`, the estimate for the kernels of mma.sync."""
    if architecture_of(c) != 90 or not takes(a, b, c) or (residual is not None and residual.strides != c.strides):
        return False
    (B, M, N), K = c.shape, a.shape[2]
    values = _matrices(a) * M * K + _matrices(b) * K * N
    split = 2 * gemm_hopper.LAUNCH_CLOCKS + VALUE_BYTES * values // (multiprocessors * gemm_hopper.BYTES_PER_CLOCK)
    return split + choose(M, N, K, B, multiprocessors)[1] < other_clocks


def takes(a: Any, b: Any, c: Any) -> bool:
    """Whether the kernels multiply these: float32, none empty, c's columns contiguous, parts of less than 2 GB."""
    if any(array.dtype.name != "float32" or array.size == 0 for array in (a, b, c)):
        return False
    values = [_matrices(a) * a.shape[1] * _pitch(a.shape[2]), _matrices(b) * b.shape[2] * _pitch(b.shape[1])]
    return c.strides[2] == c.itemsize and sum(values) * PARTS * BFLOAT16.itemsize <= LIMIT


def _matrices(array: Any) -> int:
    """How many matrices there are in memory."""
    return 1 if array.strides[0] == 0 else int(array.shape[0])


def _pitch(terms: int) -> int:
    return -(-terms // UNIT) * UNIT


def split(array: Any) -> Any:
    """The parts (3, matrices, rows, pitch) of float32 matrices (matrices, rows, terms) of any strides."""
    if array.strides[0] == 0:
        array = array[:1]
    if array.itemsize not in array.strides[1:]:
        array = devices.contiguous(array)
    count, rows, terms = array.shape
    by_terms = array.strides[2] == array.itemsize
    parts = devices.empty((PARTS, count, rows, _pitch(terms)), BFLOAT16, array)
    batch, *strides = (stride // array.itemsize for stride in array.strides)
    shape = (rows, terms, _pitch(terms), strides[0 if by_terms else 1], batch, parts[0].size)
    if by_terms:
        units = parts[0].size // UNIT
        launch("split_terms_hopper", grid_for(units), Strided(array), parts, shape, units)
    else:
        blocks = count * -(-rows // SPLIT_ROWS) * -(-_pitch(terms) // SPLIT_TERMS)
        launch("split_rows_hopper", blocks, Strided(array), parts, shape)
    return parts


def multiply(
    a: Any, b: Any, c: Any, bias: Any, per_row: bool, relu: bool, multiprocessors: int, residual: Any = None,
    form: Form = ANY,
) -> None:  # fmt: skip
    """c[n] = a[n]·b[n] + bias + residual[n], then max(·, 0) if relu, of what `takes` allows; c is overwritten.

    - a: (B,M,K) or (1,M,K), b: (B,K,N) or (1,K,N), c: (B,M,N); residual: of c's shape and strides, or None
    """
    (B, M, N), K = c.shape, a.shape[2]
    parts = split(a), split(b.swapaxes(1, 2))
    a_map, b_map = (tensor_map.tiled(part, (STEP, TILE, 1, PARTS), ROW_BYTES) for part in parts)
    batches = tuple(int(part.shape[1] > 1) for part in parts)
    terms = gemm_hopper.split_terms(K, form.splits or choose(M, N, K, B, multiprocessors)[0], STEP)
    splits = -(-K // terms)
    target = c if splits == 1 else devices.empty((splits * B, M, N), "float32", c)
    mapped = gemm_hopper.maps(target, 2)
    tiles = B * -(-M // TILE) * -(-N // TILE) * splits

    def shape(out: Any, last: bool) -> tuple[Any, ...]:
        finish = int(last and per_row), int(last and relu)
        rows, batch = out.strides[1] // out.itemsize, out.strides[0] // out.itemsize
        return M, N, K, splits, terms, *finish, 0, batches[0], 0, batches[1], rows, batch, B * M * N

    addend = None if residual is None else Strided(residual)
    launch("gemm_hopper_float32_tensor_128x128", min(tiles, form.blocks or multiprocessors), a_map, b_map,
           gemm_hopper.store_map(target) if mapped else a_map, None if mapped else Strided(target),
           bias if splits == 1 else None, addend if splits == 1 else None, shape(target, splits == 1), tiles, B,
           int(mapped), shared_bytes=SHARED_BYTES)  # fmt: skip
    if splits > 1:
        launch("gemm_hopper_add_float32", grid_for(c.size), target, Strided(c), bias, addend, shape(c, True), c.size)
