"""Float32 convolutions with float32's errors on the tensor cores of sm_90: float32_tensor's forward and backward_input.

Images and weights are split into three bfloat16 parts, which also brings channels together, whatever order the images
have in memory; that takes 6 bytes a value of workspace. Then one kernel (kernels/conv2d_float32_hopper.cu) multiplies
patches, which are never stored, and writes NCHW. What it is not estimated to be faster for, or what the limit of
workspace has no room for, stays with implicit_gemm's other kernels.
"""

from __future__ import annotations

from typing import Any

from gpucnn import device as devices
from gpucnn.launch import architecture_of, launch, tensor_map
from gpucnn.launch.division import divisor
from gpucnn.ops import gemm_hopper
from gpucnn.ops.gemm_hopper_float32 import (
    LIMIT,
    PARTS,
    ROW_BYTES,
    SHARED_BYTES,
    STEP,
    STEP_CLOCKS,
    TILE,
    VALUE_BYTES,
    split,
)
from gpucnn.ops.shapes import ConvShape

MIN_CHANNELS = 32  # of the images that are read: a step's
UNIT = 8  # channels of a part are padded to a multiple of it


def suits(
    operation: str, shape: ConvShape, out: Any, multiprocessors: int, other_clocks: int, limit: int | None
) -> bool:
    """Whether the kernel is chosen for "forward" or "backward_input" in float32_tensor: on sm_90, of what it takes,
    within the limit of workspace, and estimated to take fewer than `other_clocks` with splitting."""
    if architecture_of(out) != 90 or not takes(operation, shape) or _sizes(operation, shape)[1][0] < MIN_CHANNELS:
        return False
    room = LIMIT if limit is None else min(limit, LIMIT)
    return workspace(operation, shape) <= room and clocks(operation, shape, multiprocessors) < other_clocks


def takes(operation: str, shape: ConvShape) -> bool:
    """Whether the kernel computes a pass: one group, nothing empty, a stride of 1 in backward_input, what maps have."""
    if shape.groups != 1 or 0 in shape[:9] or (operation == "backward_input" and shape.stride != (1, 1)):
        return False
    outputs, _ = _sizes(operation, shape)
    if outputs[0] * outputs[1] * shape.N >= 2**31:
        return False
    return all(_is_walked(operation, shape, axis) for axis in (0, 1))


def _is_walked(operation: str, shape: ConvShape, axis: int) -> bool:
    """Whether a map of the kind im2col can have the pass's windows along h or w."""
    reach = ((shape.R, shape.S)[axis] - 1) * shape.dilation[axis]
    padding, size, outputs = shape.padding[axis], (shape.H, shape.W)[axis], (shape.P, shape.Q)[axis]
    first, after = -padding, (outputs - 1) * shape.stride[axis] + 1 - size
    if operation == "backward_input":
        first, after = padding - reach, size - outputs
    low, high = tensor_map.CORNERS[4]
    return reach < 255 and low <= first <= high and low <= first + after <= high


def _sizes(operation: str, shape: ConvShape) -> tuple[tuple[int, int], tuple[int, int]]:
    """(channels, pixels of an image) of the pass's outputs, and of the images that it reads."""
    x, y = (shape.C, shape.H * shape.W), (shape.K, shape.P * shape.Q)
    return (y, x) if operation == "forward" else (x, y)


def workspace(operation: str, shape: ConvShape) -> int:
    """Bytes of the parts of images and weights."""
    (filters, _), (channels, pixels) = _sizes(operation, shape)
    return 2 * PARTS * _pitch(channels) * (shape.N * pixels + filters * shape.R * shape.S)


def _pitch(channels: int) -> int:
    return -(-channels // UNIT) * UNIT


def clocks(operation: str, shape: ConvShape, multiprocessors: int) -> int:
    """An estimate for the busiest multiprocessor, with splitting."""
    (filters, outputs), (channels, pixels) = _sizes(operation, shape)
    tiles = shape.N * -(-filters // TILE) * -(-outputs // TILE)
    steps = shape.R * shape.S * -(-channels // STEP)
    values = channels * (shape.N * pixels + filters * shape.R * shape.S)
    moved = VALUE_BYTES * values // (multiprocessors * gemm_hopper.BYTES_PER_CLOCK)
    product = -(-tiles // multiprocessors) * (steps * STEP_CLOCKS + gemm_hopper.TILE_CLOCKS)
    return product + moved + 2 * gemm_hopper.LAUNCH_CLOCKS


def _images(operation: str, shape: ConvShape, parts: Any) -> tensor_map.TensorMap:
    """The map of patches of 128 pixels; raises ValueError where there is none."""
    padding = tuple((size, size) for size in shape.padding)
    common: dict[str, Any] = dict(filter=(shape.R, shape.S), padding=padding, dilation=shape.dilation, channels=STEP,
                                  pixels=TILE, swizzle=ROW_BYTES)  # fmt: skip
    if operation == "backward_input":
        return tensor_map.im2col_backward(parts, size=(shape.H, shape.W), **common)
    return tensor_map.im2col(parts, stride=shape.stride, **common)


def forward(x: Any, weight: Any, bias: Any, y: Any, shape: ConvShape, relu: bool, multiprocessors: int) -> None:
    """y (N,K,P,Q), contiguous, overwritten with the convolution + bias, then ReLU if `relu`; x has any strides."""
    filters = weight.reshape(shape.K, shape.C, shape.R * shape.S).swapaxes(1, 2)
    _multiply("forward", x, filters, bias, y, shape, relu, multiprocessors)


def backward_input(gy: Any, weight: Any, gx: Any, shape: ConvShape, multiprocessors: int) -> None:
    """gx (N,C,H,W), contiguous, overwritten, of a convolution of stride 1; gy has any strides."""
    filters = weight.reshape(shape.K, shape.C, shape.R * shape.S).transpose(1, 2, 0)
    _multiply("backward_input", gy, filters, None, gx, shape, False, multiprocessors)


def _multiply(
    operation: str, images: Any, filters: Any, bias: Any, out: Any, shape: ConvShape, relu: bool, multiprocessors: int
) -> None:
    """`filters` (filter, tap, channel) have any strides, and taps in their order."""
    (rows, columns), (channels, _) = _sizes(operation, shape)
    image_parts = split_images(images)
    weight_parts = split(filters)
    image_map = _images(operation, shape, image_parts)
    weight_map = tensor_map.tiled(weight_parts, (STEP, 1, TILE, PARTS), ROW_BYTES)
    c = out.reshape(shape.N, rows, columns)
    mapped = gemm_hopper.maps(c, 2)
    terms = shape.R * shape.S * -(-channels // STEP) * STEP
    product = rows, columns, terms, 1, terms, 1, int(relu), 0, 0, 0, 0, columns, rows * columns, 0
    tiles = shape.N * -(-rows // TILE) * -(-columns // TILE)
    launch("conv2d_hopper_float32_tensor_128x128", min(tiles, multiprocessors), weight_map, image_map,
           gemm_hopper.store_map(c) if mapped else weight_map, None if mapped else c, bias, product,
           _walk(operation, shape), tiles, int(mapped), shared_bytes=SHARED_BYTES)  # fmt: skip


def split_images(images: Any) -> Any:
    """The parts (3·N, H, W, channels) of images (N,C,H,W) of any strides."""
    N, C, H, W = images.shape
    item = images.itemsize
    rows_follow = images.strides[2] == W * images.strides[3] and item in (images.strides[1], images.strides[3])
    if not rows_follow:
        images = devices.contiguous(images)
    by_channels = images.strides[1] == item
    matrices = images.transpose(0, 2, 3, 1) if by_channels else images.reshape(N, C, H * W).swapaxes(1, 2)
    parts = split(matrices.reshape(N, H * W, C) if by_channels else matrices)
    return parts.reshape(PARTS * N, H, W, parts.shape[3])


def _walk(operation: str, shape: ConvShape) -> tuple[Any, ...]:
    """The struct PartWalk of kernels/conv2d_float32_hopper.cu."""
    width, first = shape.Q, tuple(-padding for padding in shape.padding)
    if operation == "backward_input":
        width = shape.W
        reach = ((size - 1) * step for size, step in zip((shape.R, shape.S), shape.dilation, strict=True))
        first = tuple(padding - far for padding, far in zip(shape.padding, reach, strict=True))
    turned = int(operation == "backward_input")
    taps = shape.R * shape.S
    return shape.N, taps, shape.S, turned, *shape.stride, *first, *shape.dilation, divisor(width)
