"""Winograd's convolutions: the algorithms "winograd", F(2×2,3×3), and on the CPU also "winograd4", F(4×4,3×3).

4 outputs of a 3×3 filter from 16 products instead of 36, or 16 from 36 instead of 144 (Lavin and Gray, CVPR 2016); the
maths is in csrc/conv2d_winograd.cpp and kernels/winograd.cuh. A value that is not finite spoils the whole tile that
reads it.

Where kernels run, "winograd" is one kernel after the transform of the filters: tiles of the images are transformed on
the way to shared memory, so only transformed filters need memory, 16/9 of the weights. The gradient of the weights
needs memory where its sum is split.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.launch import Strided, launch, shared_limit
from gpucnn.launch.division import divisor
from gpucnn.ops.conv_sums import add_planes, image_strides
from gpucnn.ops.gemm import SPLIT_FLOATS, multiprocessors
from gpucnn.ops.shapes import ConvShape

TILES, FILTERS, CHANNELS = 32, 64, 32  # of a block; channels: of the gradient of the weights
IMAGE_CHANNELS = 8  # transformed filters stand in memory by 64 filters × 8 channels
COMPONENTS = 16
STEP, STEP_CLOCKS = 8, 2700  # tiles at a step of the gradient of the weights, and how long it lasts
BLOCK_STEPS, SPLIT_STEPS = 4, 16  # time of a block's start and end; steps of a split at least
LARGEST_TILES = 2**31 - 1024  # counted in 32 bits, which may run past the end by a block or a chunk


def supports(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """None, or the reason why not."""
    on_cpu = device == "cpu"
    rules = (
        ("3x3 kernels", (shape.R, shape.S), (3, 3)),
        ("stride 1", shape.stride, (1, 1)),
        ("dilation 1", shape.dilation, (1, 1)),
        ("groups 1", shape.groups, 1) if on_cpu else ("float32", np.dtype(dtype), np.dtype(np.float32)),
    )
    reason = next((f"it needs {rule}, not {value}" for rule, value, needed in rules if value != needed), None)
    if reason or on_cpu or max(_tiles(shape.N, *pixels) for pixels in _images(shape)) <= LARGEST_TILES:
        return reason
    return "it counts tiles of 2x2 pixels in 31 bits: split the batch"


def winograd_workspace(shape: ConvShape, dtype: np.dtype) -> int:
    """On the CPU: transformed filters, and transformed tiles of one chunk, of any pass."""
    return _C.conv2d_winograd_workspace_bytes(shape.flat, dtype.itemsize)


def winograd4_workspace(shape: ConvShape, dtype: np.dtype) -> int:
    """The same for the larger tiles."""
    return _C.conv2d_winograd4_workspace_bytes(shape.flat, dtype.itemsize)


class Pass(NamedTuple):
    """Forward, or the gradient of the input: y (N, groups·filters, …) from x (N, groups·channels, …)."""

    operation: str
    filters: int
    channels: int
    source: tuple[int, int]
    output: tuple[int, int]
    padding: tuple[int, int]
    transform: str

    @property
    def filter_blocks(self) -> int:
        return -(-self.filters // FILTERS)

    @property
    def images(self) -> int:
        """Blocks of transformed filters, of one group."""
        return self.filter_blocks * -(-self.channels // IMAGE_CHANNELS)


def forward_pass(shape: ConvShape) -> Pass:
    """How a ConvShape is computed forwards."""
    filters, channels = shape.K // shape.groups, shape.C // shape.groups
    source, output = _images(shape)
    return Pass("conv2d_forward", filters, channels, source, output, shape.padding, "winograd_filters")


def backward_input_pass(shape: ConvShape) -> Pass:
    """Its gradient of the input: gy with rotated filters, and what padding leaves of their reach."""
    filters, channels = shape.C // shape.groups, shape.K // shape.groups
    output, source = _images(shape)
    padding = 2 - shape.padding[0], 2 - shape.padding[1]
    return Pass("conv2d_backward_input", filters, channels, source, output, padding, "winograd_filters_rotated")


def _images(shape: ConvShape) -> tuple[tuple[int, int], tuple[int, int]]:
    return (shape.H, shape.W), (shape.P, shape.Q)


def _tiles(images: int, height: int, width: int) -> int:
    return images * -(-height // 2) * -(-width // 2)


def forward_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Transformed filters."""
    return _transformed(forward_pass(shape), shape.groups) * dtype.itemsize


def backward_input_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Transformed filters."""
    return _transformed(backward_input_pass(shape), shape.groups) * dtype.itemsize


def _transformed(kind: Pass, groups: int) -> int:
    return groups * kind.images * COMPONENTS * IMAGE_CHANNELS * FILTERS


def forward(
    x: Any, weight: Any, bias: Any, y: Any, shape: ConvShape, relu: bool = False, workspace_limit: int | None = None
) -> None:
    """y (N,K,P,Q), overwritten; x may have any strides."""
    _convolve(forward_pass(shape), x, weight, bias, y, shape, relu)


def backward_input(gy: Any, weight: Any, gx: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gx (N,C,H,W), overwritten; gy may have any strides."""
    _convolve(backward_input_pass(shape), gy, weight, None, gx, shape, False)


def _convolve(kind: Pass, x: Any, weight: Any, bias: Any, y: Any, shape: ConvShape, relu: bool) -> None:
    x, strides = image_strides(kind.operation, x, shape)
    u = devices.empty(_transformed(kind, shape.groups), y.dtype, y)
    launch(kind.transform, shape.groups * kind.images, weight, u, kind.filters, kind.channels)
    work = _work(kind, shape, _channels_last(strides), relu)
    terms, memory = stage(x)
    grid = kind.filter_blocks * -(-_tiles(shape.N, *kind.output) // TILES), 1, shape.groups
    launch(f"winograd_64x32x{terms}", grid, Strided(x), u, bias, y, work, strides, shared_bytes=memory)


def _work(kind: Pass, shape: ConvShape, channels_last: bool, relu: bool) -> tuple[Any, ...]:
    """The struct WinogradShape of kernels/winograd.cuh."""
    height, width = (-(-size // 2) for size in kind.output)
    return (kind.channels, kind.filters, kind.source, kind.output, kind.padding, shape.N * height * width,
            int(channels_last), int(relu), divisor(height * width), divisor(width))  # fmt: skip


def _channels_last(strides: tuple[int, ...]) -> bool:
    return abs(strides[1]) < abs(strides[3])


def stage(array: Any) -> tuple[int, int]:
    """(terms at a step, bytes of shared memory): two stages of both operands of all components."""
    stages = {terms: 2 * COMPONENTS * terms * (TILES + FILTERS) * 4 for terms in (8, 4)}
    terms = next(terms for terms, memory in stages.items() if terms == 4 or memory <= shared_limit(array))
    return terms, stages[terms]


class Split(NamedTuple):
    """How the tiles of backward_weight are summed: `parts` of `tiles` each, but for the last."""

    parts: int
    tiles: int


def backward_weight_split(shape: ConvShape, limit: int | None = None) -> Split:
    """Parts enough to keep every multiprocessor at work, whose planes fit `limit` bytes."""
    filters, channels = shape.K // shape.groups, shape.C // shape.groups
    floats = shape.K * channels * 9
    most = min(4 * SPLIT_FLOATS, limit if limit is not None else 4 * SPLIT_FLOATS) // (4 * floats)
    blocks = shape.groups * -(-filters // FILTERS) * -(-channels // CHANNELS)
    return _split(_tiles(shape.N, shape.P, shape.Q), blocks, floats, min(most, 65_535), multiprocessors())


@cache
def _split(tiles: int, blocks: int, floats: int, most: int, multiprocessors: int) -> Split:
    steps = -(-tiles // STEP)

    def clocks(parts: int) -> int:
        """To compare by: a multiprocessor has one block at a time, and writes and reads 20 bytes of planes a clock."""
        rounds, planes = -(-blocks * parts // multiprocessors), 8 * floats * parts if parts > 1 else 0
        return rounds * (-(-steps // parts) + BLOCK_STEPS) * STEP_CLOCKS + planes // (20 * multiprocessors)

    parts = min(range(1, max(1, min(most, steps // SPLIT_STEPS, multiprocessors)) + 1), key=clocks)
    share = -(-max(1, steps) // parts)
    return Split(max(1, -(-steps // share)), share * STEP)


def backward_weight_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Planes of split sums."""
    parts = backward_weight_split(shape, limit).parts
    return parts * shape.K * (shape.C // shape.groups) * 9 * dtype.itemsize if parts > 1 else 0


def backward_weight(x: Any, gy: Any, gw: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gw (K,C/groups,3,3), overwritten; x and gy may have any strides."""
    x, x_strides = image_strides("conv2d_backward_weight", x, shape)
    gy, gy_strides = image_strides("conv2d_backward_weight", gy, shape)
    split = backward_weight_split(shape, workspace_limit)
    target = gw if split.parts == 1 else devices.empty((split.parts, *gw.shape), gw.dtype, gw)
    kind = forward_pass(shape)
    blocks = kind.filter_blocks * -(-kind.channels // CHANNELS)
    work = _work(kind, shape, _channels_last(x_strides) and _channels_last(gy_strides), False)
    terms, memory = stage(x)
    launch(f"winograd_backward_weight_64x32x{terms}", (blocks, split.parts, shape.groups), Strided(x), Strided(gy),
           target, work, x_strides, gy_strides, (gw.size, split.tiles), shared_bytes=memory)  # fmt: skip
    if split.parts > 1:
        add_planes(target, gw)
