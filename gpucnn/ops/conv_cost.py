"""How long a convolution's algorithms should take on a GPU: pure functions of integers, in picoseconds.

An algorithm is a list of stages. A stage takes as long as the slowest of its arithmetic, its traffic to memory and its
traffic from the L2 cache. `floor` adds the stages up at the card's nominal rates. `planned` divides each by what such
kernels reach of them, counts whole rounds of blocks over the multiprocessors, and adds 3 µs for each launch.
docs/algorithms.md has the formulae and where they come from.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

from gpucnn.ops import conv_direct
from gpucnn.ops.cards import Card
from gpucnn.ops.shapes import ConvShape

LAUNCH = 3_000_000  # ps
WORKSPACE = 1 << 28  # bytes that staged algorithms take at most where no limit is given
# Thousandths of the nominal rate that is planned with.
MEMORY, SHORT_RUNS, PRODUCT, STAGED, FUSED, DIRECT, GENERAL = 850, 750, 850, 870, 757, 850, 300
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
SPLIT_TERMS = 256  # a split sums at least so many
STEP_CLOCKS, EXTRA_STEPS = 800, 1  # a step's least time; start and end of a block, in steps
FFT_TILES = (16, 32, 64)


class Tile(NamedTuple):
    """Of a block of a matrix product.

    - step: terms that it takes at a time; percent: of the speed of the largest; resident: blocks of a multiprocessor
    """

    rows: int
    columns: int
    step: int
    percent: int
    resident: int


TILES = (Tile(128, 128, 16, 100, 2), Tile(64, 64, 16, 88, 4))
COMPLEX_TILES = (Tile(128, 64, 8, 100, 2),)


class Stage(NamedTuple):
    """One kernel, or several of a kind.

    - flops, bytes, l2_bytes: what it does at least; for `floor`
    - busy: ps of its arithmetic with the planned rate and whole rounds; None: as flops say
    - memory: thousandths of the nominal rate that are planned with
    """

    flops: int
    bytes: int
    l2_bytes: int = 0
    busy: int | None = None
    launches: int = 1
    memory: int = MEMORY


class Estimate(NamedTuple):
    """flops and bytes of all stages; `floor` and `planned` in ps."""

    flops: int
    bytes: int
    floor: int
    planned: int


def estimate(algorithm: str, operation: str, shape: ConvShape, card: Card, limit: int | None = None) -> Estimate | None:
    """The estimate of one algorithm on a card, for float32; None for an algorithm that there is no model of.

    - limit: bytes of workspace, by which staged algorithms are cut into chunks of images
    """
    if algorithm not in MODELS or (algorithm == "fft" and max(shape.R, shape.S) > FFT_TILES[-1]):
        return None
    return _estimate(MODELS[algorithm](operation, shape, card, limit), card)


def _estimate(stages: list[Stage], card: Card) -> Estimate:
    floor = planned = 0
    for stage in stages:
        floor += max(_time(stage.flops, card.gflops), _time(stage.bytes, card.memory), _time(stage.l2_bytes, card.l2))
        busy = _time(stage.flops, card.gflops, PRODUCT) if stage.busy is None else stage.busy
        moved = max(_time(stage.bytes, card.memory, stage.memory), _time(stage.l2_bytes, card.l2, MEMORY))
        planned += max(busy, moved) + stage.launches * LAUNCH
    return Estimate(sum(stage.flops for stage in stages), sum(stage.bytes for stage in stages), floor, planned)


def _time(amount: int, rate: int, thousandths: int = 1000) -> int:
    """ps for `amount` at so many thousandths of `rate` · 10^9 a second."""
    return amount * 1_000_000 // (rate * thousandths)


def _rounds(blocks: int, clocks: int, card: Card, thousandths: int) -> int:
    """ps of the busiest multiprocessor; clocks: of one block, in each of which it does 128 multiply-adds at best."""
    return _time(-(-blocks // card.multiprocessors) * clocks * 256 * card.multiprocessors, card.gflops, thousandths)


class _Product(NamedTuple):
    """ps and splits of a matrix product, planned."""

    busy: int
    splits: int


def _product(
    rows: int, columns: int, terms: int, batch: int, card: Card, thousandths: int,
    tiles: tuple[Tile, ...] = TILES, work: int = 1, most: int = SPLITS[-1],
) -> _Product:  # fmt: skip
    """The best tile and number of splits, `most` at most.

    - work: multiply-adds of one product of two numbers, 4 for complex ones
    """
    choices = []
    for tile in tiles:
        blocks = batch * -(-rows // tile.rows) * -(-columns // tile.columns)
        for splits in SPLITS:
            if splits > 1 and (splits > most or splits * SPLIT_TERMS > terms):
                break
            share = -(-blocks * splits // card.multiprocessors)
            multiply = share * tile.rows * tile.columns * tile.step * work * 100 // (128 * tile.percent)
            wait = -(-share // tile.resident) * STEP_CLOCKS * thousandths // 1000
            steps = -(-terms // (splits * tile.step)) + EXTRA_STEPS
            busy = _rounds(1, steps * max(multiply, wait), card, thousandths)
            if splits > 1:
                busy += LAUNCH + _time(8 * splits * batch * rows * columns, card.memory, MEMORY)
            choices.append(_Product(busy, splits))
    return min(choices)


def _bytes(shape: ConvShape) -> int:
    """x, weights and y, once each."""
    return 4 * (prod(shape.x) + prod(shape.weight) + prod(shape.y))


def _sizes(operation: str, shape: ConvShape) -> tuple[int, int, int]:
    """(rows, columns, terms) of the pass as a matrix product of one group; terms of backward_input for one phase."""
    filters, channels, taps = shape.K // shape.groups, shape.C // shape.groups, shape.R * shape.S
    pixels = shape.N * shape.P * shape.Q
    if operation == "conv2d_forward":
        return filters, pixels, channels * taps
    if operation == "conv2d_backward_weight":
        return filters, channels * taps, pixels
    phases = prod(shape.stride)
    return channels, shape.N * -(-shape.H * shape.W // phases), filters * -(-taps // phases)


def _implicit_gemm(operation: str, shape: ConvShape, card: Card, limit: int | None) -> list[Stage]:
    phases = prod(shape.stride) if operation == "conv2d_backward_input" else 1
    rows, columns, terms = _sizes(operation, shape)
    batch = shape.groups * phases
    most = SPLITS[-1] if limit is None else limit // max(1, 4 * batch * rows * columns)
    busy = _product(rows, columns, terms, batch, card, PRODUCT, most=most).busy
    return [Stage(2 * shape.multiply_adds, _bytes(shape), busy=busy)]


def _im2col(operation: str, shape: ConvShape, card: Card, limit: int | None) -> list[Stage]:
    """Patches written and read, and a product for each image; the patches of 1×1 kernels are the image itself."""
    pixels = shape.P * shape.Q
    patches = 4 * shape.N * shape.C * shape.R * shape.S * pixels
    if (shape.R, shape.S, *shape.stride, *shape.padding) == (1, 1, 1, 1, 0, 0):
        patches = 0
    rows, columns, terms = _sizes(operation, shape._replace(N=1, stride=(1, 1)))
    if operation == "conv2d_backward_input":
        rows, columns, terms = shape.C // shape.groups * shape.R * shape.S, pixels, shape.K // shape.groups
    chunks = _chunks(shape.N, patches, limit)
    busy = _product(rows, columns, terms, shape.N, card, STAGED).busy * shape.groups
    moved, images = _bytes(shape), 4 * prod(shape.x)
    product = Stage(2 * shape.multiply_adds, moved + (patches - images if patches else 0), busy=busy,
                    launches=chunks * shape.groups)  # fmt: skip
    return [Stage(0, patches + images, launches=chunks), product] if patches else [product]


def _chunks(images: int, size: int, limit: int | None, fixed: int = 0) -> int:
    """How many chunks of whole images keep `size` bytes of all of them, and `fixed` ones, under the limit."""
    room = WORKSPACE if limit is None else limit - fixed
    in_chunk = max(1, min(images, room * images // max(1, size)))
    return -(-images // in_chunk) if images else 1


def _direct(operation: str, shape: ConvShape, card: Card, limit: int | None) -> list[Stage]:
    """Depthwise kernels are bound by memory, those of first layers by multiply-adds; the general ones are slow."""
    way = conv_direct.path(operation, shape)
    flops = 2 * shape.multiply_adds
    if way == "depthwise":
        return [Stage(flops, _bytes(shape), busy=_time(2 * flops, card.gflops))]
    if way == "first_layer":
        blocks = shape.N * -(-shape.P // 4) * -(-shape.Q // 64) * -(-shape.K // 64)
        terms = shape.C * shape.R * shape.S
        return [Stage(flops, _bytes(shape), busy=_rounds(blocks, 4 * 64 * 64 * terms // 128, card, DIRECT))]
    rows, columns, terms = _sizes(operation, shape)
    blocks = prod(shape.stride) if operation == "conv2d_backward_input" else 1
    if operation == "conv2d_backward_weight":
        return [Stage(flops, _bytes(shape), busy=_time(flops, card.gflops, GENERAL), launches=2)]
    blocks *= shape.groups * -(-rows // 8) * -(-columns // conv_direct.PIXELS)
    return [Stage(flops, _bytes(shape), busy=_rounds(blocks, 8 * conv_direct.PIXELS * terms // 128, card, GENERAL))]


def _tiles(operation: str, shape: ConvShape, side: int) -> int:
    """Tiles of side × side results, or of y for backward_weight; backward_input's results are the pixels of x."""
    height, width = (shape.H, shape.W) if operation == "conv2d_backward_input" else (shape.P, shape.Q)
    return shape.N * -(-height // side) * -(-width // side)


def _winograd(operation: str, shape: ConvShape, card: Card, limit: int | None) -> list[Stage]:
    """F(2×2,3×3), fused: blocks of 64 filters × 32 tiles; of backward_weight 64 filters × 32 channels × all tiles."""
    into, out, groups = shape.C // shape.groups, shape.K // shape.groups, shape.groups
    if operation == "conv2d_backward_input":
        into, out = out, into
    tiles = _tiles(operation, shape, 2)
    products = 16 * groups * tiles * into * out
    weights = 4 * 16 * groups * into * out
    traffic = 147 * products // 1000
    if operation == "conv2d_backward_weight":
        blocks = groups * -(-out // 64) * -(-into // 32)
        splits = max(1, min(card.multiprocessors // max(1, blocks), tiles // 256))
        flops = 2 * products + 2 * groups * tiles * (32 * into * -(-out // 64) + 12 * out * -(-into // 32))
        clocks = 16 * 64 * 32 * (-(-tiles // splits) + 16) // 128
        busy = _rounds(blocks * splits, clocks, card, FUSED)
        moved = _bytes(shape) + 8 * splits * prod(shape.weight)
        return [Stage(flops, moved, traffic, busy, launches=2 if splits > 1 else 1)]
    flops = 2 * (products + groups * tiles * (32 * into * -(-out // 64) + 24 * out))
    blocks = groups * -(-tiles // 32) * -(-out // 64)
    busy = _rounds(blocks, 16 * 64 * 32 * 8 * (-(-into // 8) + 2) // 128, card, FUSED)
    moved = 4 * (prod(shape.x) + prod(shape.y)) + weights
    return [Stage(0, 4 * prod(shape.weight) + weights), Stage(flops, moved, traffic, busy)]


def _winograd4(operation: str, shape: ConvShape, card: Card, limit: int | None) -> list[Stage]:
    """F(4×4,3×3), staged: transforms, 36 products, transform back."""
    return _staged(operation, shape, card, limit, _tiles(operation, shape, 4), 36, 4, TILES, 0)


def _fft(operation: str, shape: ConvShape, card: Card, limit: int | None) -> list[Stage]:
    """Tiles of t × t, of which t − R + 1 rows are results: the size that is fastest."""
    stages = [
        _staged(
            operation,
            shape,
            card,
            limit,
            _fft_tiles(operation, shape, side),
            side * side // 2 + 2,
            8,
            COMPLEX_TILES,
            5 * side**2 * steps,
        )  # fmt: skip
        for steps, side in enumerate(FFT_TILES, 4)
        if side >= max(shape.R, shape.S)
    ]
    return min(stages, key=lambda each: _estimate(each, card).planned)


def _fft_tiles(operation: str, shape: ConvShape, side: int) -> int:
    """How many tiles; an image that fits with its padding needs but one."""
    rows, columns = side - shape.R + 1, side - shape.S + 1
    if shape.H + 2 * shape.padding[0] <= side and shape.W + 2 * shape.padding[1] <= side:
        return shape.N
    height, width = (shape.H, shape.W) if operation == "conv2d_backward_input" else (shape.P, shape.Q)
    return shape.N * -(-height // rows) * -(-width // columns)


def _staged(
    operation: str, shape: ConvShape, card: Card, limit: int | None, tiles: int, products: int, size: int,
    kinds: tuple[Tile, ...], transform: int,
) -> list[Stage]:  # fmt: skip
    """Transforms to `products` numbers of `size` bytes a tile and channel, a product for each of them, and back.

    - transform: flops of one transform; 0: so few that memory is what limits it
    """
    C, K = shape.C, shape.K
    spectra, filters = tiles * (C + K), C * K
    work = 4 if size == 8 else 1
    multiplied = products * tiles * C * K * work
    rows, columns, terms = (K, C, tiles) if operation == "conv2d_backward_weight" else (K, tiles, C)
    if operation == "conv2d_backward_input":
        rows, terms = C, K
    chunks = _chunks(shape.N, size * products * spectra, limit, size * products * filters)
    if operation == "conv2d_backward_weight":
        terms = -(-terms // chunks)
    else:
        columns = -(-columns // chunks)
    busy = chunks * _product(rows, columns, terms, products, card, STAGED, kinds, work).busy
    moved = size * products * (spectra + filters)
    once = size * products * filters if size == 8 else 0  # of winograd4 the filters' transform is kept
    around = Stage(transform * (spectra + filters), _bytes(shape) - 4 * prod(shape.weight) * (size == 4)
                   + size * products * spectra + once, launches=1 + 2 * chunks,
                   memory=SHORT_RUNS if size == 8 else MEMORY)  # fmt: skip
    return [around, Stage(2 * multiplied, moved, busy=busy, launches=chunks)]


MODELS: dict[str, Callable[[str, ConvShape, Card, int | None], list[Stage]]] = {
    "direct": _direct,
    "implicit_gemm": _implicit_gemm,
    "im2col": _im2col,
    "winograd": _winograd,
    "winograd4": _winograd4,
    "fft": _fft,
}
