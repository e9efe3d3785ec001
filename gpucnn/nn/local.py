"""Locally connected layers."""

from __future__ import annotations

from typing import Any

from gpucnn import ops
from gpucnn.functional import locally_connected2d
from gpucnn.nn import init
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.shapes import Pair, pair


class LocallyConnected2d(Module):
    """A convolution whose filters are not shared: each output pixel has its own, so images must have input_size.

    Trained weight (P, Q, out_channels, in_channels, R, S) and bias (out_channels, P, Q).

    - kernel_size, stride, padding: pixels, an integer or (height, width); input_size: an integer or (H, W)
    x (N, in_channels, H, W) → (N, out_channels, P, Q), P = floor((H + 2·padding − R) / stride) + 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        input_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        bias: bool = True,
    ) -> None:
        if min(in_channels, out_channels) < 1:
            raise ValueError(
                f"LocallyConnected2d: in_channels (={in_channels}) and out_channels (={out_channels}) must be positive"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = pair("LocallyConnected2d", "kernel_size", kernel_size, 1)
        self.input_size = pair("LocallyConnected2d", "input_size", input_size, 1)
        self.stride = pair("LocallyConnected2d", "stride", stride, 1)
        self.padding = pair("LocallyConnected2d", "padding", padding, 0)
        filters = out_channels, in_channels, *self.kernel_size
        images = 1, in_channels, *self.input_size
        shape = ops.conv_shape(images, filters, self.stride, self.padding, operation="LocallyConnected2d")
        self.weight = Parameter(init.uniform(ops.locally_connected2d_weight_shape(shape), init.fan_in(filters) ** -0.5))
        self.bias = Parameter(init.uniform(shape.y[1:], init.fan_in(filters) ** -0.5)) if bias else None

    def forward(self, x: Any) -> Any:
        return locally_connected2d(x, self.weight, self.bias, self.stride, self.padding)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, input_size={self.input_size}"
        text += f", stride={self.stride}" + (f", padding={self.padding}" if self.padding != (0, 0) else "")
        return text + ("" if self.bias is not None else ", bias=False")
