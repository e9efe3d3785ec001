"""Direct convolution of bfloat16 and float16 arrays where kernels run: 16 bits in memory, sums in float32.

For groups of few channels: a tile of tensor cores would multiply mostly by zeros, and memory is the limit. The ways are
those of conv_direct.py. Depthwise planes have kernels for either order in memory, the general ones take any strides.
Weights are float32 masters or of the images' dtype; results are rounded once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import Strided, grid_for, launch
from gpucnn.ops import conv_direct
from gpucnn.ops.conv_direct import Split
from gpucnn.ops.conv_sums import image_strides
from gpucnn.ops.shapes import ConvShape

LAST_KERNELS = ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1))  # (size, stride) of depthwise kernels of channels-last images
LAST_THREADS = 128
LAST_CHANNELS = 2  # of a lane
LAST_ITEMS = 4, 128  # strips of 4 or 8 pixels that a thread of backward_weight sums: at least, at most


def supports(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """None, or the reason why not."""
    if shape.groups == 1 or shape.C // shape.groups >= 16:
        return f"of {dtype.name} it takes groups of fewer than 16 channels"
    return conv_direct.supports(shape, np.dtype(np.float32), device)


def forward(
    x: Any, w: Any, b: Any, y: Any, shape: ConvShape, relu: bool = False, workspace_limit: int | None = None
) -> None:
    """y (N,K,P,Q), overwritten, with bias b (K,) unless it is None; with `relu` max(y, 0)."""
    _gather("forward", x, w, _float32(b), y, shape, relu)


def backward_input(gy: Any, w: Any, gx: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gx (N,C,H,W), overwritten."""
    _gather("backward_input", gy, w, None, gx, shape)


def _gather(operation: str, x: Any, w: Any, b: Any, y: Any, shape: ConvShape, relu: bool = False) -> None:
    """Forward, or backward_input with gy as x and gx as y."""
    weights = (w, None) if w.dtype == np.float32 else (None, w)
    bias, more = ((b,), (int(relu),)) if operation == "forward" else ((), ())
    if conv_direct.path(f"conv2d_{operation}", shape) != "depthwise":
        _general(operation, x, (*weights, *bias), y, shape, more)
    elif _suits_last(shape, x, y):
        lanes, blocks = _last_grid(operation, shape)
        launch(_kernel(operation, shape, y.dtype, "_last"), blocks, _last(x), *weights, *bias, _last(y), shape.flat,
               *more, lanes)  # fmt: skip
    else:
        target = y if y.flags.c_contiguous else devices.empty(y.shape, y.dtype, y)
        blocks = conv_direct.depthwise_blocks(shape, y.shape)
        launch(_kernel(operation, shape, y.dtype), blocks, devices.contiguous(x), *weights, *bias, target, shape.flat,
               *more)  # fmt: skip
        if target is not y:
            devices.require_launch(f"a copy to images of shape {y.shape} in another order")
            y[...] = target


def _general(operation: str, x: Any, parameters: tuple[Any, ...], y: Any, shape: ConvShape, more: Any) -> None:
    x, x_strides = image_strides(f"conv2d_{operation}", x, shape)
    y_strides = tuple(stride // y.itemsize for stride in y.strides)
    grid = conv_direct.general_grid(f"conv2d_{operation}", shape)
    last = more if operation == "forward" else (grid.pixel_tiles,)
    launch(f"{grid.kernel}_{y.dtype.name}", grid.blocks, Strided(x), *parameters, Strided(y), shape.flat, x_strides,
           y_strides, *last)  # fmt: skip


def backward_weight(x: Any, gy: Any, gw: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gw (K,C/groups,R,S), float32 or of x's dtype, overwritten: sums of ranges of pixels, then their sum in order."""
    more: tuple[Any, ...]
    split = conv_direct.backward_weight_split(shape, workspace_limit)
    if conv_direct.path("conv2d_backward_weight", shape) != "depthwise":
        x, x_strides = image_strides("conv2d_backward_weight", x, shape)
        gy, gy_strides = image_strides("conv2d_backward_weight", gy, shape)
        images, more = (Strided(x), Strided(gy)), (x_strides, gy_strides, split.size)
    elif _suits_last(shape, x, gy):
        split = last_split(shape, workspace_limit)
        images, more = (_last(x), _last(gy)), (_last_grid("backward_weight", shape)[0], split.size)
    else:
        images, more = (devices.contiguous(x), devices.contiguous(gy)), (split.size,)
    direct = split.ranges == 1 and gw.dtype == np.float32
    partial = gw if direct else devices.empty((split.ranges, *shape.weight), np.float32, gw)
    launch(f"{split.kernel}_{x.dtype.name}", split.blocks * split.ranges, *images, partial, shape.flat, *more)
    if gw.dtype != np.float32:
        launch(f"conv2d_half_add_weights_{gw.dtype.name}", grid_for(gw.size), partial, gw, split.ranges, 1, 1, gw.size)
    elif not direct:
        launch("conv2d_direct_add_splits", grid_for(gw.size), partial, gw, gw.size, split.ranges)


def forward_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """It needs no memory of its own."""
    return 0


def backward_input_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """It needs no memory of its own."""
    return 0


def backward_weight_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Bytes of the partial sums, as many as fit the limit, in either order of images."""
    ranges = conv_direct.backward_weight_split(shape, limit).ranges
    if _has_last_kernel(shape):
        ranges = max(ranges, last_split(shape, limit).ranges)
    return 4 * ranges * math.prod(shape.weight)


def last_split(shape: ConvShape, limit: int | None = None) -> Split:
    """How backward_weight of channels-last images is cut; chains of sums stay short, whatever the limit."""
    lanes, tiles = _lanes(shape), -(-shape.C // (LAST_CHANNELS * _lanes(shape)))
    items = shape.N * -(-shape.P // (2 if shape.R == 3 else 1)) * -(-shape.Q // 4)
    fitting = None if limit is None else limit // max(1, 4 * math.prod(shape.weight))
    least, most = LAST_ITEMS
    kernel = f"conv2d_backward_weight_depthwise_last_k{shape.R}s{shape.stride[0]}"
    return conv_direct.cut(kernel, tiles, items, least * LAST_THREADS // lanes, most // least, fitting)


class _Grid(NamedTuple):
    lanes: int
    blocks: int


def _last_grid(operation: str, shape: ConvShape) -> _Grid:
    """Lanes along channels, and blocks over strips of 4 columns × 4 rows (2 of forward at stride 2)."""
    lanes = _lanes(shape)
    images, channels, height, width = shape.y if operation == "forward" else shape.x
    rows = 2 if operation == "forward" and shape.stride == (2, 2) else 4
    strips = images * -(-height // rows) * -(-width // 4)
    return _Grid(lanes, -(-channels // (LAST_CHANNELS * lanes)) * -(-strips * lanes // LAST_THREADS))


def _lanes(shape: ConvShape) -> int:
    """So many that few are idle: 8, 16 or 32."""
    return next((lanes for lanes in (8, 16) if LAST_CHANNELS * lanes >= shape.C), 32)


def _has_last_kernel(shape: ConvShape) -> bool:
    """Whether the depthwise kernels of channels-last images know these filters."""
    return (
        conv_direct.path("conv2d_forward", shape) == "depthwise"
        and (shape.R, shape.stride[0]) in LAST_KERNELS
        and shape.K == shape.C
        and shape.C % LAST_CHANNELS == 0
    )


def _suits_last(shape: ConvShape, *images: Any) -> bool:
    """Whether all are channels-last at a multiple of two values, and there are kernels."""
    return _has_last_kernel(shape) and all(
        not each.flags.c_contiguous
        and each.transpose(0, 2, 3, 1).flags.c_contiguous
        and devices.address(each) % (LAST_CHANNELS * each.itemsize) == 0
        for each in images
    )


def _last(images: Any) -> Any:
    return images.transpose(0, 2, 3, 1)


def _kernel(operation: str, shape: ConvShape, dtype: np.dtype, form: str = "") -> str:
    return f"conv2d_{operation}_depthwise{form}_k{shape.R}s{shape.stride[0]}_{dtype.name}"


def _float32(bias: Any) -> Any:
    if bias is None or bias.dtype == np.float32:
        return bias
    converted = devices.empty(bias.shape, np.float32, bias)
    launch(f"cast_{bias.dtype.name}_float32", grid_for(bias.size), bias, converted, bias.size)
    return converted
