"""What the choice of a convolution's algorithm reckons with of a GPU: one table, plain integers.

Rates are the makers' nominal ones, none of them measured here.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple


class Card(NamedTuple):
    """One GPU.

    - gflops: float32 multiply-adds, 2 operations each, 10^9 a second
    - tf32, half: the same on dense tensor cores: of tf32 values, and of bfloat16 or float16 ones with float32
      sums; 0 where the library has no kernels for them
    - memory, l2: 10^9 bytes a second from device memory, and from the L2 cache to all multiprocessors (22 bytes a clock
      and multiprocessor)
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    gflops: int
    memory: int
    l2: int
    tf32: int
    half: int


CARDS = {
    card.name: card
    for card in (
        Card("H200", (9, 0), 132, 67_000, 4_800, 5_500, 495_000, 990_000),
        Card("H100", (9, 0), 132, 67_000, 3_350, 5_500, 495_000, 990_000),
        Card("A100-80", (8, 0), 108, 19_500, 2_000, 3_350, 156_000, 312_000),
        Card("L40S", (8, 9), 142, 91_600, 864, 7_800, 183_000, 362_000),
        Card("RTX 4090", (8, 9), 128, 82_600, 1_010, 7_100, 82_600, 165_200),
        Card("RTX 3090", (8, 6), 82, 35_600, 940, 3_050, 35_600, 71_000),
        Card("T4", (7, 5), 40, 8_100, 320, 1_400, 0, 0),
    )
}
SIMULATED = CARDS["H200"]  # the one that the simulator stands for
_MARKS = {  # part of the name that the driver gives
    "H200": "H200", "H100": "H100", "A100": "A100-80", "L40S": "L40S", "4090": "RTX 4090", "3090": "RTX 3090",
    "T4": "T4",
}  # fmt: skip


@cache
def card_of(name: str, capability: tuple[int, int]) -> Card:
    """The table's card for a GPU of this name, else the last that is no newer than its compute capability."""
    words = name.replace("-", " ").split()
    for mark, card in _MARKS.items():
        if mark in words:
            return CARDS[card]
    older = [card for card in CARDS.values() if card.capability <= capability]
    return max(older, key=lambda card: (card.capability, -card.gflops), default=CARDS["T4"])


def named(text: str) -> Card:
    """The card called `text`, in any case, with or without spaces and hyphens; raises ValueError naming them all."""

    def plain(name: str) -> str:
        return "".join(filter(str.isalnum, name)).lower()

    for name, card in CARDS.items():
        if plain(text) in (plain(name), plain(_driver_mark(name))):
            return card
    raise ValueError(f"GPU {text!r} is not in the table; it has {', '.join(CARDS)}")


def _driver_mark(name: str) -> str:
    return next(mark for mark, card in _MARKS.items() if card == name)
