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
from gpucnn.ops import gemm_hopper, packing
from gpucnn.ops.gemm_hopper import LINE_BYTES, TILES
from gpucnn.ops.shapes import ConvShape

SLAB = 64  # channels of a step, and pixels of a step of the weight gradient
MIN_EXTENT = 32  # filters and channels
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
    if operation == "backward_input" and shape.stride != (1, 1):
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
    tile: str | None = None,
) -> None:  # fmt: skip
    """y (N,K,P,Q), overwritten with the convolution + bias + residual, then ReLU if `relu`.

    y and residual are channels-last; weight (K,C,R,S) is contiguous and of x's dtype or float32, bias (K,) is float32.
    """
    packed = _packed("forward", weight, shape, x)
    _multiply("forward", x, packed, bias, residual, y, shape, relu, multiprocessors, tile)


def backward_input(
    gy: Any, weight: Any, gx: Any, shape: ConvShape, multiprocessors: int, tile: str | None = None
) -> None:
    """gx (N,C,H,W), channels-last, overwritten, of a convolution of stride 1; weight as in `forward`."""
    packed = _packed("backward_input", weight, shape, gy)
    _multiply("backward_input", gy, packed, None, None, gx, shape, False, multiprocessors, tile)


def _packed(operation: str, weight: Any, shape: ConvShape, like: Any) -> Any:
    """What `_pack` returns, or returned before."""
    form = "hopper", operation, like.dtype, *shape[9:]
    return packing.packed(weight, form, lambda: _pack(operation, weight, shape, like))


def _pack(operation: str, weight: Any, shape: ConvShape, like: Any) -> Any:
    """The weights (rows, taps, channels); those of backward_input turned, by stride 1."""
    taps, turned = shape.R * shape.S, operation == "backward_input"
    rows, channels, strides = shape.K, shape.C, (shape.C * taps, taps)
    if turned:
        rows, channels, strides = channels, rows, strides[::-1]
    packed = devices.empty((rows, taps, channels), like.dtype, like)
    name = f"conv2d_hopper_pack_{weight.dtype.name}_{packed.dtype.name}"
    launch(name, grid_for(packed.size), weight, packed, channels, taps, *strides, int(turned), packed.size)
    return packed


def _multiply(
    operation: str, images: Any, packed: Any, bias: Any, residual: Any, out: Any, shape: ConvShape, relu: bool,
    multiprocessors: int, form: str | None,
) -> None:  # fmt: skip
    filters, taps, channels = packed.shape
    rows = out.size // filters
    terms = taps * -(-channels // SLAB) * SLAB
    tile, _ = gemm_hopper.choose(rows, filters, terms, 1, multiprocessors, SLAB, most_splits=1)
    tile = next(one for one in TILES if one.name == (form or tile.name))
    c = out.transpose(0, 2, 3, 1).reshape(1, rows, filters)
    addend = None if residual is None else residual.transpose(0, 2, 3, 1)
    x_map = _images(operation, shape, images, tile.M)
    w_map = tensor_map.tiled(packed, (SLAB, 1, tile.N), LINE_BYTES)
    mapped = gemm_hopper.maps(c, 2)
    c_map = gemm_hopper.store_map(c) if mapped else w_map
    product = rows, filters, terms, 1, terms, 0, int(relu), 0, 0, 0, 0, filters, 0, 0
    tiles = -(-rows // tile.M) * -(-filters // tile.N)
    launch(f"conv2d_hopper_images_{out.dtype.name}_{tile.name}", min(tiles, multiprocessors), x_map, w_map, c_map,
           None if mapped else c, bias, addend, product, _walk(operation, shape, channels), tiles, int(mapped),
           shared_bytes=tile.shared_bytes)  # fmt: skip


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
