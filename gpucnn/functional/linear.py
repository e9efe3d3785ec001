"""Fully connected layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.tensor import Function


class Linear(Function):
    def forward(self, x: Any, weight: Any, bias: Any) -> np.ndarray:
        self.x, self.weight = x, weight
        return ops.linear_forward(x, weight, bias)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        return (
            ops.matmul(gradient, self.weight) if self.needs_gradient(0) else None,
            ops.linear_backward_weight(self.x, gradient) if self.needs_gradient(1) else None,
            ops.sum_over(gradient.reshape(-1, gradient.shape[-1]), 0) if self.needs_gradient(2) else None,
        )


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """y = x · weightᵀ + bias.

    - x: (…, in_features), float32 or float64; weight: (out_features, in_features); bias: (out_features,) or None
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    return Linear()(x, weight, bias)
