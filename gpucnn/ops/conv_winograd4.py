"""Winograd's convolution F(4×4, 3×3) where kernels run: "winograd4", float32, in stages through memory.

Transforms of filters and of tiles (kernels/winograd4.cu), 36 matrix products (kernels/gemm_flush.cu), a transform of
their results; images go through in chunks that keep a limit of memory. Sums over channels, and over tiles for the
gradient of the weights, are flushed every 64 terms, which makes rounding errors no larger than those of a direct
convolution. A value that is not finite spoils the whole tile that reads it.

In every precision but float32 the products are float32_tensor's (kernels/gemm_flush_tensor.cu): the transforms magnify
what tf32 leaves of each value to 4.6 times the error of a direct convolution in tf32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import Strided, launch, shared_limit
from gpucnn.launch.division import divisor
from gpucnn.ops import conv_winograd
from gpucnn.ops.conv_sums import image_strides
from gpucnn.ops.gemm import TENSOR_TILES, Tile, arithmetic_of, choose_tile, multiprocessors
from gpucnn.ops.shapes import ConvShape

TILE, ELEMENTS = 4, 36  # outputs of a tile along an axis; elements of a transformed tile
ROW = 32  # rows of tiles are padded to whole lines of 128 bytes
THREADS = 256
STEP, FLUSH, CHAIN = 16, 64, 4096  # terms of a step, of a sum in registers, of a sum in shared memory
DEFAULT_LIMIT = 256 << 20
# The share of multiply-adds in the compiled main loop, flushes included.
TILES = (Tile(128, 128, 2, 86), Tile(64, 64, 4, 80))


class Plan(NamedTuple):
    """How a pass is cut: images of a chunk, floats of a row of its tiles, planes of sums of the weight gradient."""

    images: int
    padded: int
    planes: int


def supports(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """None, or the reason why not."""
    if device == "cpu":
        return "these kernels run on cuda or sim, not on the device cpu"
    if dtype != np.float32:
        return f"its kernels compute in float32, not {dtype}"
    return conv_winograd.supports(shape, dtype, "cpu")


def turned(shape: ConvShape) -> ConvShape:
    """The convolution that backward_input is: of gy with turned filters; its padding may be negative."""
    padding = (2 - shape.padding[0], 2 - shape.padding[1])
    return shape._replace(
        C=shape.K, H=shape.P, W=shape.Q, K=shape.C, P=shape.H, Q=shape.W, padding=padding
    )  # fmt: skip


def _tiles(shape: ConvShape, images: int = 1) -> int:
    return images * -(-shape.P // TILE) * -(-shape.Q // TILE)


def _padded(shape: ConvShape, images: int) -> int:
    return -(-_tiles(shape, images) // ROW) * ROW


def _plan(shape: ConvShape, limit: int | None, planes: int) -> Plan:
    """As many images a chunk as the limit allows, in chunks of about the same size; never less than one."""
    floats = (DEFAULT_LIMIT if limit is None else max(limit, 0)) // (4 * ELEMENTS)
    channels, plane = max(1, shape.C + shape.K), _plane(shape)
    planes = max(1, min(planes, (floats - channels * _padded(shape, 1)) // max(1, plane)))
    tiles = (floats - planes * plane) // channels // ROW * ROW
    most = max(1, min(tiles, 2**30) // _tiles(shape))
    images = -(-shape.N // -(-shape.N // most)) if shape.N else 0
    return Plan(images, _padded(shape, images), planes)


def _pitch(filters: int) -> int:
    """Floats of a row of transformed filters: whole float4."""
    return -(-filters // 4) * 4


def _plane(shape: ConvShape) -> int:
    """Floats of an element of all transformed filters, or of their gradients."""
    return shape.C * _pitch(shape.K)


def _weight_plan(shape: ConvShape, limit: int | None) -> Plan:
    """Few filters and channels give too few blocks: then the tiles are split among planes of sums."""
    terms = min(_padded(shape, shape.N), CHAIN)
    _, planes = choose_tile(shape.K, shape.C, terms, ELEMENTS, multiprocessors(), TILES)
    return _plan(shape, limit, planes)


def _workspace(shape: ConvShape, plan: Plan) -> int:
    floats = plan.planes * _plane(shape) + (shape.C + shape.K) * plan.padded
    return 4 * ELEMENTS * floats if shape.N else 0


def forward_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Bytes of transformed filters, and of tiles and products of a chunk of images, under `limit` if it can be."""
    return _workspace(shape, _plan(shape, limit, 1))


def backward_input_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """The same for the convolution of gy."""
    return forward_workspace(turned(shape), dtype, limit)


def backward_weight_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Bytes of planes of sums, and of tiles of x and gy of a chunk of images, under `limit` if it can be."""
    return _workspace(shape, _weight_plan(shape, limit))


def forward(
    x: Any, weight: Any, bias: Any, y: Any, shape: ConvShape, relu: bool = False, workspace_limit: int | None = None
) -> None:
    """y (N,K,P,Q), overwritten; x may have any strides."""
    x, _ = image_strides("conv2d_forward", x, shape)
    _convolve(x, weight, bias, y, shape, relu, False, workspace_limit)


def backward_input(gy: Any, weight: Any, gx: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gx (N,C,H,W), overwritten; gy may have any strides."""
    gy, _ = image_strides("conv2d_backward_input", gy, shape)
    _convolve(gy, weight, None, gx, turned(shape), False, True, workspace_limit)


def _convolve(
    x: Any, weight: Any, bias: Any, y: Any, shape: ConvShape, relu: bool, is_turned: bool, limit: int | None
) -> None:
    plan, (C, K) = _plan(shape, limit, 1), (shape.C, shape.K)
    if y.size == 0:
        return
    pitch = _pitch(K)
    filters = devices.empty(ELEMENTS * C * pitch, y.dtype, y)
    tiles, products = (devices.empty(ELEMENTS * count * plan.padded, y.dtype, y) for count in (C, K))
    strides = (K * 9, 9) if is_turned else (9, C * 9)
    launch("winograd4_filter", _blocks(C * K), weight, filters, C, K, pitch, *strides, is_turned)
    for first in range(0, shape.N, plan.images):
        part = slice(first, min(first + plan.images, shape.N))
        grid = tile_grid(shape, part, C, (shape.H, shape.W), shape.padding)
        transform("image", x[part], tiles, grid)
        padded = grid[1]
        multiply("tn", filters, tiles, products, (K, padded, C), (pitch, C * pitch), (padded, C * padded), padded, 1)
        outputs = tile_grid(shape, part, K, (shape.P, shape.Q), (0, 0))
        launch("winograd4_output", _warps(K * padded // 32), products, bias, y[part], outputs, relu)


def backward_weight(x: Any, gy: Any, gw: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gw (K,C,3,3), overwritten: chunks of images, and of each chunk's tiles, add to planes of sums in their order."""
    x, _ = image_strides("conv2d_backward_weight", x, shape)
    gy, _ = image_strides("conv2d_backward_weight", gy, shape)
    plan, (C, K) = _weight_plan(shape, workspace_limit), (shape.C, shape.K)
    if gw.size == 0:
        return
    used = plan.planes if shape.N else 0
    sums = devices.empty(used * ELEMENTS * K * C, gw.dtype, gw)
    tiles, gradients = (devices.empty(ELEMENTS * count * plan.padded, gw.dtype, gw) for count in (C, K))
    for first in range(0, shape.N, max(plan.images, 1)):
        part = slice(first, min(first + plan.images, shape.N))
        grid = tile_grid(shape, part, C, (shape.H, shape.W), shape.padding)
        padded = grid[1]
        transform("image", x[part], tiles, grid)
        transform("gradient", gy[part], gradients, tile_grid(shape, part, K, (shape.P, shape.Q), (0, 0)))
        for term in range(0, padded, CHAIN * plan.planes):
            strides = (padded, K * padded), (padded, C * padded)
            size = K, C, min(CHAIN * plan.planes, padded - term)
            multiply("nt", gradients[term:], tiles[term:], sums, size, *strides, C, plan.planes, first + term > 0)
    launch("winograd4_weight", _blocks(K * C), sums, gw, K * C, used)


def tile_grid(
    shape: ConvShape, part: slice, channels: int, size: tuple[int, int], padding: tuple[int, int]
) -> tuple[Any, ...]:
    """The struct TileGrid of kernels/winograd4.cu for a chunk of images, by_group for groups of 32 tiles."""
    count = part.stop - part.start
    padded, rows = _padded(shape, count), -(-shape.Q // TILE)
    return (_tiles(shape, count), padded, channels, *size, *padding, divisor(_tiles(shape)), divisor(rows),
            divisor(padded // 32))  # fmt: skip


def transform(name: str, images: Any, out: Any, grid: tuple[Any, ...]) -> None:
    """Tiles of images (N,C,H,W) of any strides: along rows where these are contiguous, else along channels."""
    strides = tuple(stride // images.itemsize for stride in images.strides)
    _, padded, channels, *_ = grid
    if strides[3] == 1:
        launch(f"winograd4_{name}_rows", _warps(channels * padded // 32), Strided(images), out, strides, grid)
        return
    groups = -(-channels // 4)
    grid = (*grid[:-1], divisor(groups))
    launch(f"winograd4_{name}_channels", _warps(groups * padded // 8), Strided(images), out, strides, grid)


def multiply(
    layout: str, a: Any, b: Any, c: Any, size: tuple[int, int, int], a_strides: tuple[int, int],
    b_strides: tuple[int, int], c_stride: int, splits: int, add: bool = False,
) -> None:  # fmt: skip
    """c[ξ] (+)= a[ξ] · b[ξ] for the 36 elements, M × N sums of K products; planes of c for the splits."""
    M, N, K = size
    split_terms = -(-K // (splits * STEP)) * STEP
    tile, on_tensor_cores = _tile(M, N, K, splits, c)
    shape = (
        M,
        N,
        K,
        splits,
        split_terms,
        0,
        0,
        *a_strides,
        *b_strides,
        c_stride,
        M * c_stride,
        ELEMENTS * M * c_stride,
    )
    blocks = ELEMENTS * splits * -(-M // tile.M) * -(-N // tile.N)
    prefix, flushed = ("float32_tensor_", 0) if on_tensor_cores else ("", 4 * tile.M * tile.N)
    launch(f"gemm_{layout}_flush_{prefix}{tile.name}", blocks, Strided(a), Strided(b), c, shape, add,
           shared_bytes=flushed if split_terms > FLUSH else 0)  # fmt: skip


def _tile(M: int, N: int, K: int, splits: int, like: Any) -> tuple[Tile, bool]:
    """(tile, whether tensor cores multiply), in the precision in force and within a block's shared memory."""
    on_tensor_cores = arithmetic_of("winograd4", like) != "float32"
    tiles = TENSOR_TILES["float32_tensor"] if on_tensor_cores else TILES
    # So few terms that no split is proposed: planes are chosen before, for all chunks alike.
    tile, _ = choose_tile(M, N, min(K, 256), ELEMENTS * splits, multiprocessors(), tiles)
    if not on_tensor_cores and _shared_bytes(tile) + 4 * tile.M * tile.N > shared_limit(like):
        tile = TILES[-1]
    return tile, on_tensor_cores


def _shared_bytes(tile: Tile) -> int:
    """Two stages of both operands, rows padded by 4 floats."""
    return 4 * 2 * STEP * (tile.M + 4 + tile.N + 4)


def _blocks(count: int) -> int:
    return -(-count // THREADS)


def _warps(count: int) -> int:
    return -(-count // (THREADS // 32))
