"""Matrix products of arrays."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.dtypes import is_half
from gpucnn.launch import Strided, architecture_of, grid_for, launch
from gpucnn.ops import gemm_hopper, gemm_hopper_float32
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
# Of 16-bit operands, whose rate is eight times that of float32 units on sm_80, and more later.
HALF_TILES = (Tile(128, 128, 2, 600), Tile(64, 64, 4, 400))
STEP = 16  # terms that a kernel takes at a time
HALF_STEP = 32  # the same of 16-bit operands
HALF_STAGES = 4  # of shared memory, each of so many terms
LONG_TERMS = 8192  # more are summed in float32 outside the tensor core, which cuts sums off, before they are rounded
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
    sizes = M, N, K, B, multiprocessors
    return min(choices, key=lambda choice: (estimated_clocks(choice[0], choice[1], *sizes), choice[0].M))


def estimated_clocks(tile: Tile, splits: int, M: int, N: int, K: int, B: int, multiprocessors: int) -> int:
    """An estimate to compare choices by, not a time."""
    share = -(B * (-M // tile.M) * -(-N // tile.N) * splits // multiprocessors)
    multiply = share * tile.M * tile.N * STEP * 100 // (MULTIPLY_ADDS * tile.percent)
    steps = _split_terms(K, splits, STEP) // STEP + BLOCK_STEPS
    clocks = steps * max(multiply, -(-share // tile.resident) * STEP_CLOCKS)
    if splits > 1:
        clocks += LAUNCH_CLOCKS + SPLIT_BYTES * B * M * N * splits // (multiprocessors * BYTES_PER_CLOCK)
    return clocks


def _split_terms(K: int, splits: int, step: int) -> int:
    """Terms of each split but the last, which may have fewer."""
    return -(-K // (splits * step)) * step


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
    residual: Any = None,
) -> None:
    """c[n] = a[n]·b[n] + bias + residual[n], then max(·, 0) if relu, on a device that runs kernels; c is overwritten.

    - a: (B,M,K) or (1,M,K), b: (B,K,N) or (1,K,N), c: (B,M,N), of any strides, also 0 for a shared matrix. A matrix
      whose last two axes are both not contiguous is copied first, and in c refused.
    - dtypes: float32; or a and b bfloat16 or both float16, from sm_80, and c of theirs or float32: sums are float32,
      rounded once
    - bias: float32, (N,) with bias_axis "column", (M,) with "row", or None
    - tile, splits: "128x128", "64x64" or, in float32, "32x32", and in how many parts the terms are summed; None:
      `choose_tile`, or on sm_90 the kernels of gemm_hopper or gemm_hopper_float32, where they suit
    - precision: of float32 operands, one of gpucnn.precision; None: the one in force
    - residual: of c's shape and dtype, or None
    Raises TypeError for dtypes or devices that differ and ValueError for shapes that do not fit.
    """
    _require_types("gemm", {"a": a, "b": b}, bias, {"c": c, "residual": residual})
    B, M, N, K = _check_gemm(a, b, c, bias, bias_axis, residual)
    if not _is_unit(c, 2):
        if not _is_unit(c, 1):
            raise ValueError(f"gemm: c has strides {c.strides}; its last or last but one axis must be contiguous")
        swapped = {"column": "row", "row": "column"}[bias_axis]
        transposed = b.swapaxes(1, 2), a.swapaxes(1, 2), c.swapaxes(1, 2)
        residual = None if residual is None else residual.swapaxes(1, 2)
        return gemm(*transposed, bias, swapped, relu, tile, splits, precision, residual)
    arithmetic = _half_arithmetic("gemm", a) if is_half(a) else arithmetic_of("gemm", c, precision)
    if 0 in (B, M, N):
        return
    if tile is None and splits is None and gemm_hopper.suits(a, b, c, residual, arithmetic):
        last = bias_axis == "row", bool(relu), multiprocessors(), residual
        return gemm_hopper.multiply(a, b, c, devices.contiguous(bias), *last)
    tiles = HALF_TILES if is_half(a) else TENSOR_TILES.get(arithmetic, TILES)
    chosen, count = choose_tile(M, N, K, B, multiprocessors(), tiles)
    finish = _Finish(devices.contiguous(bias), bias_axis == "row", bool(relu), residual)
    if tile is None and splits is None and arithmetic == "float32_tensor":
        clocks = estimated_clocks(chosen, count, M, N, K, B, multiprocessors())
        if gemm_hopper_float32.suits(a, b, c, residual, multiprocessors(), clocks):
            last = finish.per_row, finish.relu, multiprocessors(), residual
            return gemm_hopper_float32.multiply(a, b, c, finish.bias, *last)
    _launch(a, b, c, finish, tile or chosen.name, splits or count, arithmetic)


def _half_arithmetic(operation: str, array: Any) -> str:
    if architecture_of(array) < 80:
        raise ValueError(
            f"{operation}: {array.dtype} needs tensor cores of sm_80 or later; convert the operands to float32"
        )
    return str(array.dtype.name)


def _require_types(operation: str, operands: dict[str, Any], bias: Any, results: dict[str, Any] | None = None) -> None:
    """Raise TypeError unless operands have one type, and others theirs or, beside 16-bit ones, float32 as a bias is."""
    results = results or {}
    first_name, first = next(iter(operands.items()))
    if not any(map(is_half, operands.values())):
        return require_float(operation, **operands, **results, bias=bias)
    allowed: dict[str, tuple[Any, tuple[str, ...]]] = {"bias": (bias, ("float32",))}
    allowed |= {name: (array, (first.dtype.name,)) for name, array in operands.items()}
    allowed |= {name: (array, (first.dtype.name, "float32")) for name, array in results.items()}
    if "residual" in results:
        allowed["residual"] = results["residual"], (results["c"].dtype.name,)
    for name, (array, dtypes) in allowed.items():
        if array is None:
            continue
        if not devices.is_array(array):
            raise TypeError(f"{operation}: {name} is {type(array).__name__}; it must be a Tensor or an array")
        if array.dtype.name not in dtypes:
            raise TypeError(
                f"{operation}: {name} is {array.dtype} beside {first_name} of {first.dtype}; "
                f"it must be {' or '.join(dict.fromkeys(dtypes))}"
            )
        if devices.of(array) != devices.of(first):
            raise TypeError(
                f"{operation}: {name} is on {devices.of(array)} but {first_name} is on {devices.of(first)}; move one "
                "of them with .to(device)"
            )


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


def _check_gemm(a: Any, b: Any, c: Any, bias: Any, bias_axis: str, residual: Any) -> tuple[int, int, int, int]:
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
    if residual is not None and residual.shape != c.shape:
        raise ValueError(f"gemm: residual has shape {residual.shape}; it must be c's {c.shape}")
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


def _in_units(array: Any, count: int, strides: list[int]) -> bool:
    """Whether rows of `count` contiguous values begin at 16 bytes and are read by them."""
    unit = 16 // array.itemsize
    return devices.address(array) % 16 == count % unit == strides[0] % unit == strides[1] % unit == 0


class _Finish(NamedTuple):
    """What happens to sums before they are stored."""

    bias: Any
    per_row: bool
    relu: bool
    residual: Any


class _Residual(NamedTuple):
    """A residual as a kernel takes it."""

    array: Any
    stride: int
    batch: int


def _residual(finish: _Finish) -> _Residual:
    array = finish.residual
    if array is None:
        return _Residual(None, 0, 0)
    if not _is_unit(array, 2):
        array = devices.contiguous(array)
    return _Residual(Strided(array), array.strides[1] // array.itemsize, array.strides[0] // array.itemsize)


def _launch(a: Any, b: Any, c: Any, finish: _Finish, tile: str, splits: int, arithmetic: str) -> None:
    (B, M, N), K, half = c.shape, a.shape[2], is_half(a)
    b, b_columns, *b_strides = _operand(b, B)
    a, a_terms, *a_strides = _operand(a, B)
    if not a_terms and not b_columns:  # no kernel takes both transposed
        a, a_terms, *a_strides = _operand(a, B, contiguous=True)
    # Float32's terms are copied word by word.
    units = (a_terms and not half or _in_units(a, K if a_terms else M, a_strides)) and (
        not b_columns and not half or _in_units(b, N if b_columns else K, b_strides)
    )
    layout = ("n" if a_terms else "t") + ("n" if b_columns else "t")
    layout += "" if units else "_values" if half else "_words"
    terms = _split_terms(K, splits, HALF_STEP if half else STEP)
    splits = max(1, -(-K // max(terms, 1)))  # steps of a few terms may fill fewer
    c_strides = [stride // c.itemsize for stride in (c.strides[1], c.strides[0])]
    shape = (M, N, K, splits, terms, finish.per_row, finish.relu, *a_strides, *b_strides, *c_strides, 0)
    # A residual is c's type, and no kernel of float32 takes one.
    in_planes = finish.residual is not None and not is_half(c) or is_half(c) and terms > LONG_TERMS
    name = f"gemm_{layout}_{kernel_prefix(arithmetic)}{tile}"
    if splits == 1 and not in_planes:
        _multiply(name, tile, a, b, Strided(c), finish, shape, half)
        return
    planes = devices.empty((splits, B, M, N), np.float32, c)
    unfinished = (*shape[:5], 0, 0, *shape[7:11], N, M * N, B * M * N)
    _multiply(name, tile, a, b, planes, _Finish(None, False, False, None), unfinished, half)
    if finish.residual is None and not is_half(c):
        launch("gemm_add_splits", grid_for(c.size), planes, Strided(c), finish.bias, shape, c.size)
        return
    add = f"gemm_add_splits_{c.dtype.name if is_half(c) else 'residual'}"
    launch(add, grid_for(c.size), planes, Strided(c), finish.bias, *_residual(finish), shape, c.size)


def _multiply(
    name: str, tile: str, a: Any, b: Any, c: Any, finish: _Finish, shape: tuple[Any, ...], half: bool
) -> None:
    """Launch a product; c is Strided, or a contiguous array of planes."""
    tile_m, tile_n = map(int, tile.split("x"))
    target = c.array if isinstance(c, Strided) else c
    M, N, splits = shape[0], shape[1], shape[3]
    blocks = target.size // (M * N * (1 if target is not c else splits)) * splits
    blocks *= -(-M // tile_m) * -(-N // tile_n)
    if not half:
        launch(name, blocks, Strided(a), Strided(b), c, finish.bias, shape)
        return
    outputs = (c, None) if is_half(target) else (None, c)
    shared = HALF_STAGES * HALF_STEP * (tile_m + tile_n) * a.itemsize
    launch(name, blocks, Strided(a), Strided(b), *outputs, finish.bias, *_residual(finish), shape, shared_bytes=shared)


def matmul(a: Any, b: Any, bias: Any = None, dtype: Any = None) -> np.ndarray:
    """c = a @ b (+ bias on each row) with NumPy's rules: a (…,M,K), b (…,K,N), leading dimensions broadcast.

    Sums of bfloat16 or float16 operands are float32, rounded once; their bias is float32.
    - dtype: of c: the operands', or of 16-bit ones also float32; None: the operands'
    Raises TypeError for dtypes that differ or are not floating-point and ValueError for shapes that do not fit.
    """
    _require_types("matmul", {"a": a, "b": b}, bias)
    if min(a.ndim, b.ndim) < 1:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape}: both need at least one dimension")
    left = a[None, :] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    if left.shape[-1] != right.shape[-2]:
        raise ValueError(
            f"matmul: a has {left.shape[-1]} columns but b has {right.shape[-2]} rows (shapes {a.shape}, {b.shape})"
        )
    c = _batched(left, right, bias, a.dtype if dtype is None else np.dtype(dtype))
    if a.ndim == 1:
        c = c[..., 0, :]
    return c[..., 0] if b.ndim == 1 else c


def _batched(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None, dtype: Any) -> np.ndarray:
    """matmul of at least two dimensions: the products below take one batch dimension."""
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ValueError(f"matmul: leading dimensions of {a.shape} and {b.shape} do not broadcast") from None
    if is_half(a) and not devices.runs_kernels(a):
        c = _batched(a.astype(np.float32), b.astype(np.float32), bias, np.dtype(np.float32))
        with np.errstate(over="ignore"):
            return c.astype(dtype, copy=False)
    (M, K), N, B = a.shape[-2:], b.shape[-1], math.prod(batch)
    c = devices.empty((*batch, M, N), dtype, a)
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
    _require_types("linear", {"x": x, "weight": weight}, bias)
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
    """gw (out,in) = gyᵀ · x, summed over all rows of x (…,in) and gy (…,out); float32 of 16-bit ones."""
    rows = math.prod(gy.shape[:-1])
    dtype = np.float32 if is_half(x) else None
    return matmul(gy.reshape(rows, gy.shape[-1]).T, x.reshape(rows, x.shape[-1]), dtype=dtype)
