"""How long a convolution's algorithms should take on a GPU: pure functions of integers, in picoseconds.

An algorithm is a list of stages. A stage takes as long as the slowest of its arithmetic, its traffic to memory and its
traffic from the L2 cache. `floor` adds the stages up at the card's nominal rates. `planned` divides each by what such
kernels reach of them, counts whole rounds of blocks over the multiprocessors, and adds 3 µs for each launch. Products
take the rate of their arithmetic, which the precision and the type of the values allow.
docs/algorithms.md has the formulae and where they come from.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

from gpucnn.ops import conv_direct, conv_hopper
from gpucnn.ops.cards import Card
from gpucnn.ops.shapes import ConvShape

LAUNCH = 3_000_000  # ps
WORKSPACE = 1 << 28  # bytes that staged algorithms take at most where no limit is given
# Thousandths of the nominal rate that is planned with.
MEMORY, SHORT_RUNS, PRODUCT, STAGED, FUSED, DIRECT, GENERAL = 850, 750, 850, 870, 757, 850, 300
# Of tensor cores: 850 before sm_90. There mma.sync reaches 65% at most, and as loops issue 6 to 7 instructions for each
# of 4 clocks less in tf32; wgmma, which 16 bits have, reaches 88% on random numbers: four fifths of that are planned.
TENSOR, HOPPER = 850, {"tf32": 550, "float32_tensor": 620, "bfloat16": 700, "float16": 700}
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
BLOCK_CHANNELS = 64  # implicit_gemm's sums for weights are in another order where channels are whole blocks
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
TENSOR_TILES = {
    "float32_tensor": (Tile(128, 128, 16, 100, 1), Tile(64, 64, 16, 78, 3)),
    "tf32": (Tile(128, 128, 16, 100, 2), Tile(64, 64, 16, 73, 4)),
}
HALF_TILES = (Tile(128, 256, 64, 100, 1), Tile(128, 128, 64, 90, 2), Tile(64, 64, 64, 60, 4))


class Unit(NamedTuple):
    """What products of an arithmetic are reckoned with on a card.

    - rate: of multiply-adds, 2 operations each, 10^9 a second; planned: thousandths of it; size: bytes of an operand
    """

    arithmetic: str
    rate: int
    planned: int
    tiles: tuple[Tile, ...]
    size: int


HALVES = ("bfloat16", "float16")
ARITHMETICS = ("float32", "float32_tensor", "tf32", *HALVES)


def arithmetic_of(precision: str, type_name: str = "float32", card: Card | None = None) -> str:
    """What products may be computed in: 16-bit values as they are, others in the precision; float32 on older cards."""
    name = type_name if type_name in HALVES else precision
    return name if card is None or card.tf32 else "float32"


def used(algorithm: str, arithmetic: str) -> str:
    """The arithmetic of an algorithm's products where `arithmetic` is allowed."""
    if algorithm in ("implicit_gemm", "im2col"):
        return arithmetic
    return "float32_tensor" if algorithm == "winograd4" and arithmetic in ("float32_tensor", "tf32") else "float32"


def unit(arithmetic: str, card: Card, planned: int = PRODUCT) -> Unit:
    """planned: thousandths of the float32 units' rate."""
    if arithmetic == "float32":
        return Unit(arithmetic, card.gflops, planned, TILES, 4)
    reached = HOPPER[arithmetic] if card.capability >= (9, 0) else TENSOR
    if arithmetic in HALVES:
        return Unit(arithmetic, card.half, reached, HALF_TILES, 2)
    rate = card.tf32 // (3 if arithmetic == "float32_tensor" else 1)
    return Unit(arithmetic, rate, reached, TENSOR_TILES[arithmetic], 4)


class Target(NamedTuple):
    """What an algorithm is reckoned for: a card, the arithmetic that its products are allowed, bytes of a value."""

    card: Card
    arithmetic: str
    size: int

    def unit(self, algorithm: str, planned: int = PRODUCT) -> Unit:
        return unit(used(algorithm, self.arithmetic), self.card, planned)


class Stage(NamedTuple):
    """One kernel, or several of a kind.

    - flops, bytes, l2_bytes: what it does at least; for `floor`
    - busy: ps of its arithmetic with the planned rate and whole rounds; None: as flops say
    - memory: thousandths of the nominal rate that are planned with
    - rate: of its flops, if it is not the card's in float32
    """

    flops: int
    bytes: int
    l2_bytes: int = 0
    busy: int | None = None
    launches: int = 1
    memory: int = MEMORY
    rate: int | None = None


class Estimate(NamedTuple):
    """flops and bytes of all stages; `floor` and `planned` in ps; bound: what most of the floor is spent on.

    - bound: "memory", "l2" or "products"
    """

    flops: int
    bytes: int
    floor: int
    planned: int
    bound: str


def estimate(
    algorithm: str, operation: str, shape: ConvShape, card: Card, limit: int | None = None, arithmetic: str = "float32"
) -> Estimate | None:
    """The estimate of one algorithm on a card; None for an algorithm that there is no model of.

    - limit: bytes of workspace, by which staged algorithms are cut into chunks of images
    - arithmetic: one of ARITHMETICS that products are allowed; "bfloat16" and "float16" are also the type of x, w and y
    """
    if algorithm not in MODELS or (algorithm == "fft" and max(shape.R, shape.S) > FFT_TILES[-1]):
        return None
    target = Target(card, arithmetic, 2 if arithmetic in HALVES else 4)
    return _estimate(MODELS[algorithm](operation, shape, target, limit), card)


def _estimate(stages: list[Stage], card: Card) -> Estimate:
    planned, spent = 0, {"products": 0, "memory": 0, "l2": 0}
    for stage in stages:
        rate = stage.rate or card.gflops
        times = {"products": _time(stage.flops, rate), "memory": _time(stage.bytes, card.memory),
                 "l2": _time(stage.l2_bytes, card.l2)}  # fmt: skip
        bound = max(times, key=lambda name: times[name])
        spent[bound] += times[bound]
        busy = _time(stage.flops, rate, PRODUCT) if stage.busy is None else stage.busy
        moved = max(_time(stage.bytes, card.memory, stage.memory), _time(stage.l2_bytes, card.l2, MEMORY))
        planned += max(busy, moved) + stage.launches * LAUNCH
    flops, moved = sum(stage.flops for stage in stages), sum(stage.bytes for stage in stages)
    return Estimate(flops, moved, sum(spent.values()), planned, max(spent, key=lambda name: spent[name]))


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
    rows: int, columns: int, terms: int, batch: int, card: Card, unit: Unit, work: int = 1, most: int = SPLITS[-1],
    reuse: int = 1,
) -> _Product:  # fmt: skip
    """The best tile and number of splits, `most` at most.

    - work: multiply-adds of one product of two numbers, 4 for complex ones
    - reuse: how often the L1 cache gives what is loaded for the columns
    """
    choices = []
    for tile in unit.tiles:
        blocks = batch * -(-rows // tile.rows) * -(-columns // tile.columns)
        for splits in SPLITS:
            if splits > 1 and (splits > most or splits * SPLIT_TERMS > terms):
                break
            share = -(-blocks * splits // card.multiprocessors)
            multiply = share * tile.rows * tile.columns * tile.step * work * 100 * card.gflops
            multiply //= 128 * tile.percent * unit.rate
            wait = -(-share // tile.resident) * STEP_CLOCKS * unit.planned // 1000
            steps = -(-terms // (splits * tile.step)) + EXTRA_STEPS
            busy = _rounds(1, steps * max(multiply, wait), card, unit.planned)
            if unit.arithmetic != "float32":  # so fast that tiles may arrive more slowly than they are multiplied
                loaded = blocks * (tile.rows + tile.columns // reuse) * -(-terms // tile.step) * tile.step * unit.size
                busy = max(busy, _time(loaded, card.l2, MEMORY))
            if splits > 1:
                busy += LAUNCH + _time(8 * splits * batch * rows * columns, card.memory, MEMORY)
            choices.append(_Product(busy, splits))
    return min(choices)


def _bytes(shape: ConvShape, size: int) -> int:
    """x, weights and y, once each, of values of `size` bytes."""
    return size * (prod(shape.x) + prod(shape.weight) + prod(shape.y))


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


def bundled(operation: str, shape: ConvShape, target: Target) -> ConvShape:
    """The shape whose groups are what the kernels of sm_90 multiply as one: several of few channels."""
    if shape.groups == 1 or target.arithmetic not in HALVES or target.card.capability < (9, 0):
        return shape
    name = operation.removeprefix("conv2d_")
    if not conv_hopper.fills_tiles(name, shape):
        return shape
    return shape._replace(groups=conv_hopper.bundles(name, shape).batches)


def _implicit_gemm(operation: str, shape: ConvShape, target: Target, limit: int | None) -> list[Stage]:
    """The weights in another order, then the product; of backward_weight sums in another order, then the weights'."""
    card, unit = target.card, target.unit("implicit_gemm")
    phases = prod(shape.stride) if operation == "conv2d_backward_input" else 1
    as_one = bundled(operation, shape, target)
    rows, columns, terms = _sizes(operation, as_one)
    batch = as_one.groups * phases
    most = SPLITS[-1] if limit is None else limit // max(1, 4 * batch * rows * columns)
    # The taps of a channel follow on each other; half of what they share is taken to be lost.
    reuse = 1 if operation == "conv2d_backward_weight" else max(1, shape.R * shape.S // phases // 2)
    busy = _product(rows, columns, terms, batch, card, unit, most=most, reuse=reuse).busy
    product = Stage(2 * shape.multiply_adds, _bytes(shape, target.size), busy=busy, rate=unit.rate)
    if operation == "conv2d_backward_weight" and columns // (shape.R * shape.S) % BLOCK_CHANNELS:
        return [product]
    return [Stage(0, 2 * target.size * prod(shape.weight)), product]


def _im2col(operation: str, shape: ConvShape, target: Target, limit: int | None) -> list[Stage]:
    """Patches written and read, and a product for each image; the patches of 1×1 kernels are the image itself."""
    pixels, unit = shape.P * shape.Q, target.unit("im2col", STAGED)
    patches = target.size * shape.N * shape.C * shape.R * shape.S * pixels
    if (shape.R, shape.S, *shape.stride, *shape.padding) == (1, 1, 1, 1, 0, 0):
        patches = 0
    rows, columns, terms = _sizes(operation, shape._replace(N=1, stride=(1, 1)))
    if operation == "conv2d_backward_input":
        rows, columns, terms = shape.C // shape.groups * shape.R * shape.S, pixels, shape.K // shape.groups
    chunks = _chunks(shape.N, patches, limit)
    busy = _product(rows, columns, terms, shape.N, target.card, unit).busy * shape.groups
    moved, images = _bytes(shape, target.size), target.size * prod(shape.x)
    product = Stage(2 * shape.multiply_adds, moved + (patches - images if patches else 0), busy=busy,
                    launches=chunks * shape.groups, rate=unit.rate)  # fmt: skip
    return [Stage(0, patches + images, launches=chunks), product] if patches else [product]


def _chunks(images: int, size: int, limit: int | None, fixed: int = 0) -> int:
    """How many chunks of whole images keep `size` bytes of all of them, and `fixed` ones, under the limit."""
    room = WORKSPACE if limit is None else limit - fixed
    in_chunk = max(1, min(images, room * images // max(1, size)))
    return -(-images // in_chunk) if images else 1


def _direct(operation: str, shape: ConvShape, target: Target, limit: int | None) -> list[Stage]:
    """Depthwise kernels are bound by memory, those of first layers by multiply-adds; the general ones are slow."""
    way, card = conv_direct.path(operation, shape), target.card
    flops, moved = 2 * shape.multiply_adds, _bytes(shape, target.size)
    if way == "depthwise":
        return [Stage(flops, moved, busy=_time(2 * flops, card.gflops))]
    if way == "first_layer":
        blocks = shape.N * -(-shape.P // 4) * -(-shape.Q // 64) * -(-shape.K // 64)
        terms = shape.C * shape.R * shape.S
        return [Stage(flops, moved, busy=_rounds(blocks, 4 * 64 * 64 * terms // 128, card, DIRECT))]
    rows, columns, terms = _sizes(operation, shape)
    blocks = prod(shape.stride) if operation == "conv2d_backward_input" else 1
    if operation == "conv2d_backward_weight":
        return [Stage(flops, moved, busy=_time(flops, card.gflops, GENERAL), launches=2)]
    blocks *= shape.groups * -(-rows // 8) * -(-columns // conv_direct.PIXELS)
    return [Stage(flops, moved, busy=_rounds(blocks, 8 * conv_direct.PIXELS * terms // 128, card, GENERAL))]


def _tiles(operation: str, shape: ConvShape, side: int) -> int:
    """Tiles of side × side results, or of y for backward_weight; backward_input's results are the pixels of x."""
    height, width = (shape.H, shape.W) if operation == "conv2d_backward_input" else (shape.P, shape.Q)
    return shape.N * -(-height // side) * -(-width // side)


def _winograd(operation: str, shape: ConvShape, target: Target, limit: int | None) -> list[Stage]:
    """F(2×2,3×3), fused: blocks of 64 filters × 32 tiles; of backward_weight 64 filters × 32 channels × all tiles."""
    card = target.card
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
        moved = _bytes(shape, target.size) + 8 * splits * prod(shape.weight)
        return [Stage(flops, moved, traffic, busy, launches=2 if splits > 1 else 1)]
    flops = 2 * (products + groups * tiles * (32 * into * -(-out // 64) + 24 * out))
    blocks = groups * -(-tiles // 32) * -(-out // 64)
    busy = _rounds(blocks, 16 * 64 * 32 * 8 * (-(-into // 8) + 2) // 128, card, FUSED)
    moved = target.size * (prod(shape.x) + prod(shape.y)) + weights
    return [Stage(0, target.size * prod(shape.weight) + weights), Stage(flops, moved, traffic, busy)]


def _winograd4(operation: str, shape: ConvShape, target: Target, limit: int | None) -> list[Stage]:
    """F(4×4,3×3), staged: transforms, 36 products, transform back."""
    unit = target.unit("winograd4", STAGED)
    return _staged(operation, shape, target, limit, _tiles(operation, shape, 4), 36, 4, unit, 0)


def _fft(operation: str, shape: ConvShape, target: Target, limit: int | None) -> list[Stage]:
    """Tiles of t × t, of which t − R + 1 rows are results: the size that is fastest."""
    unit = target.unit("fft", STAGED)._replace(tiles=COMPLEX_TILES)
    stages = [
        _staged(
            operation,
            shape,
            target,
            limit,
            _fft_tiles(operation, shape, side),
            side * side // 2 + 2,
            8,
            unit,
            5 * side**2 * steps,
        )  # fmt: skip
        for steps, side in enumerate(FFT_TILES, 4)
        if side >= max(shape.R, shape.S)
    ]
    return min(stages, key=lambda each: _estimate(each, target.card).planned)


def _fft_tiles(operation: str, shape: ConvShape, side: int) -> int:
    """How many tiles; an image that fits with its padding needs but one."""
    rows, columns = side - shape.R + 1, side - shape.S + 1
    if shape.H + 2 * shape.padding[0] <= side and shape.W + 2 * shape.padding[1] <= side:
        return shape.N
    height, width = (shape.H, shape.W) if operation == "conv2d_backward_input" else (shape.P, shape.Q)
    return shape.N * -(-height // rows) * -(-width // columns)


def _staged(
    operation: str, shape: ConvShape, target: Target, limit: int | None, tiles: int, products: int, size: int,
    unit: Unit, transform: int,
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
    busy = chunks * _product(rows, columns, terms, products, target.card, unit, work).busy
    moved = size * products * (spectra + filters)
    # The filters' transform is part of every call.
    around = Stage(transform * (spectra + filters),
                   _bytes(shape, target.size) + size * products * (spectra + filters), launches=1 + 2 * chunks,
                   memory=SHORT_RUNS if size == 8 else MEMORY)  # fmt: skip
    return [around, Stage(2 * multiplied, moved, busy=busy, launches=chunks, rate=unit.rate)]


MODELS: dict[str, Callable[[str, ConvShape, Target, int | None], list[Stage]]] = {
    "direct": _direct,
    "implicit_gemm": _implicit_gemm,
    "im2col": _im2col,
    "winograd": _winograd,
    "winograd4": _winograd4,
    "fft": _fft,
}
