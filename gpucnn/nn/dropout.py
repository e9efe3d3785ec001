"""Dropout layer."""

from __future__ import annotations

from typing import Any

from gpucnn.functional.dropout import dropout
from gpucnn.nn.module import Module


class Dropout(Module):
    """In training each element is 0 with probability p, else scaled by 1 / (1 − p); in evaluation nothing happens."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p is {p}; it must be at least 0 and below 1")
        self.p = p

    def forward(self, x: Any) -> Any:
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
