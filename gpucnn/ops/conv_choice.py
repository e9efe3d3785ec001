"""Which algorithm "auto" stands for, and why: pure functions of integers and of the names there are.

On the CPU rules that were measured; where kernels run guards first, then the least planned time of `conv_cost`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from gpucnn.ops import conv_cost, conv_direct
from gpucnn.ops.cards import Card
from gpucnn.ops.shapes import ConvShape

# Of algorithms whose planned times are within a sixteenth, the first here is taken: the model knows no better, and it
# needs less workspace and fewer launches.
ORDER = ("implicit_gemm", "winograd", "winograd4", "fft", "im2col", "direct")
ENOUGH_TILES = {"winograd4": 64, "winograd": 48}  # on the CPU, to repay the transforms of the filters


class Choice(NamedTuple):
    """An algorithm's name, and why it was taken."""

    algorithm: str
    reason: str


def choose_on_cpu(operation: str, shape: ConvShape, names: Collection[str]) -> Choice:
    """The choice among `names`, which can compute the shape within the limit; there must be one.

    Depthwise convolution has one input channel a group, and a GEMM of one row and R·S columns wastes the register
    tile, so direct loops win. Many channels on both sides repay the transforms. Everything else has enough reuse for
    im2col's register tile.
    """
    wishes = [*_cpu_wishes(shape), Choice("im2col", "enough reuse for its register tile")]
    unable = ""
    for wish in wishes:
        if wish.algorithm in names:
            return Choice(wish.algorithm, wish.reason + unable)
        unable = f" ({wish.algorithm}, which would be first, cannot be used)" if not unable else unable
    return _first("direct", names, f"loops without packing need the least memory{unable}")


def _first(name: str, names: Collection[str], reason: str) -> Choice:
    return Choice(name, reason) if name in names else Choice(min(names), "nothing else can be used")


def _cpu_wishes(shape: ConvShape) -> list[Choice]:
    """What would be better than im2col, best first; measured on VGG's, AlexNet's and larger kernels.

    Beside that of im2col the rounding error of winograd is at most twice as large, and that of winograd4 five times (a
    relative L2 error of at most 1.5e-6).
    """
    if shape.C == shape.groups and shape.C > 1:
        return [Choice("direct", "depthwise: a matrix product of one row would waste its register tile")]
    # A transformed number takes part in as many products as there are channels on the other side.
    if shape.groups > 1 or not shape.stride == shape.dilation == (1, 1):
        return []
    if (shape.R, shape.S) == (3, 3):
        return _cpu_winograd(shape) if min(shape.C, shape.K) >= 64 else []
    return [Choice("fft", "a large kernel on many pixels repays the filters' spectra")] if _fft_pays(shape) else []


def _fft_pays(shape: ConvShape) -> bool:
    """Spectra of a filter take up to 17 KB whatever the kernel's size, so there must not be too many filters either."""
    side, pixels, channels = min(shape.R, shape.S), shape.N * shape.P * shape.Q, min(shape.C, shape.K)
    if (
        side >= 9 and max(shape.C, shape.K) >= 64 and pixels >= 4096
    ):  # few channels, such as those of a first layer, too
        return shape.K * shape.C <= 128 * 128
    enough_pixels = 384 if side >= 7 else 2048
    return side >= 5 and channels >= 48 and pixels >= enough_pixels and shape.K * shape.C <= 128 * 256


def _cpu_winograd(shape: ConvShape) -> list[Choice]:
    sides = {"winograd4": 4, "winograd": 2}
    tiles = {name: shape.N * -(-shape.P // side) * -(-shape.Q // side) for name, side in sides.items()}
    return [
        Choice(name, f"3x3, at least 64 channels on both sides, and {count} tiles repay the filters' transforms")
        for name, count in tiles.items()
        if count >= ENOUGH_TILES[name]
    ]


def choose_for_kernels(
    operation: str,
    shape: ConvShape,
    names: Collection[str],
    card: Card,
    limit: int | None = None,
    arithmetic: str = "float32",
) -> Choice:
    """The choice among `names`, which can compute the shape within `limit` bytes of workspace; there must be one.

    - arithmetic: that products are allowed (conv_cost.arithmetic_of)
    """
    if guarded := _guard(operation, shape, names, arithmetic, card):
        return guarded
    planned = planned_times(operation, shape, names, card, limit, arithmetic)
    if not planned:
        return Choice(min(names), "nothing else can be used")
    best = min(planned, key=lambda name: (planned[name], ORDER.index(name)))
    taken = next(name for name in ORDER if name in planned and 16 * planned[name] <= 17 * planned[best])
    if len(planned) == 1:
        return Choice(taken, "nothing else can be used")
    computed = conv_cost.used(taken, arithmetic)
    reason = f"planned {_text(planned[taken])} on the {card.name}" + f" in {computed}" * (computed != "float32")
    if taken != best:
        return Choice(taken, f"{reason}, a tie with {best}'s {_text(planned[best])}, with less workspace or launches")
    second = min((name for name in planned if name != taken), key=lambda name: planned[name])
    return Choice(taken, f"{reason}, the least; next is {second} with {_text(planned[second])}")


def planned_times(
    operation: str, shape: ConvShape, names: Collection[str], card: Card, limit: int | None, arithmetic: str = "float32"
) -> dict[str, int]:
    """ps of each of `names` that there is a model of."""
    known = [name for name in names if name in ORDER]
    found = {name: conv_cost.estimate(name, operation, shape, card, limit, arithmetic) for name in known}
    return {name: each.planned for name, each in found.items() if each is not None}


def _text(picoseconds: int) -> str:
    return f"{picoseconds / 1e9:.3f} ms"


def _guard(
    operation: str, shape: ConvShape, names: Collection[str], arithmetic: str, card: Card
) -> Choice | None:  # fmt: skip
    """What needs no reckoning."""
    products = [name for name in ("implicit_gemm", "im2col") if name in names]
    if conv_direct.wins(operation, shape) and "direct" in names:
        return _few_channels(operation, shape, names, arithmetic, card)
    if (shape.R, shape.S, *shape.stride) == (1, 1, 1, 1) and shape.groups == 1 and products:
        return Choice(products[0], "1x1: it is a matrix product already")
    if (*shape.stride, *shape.dilation) != (1, 1, 1, 1) and products:
        return Choice(products[0], "stride or dilation above 1: transforms would need a pass for each phase")
    return None


def _few_channels(
    operation: str, shape: ConvShape, names: Collection[str], arithmetic: str, card: Card
) -> Choice | None:  # fmt: skip
    if shape.groups == shape.C:
        return Choice("direct", "depthwise: limited by memory, and a matrix product would multiply mostly by zeros")
    if shape.groups > 1:
        if conv_cost.bundled(operation, shape, conv_cost.Target(card, arithmetic, 2)) != shape:
            return None  # products of several groups at once; the model compares
        channels = shape.C // shape.groups
        return Choice("direct", f"groups of {channels} channels: sums too short for a matrix product")
    if arithmetic != "float32":
        return None  # tensor cores repay even short sums, unless memory limits both
    large = shape.stride == shape.dilation == (1, 1) and min(shape.R, shape.S) >= 9 and shape.K >= 64
    if large and "fft" in names and shape.N * -(-shape.P // 24) * -(-shape.Q // 24) >= 64:
        return None  # spectra repay even for few channels; the model compares
    return Choice("direct", f"{shape.C} input channels: sums too short for a matrix product")
