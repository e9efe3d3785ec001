"""Randomness with a state that can be saved: initial weights are drawn on the host, dropout masks from a counter."""

from __future__ import annotations

from typing import Any

import numpy as np


class Generator:
    """A seeded source of random numbers.

    `host` is a NumPy generator for initial weights, so that these are the same on every device. `reserve` hands out
    ranges of the Philox4x32-10 counter (Salmon et al. 2011), from which every device computes the same dropout masks.
    """

    def __init__(self, seed: int = 0) -> None:
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> None:
        """Start again from `seed`, an integer from 0 to 2^63 − 1; raises ValueError for another value."""
        if not 0 <= seed < 2**63:
            raise ValueError(f"manual_seed: seed is {seed}; it must be from 0 to 2**63 - 1")
        self.seed = int(seed)
        self.offset = 0
        self.host = np.random.Generator(np.random.PCG64(self.seed))

    def reserve(self, count: int) -> tuple[int, int]:
        """(seed, offset) for `count` 32-bit words; the next call gets those after them (4 words a block)."""
        offset = self.offset
        self.offset += -(-count // 4)
        return self.seed, offset

    def get_state(self) -> dict[str, Any]:
        """The state as a dictionary that JSON can hold."""
        return {"seed": self.seed, "offset": self.offset, "host": self.host.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned; raises ValueError for numbers that it never returns."""
        seed, offset = int(state["seed"]), int(state["offset"])
        if not (0 <= seed < 2**63 and 0 <= offset < 2**63):
            raise ValueError(f"set_state: seed is {seed} and offset {offset}; they must be from 0 to 2**63 - 1")
        host = np.random.PCG64()
        host.state = state["host"]
        self.seed, self.offset = seed, offset
        self.host = np.random.Generator(host)


default_generator = Generator()


def manual_seed(seed: int) -> None:
    """Seed the generator behind initial weights and dropout."""
    default_generator.manual_seed(seed)
