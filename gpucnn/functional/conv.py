"""Convolution, and its relatives that run on the same three passes."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import dtypes, ops
from gpucnn.functional.cast import operands
from gpucnn.ops.conv3d import Conv3dShape
from gpucnn.ops.shapes import ConvShape, Extent, Pair, shape_of
from gpucnn.tensor import Function


class Conv2d(Function):
    def __init__(self, shape: ConvShape, algorithm: str, workspace_limit: int | None) -> None:
        self.shape = shape
        self.choice: dict[str, Any] = {"algorithm": algorithm, "workspace_limit": workspace_limit}

    def forward(self, x: Any, weight: Any, bias: Any) -> np.ndarray:
        self.x, self.weight = x, weight
        return ops.conv2d_forward(x, weight, bias, self.shape, **self.choice)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        gx = gw = gb = None
        if self.needs_gradient(0):
            gx = ops.conv2d_backward_input(gradient, self.weight, self.shape, **self.choice)
        if self.needs_gradient(1):
            gw = ops.conv2d_backward_weight(
                self.x, gradient, self.shape, **self.choice, dtype=dtypes.wide(gradient.dtype)
            )
        if self.needs_gradient(2):
            gb = ops.conv2d_backward_bias(gradient, dtypes.wide(gradient.dtype))
        return gx, gw, gb


class Conv2dRelu(Conv2d):
    """conv2d and ReLU in one pass; y itself says where the gradient stops."""

    def forward(self, x: Any, weight: Any, bias: Any) -> np.ndarray:
        self.x, self.weight = x, weight
        self.y = ops.conv2d_forward(x, weight, bias, self.shape, relu=True, **self.choice)
        return self.y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        return super().backward(ops.relu_backward(self.y, gradient))


class Conv1d(Conv2d):
    """conv2d of images of height 1."""

    def forward(self, x: Any, weight: Any, bias: Any) -> np.ndarray:
        ops.check_operands("conv1d", x, weight, bias, self.shape.K)
        return super().forward(x[:, :, None], weight[:, :, None], bias)[:, :, 0]

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        gx, gw, gb = super().backward(gradient[:, :, None])
        return (None if gx is None else gx[:, :, 0], None if gw is None else gw[:, :, 0], gb)


class Conv3d(Function):
    launches = False

    def __init__(self, shape: Conv3dShape, algorithm: str, workspace_limit: int | None) -> None:
        self.shape = shape
        self.choice: dict[str, Any] = {"algorithm": algorithm, "workspace_limit": workspace_limit}

    def forward(self, x: Any, weight: Any, bias: Any) -> np.ndarray:
        self.x, self.weight = x, weight
        return ops.conv3d_forward(x, weight, bias, self.shape, **self.choice)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        gx = gw = gb = None
        if self.needs_gradient(0):
            gx = ops.conv3d_backward_input(gradient, self.weight, self.shape, **self.choice)
        if self.needs_gradient(1):
            gw = ops.conv3d_backward_weight(self.x, gradient, self.shape, **self.choice)
        if self.needs_gradient(2):
            gb = ops.conv3d_backward_bias(gradient)
        return gx, gw, gb


class ConvTranspose2d(Function):
    launches = False

    def __init__(self, shape: ConvShape, algorithm: str, workspace_limit: int | None) -> None:
        self.shape = shape
        self.choice: dict[str, Any] = {"algorithm": algorithm, "workspace_limit": workspace_limit}

    def forward(self, x: Any, weight: Any, bias: Any) -> np.ndarray:
        self.x, self.weight = x, weight
        return ops.conv_transpose2d_forward(x, weight, bias, self.shape, **self.choice)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        gx = gw = gb = None
        if self.needs_gradient(0):
            gx = ops.conv2d_forward(gradient, self.weight, None, self.shape, **self.choice)
        if self.needs_gradient(1):
            gw = ops.conv2d_backward_weight(
                gradient, self.x, self.shape, **self.choice, dtype=dtypes.wide(gradient.dtype)
            )
        if self.needs_gradient(2):
            gb = ops.conv2d_backward_bias(gradient, dtypes.wide(gradient.dtype))
        return gx, gw, gb


def conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Extent = 1,
    padding: Extent = 0,
    dilation: Extent = 1,
    groups: int = 1,
    *,
    algorithm: str = "auto",
    workspace_limit: int | None = None,
) -> Any:
    """1-D convolution: conv2d of images of height 1, differentiable in x, weight and bias.

    y[n,k,q] = bias[k] + Σ_{c,s} weight[k,c,s] · x[n, c, q·stride + s·dilation − padding], with
    Q = floor((L + 2·padding − dilation·(S − 1) − 1) / stride) + 1.

    - x: (N, C, L), float32 or float64; weight: (K, C/groups, S); bias: (K,) or None
    - stride, padding, dilation: an integer, or a tuple of one; groups, algorithm, workspace_limit: as in conv2d
    Raises ValueError or TypeError naming the argument that does not fit, UnsupportedAlgorithm for the algorithm.
    """
    x_shape, weight_shape = shape_of("conv1d", "x", x), shape_of("conv1d", "weight", weight)
    shape = ops.conv1d_shape(x_shape, weight_shape, stride, padding, dilation, groups)
    return Conv1d(shape, algorithm, workspace_limit)(*operands(x, weight, bias))


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
    workspace_limit: int | None = None,
) -> Any:
    """2-D convolution (cross-correlation, as in every deep-learning library), differentiable in x, weight and bias.

    y[n,k,p,q] = bias[k] + Σ_{c,r,s} weight[k,c,r,s] · x[n, c, p·stride + r·dilation − padding,
    q·stride + s·dilation − padding], with P = floor((H + 2·padding − dilation·(R − 1) − 1) / stride) + 1, and Q alike.

    - x: (N, C, H, W), float32 or float64; a Tensor or an array, which the result then is too
    - weight: (K, C/groups, R, S); bias: (K,) or None
    - stride, padding, dilation: pixels, one integer or (height, width); groups: divides C and K
    - algorithm: "auto", "direct", "im2col", "toeplitz"; for stride, dilation and groups 1 also "fft", and for 3×3
      filters "winograd" and "winograd4"; they differ in speed and rounding, not in meaning. "auto" chooses by the shape
      alone; the last three spread a value that is not finite over the tile that it is in. `gpucnn explain` tells why
    - workspace_limit: bytes that the algorithm may take beside its arrays, also in the backward passes: "auto" keeps to
      it, an algorithm that needs more is refused; None: the limit that `gpucnn.workspace_limit` set, if any
    Raises ValueError or TypeError naming the argument that does not fit, UnsupportedAlgorithm for the algorithm.
    Sources: Dumoulin & Visin 2016 (arithmetic); Chellapilla et al. 2006 (im2col).
    """
    x_shape, weight_shape = shape_of("conv2d", "x", x), shape_of("conv2d", "weight", weight)
    shape = ops.conv_shape(x_shape, weight_shape, stride, padding, dilation, groups)
    return Conv2d(shape, algorithm, workspace_limit)(*operands(x, weight, bias))


def conv2d_relu(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    algorithm: str = "auto",
    workspace_limit: int | None = None,
) -> Any:
    """relu(conv2d(…)) in one pass over y, whose values before ReLU are never stored; arguments and errors of conv2d."""
    x_shape, weight_shape = shape_of("conv2d", "x", x), shape_of("conv2d", "weight", weight)
    shape = ops.conv_shape(x_shape, weight_shape, stride, padding, dilation, groups)
    return Conv2dRelu(shape, algorithm, workspace_limit)(*operands(x, weight, bias))


def conv3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Extent = 1,
    padding: Extent = 0,
    dilation: Extent = 1,
    groups: int = 1,
    *,
    algorithm: str = "auto",
    workspace_limit: int | None = None,
) -> Any:
    """3-D convolution: the sum over the kernel's depth of 2-D convolutions, differentiable in x, weight and bias.

    y[n,k,o,:,:] = bias[k] + Σ_t conv2d(x[n,:,o·stride + t·dilation − padding], weight[:,:,t]); the output sizes are
    those of conv2d, along all three axes.

    - x: (N, C, D, H, W), float32 or float64; weight: (K, C/groups, T, R, S); bias: (K,) or None
    - stride, padding, dilation: an integer or (depth, height, width); groups: divides C and K
    - algorithm, workspace_limit: of the 2-D convolutions, as in conv2d
    Raises ValueError or TypeError naming the argument that does not fit, UnsupportedAlgorithm for the algorithm.
    """
    x_shape, weight_shape = shape_of("conv3d", "x", x), shape_of("conv3d", "weight", weight)
    shape = ops.conv3d_shape(x_shape, weight_shape, stride, padding, dilation, groups)
    return Conv3d(shape, algorithm, workspace_limit)(*operands(x, weight, bias))


def conv_transpose2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    algorithm: str = "auto",
    workspace_limit: int | None = None,
) -> Any:
    """Transposed convolution: what conv2d's backward pass does to gradients, as a layer that makes images larger.

    Each pixel of x adds its weighted filter to y: y[n, k, p·stride + r·dilation − padding, …] += x[n,c,p,q] ·
    weight[c,k,r,s]. P = (H − 1)·stride − 2·padding + dilation·(R − 1) + output_padding + 1, and Q alike.

    - x: (N, C, H, W), float32 or float64; weight: (C, K/groups, R, S); bias: (K,) or None
    - stride, padding, dilation: those of the convolution that maps y to x; an integer or (height, width)
    - output_padding: rows and columns more at the end; smaller than stride or dilation
    - groups: divides C and K; algorithm, workspace_limit: as in conv2d
    Raises ValueError or TypeError naming the argument that does not fit, UnsupportedAlgorithm for the algorithm.
    Sources: Zeiler et al. 2010; Dumoulin & Visin 2016, section 4.
    """
    x_shape, weight_shape = shape_of("conv_transpose2d", "x", x), shape_of("conv_transpose2d", "weight", weight)
    shape = ops.conv_transpose2d_shape(x_shape, weight_shape, stride, padding, output_padding, groups, dilation)
    return ConvTranspose2d(shape, algorithm, workspace_limit)(*operands(x, weight, bias))
