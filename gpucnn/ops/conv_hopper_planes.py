"""Convolutions of NCHW images on the tensor cores of sm_90 (kernels/conv2d_planes_hopper.cuh), without transposes.

Images are contiguous, of bfloat16 or float16, in one group; the stride is 1. The copy engine brings rectangles of an
image, so rows must begin at multiples of 16 bytes: 8 columns. Others are copied to such rows first. A filter of one tap
sees no rows, and takes the whole plane in rows of any length. Channels are a multiple of 8, for they are the rows of
packed weights. `takes` says what the kernels compute; the rest is another kernel's.

The weight gradient (kernels/conv2d_planes_weights_hopper.cuh) sums over pixels, 64 of a row at a time: it is chosen
where rows fill enough of them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from gpucnn import device as devices
from gpucnn.launch import architecture_of, grid_for, launch, tensor_map
from gpucnn.ops import conv_hopper, gemm_hopper
from gpucnn.ops.conv_hopper import PLAIN, Finish
from gpucnn.ops.gemm_hopper import GROUP_ROWS, LINE_BYTES, TILE_CLOCKS, HopperTile
from gpucnn.ops.shapes import ConvShape

SLAB = 64  # channels of a step
MIN_EXTENT = 32  # filters and channels
UNIT = 8  # columns that rows of images are multiples of, and channels: 16 bytes
WIDTHS = (64, 32, 16)  # of rectangles: as wide as the swizzles
PIECE_PIXELS = 64  # of a copy of the result
SEGMENT = 64  # pixels of a row of y that are a step of the weight gradient
MIN_SHARE = 0.4  # of them that must be there
TYPES = ("bfloat16", "float16")
# Filters × pixels. Clocks of a step: as gemm_hopper's, which reads as much; 64x256 reads a quarter more than 128x128.
TILES = (HopperTile(128, 256, 4, 1280), HopperTile(128, 128, 6, 700), HopperTile(64, 256, 4, 740))


class Rectangles(NamedTuple):
    """How the pixels of an image are cut up: it has rows of `columns` pixels, and rectangles `width` of them."""

    columns: int
    width: int


class Form(NamedTuple):
    """How a convolution is launched: the tile's name and the width of its rectangles; None for what `choose` says."""

    tile: str | None = None
    width: int | None = None


ANY = Form()


def suits(operation: str, shape: ConvShape, read: Any, other: Any, limit: int | None = None) -> bool:
    """Whether the kernels are chosen for a pass: on sm_90, of what they take, unless most of a tile were padding.

    - limit: bytes that copies of the images may have, if they need one; None for any
    """
    if min(shape.K, shape.C) < MIN_EXTENT or architecture_of(other) != 90 or not takes(operation, shape, read, other):
        return False
    arrays = _operands(operation, read, other)
    columns = shape.P * shape.Q if _by_planes(shape, *arrays) else shape.Q
    if operation == "backward_weight" and columns < MIN_SHARE * -(-columns // SEGMENT) * SEGMENT:
        return False
    size = copy_bytes(shape, *arrays)
    return size == 0 or limit is None or size <= limit


def takes(operation: str, shape: ConvShape, read: Any, other: Any) -> bool:
    """Whether the kernels compute a pass ("forward", "backward_input", "backward_weight").

    - read: the images that windows walk over: x, but gy for backward_input; other: y, gx, or gy for backward_weight
    """
    if read.dtype.name not in TYPES or other.dtype.name != read.dtype.name or shape.groups != 1 or 0 in shape[:9]:
        return False
    if shape.stride != (1, 1) or (operation != "backward_weight" and read.shape[1] % UNIT):
        return False
    if not (read.flags.c_contiguous and other.flags.c_contiguous):
        return False
    pixels = shape.N * shape.P * -(-shape.Q // SEGMENT) * SEGMENT
    copies = copy_bytes(shape, *_operands(operation, read, other)) // read.itemsize
    return max(other.size, read.size, copies, pixels) < 2**31


def _operands(operation: str, read: Any, other: Any) -> tuple[Any, ...]:
    """The images that the copy engine reads in a pass."""
    return (read, other) if operation == "backward_weight" else (read,)


def copy_bytes(shape: ConvShape, *arrays: Any) -> int:
    """Of the copies of images whose rows do not begin at multiples of 16 bytes."""
    if _by_planes(shape, *arrays):
        return 0
    return sum(math.prod(each.shape[:3]) * _pitch(each) * each.itemsize for each in arrays if not _has_rows(each))


def _by_planes(shape: ConvShape, *arrays: Any) -> bool:
    """Whether a filter has one tap, and whole planes are rows that begin at multiples of 16 bytes."""
    if shape.R * shape.S > 1 or shape.padding != (0, 0) or shape.H * shape.W % UNIT:
        return False
    return all(devices.address(each) % 16 == 0 for each in arrays)


def _has_rows(images: Any) -> bool:
    """Whether rows begin at multiples of 16 bytes."""
    return images.shape[3] % UNIT == 0 and devices.address(images) % 16 == 0


def _pitch(images: Any) -> int:
    return -(-images.shape[3] // UNIT) * UNIT


def _aligned(images: Any) -> Any:
    """The images, or a copy, in rows that begin at multiples of 16 bytes."""
    if _has_rows(images):
        return images
    columns, pitch = images.shape[3], _pitch(images)
    rows = devices.empty((*images.shape[:3], pitch), images.dtype, images)
    launch(f"conv2d_hopper_rows_{images.dtype.name}", grid_for(rows.size), images, rows, columns, pitch, rows.size)
    return rows[:, :, :, :columns]


@lru_cache(maxsize=4096)
def choose(
    filters: int, images: int, size: tuple[int, int], steps: int, multiprocessors: int, by_planes: bool
) -> tuple[HopperTile, Rectangles]:
    """(tile, rectangles) by the estimated clocks of the busiest multiprocessor; `size` are rows and columns of c."""
    pixels = size[0] * size[1]
    lengths = [n for n in range(UNIT, pixels + 1, UNIT) if pixels % n == 0] if by_planes else [size[1]]

    def clocks(choice: tuple[HopperTile, Rectangles]) -> tuple[int, int]:
        tile, (columns, width) = choice
        tiles = images * -(-filters // tile.M) * -(-pixels // columns // (tile.N // width)) * -(-columns // width)
        return -(-tiles // multiprocessors) * (steps * tile.clocks + TILE_CLOCKS), -width

    choices = [(tile, Rectangles(columns, width)) for tile in TILES for columns in lengths for width in WIDTHS]
    return min(choices, key=clocks)


def forward(
    x: Any, weight: Any, y: Any, shape: ConvShape, multiprocessors: int, finish: Finish = PLAIN, form: Form = ANY
) -> None:
    """y (N,K,P,Q), overwritten with the convolution + bias + residual, then ReLU.

    y and residual are contiguous; weight (K,C,R,S) is contiguous and of x's dtype or float32, bias (K,) is float32.
    """
    packed = conv_hopper.packed_weights("forward", weight, shape, x)
    first = -shape.padding[0], -shape.padding[1]
    _multiply(x, packed, y, shape, first, multiprocessors, finish, form)


def backward_input(gy: Any, weight: Any, gx: Any, shape: ConvShape, multiprocessors: int, form: Form = ANY) -> None:
    """gx (N,C,H,W), contiguous, overwritten; weight as in `forward`."""
    packed = conv_hopper.packed_weights("backward_input", weight, shape, gy)
    rows, columns = ((size - 1) * step for size, step in zip((shape.R, shape.S), shape.dilation, strict=True))
    first = shape.padding[0] - rows, shape.padding[1] - columns
    _multiply(gy, packed, gx, shape, first, multiprocessors, PLAIN, form)


def _multiply(
    images: Any, packed: Any, out: Any, shape: ConvShape, first: tuple[int, int], multiprocessors: int, finish: Finish,
    form: Form,
) -> None:  # fmt: skip
    (filters, taps, channels), residual = packed.shape, finish.residual
    slabs, size, by_planes = -(-channels // SLAB), out.shape[2:], _by_planes(shape, images)
    tile, (columns, width) = choose(filters, out.shape[0], size, taps * slabs, multiprocessors, by_planes)
    tile = next(one for one in TILES if one.name == (form.tile or tile.name))
    width = form.width or width
    rows = size[0] * size[1] // columns
    images = images if by_planes else _aligned(images)
    if by_planes:
        residual = None if residual is None else _in_rows(residual, columns)
        images, out = (_in_rows(array, columns) for array in (images, out))
    w_map = tensor_map.tiled(packed, (SLAB, 1, tile.M), LINE_BYTES)
    x_map = _map(images, SLAB, width, tile.N // width)
    mapped = columns % UNIT == 0 and devices.address(out) % 16 == 0
    c_map = _map(out, GROUP_ROWS, width, PIECE_PIXELS // width, stores=True) if mapped else x_map
    tiles = -(-filters // tile.M), -(-rows // (tile.N // width)), -(-columns // width)
    walk = (filters, rows, columns, shape.R, shape.S, slabs, *first, *shape.dilation, width.bit_length() - 1, *tiles,
            int(finish.relu))  # fmt: skip
    count = out.shape[0] * tiles[0] * tiles[1] * tiles[2]
    launch(f"conv2d_hopper_planes_{out.dtype.name}_{tile.name}", min(count, multiprocessors), w_map, x_map, c_map,
           None if mapped else out, finish.bias, residual, walk, count, shared_bytes=tile.shared_bytes)  # fmt: skip


def _in_rows(array: Any, columns: int) -> Any:
    """The planes in rows of another length."""
    return array.reshape(*array.shape[:2], -1, columns)


def _map(images: Any, channels: int, width: int, rows: int, stores: bool = False) -> tensor_map.TensorMap:
    """The map whose boxes are [row][channel][column] in shared memory."""
    return tensor_map.tiled(images.transpose(0, 2, 1, 3), (width, channels, rows, 1), 2 * width, stores=stores)


def backward_weight(x: Any, gy: Any, gw: Any, shape: ConvShape, multiprocessors: int, planes: int = 64) -> None:
    """gw (K,C,R,S), contiguous, overwritten, of the images' type or float32; at most so many planes of split sums."""
    if _by_planes(shape, x, gy):
        x, gy = (_in_rows(images, shape.H * shape.W) for images in (x, gy))
    x, gy = _aligned(x), _aligned(gy)
    rows, segments = gy.shape[2], -(-gy.shape[3] // SEGMENT)
    taps, slabs = shape.R * shape.S, -(-shape.C // SLAB)
    columns, pixels = taps * slabs * SLAB, shape.N * rows * segments * SEGMENT
    tile, splits = gemm_hopper.choose(shape.K, columns, pixels, 1, multiprocessors, SEGMENT, True, planes)
    terms = gemm_hopper.split_terms(pixels, splits, SEGMENT)
    splits = -(-pixels // terms)
    sums = devices.empty((splits, shape.K, columns), "float32", gw)
    maps = _map(gy, tile.M, SEGMENT, 1), _map(x, SLAB, SEGMENT, 1), gemm_hopper.store_map(sums)
    product = shape.K, columns, pixels, splits, terms, 0, 0, 0, 0, 0, 0, columns, 0, shape.K * columns
    steps = rows, segments, taps, shape.S, slabs, -shape.padding[0], -shape.padding[1], *shape.dilation
    tiles = -(-shape.K // tile.M) * -(-columns // tile.N) * splits
    launch(f"conv2d_hopper_plane_weights_{x.dtype.name}_{tile.name}", min(tiles, multiprocessors), *maps, product,
           steps, tiles, shared_bytes=tile.shared_bytes)  # fmt: skip
    sizes = splits, shape.C, slabs * SLAB, taps, shape.K, 1, gw.size
    launch(f"conv2d_hopper_add_{x.dtype.name}_{gw.dtype.name}", grid_for(gw.size), sums, gw, sizes)
