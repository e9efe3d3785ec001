"""Locally connected layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import dtypes, ops
from gpucnn.functional.cast import operands
from gpucnn.ops.shapes import ConvShape, Pair, shape_of
from gpucnn.tensor import Function


class LocallyConnected2d(Function):
    launches = False

    def __init__(self, shape: ConvShape) -> None:
        self.shape = shape

    def forward(self, x: Any, weight: Any, bias: Any) -> np.ndarray:
        self.x, self.weight = x, weight
        return ops.locally_connected2d_forward(x, weight, bias, self.shape)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        gx = gw = gb = None
        if self.needs_gradient(0):
            gx = ops.locally_connected2d_backward_input(gradient, self.weight, self.shape)
        if self.needs_gradient(1):
            gw = ops.locally_connected2d_backward_weight(self.x, gradient, self.shape)
        if self.needs_gradient(2):
            gb = ops.sum_over(ops.cast(gradient, dtypes.wide(gradient.dtype)), 0)
        return gx, gw, gb


def locally_connected2d(x: Any, weight: Any, bias: Any = None, stride: Pair = 1, padding: Pair = 0) -> Any:
    """A convolution whose filters are not shared: every output pixel has its own. Differentiable in x, weight and bias.

    y[n,k,p,q] = bias[k,p,q] + Σ_{c,r,s} weight[p,q,k,c,r,s] · x[n, c, p·stride + r − padding, q·stride + s − padding];
    P and Q are those of conv2d.

    - x: (N, C, H, W), float32 or float64; weight: (P, Q, K, C, R, S); bias: (K, P, Q) or None
    - stride, padding: pixels, an integer or (height, width)
    Raises ValueError or TypeError naming the argument that does not fit.
    Source: LeCun 1989, "Generalization and network design strategies" (local connections without shared weights).
    """
    x_shape = shape_of("locally_connected2d", "x", x)
    weight_shape = shape_of("locally_connected2d", "weight", weight)
    shape = ops.locally_connected2d_shape(x_shape, weight_shape, stride, padding)
    return LocallyConnected2d(shape)(*operands(x, weight, bias))
