"""Convolution in bfloat16 and float16 as an implicit matrix product on tensor cores: "implicit_gemm" of 16-bit arrays.

Products of 16-bit values are summed in float32 and rounded once (kernels/conv2d_half_gather.cuh and
conv2d_half_backward_weight.cuh). Arrays may have any strides; where channels are contiguous and whole eights of them
belong to a group, they are copied 16 bytes at a time. On sm_90 the copy engine brings patches of channels-last images
(gpucnn.ops.conv_hopper) or rectangles of NCHW ones (gpucnn.ops.conv_hopper_planes), where it can.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import Strided, architecture_of, grid_for, launch
from gpucnn.launch.division import divisor
from gpucnn.ops import conv_hopper, conv_hopper_planes, conv_implicit_gemm, packing
from gpucnn.ops.conv_implicit_gemm import Product
from gpucnn.ops.conv_sums import image_strides
from gpucnn.ops.gemm import Tile, choose_tile, multiprocessors
from gpucnn.ops.shapes import ConvShape

# The rate of mma.sync is eight times that of float32 units on sm_80, and more later; small tiles read more for it.
# Of backward_weight by single values a multiprocessor holds one large tile and three small ones.
TILES = (Tile(128, 128, 2, 600), Tile(64, 64, 4, 400))
WEIGHTS = "backward_weight"
STEP = 32  # terms that a kernel takes at a time
STAGES = 4
WALK = 16  # pixels that a thread of backward_weight goes on by
UNIT = 8  # 16-bit values of a copy
LONG_TERMS = 1 << 14  # of one sum in a tensor core, whose cutting off then stays below float16's rounding


def supports(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """None, or the reason why not."""
    return conv_implicit_gemm.supports(shape, dtype, device)


def forward_product(shape: ConvShape) -> Product:
    """Filters × output pixels."""
    return conv_implicit_gemm.forward_product(shape, "float32")._replace(tiles=TILES)


def backward_input_product(shape: ConvShape) -> Product:
    """Channels × pixels of a phase."""
    return conv_implicit_gemm.backward_input_product(shape, "float32")._replace(tiles=TILES)


def backward_weight_product(shape: ConvShape) -> Product:
    """Filters × (tap, channel)."""
    return conv_implicit_gemm.backward_weight_product(shape, "float32")._replace(tiles=TILES, prefix=WEIGHTS)


def plan(product: Product, plane: int, limit: int | None, fixed: int = 0) -> tuple[Tile, int, int]:
    """(tile, splits, terms of each split but the last) under a limit of workspace.

    - plane: float32 values of the output; fixed: bytes that are needed beside planes
    """
    rows, columns, terms, batch = product.rows, product.columns, product.terms, product.groups * product.phases
    tile, splits = choose_tile(rows, columns, terms, batch, multiprocessors(), product.tiles)
    if product.prefix != WEIGHTS:  # whose kernels add up shorter sums outside
        splits = max(splits, -(-terms // LONG_TERMS))
    if limit is not None:
        splits = max(1, min(splits, max(0, limit - fixed) // max(1, 4 * plane)))
    terms_of_split = max(STEP, -(-terms // (splits * STEP)) * STEP)
    return tile, max(1, -(-terms // terms_of_split)), terms_of_split


def forward_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """The weights in another order, and float32 planes of split sums, as many as fit the limit."""
    return _workspace(forward_product(shape), math.prod(shape.y), dtype, limit)


def backward_input_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """The weights in another order, and float32 planes of split sums, as many as fit the limit."""
    return _workspace(backward_input_product(shape), math.prod(shape.x), dtype, limit)


def backward_weight_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Float32 planes of split sums, as many as fit the limit, but at least one; of the kernels that take more."""
    plane = math.prod(shape.weight)
    own = 4 * plane * plan(backward_weight_product(shape), plane, limit)[1]
    return max(own, conv_hopper.weights_workspace(shape, multiprocessors(), limit))


def _workspace(product: Product, plane: int, dtype: np.dtype, limit: int | None) -> int:
    packed = 2 * math.prod(_packed_shape(product))
    splits = plan(product, plane, limit, packed)[1]
    return packed + (4 * plane * splits if splits > 1 else 0)


def _packed_shape(product: Product) -> tuple[int, int, int, int]:
    """The packed weights of kernels/conv2d_half_pack.cu: (groups, phases, rows, terms), whole tiles."""
    tile = plan(product, 0, None)[0]
    return product.groups, product.phases, -(-product.rows // tile.N) * tile.N, -(-product.terms // STEP) * STEP


def forward(
    x: Any, weight: Any, bias: Any, y: Any, shape: ConvShape, relu: bool = False, workspace_limit: int | None = None,
    residual: Any = None,
) -> None:  # fmt: skip
    """y (N,K,P,Q), overwritten with the convolution + bias + residual, then ReLU if `relu`.

    x and y may have any strides, residual has y's. weight and bias are float32 or of x's dtype.
    """
    _check("conv2d_forward", x, shape)
    if residual is None or residual.strides == y.strides:
        finish = conv_hopper.Finish(_float32(bias), residual, relu)
        if conv_hopper.suits("forward", shape, x, y):
            workspace = forward_workspace(shape, x.dtype, workspace_limit)
            planes = _split_planes("forward", forward_product(shape), shape, workspace)
            return conv_hopper.forward(x, weight, y, shape, multiprocessors(), finish, planes)
        if conv_hopper_planes.suits("forward", shape, x, y, _room(shape, workspace_limit)):
            return conv_hopper_planes.forward(x, weight, y, shape, multiprocessors(), finish)
    _gather("conv2d_forward", forward_product(shape), x, weight, _float32(bias), residual, y, shape, relu,
            workspace_limit, (shape.P, shape.Q))  # fmt: skip


def backward_input(gy: Any, weight: Any, gx: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gx (N,C,H,W), overwritten; gy and gx may have any strides. weight is float32 or of gy's dtype."""
    _check("conv2d_backward_input", gy, shape)
    if conv_hopper.suits("backward_input", shape, gy, gx):
        workspace = backward_input_workspace(shape, gy.dtype, workspace_limit)
        planes = _split_planes("backward_input", backward_input_product(shape), shape, workspace)
        return conv_hopper.backward_input(gy, weight, gx, shape, multiprocessors(), planes)
    if conv_hopper_planes.suits("backward_input", shape, gy, gx, _room(shape, workspace_limit)):
        return conv_hopper_planes.backward_input(gy, weight, gx, shape, multiprocessors())
    size = -(-shape.H // shape.stride[0]), -(-shape.W // shape.stride[1])
    _gather("conv2d_backward_input", backward_input_product(shape), gy, weight, None, None, gx, shape, False,
            workspace_limit, size)  # fmt: skip


def _split_planes(operation: str, product: Product, shape: ConvShape, workspace: int) -> int:
    """How many planes of split sums the kernels of sm_90 may have beside packed weights: as many as these have."""
    planes = workspace - 2 * math.prod(_packed_shape(product))
    return max(1, planes // conv_hopper.plane_bytes(operation, shape))


def _room(shape: ConvShape, workspace_limit: int | None) -> int | None:
    """What a limit leaves for copies of images, beside packed weights."""
    return None if workspace_limit is None else workspace_limit - 2 * math.prod(shape.weight)


def _gather(
    operation: str, product: Product, x: Any, weight: Any, bias: Any, residual: Any, y: Any, shape: ConvShape,
    relu: bool, workspace_limit: int | None, size: tuple[int, int],
) -> None:  # fmt: skip
    """Forward, or backward_input with gy as x; size: output rows and columns, of one phase."""
    x, x_strides = image_strides(operation, x, shape)
    y_strides = tuple(stride // y.itemsize for stride in y.strides)
    if residual is not None and residual.strides != y.strides:
        raise ValueError(f"{operation}: residual has strides {residual.strides}, and y {y.strides}; they must be equal")
    dense = _dense_order(y)
    limit = workspace_limit if dense else 0  # planes are dense
    tile, splits, terms = plan(product, y.size, limit, 2 * math.prod(_packed_shape(product)))
    packed = _packed(operation, weight, y, product, shape)
    planes = None if splits == 1 else devices.empty((splits, y.size), np.float32, y)
    channels = shape.weight[1] if operation == "conv2d_forward" else shape.K // shape.groups
    steps = STEP // channels, STEP % channels, packed.shape[-1]
    image = max(1, size[0] * size[1])
    work = y.size, splits, terms, int(relu), divisor(image), divisor(max(1, size[1])), steps
    form = "units" if _has_units(x, x_strides, channels) else "values"
    grid = -(-product.columns // tile.M) * -(-product.rows // tile.N), product.phases * splits, product.groups
    launch(f"{operation}_{form}_{y.dtype.name}_{tile.name}", grid, Strided(x), packed, bias,
           None if residual is None else Strided(residual), Strided(y), planes, shape.flat, x_strides, y_strides, work,
           shared_bytes=_ring_bytes(tile))  # fmt: skip
    if planes is not None:
        inner = 1 if dense == "channels_last" else y.shape[2] * y.shape[3]
        sums = y.size, splits, y.shape[1], inner, int(relu)
        launch(f"conv2d_half_add_{y.dtype.name}", grid_for(y.size), planes, bias,
               None if residual is None else Strided(residual), Strided(y), sums)  # fmt: skip


def backward_weight(x: Any, gy: Any, gw: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gw (K,C/groups,R,S), float32 or of x's dtype, overwritten; x and gy may have any strides."""
    _check("conv2d_backward_weight", x, shape)
    suits = conv_hopper.suits("backward_weight", shape, x, gy)
    if suits and (planes := conv_hopper.most_weight_planes(shape, workspace_limit)):
        return conv_hopper.backward_weight(x, gy, gw, shape, multiprocessors(), planes)
    if conv_hopper_planes.suits("backward_weight", shape, x, gy, workspace_limit):
        copies = conv_hopper_planes.copy_bytes(shape, x, gy)
        room = None if workspace_limit is None else workspace_limit - copies
        if planes := conv_hopper.most_weight_planes(shape, room):
            return conv_hopper_planes.backward_weight(x, gy, gw, shape, multiprocessors(), planes)
    x, x_strides = image_strides("conv2d_backward_weight", x, shape)
    gy, gy_strides = image_strides("conv2d_backward_weight", gy, shape)
    product = backward_weight_product(shape)
    tile, splits, terms = plan(product, gw.size, workspace_limit)
    planes = devices.empty((splits, gw.size), np.float32, gw)
    pixels = shape.P * shape.Q
    steps = WALK // pixels, WALK % pixels // shape.Q, WALK % shape.Q
    work = gw.size, splits, terms, 0, divisor(pixels), divisor(shape.Q), steps
    units = _has_units(x, x_strides, shape.weight[1]) and _has_units(gy, gy_strides, shape.K // shape.groups)
    grid = -(-product.rows // tile.M) * -(-product.columns // tile.N), splits, product.groups
    launch(f"conv2d_backward_weight_{'units' if units else 'values'}_{x.dtype.name}_{tile.name}", grid, Strided(x),
           Strided(gy), planes, shape.flat, x_strides, gy_strides, work, shared_bytes=_ring_bytes(tile))  # fmt: skip
    kernel = "conv2d_add_weight_planes" if gw.dtype == np.float32 else f"conv2d_half_add_weights_{gw.dtype.name}"
    sizes = splits, shape.weight[1], shape.R * shape.S, gw.size
    launch(kernel, grid_for(gw.size), planes, gw, *sizes)


def _check(operation: str, array: Any, shape: ConvShape) -> None:
    """Raise ValueError where there are no tensor cores for 16 bits, or for sizes that 31 bits do not count."""
    architecture = architecture_of(array)
    if architecture < 80:
        raise ValueError(
            f"{operation}: {array.dtype} needs tensor cores of sm_80 or later, and {devices.of(array)} is "
            f"sm_{architecture}; use float32"
        )
    conv_implicit_gemm.check_size(operation, shape)


def _has_units(array: Any, strides: tuple[int, ...], channels: int) -> bool:
    """Whether each eight channels of a group are 16 aligned bytes."""
    apart = [s for n, s in zip(array.shape, strides, strict=True) if n > 1 and s != 1]
    return (
        channels % UNIT == 0
        and strides[1] == 1
        and all(strides[axis] % UNIT == 0 for axis in (0, 2, 3))
        and not any(s % UNIT for s in apart)
        and devices.address(array) % 16 == 0
    )


def _dense_order(y: Any) -> str | None:
    """The order in memory of an array without gaps: "channels_first", "channels_last", or None for any other."""
    if y.flags.c_contiguous:
        return "channels_first"
    return "channels_last" if y.transpose(0, 2, 3, 1).flags.c_contiguous else None


def _packed(operation: str, weight: Any, y: Any, product: Product, shape: ConvShape) -> Any:
    """The weights in the order of kernels/conv2d_half_pack.cu; sizes of images change their padding alone."""
    size = groups, phases, rows, pitch = _packed_shape(product)

    def pack() -> Any:
        packed = devices.empty(size, y.dtype, y)
        kernel = f"{operation}_pack_{weight.dtype.name}_{y.dtype.name}"
        launch(kernel, groups * phases * rows, weight, packed, shape.flat, (rows, pitch, phases))
        return packed

    return packing.packed(weight, (operation, y.dtype, size, *shape[9:]), pack)


def _float32(bias: Any) -> Any:
    if bias is None or bias.dtype == np.float32:
        return bias
    converted = devices.empty(bias.shape, np.float32, bias)
    launch(f"cast_{bias.dtype.name}_float32", grid_for(bias.size), bias, converted, bias.size)
    return converted


def _ring_bytes(tile: Tile) -> int:
    return STAGES * (tile.M + tile.N) * STEP * 2
