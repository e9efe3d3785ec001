"""Convolutions on the tensor cores of sm_90 (kernels/conv2d_hopper.cuh): which they are, and how they are launched.

Images are channels-last, of bfloat16 or float16, with a multiple of 8 channels. Patches are never stored: the copy
engine reads them where they are (gpucnn.launch.tensor_map.im2col). `takes` says what a map can describe; the rest is
another kernel's. Groups of few channels are bundled, as many as fill 64 channels or less, into one whose weights are
zeros between its members; an infinity of one then becomes a NaN in the others.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gpucnn import device as devices
from gpucnn.launch import Strided, architecture_of, grid_for, launch, tensor_map
from gpucnn.launch.division import divisor
from gpucnn.ops import conv_phases, gemm_hopper, packing
from gpucnn.ops.conv_phases import Phases
from gpucnn.ops.gemm_hopper import ANY, LINE_BYTES, PAIRS, TILES, Form, HopperTile
from gpucnn.ops.shapes import ConvShape

SLAB = 64  # channels of a step, and pixels of a step of the weight gradient
MIN_EXTENT = 32  # filters and channels
UNIT = 8  # channels that a thread stores at a time
MOST_PLANES = 64
SPLIT_TERMS = 512  # a split of images' sums has at least so many
TYPES = ("bfloat16", "float16")
NARROW = HopperTile(128, 64, 7, 450)  # for so few columns
MMA_SYNC = 1.5  # how much longer the kernels of sm_80 take for as many products


class Bundles(NamedTuple):
    """Groups as the kernels see them: `batches` bundles of `size` groups each.

    - rows: filters of a bundle, or its channels for backward_input; channels: what terms or columns are made of
    """

    batches: int
    size: int
    rows: int
    channels: int

    def padded(self, tile: int) -> int:
        """Products of a tap and pixel that a group takes, where rows come `tile` at a time."""
        return -(-self.rows // tile) * tile * -(-self.channels // SLAB) * SLAB // self.size


def bundles(operation: str, shape: ConvShape) -> Bundles:
    """Those of a pass; only groups that leave room in a slab of 64 channels are bundled."""
    filters, channels = shape.K // shape.groups, shape.C // shape.groups
    rows, terms = (channels, filters) if operation == "backward_input" else (filters, channels)
    size = max(one for one in range(1, max(1, SLAB // terms) + 1) if shape.groups % one == 0)
    return Bundles(shape.groups // size, size, size * rows, size * terms)


def suits(operation: str, shape: ConvShape, read: Any, other: Any) -> bool:
    """Whether the kernels are chosen for a pass: on sm_90, of what they take, unless most of a tile were padding."""
    return architecture_of(other) == 90 and fills_tiles(operation, shape) and takes(operation, shape, read, other)


def fills_tiles(operation: str, shape: ConvShape) -> bool:
    """Of groups: whether they take fewer products, zeros included, than the kernels of sm_80, whose tiles are of 64×64
    or more, and steps of 32 terms, but whose products are slower."""
    if 0 in shape[:9]:
        return False
    if shape.groups == 1:
        return min(shape.K, shape.C) >= MIN_EXTENT
    found = bundles(operation, shape)
    rows, terms, taps = found.rows // found.size, found.channels // found.size, shape.R * shape.S
    step = 32 if operation != "backward_weight" else 64
    other = -(-rows // 64) * 64 * -(-terms * taps // step) * step
    return found.padded(128 if operation == "backward_weight" else 64) * taps <= MMA_SYNC * other


def plane_bytes(operation: str, shape: ConvShape) -> int:
    """Of one plane of a pass's float32 sums."""
    if operation == "backward_weight":
        found = bundles(operation, shape)
        return 4 * shape.K * shape.R * shape.S * -(-found.channels // SLAB) * SLAB
    return 4 * math.prod(shape.y if operation == "forward" else shape.x)


def weights_workspace(shape: ConvShape, multiprocessors: int, limit: int | None) -> int:
    """Bytes of backward_weight's planes under a limit; 0 where the kernels are not chosen, or not one plane fits."""
    if not fills_tiles("backward_weight", shape):
        return 0
    most = most_weight_planes(shape, limit)
    return plane_bytes("backward_weight", shape) * _weights_plan(shape, multiprocessors, most)[1] if most else 0


def most_weight_planes(shape: ConvShape, limit: int | None) -> int:
    """How many planes of backward_weight a limit leaves room for."""
    return MOST_PLANES if limit is None else min(MOST_PLANES, limit // plane_bytes("backward_weight", shape))


def takes(operation: str, shape: ConvShape, read: Any, other: Any) -> bool:
    """Whether the kernels compute a pass ("forward", "backward_input", "backward_weight").

    - read: the images that windows walk over, (N,C,H,W) by any strides: x, but gy for backward_input
    - other: y, gx, or gy for backward_weight
    """
    if read.dtype.name not in TYPES or other.dtype.name != read.dtype.name or 0 in shape[:9]:
        return False
    if max(shape.N * shape.P * shape.Q, shape.N * shape.H * shape.W) >= 2**31 - 512:
        return False
    found = bundles(operation, shape)
    if operation == "backward_input" and shape.stride != (1, 1):
        if max(shape.stride) > conv_phases.MAX_STRIDE or found.rows % UNIT:
            return False
    if not _is_channels_last(other) or not _is_channels_last(read):
        return False
    try:
        _images(operation, shape, read, 1)
    except ValueError:
        return False
    channels = shape.K if operation == "backward_weight" else found.channels  # of gy's map, or the packed weights'
    return channels % 8 == 0 and devices.address(other) % 16 == 0


def _is_channels_last(array: Any) -> bool:
    """Whether the array's elements lie in the order (N,H,W,C), all of them side by side."""
    return bool(array.transpose(0, 2, 3, 1).flags.c_contiguous)


def _images(operation: str, shape: ConvShape, array: Any, pixels: int) -> tensor_map.TensorMap:
    """The map of patches of `pixels` pixels of the output; raises ValueError where there is none."""
    padding = tuple((size, size) for size in shape.padding)
    common: dict[str, Any] = dict(filter=(shape.R, shape.S), padding=padding, dilation=shape.dilation, channels=SLAB,
                                  pixels=pixels, swizzle=LINE_BYTES)  # fmt: skip
    images = array.transpose(0, 2, 3, 1)
    if operation == "backward_input" and shape.stride != (1, 1):
        return _phase_images(conv_phases.phases(shape), images, pixels)
    if operation == "backward_input":
        return tensor_map.im2col_backward(images, size=(shape.H, shape.W), **common)
    return tensor_map.im2col(images, stride=shape.stride, **common)


def _phase_images(found: Phases, gradients: Any, pixels: int) -> tensor_map.TensorMap:
    return tensor_map.im2col_window(gradients, first=found.first, size=found.size, reach=found.reach, channels=SLAB,
                                    pixels=pixels, swizzle=LINE_BYTES)  # fmt: skip


def _walk(operation: str, shape: ConvShape, channels: int) -> tuple[Any, ...]:
    """The struct ImageWalk of kernels/conv2d_hopper.cuh; channels: of a bundle."""
    stride, height, width = shape.stride, shape.P, shape.Q
    first = tuple(-padding for padding in shape.padding)
    if operation == "backward_input":
        height, width = shape.H, shape.W
        reach = ((size - 1) * step for size, step in zip((shape.R, shape.S), shape.dilation, strict=True))
        first = tuple(padding - far for padding, far in zip(shape.padding, reach, strict=True))
    sizes = shape.R * shape.S, shape.S, -(-channels // SLAB), channels
    return *sizes, *stride, *first, *shape.dilation, divisor(height * width), divisor(width)


class Finish(NamedTuple):
    """What is done with forward's sums."""

    bias: Any = None
    residual: Any = None
    relu: bool = False


PLAIN = Finish()


def forward(
    x: Any, weight: Any, y: Any, shape: ConvShape, multiprocessors: int, finish: Finish = PLAIN,
    planes: int = MOST_PLANES, form: Form = ANY,
) -> None:  # fmt: skip
    """y (N,K,P,Q), overwritten with the convolution + bias + residual, then ReLU.

    y and residual are channels-last; weight (K,C/groups,R,S) is contiguous and of x's dtype or float32, bias (K,) is
    float32; planes: of split sums, at most.
    """
    packed = packed_weights("forward", weight, shape, x)
    _multiply("forward", x, packed, y, shape, multiprocessors, finish, planes, form)


def backward_input(
    gy: Any, weight: Any, gx: Any, shape: ConvShape, multiprocessors: int, planes: int = MOST_PLANES, form: Form = ANY
) -> None:
    """gx (N,C,H,W), channels-last, overwritten; weight and planes as in `forward`."""
    packed = packed_weights("backward_input", weight, shape, gy)
    if shape.stride == (1, 1):
        _multiply("backward_input", gy, packed, gx, shape, multiprocessors, PLAIN, planes, form)
    else:
        _multiply_phases(gy, packed, gx, shape, multiprocessors, planes, form)


def packed_weights(operation: str, weight: Any, shape: ConvShape, like: Any) -> Any:
    """The weights (rows, taps, channels of a bundle), packed now or before."""
    form = "hopper", operation, like.dtype, *shape[9:]
    return packing.packed(weight, form, lambda: _pack(operation, weight, shape, like))


def _pack(operation: str, weight: Any, shape: ConvShape, like: Any) -> Any:
    found, taps = bundles(operation, shape), shape.R * shape.S
    packed = devices.empty((found.batches * found.rows, taps, found.channels), like.dtype, like)
    filters, channels = shape.K // shape.groups, shape.C // shape.groups
    own, strides = (filters, channels), (channels * taps, taps)
    turned = operation == "backward_input" and shape.stride == (1, 1)
    if operation == "backward_input":
        own, strides = own[::-1], strides[::-1]
    order = found.channels, taps, int(turned), *own, found.size, packed.size, filters * channels * taps, *strides
    launch(f"conv2d_hopper_pack_{weight.dtype.name}_{packed.dtype.name}", grid_for(packed.size), weight, packed, order)
    return packed


class _Plan(NamedTuple):
    tile: HopperTile
    splits: int
    blocks: int


def _plan(
    rows: int, columns: int, terms: int, batch: int, multiprocessors: int, planes: int, form: Form, pairs: bool = False
) -> _Plan:
    """By the estimate of matrix products, where `form` does not say it; split sums have one tile, and one for pairs."""
    sizes = rows, columns, terms, batch, multiprocessors, SLAB, False, planes
    tile, splits = gemm_hopper.choose(*sizes, least_terms=SPLIT_TERMS, pairs=pairs)
    splits = form.splits or splits
    if columns <= NARROW.N and splits == 1:
        tile = NARROW
    if form.tile:
        tile = _tile(form.tile)
    return _Plan(tile, splits, form.blocks or multiprocessors)


def _tile(name: str) -> HopperTile:
    return next(one for one in (*TILES, *PAIRS, NARROW) if one.name == name)


def _multiply(
    operation: str, images: Any, packed: Any, out: Any, shape: ConvShape, multiprocessors: int, finish: Finish,
    planes: int, form: Form,
) -> None:  # fmt: skip
    found, filters = bundles(operation, shape), packed.shape[0]
    rows, terms = out.size // filters, shape.R * shape.S * -(-found.channels // SLAB) * SLAB
    if found.batches > 1 and finish.bias is not None:
        planes = 1  # the kernel that adds planes knows one bias for all batches
    tile, count, blocks = _plan(rows, found.rows, terms, found.batches, multiprocessors, planes, form, pairs=True)
    split = gemm_hopper.split_terms(terms, count, SLAB)
    splits = -(-terms // split)
    c = out.transpose(0, 2, 3, 1).reshape(rows, found.batches, found.rows).transpose(1, 0, 2)
    target = c if splits == 1 else devices.empty((splits * found.batches, rows, found.rows), "float32", out)
    addend = None if finish.residual is None else Strided(finish.residual)
    x_map = _images(operation, shape, images, tile.M)
    w_map = tensor_map.tiled(packed, (SLAB, 1, tile.N // tile.blocks), LINE_BYTES)
    mapped = gemm_hopper.maps(target, 2)
    sizes = rows, found.rows, terms, splits, split, 0
    relu = int(finish.relu)
    last = finish.bias, addend
    kind = out.dtype.name if splits == 1 else f"{out.dtype.name}_planes"
    tiles = found.batches * splits * tile.tiles(rows, found.rows)
    launch(f"conv2d_hopper_images_{kind}_{tile.name}", tile.grid(tiles, blocks), x_map, w_map,
           gemm_hopper.store_map(target) if mapped else w_map, None if mapped else Strided(target),
           *(last if splits == 1 else (None, None)),
           _product(sizes, relu if splits == 1 else 0, target, found.batches), _walk(operation, shape, found.channels),
           tiles, found.batches, int(mapped), shared_bytes=tile.shared_bytes)  # fmt: skip
    if splits > 1:
        launch(f"gemm_hopper_add_{out.dtype.name}", grid_for(out.size), target, Strided(c), *last,
               _product(sizes, relu, c, found.batches), out.size)  # fmt: skip


def _product(sizes: tuple[int, ...], relu: int, c: Any, batches: int) -> tuple[int, ...]:
    """The struct GemmShape of kernels/gemm.cuh for c (batches or planes of them, rows, columns)."""
    batch, row = (stride // c.itemsize for stride in c.strides[:2])
    return *sizes, relu, 0, 0, 0, 0, row, batch, sizes[0] * sizes[1] * batches


def _multiply_phases(
    gy: Any, packed: Any, gx: Any, shape: ConvShape, multiprocessors: int, planes: int, form: Form
) -> None:
    groups, found = bundles("backward_input", shape), conv_phases.phases(shape)
    slabs, phases = -(-groups.channels // SLAB), len(found.each)
    rows, terms = shape.N * math.prod(found.size), -(-found.taps * slabs // phases) * SLAB
    batches = phases * groups.batches
    tile, splits, blocks = _plan(rows, groups.rows, terms, batches, multiprocessors, planes, form)
    c = gx.transpose(0, 2, 3, 1).reshape(1, -1, shape.C)
    target = c if splits == 1 else devices.empty((splits, *c.shape[1:]), "float32", gx)
    kind = gx.dtype.name if splits == 1 else f"{gx.dtype.name}_planes"
    product = rows, groups.rows, 0, splits, 0, 0, 0, 0, 0, 0, 0, shape.C, 0, gx.size
    walk = groups.batches, groups.channels, shape.S, slabs, *found.walk(shape)
    tiles = batches * splits * -(-rows // tile.M) * -(-groups.rows // tile.N)
    launch(f"conv2d_hopper_phases_{kind}_{tile.name}", min(tiles, blocks),
           _phase_images(found, gy.transpose(0, 2, 3, 1), tile.M),
           tensor_map.tiled(packed, (SLAB, 1, tile.N), LINE_BYTES), target, product, walk, tiles,
           shared_bytes=tile.shared_bytes)  # fmt: skip
    if splits > 1:
        sizes = c.shape[1], shape.C, 0, splits, 0, 0
        launch(f"gemm_hopper_add_{gx.dtype.name}", grid_for(gx.size), target, Strided(c), None, None,
               _product(sizes, 0, c, 1), gx.size)  # fmt: skip


def backward_weight(
    x: Any, gy: Any, gw: Any, shape: ConvShape, multiprocessors: int, planes: int = MOST_PLANES, form: Form = ANY
) -> None:
    """gw (K,C/groups,R,S), contiguous, overwritten, of the images' type or float32; planes: at most, of split sums."""
    found, taps, pixels = bundles("backward_weight", shape), shape.R * shape.S, shape.N * shape.P * shape.Q
    pitch = -(-found.channels // SLAB) * SLAB
    columns = taps * pitch
    tile, splits, terms = _weights_plan(shape, multiprocessors, planes)
    tile = _tile(form.tile) if form.tile else tile
    sums = devices.empty((splits * found.batches, found.rows, columns), "float32", gw)
    gradients = gy.transpose(0, 2, 3, 1).reshape(1, pixels, shape.K)
    g_map = tensor_map.tiled(gradients, (SLAB, SLAB, 1), LINE_BYTES)
    x_map = _images("backward_weight", shape, x, SLAB)
    product = _product((found.rows, columns, pixels, splits, terms, 0), 0, sums, found.batches)
    tiles = found.batches * tile.tiles(found.rows, columns) * splits
    launch(f"conv2d_hopper_weights_{x.dtype.name}_{tile.name}", tile.grid(tiles, multiprocessors), g_map, x_map,
           gemm_hopper.store_map(sums), product, _walk("backward_weight", shape, found.channels), tiles, found.batches,
           shared_bytes=tile.shared_bytes)  # fmt: skip
    sizes = splits, shape.C // shape.groups, pitch, taps, shape.K // shape.groups, found.size, gw.size
    launch(f"conv2d_hopper_add_{x.dtype.name}_{gw.dtype.name}", grid_for(gw.size), sums, gw, sizes)


def _weights_plan(shape: ConvShape, multiprocessors: int, planes: int) -> tuple[HopperTile, int, int]:
    """(tile, splits, pixels of each split but the last)."""
    found, pixels = bundles("backward_weight", shape), shape.N * shape.P * shape.Q
    columns = shape.R * shape.S * -(-found.channels // SLAB) * SLAB
    batches = found.batches
    sizes = found.rows, columns, pixels, batches, multiprocessors, SLAB, True, planes
    tile, splits = gemm_hopper.choose(*sizes, pairs=True)
    terms = gemm_hopper.split_terms(pixels, splits, SLAB)
    return tile, -(-pixels // terms), terms
