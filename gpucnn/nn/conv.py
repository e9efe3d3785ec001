"""Convolution layers."""

from __future__ import annotations

from typing import Any

from gpucnn.functional import conv2d
from gpucnn.nn import init
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.shapes import Pair, pair


class Conv2d(Module):
    """2-D convolution with trained weight (out_channels, in_channels/groups, R, S) and bias (out_channels,).

    - kernel_size, stride, padding, dilation: pixels, an integer or (height, width)
    - groups: divides both channel counts; groups = in_channels is a depthwise convolution
    - algorithm: "auto", "im2col", "direct" or "toeplitz"
    x (N, in_channels, H, W) → (N, out_channels, P, Q), P = floor((H + 2·padding − dilation·(R − 1) − 1) / stride) + 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        algorithm: str = "auto",
    ) -> None:
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1 or groups < 1 or channels % groups:
                raise ValueError(f"Conv2d: {name} (={channels}) must be positive and divisible by groups (={groups})")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = pair("Conv2d", "kernel_size", kernel_size, 1)
        self.stride = pair("Conv2d", "stride", stride, 1)
        self.padding = pair("Conv2d", "padding", padding, 0)
        self.dilation = pair("Conv2d", "dilation", dilation, 1)
        self.algorithm = algorithm
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(init.kaiming_uniform(shape))
        self.bias = Parameter(init.uniform((out_channels,), init.fan_in(shape) ** -0.5)) if bias else None

    def forward(self, x: Any) -> Any:
        return conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, algorithm=self.algorithm
        )

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, usual in (("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1), ("algorithm", "auto")):
            value = getattr(self, name)
            text += f", {name}={value!r}" if value != usual else ""
        return text + ("" if self.bias is not None else ", bias=False")
