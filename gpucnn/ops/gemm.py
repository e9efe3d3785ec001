"""Matrix products of arrays."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.launch import Strided, architecture_of, grid_for, launch
from gpucnn.ops import gemm_hopper
from gpucnn.ops.shapes import require_float
from gpucnn.precision import checked, get_precision


class Tile(NamedTuple):
    """What one block computes: rows and columns of c, how many blocks share a multiprocessor, percent of its peak."""

    M: int
    N: int
    resident: int
    percent: int

    @property
    def name(self) -> str:
        return f"{self.M}x{self.N}"


# The share of multiply-adds in the compiled main loop is .89, .82 and .73; 32x32 also wants 32 bytes a clock from L2.
TILES = (Tile(128, 128, 2, 89), Tile(64, 64, 4, 82), Tile(32, 32, 12, 60))
# Of tensor cores: multiply-adds beside the 128 of float32 units, at the share of mma.sync's rate that is planned for.
TENSOR_TILES = {
    "float32_tensor": (Tile(128, 128, 1, 130), Tile(64, 64, 3, 110)),
    "tf32": (Tile(128, 128, 2, 300), Tile(64, 64, 4, 220)),
}
STEP = 16  # terms that a kernel takes at a time
MULTIPLY_ADDS = 128  # of one multiprocessor in one clock
STEP_CLOCKS = 800  # a step lasts no less: the next tiles come from memory meanwhile
BLOCK_STEPS = 2  # time of a block's start and end, in steps
SPLIT_TERMS = 256  # a split sums at least so many terms: 16 steps beside its start and end
SPLIT_FLOATS = 2**24  # of all planes together: 64 MB of workspace
SPLIT_BYTES = 8  # of an element of a plane, written and read again
BYTES_PER_CLOCK = 20  # of memory, for each multiprocessor
LAUNCH_CLOCKS = 5_000  # of a second launch, 3 µs


def multiprocessors() -> int:
    """How many multiprocessors a choice reckons with: those of an H100 or H200."""
    return 132


@cache
def choose_tile(
    M: int, N: int, K: int, B: int, multiprocessors: int, tiles: tuple[Tile, ...] = TILES
) -> tuple[Tile, int]:
    """(tile, splits) of the product of B matrices M×K and K×N, by the estimated clocks of the busiest multiprocessor.

    Blocks go round the multiprocessors, so the busiest has ⌈blocks / multiprocessors⌉ of them. Large tiles read less
    for each product, small ones leave fewer multiprocessors idle; where even those are few, the terms are split.
    """
    candidates = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    splits = [1, *(s for s in candidates if s * SPLIT_TERMS <= K and s * B * M * N <= SPLIT_FLOATS)]
    choices = [(tile, count) for tile in tiles for count in splits]
    return min(choices, key=lambda choice: (_clocks(choice[0], choice[1], M, N, K, B, multiprocessors), choice[0].M))


def _clocks(tile: Tile, splits: int, M: int, N: int, K: int, B: int, multiprocessors: int) -> int:
    """An estimate to compare choices by, not a time."""
    share = -(B * (-M // tile.M) * -(-N // tile.N) * splits // multiprocessors)
    multiply = share * tile.M * tile.N * STEP * 100 // (MULTIPLY_ADDS * tile.percent)
    steps = _split_terms(K, splits) // STEP + BLOCK_STEPS
    clocks = steps * max(multiply, -(-share // tile.resident) * STEP_CLOCKS)
    if splits > 1:
        clocks += LAUNCH_CLOCKS + SPLIT_BYTES * B * M * N * splits // (multiprocessors * BYTES_PER_CLOCK)
    return clocks


def _split_terms(K: int, splits: int) -> int:
    """Terms of each split but the last, which may have fewer."""
    return -(-K // (splits * STEP)) * STEP


def gemm(
    a: Any,
    b: Any,
    c: Any,
    bias: Any = None,
    bias_axis: str = "column",
    relu: bool = False,
    tile: str | None = None,
    splits: int | None = None,
    precision: str | None = None,
) -> None:
    """c[n] = a[n]·b[n] + bias, then max(·, 0) if relu, on a device that runs kernels; c is overwritten.

    - a: (B,M,K) or (1,M,K), b: (B,K,N) or (1,K,N), c: (B,M,N), float32; of any strides, also 0 for a shared matrix.
      A matrix whose last two axes are both not contiguous is copied first, and in c refused.
    - bias: (N,) with bias_axis "column", (M,) with "row", or None
    - tile, splits: "128x128", "64x64" or, in float32, "32x32", and in how many parts the terms are summed; None:
      `choose_tile`, or on sm_90 the kernels of gemm_hopper, where they suit
    - precision: of gpucnn.precision; None: the one in force
    Raises TypeError for dtypes or devices that differ and ValueError for shapes that do not fit.
    """
    require_float("gemm", a=a, b=b, c=c, bias=bias)
    B, M, N, K = _check_gemm(a, b, c, bias, bias_axis)
    if not _is_unit(c, 2):
        if not _is_unit(c, 1):
            raise ValueError(f"gemm: c has strides {c.strides}; its last or last but one axis must be contiguous")
        swapped = {"column": "row", "row": "column"}[bias_axis]
        transposed = b.swapaxes(1, 2), a.swapaxes(1, 2), c.swapaxes(1, 2)
        return gemm(*transposed, bias, swapped, relu, tile, splits, precision)
    arithmetic = arithmetic_of("gemm", c, precision)
    if 0 in (B, M, N):
        return
    if tile is None and splits is None and gemm_hopper.suits(a, b, c, arithmetic):
        finish = devices.contiguous(bias), bias_axis == "row", bool(relu)
        return gemm_hopper.multiply(a, b, c, *finish, multiprocessors())
    chosen, count = choose_tile(M, N, K, B, multiprocessors(), TENSOR_TILES.get(arithmetic, TILES))
    form = tile or chosen.name, splits or count, kernel_prefix(arithmetic)
    _launch(a, b, c, devices.contiguous(bias), bias_axis == "row", bool(relu), *form)


def arithmetic_of(operation: str, array: Any, precision: str | None = None) -> str:
    """The precision of products on an array's device: what is asked for, or in force, where it can be.

    Raises ValueError for an unknown one, and for one that is asked for and that the GPU does not have.
    """
    chosen = get_precision() if precision is None else checked(precision)
    if chosen == "float32" or architecture_of(array) >= 80:
        return chosen
    if precision is not None:
        raise ValueError(f"{operation}: precision {precision!r} needs tensor cores of sm_80 or later; use 'float32'")
    return "float32"


def kernel_prefix(arithmetic: str) -> str:
    """What stands before the tile in the name of a kernel of this arithmetic."""
    return "" if arithmetic == "float32" else f"{arithmetic}_"


def _check_gemm(a: Any, b: Any, c: Any, bias: Any, bias_axis: str) -> tuple[int, int, int, int]:
    """(B, M, N, K) of a product; raises ValueError for what does not fit."""
    shapes = f"a {a.shape}, b {b.shape}, c {c.shape}"
    if not a.ndim == b.ndim == c.ndim == 3:
        raise ValueError(f"gemm: {shapes}; each must have three dimensions: a (B,M,K), b (B,K,N), c (B,M,N)")
    B, M, N = c.shape
    K = a.shape[2]
    if a.shape[1:] != (M, K) or b.shape[1:] != (K, N) or a.shape[0] not in (1, B) or b.shape[0] not in (1, B):
        raise ValueError(f"gemm: {shapes} do not fit a (B,M,K) · b (B,K,N) = c (B,M,N)")
    if bias_axis not in ("row", "column"):
        raise ValueError(f"gemm: bias_axis is {bias_axis!r}; it must be 'row' or 'column'")
    if bias is not None and bias.shape != ((M,) if bias_axis == "row" else (N,)):
        raise ValueError(f"gemm: bias has shape {bias.shape}; c {c.shape} needs one value a {bias_axis}")
    return B, M, N, K


def _is_unit(array: Any, axis: int) -> bool:
    """Whether neighbours along the axis are neighbours in memory, in whole elements along all others."""
    whole = all(stride % array.itemsize == 0 for stride in array.strides)
    return whole and (array.strides[axis] == array.itemsize or array.shape[axis] <= 1)


def _operand(array: Any, B: int, contiguous: bool = False) -> tuple[Any, bool, int, int]:
    """(array, whether its last axis is contiguous, strides of the other and of the batch), copied if need be."""
    if array.strides[0] == 0:
        array = array[:1]
    if contiguous or not (_is_unit(array, 1) or _is_unit(array, 2)):
        array = devices.contiguous(array)
    last = _is_unit(array, 2)
    batch, *strides = (stride // array.itemsize for stride in array.strides)
    return array, last, strides[0 if last else 1], batch if array.shape[0] == B else 0


def _in_quads(array: Any, count: int, strides: list[int]) -> bool:
    """Whether rows of `count` values begin at 16 bytes and are read by them."""
    return devices.address(array) % 16 == count % 4 == strides[0] % 4 == strides[1] % 4 == 0


def _launch(a: Any, b: Any, c: Any, bias: Any, per_row: bool, relu: bool, tile: str, splits: int, prefix: str) -> None:
    (B, M, N), K = c.shape, a.shape[2]
    b, b_columns, *b_strides = _operand(b, B)
    a, a_terms, *a_strides = _operand(a, B)
    if not a_terms and not b_columns:  # no kernel takes both transposed
        a, a_terms, *a_strides = _operand(a, B, contiguous=True)
    quads = (a_terms or _in_quads(a, M, a_strides)) and (not b_columns or _in_quads(b, N, b_strides))
    layout = ("n" if a_terms else "t") + ("n" if b_columns else "t") + ("" if quads else "_words")
    tile_m, tile_n = map(int, tile.split("x"))
    terms = _split_terms(K, splits)
    splits = max(1, -(-K // max(terms, 1)))  # steps of a few terms may fill fewer
    blocks = B * -(-M // tile_m) * -(-N // tile_n) * splits
    c_strides = [stride // c.itemsize for stride in (c.strides[1], c.strides[0])]
    shape = (M, N, K, splits, terms, per_row, relu, *a_strides, *b_strides)
    if splits == 1:
        launch(
            f"gemm_{layout}_{prefix}{tile}", blocks, Strided(a), Strided(b), Strided(c), bias, (*shape, *c_strides, 0)
        )
        return
    planes = devices.empty((splits, B, M, N), c.dtype, c)
    unfinished = (*shape[:5], 0, 0, *shape[7:])
    launch(
        f"gemm_{layout}_{prefix}{tile}",
        blocks,
        Strided(a),
        Strided(b),
        planes,
        None,
        (*unfinished, N, M * N, B * M * N),
    )
    launch("gemm_add_splits", grid_for(c.size), planes, Strided(c), bias, (*shape, *c_strides, 0), c.size)


def matmul(a: Any, b: Any, bias: Any = None) -> np.ndarray:
    """c = a @ b (+ bias on each row) with NumPy's rules: a (…,M,K), b (…,K,N), leading dimensions broadcast.

    Raises TypeError for dtypes that differ or are not float32/float64 and ValueError for shapes that do not fit.
    """
    require_float("matmul", a=a, b=b, bias=bias)
    if min(a.ndim, b.ndim) < 1:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape}: both need at least one dimension")
    left = a[None, :] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    if left.shape[-1] != right.shape[-2]:
        raise ValueError(
            f"matmul: a has {left.shape[-1]} columns but b has {right.shape[-2]} rows (shapes {a.shape}, {b.shape})"
        )
    c = _batched(left, right, bias)
    if a.ndim == 1:
        c = c[..., 0, :]
    return c[..., 0] if b.ndim == 1 else c


def _batched(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """matmul of at least two dimensions: the products below take one batch dimension."""
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ValueError(f"matmul: leading dimensions of {a.shape} and {b.shape} do not broadcast") from None
    (M, K), N, B = a.shape[-2:], b.shape[-1], math.prod(batch)
    c = devices.empty((*batch, M, N), a.dtype, a)
    multiply = gemm if devices.runs_kernels(a) else _C.gemm
    if a.shape[:-2] == batch and b.ndim == 2 and a.flags.c_contiguous:
        multiply(a.reshape(1, B * M, K), b[None], c.reshape(1, B * M, N), bias)
        return c
    a3 = np.broadcast_to(a, (*batch, M, K)).reshape(B, M, K)
    b3 = np.broadcast_to(b, (*batch, K, N)).reshape(B, K, N)
    multiply(a3, b3, c.reshape(B, M, N), bias)
    return c


def linear_forward(x: Any, weight: Any, bias: Any) -> np.ndarray:
    """y (…,out) = x (…,in) · weightᵀ (out,in) + bias (out,); raises ValueError or TypeError."""
    require_float("linear", x=x, weight=weight, bias=bias)
    if weight.ndim != 2:
        raise ValueError(f"linear: weight has shape {weight.shape}; it must be (out_features, in_features)")
    if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: x has {x.shape[-1] if x.ndim else 'no'} features (shape {x.shape}) but weight expects "
            f"{weight.shape[1]} (weight.shape={weight.shape}); flatten x first, or correct in_features"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"linear: bias has shape {bias.shape}; it must be ({weight.shape[0]},)")
    return matmul(devices.contiguous(x), weight.T, devices.contiguous(bias))


def linear_backward_weight(x: Any, gy: Any) -> np.ndarray:
    """gw (out,in) = gyᵀ · x, summed over all rows of x (…,in) and gy (…,out)."""
    rows = math.prod(gy.shape[:-1])
    return matmul(gy.reshape(rows, gy.shape[-1]).T, x.reshape(rows, x.shape[-1]))
