"""Matrix products on the tensor cores of sm_90 (kernels/gemm_hopper.cuh): which they are, and how they are launched.

Operands come by tensor maps, so each needs an axis of neighbours in memory, and all other strides and the address as
multiples of 16 bytes. What does not is another kernel's; `takes` says which.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from gpucnn import device as devices
from gpucnn.launch import Strided, architecture_of, grid_for, launch, tensor_map

LINE_BYTES = 128  # of the terms of a step, and of a row in shared memory
GROUP_ROWS = 64  # of c that one warpgroup stores at a time
EPILOGUE_BYTES = 2 * 2 * GROUP_ROWS * LINE_BYTES  # two buffers of each of two warpgroups
MIN_EXTENT = 64  # rows and columns of c: half a tile
SPLIT_TERMS = 1024  # a split sums at least so many terms
SPLIT_FLOATS = 2**24  # of all planes together: 64 MB of workspace
TILE_CLOCKS = 2_000  # of a tile's start and end
LAUNCH_CLOCKS = 5_000  # of a second launch
SPLIT_BYTES, BYTES_PER_CLOCK = 8, 20  # of an element of a plane; of memory, for each multiprocessor
TYPES = {"bfloat16": "bfloat16", "float16": "float16", "float32": "tf32"}  # of operands: in the names of kernels
OUTPUTS = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float"}


class HopperTile(NamedTuple):
    """What a block computes at a time, of how many stages, and the clocks of a step of 128 bytes of terms.

    - blocks: of a cluster, which share the columns of c and so b; they compute neighbouring rows
    """

    M: int
    N: int
    stages: int
    clocks: int
    blocks: int = 1

    @property
    def name(self) -> str:
        return f"{'pairs_' if self.blocks == 2 else ''}{self.M}x{self.N}"

    def tiles(self, M: int, N: int) -> int:
        """Tiles of M×N, or so many times as few as a cluster has blocks."""
        return -(-M // (self.blocks * self.M)) * -(-N // self.N)

    def clusters(self, blocks: int) -> int:
        """How many clusters so many blocks are, but at least one."""
        return max(1, blocks // self.blocks)

    def grid(self, tiles: int, blocks: int) -> int:
        """How many of so many blocks a launch has for `tiles`: whole clusters."""
        return self.blocks * min(tiles, self.clusters(blocks))

    @property
    def shared_bytes(self) -> int:
        return self.stages * ((self.M + self.N) * LINE_BYTES + 16) + EPILOGUE_BYTES


# Clocks: 512 and 1024 at the tensor cores' full rate, of which wide tiles reach more.
TILES = (HopperTile(128, 256, 4, 1280), HopperTile(128, 128, 6, 700))
# Each block of a pair reads half of b's tile from the L2 cache, and both get it: 32 KB a step instead of 48, and 24
# instead of 32. Estimated: 4% less of the one, as others measured of such tiles, and 6% of the other, which reads more
# for as many products.
PAIRS = (HopperTile(128, 256, 4, 1230, 2), HopperTile(128, 128, 6, 660, 2))

# Of results in float32, and planes: their sums leave the tensor cores every 1024 terms, to as many registers again.
FLOAT_TILES, FLOAT_PAIRS = TILES[1:], PAIRS[1:]


@cache
def choose(
    M: int, N: int, K: int, B: int, multiprocessors: int, step: int, in_float32: bool = False, most_splits: int = 64,
    least_terms: int = SPLIT_TERMS, pairs: bool = False,
) -> tuple[HopperTile, int]:  # fmt: skip
    """(tile, splits) of B products of M×K and K×N, by the estimated clocks of the busiest multiprocessor.

    - pairs: whether the tiles may be those of clusters of two blocks
    """
    candidates = (s for s in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if s <= most_splits)
    splits = [1, *(s for s in candidates if s * least_terms <= K and s * B * M * N <= SPLIT_FLOATS)]

    pairs = pairs and M > PAIRS[0].M  # else each second block would have no rows
    wide = () if in_float32 else TILES + PAIRS * pairs
    narrow = FLOAT_TILES + FLOAT_PAIRS * pairs
    choices = [(tile, 1) for tile in wide] + [(tile, count) for tile in narrow for count in splits]
    return min(choices, key=lambda choice: (_clocks(choice, M, N, K, B, multiprocessors, step), choice[1]))


def _clocks(choice: tuple[HopperTile, int], M: int, N: int, K: int, B: int, multiprocessors: int, step: int) -> int:
    tile, splits = choice
    share = -(-B * tile.tiles(M, N) * splits // tile.clusters(multiprocessors))
    clocks = share * (-(-split_terms(K, splits, step) // step) * tile.clocks + TILE_CLOCKS)
    if splits > 1:
        clocks += LAUNCH_CLOCKS + SPLIT_BYTES * B * M * N * splits // (multiprocessors * BYTES_PER_CLOCK)
    return clocks


@cache
def whole_rounds(M: int, N: int, K: int, B: int, multiprocessors: int, step: int, in_float32: bool = False) -> int:
    """Rows of c that fill whole rounds of tiles, if another launch for the rest saves 1 in 20 of all clocks; else M.

    The last round of one launch may leave most multiprocessors idle. Its rows may have smaller tiles or be split by
    terms, whose planes are added in order: about what blocks that share tiles (stream-K) would save, by kernels that
    are there.
    """

    def clocks(rows: int) -> int:
        chosen = choose(rows, N, K, B, multiprocessors, step, in_float32, pairs=True)
        return _clocks(chosen, rows, N, K, B, multiprocessors, step)

    found = {M: clocks(M) * 19 // 20}
    for tile in FLOAT_TILES + FLOAT_PAIRS if in_float32 else TILES + PAIRS:
        clusters = tile.clusters(multiprocessors)
        tiles = B * tile.tiles(M, N) // clusters * clusters
        rows = tiles // (B * tile.tiles(1, N)) * tile.blocks * tile.M
        if 0 < rows < M:
            found[rows] = clocks(rows) + clocks(M - rows) + LAUNCH_CLOCKS
    return min(found, key=lambda rows: (found[rows], -rows))


def split_terms(K: int, splits: int, step: int) -> int:
    """Terms of each split but the last: whole steps."""
    return -(-K // (splits * step)) * step


def suits(a: Any, b: Any, c: Any, residual: Any, arithmetic: str) -> bool:
    """Whether the kernels are chosen for a product: on sm_90, of what they take, unless most of a tile were padding.

    - arithmetic: "bfloat16", "float16" or "tf32"; others are not the kernels'
    """
    if arithmetic != TYPES.get(a.dtype.name) or min(c.shape[1:]) < MIN_EXTENT or architecture_of(c) != 90:
        return False
    return takes(a, b, c) and (residual is None or residual.strides == c.strides)


def takes(a: Any, b: Any, c: Any) -> bool:
    """Whether the kernels multiply these: 16 bits of one type, or float32 with the terms contiguous, to be rounded to
    tf32; c of the operands' type or float32, its rows of contiguous columns."""
    kind, terms = a.dtype.name, a.shape[2]
    if kind not in TYPES or b.dtype.name != kind or c.dtype.name not in (kind, "float32") or terms == 0 or c.size == 0:
        return False
    if not (maps(a, 2) or maps(a, 1)) or not (maps(b, 1) or maps(b, 2)) or not _is_unit(c, 2):
        return False
    return kind != "float32" or (maps(a, 2) and maps(b, 1))


def maps(array: Any, axis: int) -> bool:
    """Whether a tensor map can have an array of three axes with `axis`, one of the last two, innermost."""
    others = [n for n in (0, 1, 2) if n != axis and array.shape[n] > 1 and array.strides[n] != 0]
    aligned = all(array.strides[n] % 16 == 0 and 0 < array.strides[n] < 2**40 for n in others)
    broadcast = any(array.strides[n] == 0 and array.shape[n] > 1 for n in (1, 2))
    return aligned and not broadcast and devices.address(array) % 16 == 0 and _is_unit(array, axis)


def _is_unit(array: Any, axis: int) -> bool:
    return array.shape[axis] <= 1 or array.strides[axis] == array.itemsize


def _operand(array: Any, rows: int, terms_axis: int, tf32: bool) -> tuple[tensor_map.TensorMap, bool, int]:
    """(map, whether the terms are contiguous, elements from matrix to matrix) with boxes of `rows` rows a step."""
    if array.strides[0] == 0:
        array = array[:1]
    by_terms = maps(array, terms_axis)
    matrices = array if by_terms == (terms_axis == 2) else array.swapaxes(1, 2)
    line = LINE_BYTES // array.itemsize
    box = (line, rows if by_terms else line, 1)
    batch = array.strides[0] // array.itemsize if array.shape[0] > 1 else 0
    return tensor_map.tiled(matrices, box, LINE_BYTES, tf32=tf32), by_terms, batch


class Form(NamedTuple):
    """How a product is launched; None for what `choose` says, or a block for each multiprocessor."""

    tile: str | None = None
    splits: int | None = None
    blocks: int | None = None


ANY = Form()


def multiply(
    a: Any, b: Any, c: Any, bias: Any, per_row: bool, relu: bool, multiprocessors: int, residual: Any = None,
    form: Form = ANY,
) -> None:  # fmt: skip
    """c[n] = a[n]·b[n] + bias + residual[n], then max(·, 0) if relu, of what `takes` allows; c is overwritten.

    - a: (B,M,K) or (1,M,K), b: (B,K,N) or (1,K,N), c: (B,M,N); residual: of c's dtype, shape and strides, or None
    """
    (B, M, N), step = c.shape, LINE_BYTES // a.itemsize
    whole = whole_rounds(M, N, a.shape[2], B, multiprocessors, step, c.dtype != a.dtype) if form == ANY else M
    if whole == M:
        return _multiply(a, b, c, bias, per_row, relu, multiprocessors, residual, form)
    for rows in (slice(0, whole), slice(whole, M)):
        added = None if residual is None else residual[:, rows]
        own_bias = bias[rows] if per_row and bias is not None else bias
        _multiply(a[:, rows], b, c[:, rows], own_bias, per_row, relu, multiprocessors, added, form)


def _multiply(
    a: Any, b: Any, c: Any, bias: Any, per_row: bool, relu: bool, multiprocessors: int, residual: Any, form: Form
) -> None:
    """In one launch, or of split terms in two."""
    (B, M, N), K = c.shape, a.shape[2]
    step, tf32 = LINE_BYTES // a.itemsize, a.dtype.name == "float32"
    chosen, count = choose(M, N, K, B, multiprocessors, step, c.dtype != a.dtype, pairs=True)
    tile = next(one for one in TILES + PAIRS if one.name == (form.tile or chosen.name))
    terms = split_terms(K, form.splits or count, step)
    splits = -(-K // terms)
    a_map, a_terms, a_batch = _operand(a, tile.M, 2, tf32)
    b_map, b_terms, b_batch = _operand(b, tile.N // tile.blocks, 1, tf32)
    target = c if splits == 1 else devices.empty((splits * B, M, N), "float32", c)
    finish = (bias, residual, per_row, relu) if splits == 1 else (None, None, False, False)
    shape = _shape((M, N, K), splits, terms, finish, (a_batch, b_batch), target, B)
    mapped = maps(target, 2)
    tiles = B * tile.tiles(M, N) * splits
    layout = ("n" if a_terms else "t") + ("t" if b_terms else "n")
    launch(f"gemm_{layout}_hopper_{TYPES[a.dtype.name]}_{OUTPUTS[target.dtype.name]}_{tile.name}",
           tile.grid(tiles, form.blocks or multiprocessors), a_map, b_map, store_map(target) if mapped else a_map,
           None if mapped else Strided(target), finish[0], _strided(finish[1]), shape, tiles, B, int(mapped),
           shared_bytes=tile.shared_bytes)  # fmt: skip
    if splits > 1:
        shape = _shape((M, N, K), splits, terms, (bias, residual, per_row, relu), (0, 0), c, B)
        name = f"gemm_hopper_add_{c.dtype.name}"
        launch(name, grid_for(c.size), target, Strided(c), bias, _strided(residual), shape, c.size)


def store_map(c: Any) -> tensor_map.TensorMap:
    """The map by which a warpgroup stores 64 rows of 128 bytes of c (B,M,N)."""
    return tensor_map.tiled(c, (LINE_BYTES // c.itemsize, GROUP_ROWS, 1), LINE_BYTES, stores=True)


def _strided(array: Any) -> Any:
    return None if array is None else Strided(array)


def _shape(
    sizes: tuple[int, int, int], splits: int, terms: int, finish: tuple[Any, ...], batches: tuple[int, int], c: Any,
    B: int,
) -> tuple[Any, ...]:  # fmt: skip
    """The struct GemmShape of kernels/gemm.cuh; of a and b the maps know the rest."""
    M, N, _ = sizes
    rows, batch = c.strides[1] // c.itemsize, c.strides[0] // c.itemsize
    return *sizes, splits, terms, int(finish[2]), int(finish[3]), 0, batches[0], 0, batches[1], rows, batch, B * M * N
