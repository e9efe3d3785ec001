"""Convolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.ops.shapes import ConvShape, Pair, shape_of
from gpucnn.tensor import Function


class Conv2d(Function):
    def __init__(self, shape: ConvShape, algorithm: str) -> None:
        self.shape, self.algorithm = shape, algorithm

    def forward(self, x: Any, weight: Any, bias: Any) -> np.ndarray:
        self.x, self.weight = x, weight
        return ops.conv2d_forward(x, weight, bias, self.shape, self.algorithm)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        gx = gw = gb = None
        if self.needs_gradient(0):
            gx = ops.conv2d_backward_input(gradient, self.weight, self.shape, self.algorithm)
        if self.needs_gradient(1):
            gw = ops.conv2d_backward_weight(self.x, gradient, self.shape, self.algorithm)
        if self.needs_gradient(2):
            gb = ops.conv2d_backward_bias(gradient)
        return gx, gw, gb


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    algorithm: str = "auto",
) -> Any:
    """2-D convolution (cross-correlation, as in every deep-learning library), differentiable in x, weight and bias.

    y[n,k,p,q] = bias[k] + Σ_{c,r,s} weight[k,c,r,s] · x[n, c, p·stride + r·dilation − padding,
    q·stride + s·dilation − padding], with P = floor((H + 2·padding − dilation·(R − 1) − 1) / stride) + 1, and Q alike.

    - x: (N, C, H, W), float32 or float64; a Tensor or an array, which the result then is too
    - weight: (K, C/groups, R, S); bias: (K,) or None
    - stride, padding, dilation: pixels, one integer or (height, width); groups: divides C and K
    - algorithm: "auto", "im2col", "direct" or "toeplitz"; they differ in speed and rounding, not in meaning
    Raises ValueError or TypeError naming the argument that does not fit, UnsupportedAlgorithm for the algorithm.
    Sources: Dumoulin & Visin 2016 (arithmetic); Chellapilla et al. 2006 (im2col).
    """
    x_shape, weight_shape = shape_of("conv2d", "x", x), shape_of("conv2d", "weight", weight)
    shape = ops.conv_shape(x_shape, weight_shape, stride, padding, dilation, groups)
    return Conv2d(shape, algorithm)(x, weight, bias)
