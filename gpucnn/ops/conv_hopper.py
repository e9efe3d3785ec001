"""Convolutions on the tensor cores of sm_90 (kernels/conv2d_hopper.cuh): which they are, and how they are launched.

Images are channels-last, of bfloat16 or float16, with a multiple of 8 channels, in one group. Patches are never stored:
the copy engine reads them where they are (gpucnn.launch.tensor_map.im2col). `takes` says what a map can describe; the
rest is another kernel's.
"""

from __future__ import annotations

import math
from typing import Any

from gpucnn import device as devices
from gpucnn.launch import architecture_of, grid_for, launch, tensor_map
from gpucnn.launch.division import divisor
from gpucnn.ops import conv_phases, gemm_hopper
from gpucnn.ops.conv_phases import Phases
from gpucnn.ops.gemm_hopper import ANY, LINE_BYTES, TILES, Form, HopperTile
from gpucnn.ops.shapes import ConvShape

SLAB = 64  # channels of a step, and pixels of a step of the weight gradient
MIN_EXTENT = 32  # filters and channels
UNIT = 8  # channels that a thread stores at a time
TYPES = ("bfloat16", "float16")


def suits(operation: str, shape: ConvShape, read: Any, other: Any) -> bool:
    """Whether the kernels are chosen for a pass: on sm_90, of what they take, unless most of a tile were padding."""
    extents = {
        "forward": (shape.K, shape.C),
        "backward_input": (shape.C, shape.K),
        "backward_weight": (shape.K, shape.C),
    }[operation]
    return min(extents) >= MIN_EXTENT and architecture_of(other) == 90 and takes(operation, shape, read, other)


def plane_bytes(shape: ConvShape) -> int:
    """Of one plane of the weight gradient's sums."""
    return 4 * shape.K * shape.R * shape.S * -(-shape.C // SLAB) * SLAB


def takes(operation: str, shape: ConvShape, read: Any, other: Any) -> bool:
    """Whether the kernels compute a pass ("forward", "backward_input", "backward_weight").

    - read: the images that windows walk over, (N,C,H,W) by any strides: x, but gy for backward_input
    - other: y, gx, or gy for backward_weight
    """
    if read.dtype.name not in TYPES or other.dtype.name != read.dtype.name or shape.groups != 1 or 0 in shape[:9]:
        return False
    if max(shape.N * shape.P * shape.Q, shape.N * shape.H * shape.W) >= 2**31 - 512:
        return False
    strided = operation == "backward_input" and shape.stride != (1, 1)
    if strided and (max(shape.stride) > conv_phases.MAX_STRIDE or shape.C % UNIT):
        return False
    if not _is_channels_last(other) or not _is_channels_last(read):
        return False
    channels = shape.C if operation == "forward" else shape.K  # of what the terms are made of, or gy's
    try:
        _images(operation, shape, read, 1)
    except ValueError:
        return False
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


def _walk(operation: str, shape: ConvShape, channels: int) -> tuple[Any, ...]:
    """The struct ImageWalk of kernels/conv2d_hopper.cuh."""
    stride, height, width = shape.stride, shape.P, shape.Q
    first = tuple(-padding for padding in shape.padding)
    if operation == "backward_input":
        height, width = shape.H, shape.W
        reach = ((size - 1) * step for size, step in zip((shape.R, shape.S), shape.dilation, strict=True))
        first = tuple(padding - far for padding, far in zip(shape.padding, reach, strict=True))
    divisors = divisor(height * width), divisor(width)
    return shape.R * shape.S, shape.S, -(-channels // SLAB), *stride, *first, *shape.dilation, *divisors


def forward(
    x: Any, weight: Any, bias: Any, residual: Any, y: Any, shape: ConvShape, relu: bool, multiprocessors: int,
    form: Form = ANY,
) -> None:  # fmt: skip
    """y (N,K,P,Q), overwritten with the convolution + bias + residual, then ReLU if `relu`.

    y and residual are channels-last; weight (K,C,R,S) is contiguous and of x's dtype or float32, bias (K,) is float32.
    """
    packed = devices.empty((shape.K, shape.R * shape.S, shape.C), x.dtype, x)
    _pack(weight, packed, (shape.C * shape.R * shape.S, shape.R * shape.S), False)
    _multiply("forward", x, packed, bias, residual, y, shape, relu, multiprocessors, form)


def backward_input(gy: Any, weight: Any, gx: Any, shape: ConvShape, multiprocessors: int, form: Form = ANY) -> None:
    """gx (N,C,H,W), channels-last, overwritten; weight as in `forward`."""
    strided = shape.stride != (1, 1)
    packed = devices.empty((shape.C, shape.R * shape.S, shape.K), gy.dtype, gy)
    _pack(weight, packed, (shape.R * shape.S, shape.C * shape.R * shape.S), not strided)
    if strided:
        _multiply_phases(gy, packed, gx, shape, multiprocessors, form)
    else:
        _multiply("backward_input", gy, packed, None, None, gx, shape, False, multiprocessors, form)


def _pack(weight: Any, packed: Any, strides: tuple[int, int], turned: bool) -> None:
    name = f"conv2d_hopper_pack_{weight.dtype.name}_{packed.dtype.name}"
    _, taps, channels = packed.shape
    launch(name, grid_for(packed.size), weight, packed, channels, taps, *strides, int(turned), packed.size)


def _multiply(
    operation: str, images: Any, packed: Any, bias: Any, residual: Any, out: Any, shape: ConvShape, relu: bool,
    multiprocessors: int, form: Form,
) -> None:  # fmt: skip
    filters, taps, channels = packed.shape
    rows = out.size // filters
    terms = taps * -(-channels // SLAB) * SLAB
    chosen, _ = gemm_hopper.choose(rows, filters, terms, 1, multiprocessors, SLAB, most_splits=1)
    tile = _tile(form.tile or chosen.name)
    c = out.transpose(0, 2, 3, 1).reshape(1, rows, filters)
    addend = None if residual is None else residual.transpose(0, 2, 3, 1)
    x_map = _images(operation, shape, images, tile.M)
    w_map = tensor_map.tiled(packed, (SLAB, 1, tile.N), LINE_BYTES)
    mapped = gemm_hopper.maps(c, 2)
    c_map = gemm_hopper.store_map(c) if mapped else w_map
    product = rows, filters, terms, 1, terms, 0, int(relu), 0, 0, 0, 0, filters, 0, 0
    tiles = -(-rows // tile.M) * -(-filters // tile.N)
    launch(f"conv2d_hopper_images_{out.dtype.name}_{tile.name}", min(tiles, form.blocks or multiprocessors), x_map,
           w_map, c_map, None if mapped else c, bias, addend, product, _walk(operation, shape, channels), tiles,
           int(mapped), shared_bytes=tile.shared_bytes)  # fmt: skip


def _multiply_phases(gy: Any, packed: Any, gx: Any, shape: ConvShape, multiprocessors: int, form: Form) -> None:
    found = conv_phases.phases(shape)
    rows = shape.N * math.prod(found.size)
    steps = found.taps * -(-shape.K // SLAB)
    count = len(found.each)
    chosen, _ = gemm_hopper.choose(
        rows, shape.C, -(-steps // count) * SLAB, count, multiprocessors, SLAB, most_splits=1
    )
    tile = _tile(form.tile or chosen.name)
    gradients = _phase_images(found, gy.transpose(0, 2, 3, 1), tile.M)
    weights = tensor_map.tiled(packed, (SLAB, 1, tile.N), LINE_BYTES)
    product = rows, shape.C, 0, 1, 0, 0, 0, 0, 0, 0, 0, shape.C, 0, 0
    walk = 1, 0, shape.S, -(-shape.K // SLAB), *found.walk(shape)
    tiles = count * -(-rows // tile.M) * -(-shape.C // tile.N)
    launch(f"conv2d_hopper_phases_{gx.dtype.name}_{tile.name}", min(tiles, form.blocks or multiprocessors), gradients,
           weights, gx.transpose(0, 2, 3, 1), product, walk, tiles, shared_bytes=tile.shared_bytes)  # fmt: skip


def _phase_images(found: Phases, gradients: Any, pixels: int) -> tensor_map.TensorMap:
    return tensor_map.im2col_window(gradients, first=found.first, size=found.size, reach=found.reach, channels=SLAB,
                                    pixels=pixels, swizzle=LINE_BYTES)  # fmt: skip


def _tile(name: str) -> HopperTile:
    return next(one for one in TILES if one.name == name)


def backward_weight(x: Any, gy: Any, gw: Any, shape: ConvShape, multiprocessors: int, planes: int = 64) -> None:
    """gw (K,C,R,S), contiguous, overwritten, of the images' type or float32; at most so many planes of split sums."""
    taps, slabs, pixels = shape.R * shape.S, -(-shape.C // SLAB), shape.N * shape.P * shape.Q
    columns = taps * slabs * SLAB
    tile, splits = gemm_hopper.choose(shape.K, columns, pixels, 1, multiprocessors, SLAB, True, planes)
    terms = gemm_hopper.split_terms(pixels, splits, SLAB)
    splits = -(-pixels // terms)
    sums = devices.empty((splits, shape.K, columns), "float32", gw)
    gradients = gy.transpose(0, 2, 3, 1).reshape(1, pixels, shape.K)
    g_map = tensor_map.tiled(gradients, (SLAB, SLAB, 1), LINE_BYTES)
    x_map = _images("backward_weight", shape, x, SLAB)
    c_map = gemm_hopper.store_map(sums)
    product = shape.K, columns, pixels, splits, terms, 0, 0, 0, 0, 0, 0, columns, 0, shape.K * columns
    tiles = -(-shape.K // tile.M) * -(-columns // tile.N) * splits
    launch(f"conv2d_hopper_weights_{x.dtype.name}_{tile.name}", min(tiles, multiprocessors), g_map, x_map, c_map,
           product, _walk("backward_weight", shape, shape.C), tiles, shared_bytes=tile.shared_bytes)  # fmt: skip
    sizes = splits, shape.C, slabs * SLAB, taps, math.prod(shape.weight)
    launch(f"conv2d_hopper_add_{x.dtype.name}_{gw.dtype.name}", grid_for(gw.size), sums, gw, *sizes)
