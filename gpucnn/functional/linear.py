"""Fully connected layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import dtypes, ops
from gpucnn.functional.cast import operands
from gpucnn.tensor import Function


class Linear(Function):
    def forward(self, x: Any, weight: Any, bias: Any) -> np.ndarray:
        self.x, self.weight = x, weight
        return ops.linear_forward(x, weight, bias)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        return (
            ops.matmul(gradient, self.weight) if self.needs_gradient(0) else None,
            ops.linear_backward_weight(self.x, gradient) if self.needs_gradient(1) else None,
            ops.sum_over(_rows(gradient), 0) if self.needs_gradient(2) else None,
        )


def _rows(gradient: np.ndarray) -> np.ndarray:
    """gradient (…,out) as (rows, out), in the dtype of sums."""
    return ops.cast(gradient.reshape(-1, gradient.shape[-1]), dtypes.wide(gradient.dtype))


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """y = x · weightᵀ + bias.

    - x: (…, in_features), floating-point; weight: (out_features, in_features); bias: (out_features,) or None
    Under `gpucnn.autocast` x and weight are cast.
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    return Linear()(*operands(x, weight, bias))
