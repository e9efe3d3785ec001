"""Direct convolution on devices that run kernels: float32, three passes, every shape.

Three ways, chosen by integers alone:

- "depthwise": one channel a filter, 3×3, 5×5 or 7×7 with "same" padding; limited by memory, which it reads once
- "first_layer": up to 4 channels, so that a matrix product would be too short; only the forward pass has a kernel of
  its own: backward_weight's general tiles hold 64 filters, so gy is read once for every 32 rows (c,r,s) of patches
- "general": everything else
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import grid_for, launch
from gpucnn.ops.shapes import ConvShape

PIXELS = 512  # of a block of the general kernels
SPLIT_BLOCKS = 1024  # of backward_weight: enough for any GPU
FIRST_LAYER_KERNELS = ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2), (11, 1), (11, 4))  # (width, stride)
DEPTHWISE_SIZES = (3, 5, 7)
DEPTHWISE_THREADS = 128
DEPTHWISE_CHAIN = 64  # items of 16 pixels that a thread of backward_weight sums one after the other
SHARED_BYTES = 48 << 10


class Split(NamedTuple):
    """The first stage of backward_weight: `blocks` tiles of weights for each of `ranges` of `size` items."""

    kernel: str
    blocks: int
    ranges: int
    size: int


class Grid(NamedTuple):
    """A general kernel, its blocks, and how many of them, of one tile of filters, have the pixels of a phase."""

    kernel: str
    blocks: int
    pixel_tiles: int


def supports(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """None, or the reason why not."""
    if device == "cpu":
        return "its kernels run on cuda or sim, not on the device cpu"
    if dtype != np.float32:
        return f"its kernels compute in float32, not {dtype}"
    N, C, H, W, K, R, S, P, Q = shape[:9]
    extents = {
        "an image of x": C * H * W, "an image of y": K * P * Q, "the weights": K * (C // shape.groups) * R * S,
        "an axis of the padded x": 2 * max(size + 2 * p for size, p in zip((H, W), shape.padding, strict=True)),
        "the number of images": N,
    }  # fmt: skip
    return next((f"{name} passes 2^31 elements" for name, size in extents.items() if size >= 2**31), None)


def path(operation: str, shape: ConvShape) -> str:
    """Which way a pass goes: "depthwise", "first_layer" or "general"."""
    if _is_depthwise(shape) and not _is_depthwise_exception(operation, shape):
        return "depthwise"
    if operation == "conv2d_forward" and _is_first_layer(shape):
        return "first_layer"
    return "general"


def wins(operation: str, shape: ConvShape) -> bool:
    """Whether direct is the choice where kernels run.

    Depthwise convolution is limited by memory, and a matrix product would multiply mostly by zeros. Groups of less than
    16 channels, and first layers, give sums and tiles too short for a matrix product; but of backward_input it is the
    input's channels that would be few, and a first layer has none.
    """
    if shape.groups > 1:
        return shape.C // shape.groups < 16
    if operation == "conv2d_forward":
        return path(operation, shape) == "first_layer"
    return operation == "conv2d_backward_weight" and shape.C <= 4


def _is_depthwise_exception(operation: str, shape: ConvShape) -> bool:
    """Whether there is no depthwise kernel of one pass: where several filters read a channel, or registers run out."""
    if operation == "conv2d_backward_input":
        return shape.K != shape.C
    return operation == "conv2d_backward_weight" and (shape.R, shape.stride[0]) == (7, 2)


def _is_depthwise(shape: ConvShape) -> bool:
    """Whether the depthwise kernels know these filters; with one channel there is nothing to separate."""
    size = shape.R
    return (
        shape.groups == shape.C > 1
        and size == shape.S
        and size in DEPTHWISE_SIZES
        and shape.stride in ((1, 1), (2, 2))
        and shape.padding == (size // 2, size // 2)
        and shape.dilation == (1, 1)
        and shape.N * -(-shape.P // 4) * -(-shape.Q // 4) < 2**31
    )


def _is_first_layer(shape: ConvShape) -> bool:
    """Few channels and known filters; where less than half of the tile's 64 × 4 pixels or 64 filters would be used, the
    general kernel wastes less."""
    used = shape.P * shape.Q / (-(-shape.P // 4) * 4 * -(-shape.Q // 64) * 64) * shape.K / (-(-shape.K // 64) * 64)
    return (
        shape.C <= 4
        and shape.groups == 1
        and (shape.S, shape.stride[1]) in FIRST_LAYER_KERNELS
        and shape.stride[0] <= 4
        and shape.R <= 11
        and shape.dilation == (1, 1)
        and used >= 0.5
    )


def forward(
    x: Any, w: Any, b: Any, y: Any, shape: ConvShape, relu: bool = False, workspace_limit: int | None = None
) -> None:
    """y (N,K,P,Q), overwritten, with bias b (K,) unless it is None; with `relu` max(y, 0)."""
    x, w, b = devices.contiguous(x), devices.contiguous(w), devices.contiguous(b)
    way = path("conv2d_forward", shape)
    if way == "depthwise":
        launch(_depthwise_kernel("forward", shape), depthwise_blocks(shape, shape.y), x, w, b, y, shape.flat, relu)
    elif way == "first_layer":
        channels, shared = first_layer_stage(shape)
        kernel = f"conv2d_forward_first_layer_k{shape.S}s{shape.stride[1]}"
        blocks = shape.N * -(-shape.P // 4) * -(-shape.Q // 64) * -(-shape.K // 64)
        launch(kernel, blocks, x, w, b, y, shape.flat, channels, relu, shared_bytes=shared)
    else:
        grid = general_grid("conv2d_forward", shape)
        launch(grid.kernel, grid.blocks, x, w, b, y, shape.flat, relu)


def backward_input(gy: Any, w: Any, gx: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gx (N,C,H,W), overwritten."""
    gy, w = devices.contiguous(gy), devices.contiguous(w)
    if path("conv2d_backward_input", shape) == "depthwise":
        launch(_depthwise_kernel("backward_input", shape), depthwise_blocks(shape, shape.x), gy, w, gx, shape.flat)
        return
    grid = general_grid("conv2d_backward_input", shape)
    launch(grid.kernel, grid.blocks, gy, w, gx, shape.flat, grid.pixel_tiles)


def backward_weight(x: Any, gy: Any, gw: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gw (K,C/groups,R,S), overwritten: partial sums of ranges of pixels, then their sum in order."""
    x, gy = devices.contiguous(x), devices.contiguous(gy)
    split = backward_weight_split(shape, workspace_limit)
    partial = gw if split.ranges == 1 else devices.empty((split.ranges, *shape.weight), np.float32, x)
    launch(split.kernel, split.blocks * split.ranges, x, gy, partial, shape.flat, split.size)
    if split.ranges != 1:
        launch("conv2d_direct_add_splits", grid_for(gw.size), partial, gw, gw.size, split.ranges)


def forward_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """It needs no memory of its own."""
    return 0


def backward_input_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """It needs no memory of its own."""
    return 0


def backward_weight_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Bytes of the partial sums, as many as fit the limit."""
    ranges = backward_weight_split(shape, limit).ranges
    return 4 * ranges * int(np.prod(shape.weight)) if ranges > 1 else 0


def backward_weight_split(shape: ConvShape, limit: int | None = None) -> Split:
    """How backward_weight is cut: few enough terms a range that sums stay exact, and enough blocks to fill a GPU.

    Under a limit of workspace there are fewer ranges, but those of depthwise kernels, whose chains must stay short.
    """
    if path("conv2d_backward_weight", shape) == "depthwise":
        items = shape.N * -(-shape.P // 4) * -(-shape.Q // 4)
        return cut(_depthwise_kernel("backward_weight", shape), shape.K, items, DEPTHWISE_THREADS, DEPTHWISE_CHAIN)
    filters, terms = shape.K // shape.groups, int(np.prod(shape.weight[1:]))
    tile = (8, 32) if filters <= 8 else (64, 32) if terms <= 32 or filters > 32 else (32, 64)
    blocks = shape.groups * -(-filters // tile[0]) * -(-terms // tile[1])
    kernel = f"conv2d_backward_weight_direct_{tile[0]}x{tile[1]}"
    fitting = None if limit is None else limit // (4 * max(1, int(np.prod(shape.weight))))
    return cut(kernel, blocks, shape.N * shape.P * shape.Q, 128, fitting=fitting)


def cut(kernel: str, blocks: int, items: int, unit: int, most: int | None = None, fitting: int | None = None) -> Split:
    """Ranges of whole units, as few as give SPLIT_BLOCKS blocks, at most `fitting`, of at most `most` units."""
    units, count = -(-items // unit), -(-SPLIT_BLOCKS // blocks)
    count = count if fitting is None else max(1, min(count, fitting))
    size = min(max(-(-units // count), 1), most or units or 1)
    return Split(kernel, blocks, -(-units // size), size * unit)


def first_layer_stage(shape: ConvShape) -> tuple[int, int]:
    """(channels in shared memory at a time, bytes): all if they fit, so that there is one wait; at least one."""
    stride, quads = shape.stride[1], -(-(63 * shape.stride[1] + shape.S) // 4)
    pitch = 4 * (quads + (quads - 1) // (2 * stride))
    channel = 4 * ((3 * shape.stride[0] + shape.R) * pitch + shape.R * shape.S * 72)
    channels = min(max(SHARED_BYTES // channel, 1), shape.C)
    return channels, channels * channel


def depthwise_blocks(shape: ConvShape, output: tuple[int, int, int, int]) -> int:
    """Blocks over strips of 4 columns × 8 (or 4) rows of all planes."""
    rows = 4 if shape.R == 7 or shape.stride == (2, 2) else 8
    images, channels, height, width = output
    return -(-images * channels * -(-height // rows) * -(-width // 4) // DEPTHWISE_THREADS)


def _depthwise_kernel(operation: str, shape: ConvShape) -> str:
    return f"conv2d_{operation}_depthwise_k{shape.R}s{shape.stride[0]}"


def general_grid(operation: str, shape: ConvShape) -> Grid:
    """The general kernel of forward or backward_input.

    Pixels of one phase of x (h mod stride, w mod stride) are reached by the same taps; each phase has its own blocks.
    """
    outputs, pixels, phases = shape.K // shape.groups, shape.N * shape.P * shape.Q, 1
    if operation == "conv2d_backward_input":
        outputs, phases = shape.C // shape.groups, min(shape.stride[0], shape.H) * min(shape.stride[1], shape.W)
        pixels = shape.N * -(-shape.H // shape.stride[0]) * -(-shape.W // shape.stride[1])
    filters, pixel_tiles = _filters_of_thread(outputs), -(-pixels // PIXELS)
    blocks = shape.groups * -(-outputs // filters) * pixel_tiles * phases
    return Grid(f"{operation}_direct_4x{filters}", blocks, pixel_tiles)


def _filters_of_thread(filters: int) -> int:
    """Outputs of a group that a thread computes of each pixel: more would be idle."""
    return 1 if filters == 1 else 4 if filters <= 4 else 8
