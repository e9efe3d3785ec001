"""Convolution as a matrix product whose patches are never stored: "implicit_gemm", for devices that run kernels.

Every block gathers tiles of patches into shared memory and multiplies them there (kernels/conv2d_gather.cuh and
conv2d_backward_weight.cu). Memory is needed for the weights, which forward and backward_input bring into the order of
their blocks first, and where the terms of long sums are split among blocks.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import Strided, grid_for, launch
from gpucnn.launch.division import divisor
from gpucnn.ops import conv_hopper_float32
from gpucnn.ops.conv_sums import add_planes, image_strides
from gpucnn.ops.gemm import (
    TENSOR_TILES,
    Tile,
    arithmetic_of,
    choose_tile,
    estimated_clocks,
    kernel_prefix,
    multiprocessors,
)
from gpucnn.ops.shapes import ConvShape
from gpucnn.precision import get_precision

# The share of multiply-adds in the compiled main loop: of the forward pass and backward_input, and of backward_weight.
TILES = (Tile(128, 256, 1, 92), Tile(128, 128, 2, 89), Tile(64, 128, 3, 87), Tile(64, 64, 4, 83))
WEIGHT_TILES = (Tile(128, 256, 1, 87), Tile(128, 128, 2, 83), Tile(64, 128, 3, 79), Tile(64, 64, 4, 72))
STAGE_BYTES = {"128x256": 2 * 4 * 16 * (128 + 256 + 8)}  # of shared memory, where a block's is more than 48 KB
STEP = 16  # terms that a kernel takes at a time
BLOCK_CHANNELS = 64  # of the weight gradient's columns, where so many share a tap
LIMIT = 2**31 - 256  # of indices in 32 bits, which may run past the end by a tile


class Product(NamedTuple):
    """The matrix product of one pass: rows × columns sums of `terms` products, for each group (and phase)."""

    rows: int
    columns: int
    terms: int
    groups: int
    phases: int
    tiles: tuple[Tile, ...]
    prefix: str  # in the names of the kernels: their arithmetic, if it is not float32

    def plan(self, planes: int | None = None) -> tuple[Tile, int, int]:
        """(tile, splits, terms of each split but the last); planes: how many of split sums there is room for."""
        batch = self.groups * self.phases
        tile, splits = choose_tile(self.rows, self.columns, self.terms, batch, multiprocessors(), self.tiles)
        splits = splits if planes is None else max(1, min(splits, planes))
        terms = max(STEP, -(-self.terms // (splits * STEP)) * STEP)
        return tile, max(1, -(-self.terms // terms)), terms


def supports(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """None, or the reason why not."""
    if shape.R + shape.S <= 32:
        return None
    return f"it has a bit for each row and column of the kernel, 32 in all, but the kernel is {shape.R}x{shape.S}"


def forward_product(shape: ConvShape, arithmetic: str) -> Product:
    """Filters × output pixels."""
    channels, pixels = shape.C // shape.groups, shape.N * shape.P * shape.Q
    sizes = shape.K // shape.groups, pixels, channels * shape.R * shape.S, shape.groups, 1
    return Product(*sizes, *_tiles(TILES, arithmetic))


def backward_input_product(shape: ConvShape, arithmetic: str) -> Product:
    """Channels × pixels of a phase; its terms are those of the phase that most taps reach."""
    (height, width), (sh, sw), (dh, dw) = _phase_size(shape), shape.stride, shape.dilation
    taps = -(-shape.R * math.gcd(sh, dh) // sh) * -(-shape.S * math.gcd(sw, dw) // sw)
    terms = shape.K // shape.groups * taps
    sizes = shape.C // shape.groups, shape.N * height * width, terms, shape.groups, sh * sw
    return Product(*sizes, *_tiles(TILES, arithmetic))


def backward_weight_product(shape: ConvShape, arithmetic: str) -> Product:
    """Filters × (channel, tap); the terms are all output pixels."""
    columns = shape.C // shape.groups * shape.R * shape.S
    sizes = shape.K // shape.groups, columns, shape.N * shape.P * shape.Q, shape.groups, 1
    return Product(*sizes, *_tiles(WEIGHT_TILES, arithmetic))


def _tiles(tiles: tuple[Tile, ...], arithmetic: str) -> tuple[tuple[Tile, ...], str]:
    """The tiles of an arithmetic, `tiles` in float32, and the prefix of its kernels."""
    return TENSOR_TILES.get(arithmetic, tiles), kernel_prefix(arithmetic)


def _phase_size(shape: ConvShape) -> tuple[int, int]:
    """(height, width) of the largest phase of x."""
    return -(-shape.H // shape.stride[0]), -(-shape.W // shape.stride[1])


def forward_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """The weights in another order, and planes of split sums, as many as fit the limit; none if fewer than two do."""
    return _workspace(forward_product(shape, get_precision()), shape, shape.y, dtype, limit)


def backward_input_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """The weights in another order, and planes of split sums, as many as fit the limit; none if fewer than two do."""
    return _workspace(backward_input_product(shape, get_precision()), shape, shape.x, dtype, limit)


def backward_weight_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Planes of split sums, as many as fit the limit; one also where columns are not in the order of the weights."""
    _, splits, _ = backward_weight_product(shape, get_precision()).plan(_planes(shape.weight, dtype, limit))
    needs_plane = splits > 1 or _by_channels(shape, dtype, limit)
    return splits * math.prod(shape.weight) * dtype.itemsize if needs_plane else 0


def _by_channels(shape: ConvShape, dtype: np.dtype, limit: int | None) -> bool:
    """Whether columns of the weight gradient are (tap, channel), blocks of channels at one tap; it takes a plane."""
    return shape.C // shape.groups % BLOCK_CHANNELS == 0 and _planes(shape.weight, dtype, limit) != 0


def _workspace(product: Product, shape: ConvShape, output: tuple[int, ...], dtype: np.dtype, limit: int | None) -> int:
    _, splits, _ = _plan(product, shape, output, dtype, limit)
    planes = splits * math.prod(output) if splits > 1 else 0
    return (math.prod(_packed_shape(product, shape)) + planes) * dtype.itemsize


def _plan(
    product: Product, shape: ConvShape, output: tuple[int, ...], dtype: np.dtype, limit: int | None
) -> tuple[Tile, int, int]:
    """Product.plan with the planes that the limit has room for beside the packed weights."""
    packed = math.prod(_packed_shape(product, shape)) * dtype.itemsize
    return product.plan(_planes(output, dtype, None if limit is None else max(0, limit - packed)))


def _packed_shape(product: Product, shape: ConvShape) -> tuple[int, int, int, int]:
    """Of the weights in the order of kernels/conv2d_pack_weights.cu: (groups, tiles, terms, filters of a tile).

    Filters are those of y in the forward pass, and the channels of x, which backward_input computes.
    """
    tile = product.plan()[0]
    terms = math.prod(shape.weight) // product.rows // shape.groups
    return shape.groups, -(-product.rows // tile.M), terms, tile.M


def _pack(weight: Any, product: Product, shape: ConvShape, backward: bool) -> Any:
    packed = devices.empty(_packed_shape(product, shape), weight.dtype, weight)
    groups, tiles, terms, rows = packed.shape
    taps, strides = shape.R * shape.S, (shape.C // shape.groups * shape.R * shape.S, shape.R * shape.S)
    filter_stride, channel_stride = strides[::-1] if backward else strides
    layout = product.rows, terms // taps, taps, rows, weight.size // groups, filter_stride, channel_stride
    launch("conv2d_pack_weights", (-(-terms // 32), tiles * rows // 32, groups), weight, packed, layout)
    return packed


def _planes(output: tuple[int, ...], dtype: np.dtype, limit: int | None) -> int | None:
    """How many planes of the output's size the limit has room for."""
    return None if limit is None else limit // max(1, math.prod(output) * dtype.itemsize)


def forward(
    x: Any, weight: Any, bias: Any, y: Any, shape: ConvShape, relu: bool = False, workspace_limit: int | None = None
) -> None:
    """y (N,K,P,Q), overwritten; x may have any strides."""
    check_size("conv2d_forward", shape)
    product = forward_product(shape, arithmetic_of("conv2d_forward", y))
    if _suits_hopper("forward", product, shape, y, workspace_limit):
        return conv_hopper_float32.forward(x, weight, bias, y, shape, relu, multiprocessors())
    x, strides = image_strides("conv2d_forward", x, shape)
    tile, splits, terms = _plan(product, shape, y.shape, y.dtype, workspace_limit)
    target = y if splits == 1 else devices.empty((splits, *y.shape), y.dtype, y)
    fused = (bias, relu) if splits == 1 else (None, False)
    work = _work(y.size, splits, terms, fused[1], shape.P * shape.Q, shape.Q)
    launch(f"conv2d_forward_{product.prefix}{tile.name}", _grid(product, tile, splits), Strided(x),
           _pack(weight, product, shape, False), fused[0], target, shape.flat, strides, work,
           shared_bytes=STAGE_BYTES.get(tile.name, 0))  # fmt: skip
    if splits > 1:
        add_planes(target, y, bias, relu)


def backward_input(gy: Any, weight: Any, gx: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gx (N,C,H,W), overwritten; gy may have any strides."""
    check_size("conv2d_backward_input", shape)
    product = backward_input_product(shape, arithmetic_of("conv2d_backward_input", gx))
    if _suits_hopper("backward_input", product, shape, gx, workspace_limit):
        return conv_hopper_float32.backward_input(gy, weight, gx, shape, multiprocessors())
    gy, strides = image_strides("conv2d_backward_input", gy, shape)
    tile, splits, terms = _plan(product, shape, gx.shape, gx.dtype, workspace_limit)
    target = gx if splits == 1 else devices.empty((splits, *gx.shape), gx.dtype, gx)
    height, width = _phase_size(shape)
    work = _work(gx.size, splits, terms, False, height * width, width)
    launch(f"conv2d_backward_input_{product.prefix}{tile.name}", _grid(product, tile, splits), Strided(gy),
           _pack(weight, product, shape, True), target, shape.flat, strides, work,
           shared_bytes=STAGE_BYTES.get(tile.name, 0))  # fmt: skip
    if splits > 1:
        add_planes(target, gx)


def _suits_hopper(operation: str, product: Product, shape: ConvShape, out: Any, limit: int | None) -> bool:
    """Whether a pass in float32_tensor is for sm_90's own kernel."""
    if product.prefix != kernel_prefix("float32_tensor"):
        return False
    tile, splits, _ = product.plan()
    sizes = product.rows, product.columns, product.terms, product.groups * product.phases
    clocks = estimated_clocks(tile, splits, *sizes, multiprocessors())
    return conv_hopper_float32.suits(operation, shape, out, multiprocessors(), clocks, limit)


def backward_weight(x: Any, gy: Any, gw: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gw (K,C/groups,R,S), overwritten; x and gy may have any strides."""
    check_size("conv2d_backward_weight", shape)
    x, x_strides = image_strides("conv2d_backward_weight", _near_images(x), shape)
    gy, gy_strides = image_strides("conv2d_backward_weight", _near_images(gy), shape)
    product = backward_weight_product(shape, arithmetic_of("conv2d_backward_weight", gw))
    by_channels = _by_channels(shape, gw.dtype, workspace_limit)
    tile, splits, terms = product.plan(_planes(gw.shape, gw.dtype, workspace_limit))
    target = gw if splits == 1 and not by_channels else devices.empty((splits, *gw.shape), gw.dtype, gw)
    work = _work(gw.size, splits, terms, False, shape.P * shape.Q, shape.Q)
    kernel = f"conv2d_backward_weight_{'channels_' if by_channels else ''}{product.prefix}{tile.name}"
    launch(kernel, _grid(product, tile, splits), Strided(x), Strided(gy), target, shape.flat, x_strides, gy_strides,
           work, shared_bytes=STAGE_BYTES.get(tile.name, 0))  # fmt: skip
    if by_channels:
        sizes = splits, shape.C // shape.groups, shape.R * shape.S, gw.size
        launch("conv2d_add_weight_planes", grid_for(gw.size), target, gw, *sizes)
    elif splits > 1:
        add_planes(target, gw)


def _near_images(array: Any) -> Any:
    """The array, copied if its images are so far apart that 31 bits do not count the elements between two."""
    return array if abs(array.strides[0]) // array.itemsize < 2**31 else devices.contiguous(array)


def _grid(product: Product, tile: Tile, splits: int) -> tuple[int, int, int]:
    tiles = -(-product.rows // tile.M) * -(-product.columns // tile.N)
    return tiles, product.phases * splits, product.groups


def _work(size: int, splits: int, terms: int, relu: bool, image: int, row: int) -> tuple[Any, ...]:
    """The struct ConvProduct of kernels/conv2d_gemm.cuh."""
    step = STEP // image, STEP % image // row, STEP % row
    return size, splits, terms, int(relu), divisor(image), divisor(row), step


def check_size(operation: str, shape: ConvShape) -> None:
    """Raise ValueError for sizes that the kernels cannot count."""
    height, width = _phase_size(shape)
    sizes = {
        "pixels of all images": shape.N * max(shape.P * shape.Q, height * width),
        "weights": shape.K * shape.C // shape.groups * shape.R * shape.S,
    }
    for name, size in sizes.items():
        if size > LIMIT:
            raise ValueError(f"{operation}: {size} {name}; implicit_gemm counts them in 31 bits: split the batch")
