"""Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.ops.shapes import require_float
from gpucnn.random import default_generator
from gpucnn.tensor import Function


class Dropout(Function):
    def __init__(self, p: float) -> None:
        self.p = p

    def forward(self, x: Any) -> np.ndarray:
        require_float("dropout", halves=True, x=x)
        self.seed, self.offset = default_generator.reserve(x.size)
        return ops.dropout(x, self.p, self.seed, self.offset)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.dropout(gradient, self.p, self.seed, self.offset),)


def dropout(x: Any, p: float = 0.5, training: bool = True) -> Any:
    """In training each element is 0 with probability p, else scaled by 1/(1 − p); otherwise x (Srivastava et al. 2014).

    The mask comes from the generator that `gpucnn.manual_seed` seeds. Raises ValueError unless 0 ≤ p < 1.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p is {p}; it must be at least 0 and below 1")
    return Dropout(p)(x) if training and p > 0 else x
