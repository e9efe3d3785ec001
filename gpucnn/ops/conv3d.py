"""3-D convolution of arrays as a sum of 2-D convolutions: for each slice of the kernel's depth, one of all frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpucnn import device as devices
from gpucnn.ops.cast import in_float32
from gpucnn.ops.conv import (
    check_operands,
    conv2d_backward_bias,
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
)
from gpucnn.ops.shapes import ConvShape, Extent, check_channels, integers, output_sizes, require_float, require_ndim


class Conv3dShape(NamedTuple):
    """Everything about a 3-D convolution that is an integer.

    - plane: the 2-D convolution of one frame of each of the N examples
    - depth, kernel_depth, output_depth: frames of x, of weight and of y
    - stride, padding, dilation: along the depth
    """

    plane: ConvShape
    depth: int
    kernel_depth: int
    output_depth: int
    stride: int
    padding: int
    dilation: int

    @property
    def x(self) -> tuple[int, ...]:
        return *self.plane.x[:2], self.depth, *self.plane.x[2:]

    @property
    def weight(self) -> tuple[int, ...]:
        return *self.plane.weight[:2], self.kernel_depth, *self.plane.weight[2:]

    @property
    def y(self) -> tuple[int, ...]:
        return *self.plane.y[:2], self.output_depth, *self.plane.y[2:]

    def frames(self, count: int) -> ConvShape:
        """The 2-D convolution of `count` frames of each example at once."""
        return self.plane._replace(N=self.plane.N * count)

    def taps(self) -> Iterator[tuple[int, slice, slice, ConvShape]]:
        """(t, outputs, inputs, shape): the frames of y and of x that slice t of the kernel joins, if any."""
        for t in range(self.kernel_depth):
            offset = t * self.dilation - self.padding
            first = max(0, -(offset // self.stride))
            last = min(self.output_depth, (self.depth - 1 - offset) // self.stride + 1)
            if first < last:
                begin, end = first * self.stride + offset, (last - 1) * self.stride + offset + 1
                yield t, slice(first, last), slice(begin, end, self.stride), self.frames(last - first)


def conv3d_shape(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    stride: Extent = 1,
    padding: Extent = 0,
    dilation: Extent = 1,
    groups: int = 1,
) -> Conv3dShape:
    """The Conv3dShape of x (N,C,D,H,W) and weight (K,C/groups,T,R,S); raises ValueError naming what does not fit."""
    require_ndim("conv3d", "x", x, 5, "(N, C, D, H, W)")
    require_ndim("conv3d", "weight", weight, 5, "(K, C/groups, T, R, S)")
    strides = integers("conv3d", "stride", stride, 3, 1)
    paddings = integers("conv3d", "padding", padding, 3, 0)
    dilations = integers("conv3d", "dilation", dilation, 3, 1)
    check_channels("conv3d", x[1], weight, groups, "(N, C, D, H, W)")
    depth, P, Q = output_sizes("conv3d", x[2:], weight[2:], strides, paddings, dilations)
    (N, C, D, H, W), (K, _, T, R, S) = x, weight
    (sd, sh, sw), (pd, ph, pw), (dd, dh, dw) = strides, paddings, dilations
    plane = ConvShape(N, C, H, W, K, R, S, P, Q, (sh, sw), (ph, pw), (dh, dw), groups)
    return Conv3dShape(plane, D, T, depth, sd, pd, dd)


@in_float32()
def conv3d_forward(
    x: Any, weight: Any, bias: Any, shape: Conv3dShape, algorithm: str = "auto", workspace_limit: int | None = None
) -> np.ndarray:
    """y (N,K,·,P,Q) = x (N,C,D,H,W) convolved with weight (K,C/groups,T,R,S), plus bias (K,) unless it is None.

    Raises as conv2d_forward does.
    """
    check_operands("conv3d", x, weight, bias, shape.plane.K)
    source = np.swapaxes(x, 1, 2)
    y = devices.empty((shape.plane.N, shape.output_depth, *shape.plane.y[1:]), x.dtype, x)
    y[...] = 0 if bias is None else bias[:, None, None]
    for t, outputs, inputs, frames in shape.taps():
        images = _joined(source[:, inputs], frames.x)
        part = conv2d_forward(images, weight[:, :, t], None, frames, algorithm, workspace_limit=workspace_limit)
        target = y[:, outputs]
        target += part.reshape(target.shape)
    return devices.contiguous(np.swapaxes(y, 1, 2))


@in_float32()
def conv3d_backward_input(
    gy: Any, weight: Any, shape: Conv3dShape, algorithm: str = "auto", workspace_limit: int | None = None
) -> np.ndarray:
    """gx (N,C,D,H,W), the gradient of x, from gy (N,K,·,P,Q) and weight; raises as conv2d_forward."""
    require_float("conv3d_backward_input", gy=gy, weight=weight)
    source = np.swapaxes(gy, 1, 2)
    gx = devices.empty((shape.plane.N, shape.depth, *shape.plane.x[1:]), gy.dtype, gy)
    gx[...] = 0
    for t, outputs, inputs, frames in shape.taps():
        images = _joined(source[:, outputs], frames.y)
        part = conv2d_backward_input(images, weight[:, :, t], frames, algorithm, workspace_limit)
        target = gx[:, inputs]
        target += part.reshape(target.shape)
    return devices.contiguous(np.swapaxes(gx, 1, 2))


@in_float32(rounds=False)
def conv3d_backward_weight(
    x: Any, gy: Any, shape: Conv3dShape, algorithm: str = "auto", workspace_limit: int | None = None
) -> np.ndarray:
    """gw (K,C/groups,T,R,S), the gradient of weight, from x and gy (N,K,·,P,Q); raises as conv2d_forward."""
    require_float("conv3d_backward_weight", x=x, gy=gy)
    x_frames, gy_frames = np.swapaxes(x, 1, 2), np.swapaxes(gy, 1, 2)
    gw = devices.empty(shape.weight, gy.dtype, gy)
    gw[...] = 0
    for t, outputs, inputs, frames in shape.taps():
        x_part, gy_part = _joined(x_frames[:, inputs], frames.x), _joined(gy_frames[:, outputs], frames.y)
        gw[:, :, t] = conv2d_backward_weight(x_part, gy_part, frames, algorithm, workspace_limit)
    return gw


@in_float32(rounds=False)
def conv3d_backward_bias(gy: Any) -> np.ndarray:
    """gb (K,) = Σ gy (N,K,·,P,Q) over all but k."""
    return conv2d_backward_bias(gy.reshape(*gy.shape[:2], math.prod(gy.shape[2:4]), gy.shape[4]))


def _joined(frames: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Frames (N, depths, …) as images (N·depths, …)."""
    return devices.contiguous(frames).reshape(shape)
