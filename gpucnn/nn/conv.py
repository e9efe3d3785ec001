"""Convolution layers."""

from __future__ import annotations

from typing import Any

from gpucnn.functional import conv1d, conv2d, conv3d, conv_transpose2d
from gpucnn.nn import init
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.conv_settings import check_limit
from gpucnn.ops.shapes import Extent, Pair, integers, pair


class _Convolution(Module):
    """What the layers below share: checks, trained weight and bias, and what is printed."""

    axes: int  # of the kernel

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Extent,
        stride: Extent = 1,
        padding: Extent = 0,
        dilation: Extent = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        algorithm: str = "auto",
        workspace_limit: int | None = None,
    ) -> None:
        layer = type(self).__name__
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1 or groups < 1 or channels % groups:
                raise ValueError(f"{layer}: {name} (={channels}) must be positive and divisible by groups (={groups})")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = integers(layer, "kernel_size", kernel_size, self.axes, 1)
        self.stride = integers(layer, "stride", stride, self.axes, 1)
        self.padding = integers(layer, "padding", padding, self.axes, 0)
        self.dilation = integers(layer, "dilation", dilation, self.axes, 1)
        self.algorithm, self.workspace_limit = algorithm, check_limit(layer, workspace_limit)
        shape = (*self._channels(), *self.kernel_size)
        self.weight = Parameter(init.kaiming_uniform(shape))
        self.bias = Parameter(init.uniform((out_channels,), init.fan_in(shape) ** -0.5)) if bias else None

    def _channels(self) -> tuple[int, int]:
        """The first two extents of the weight."""
        return self.out_channels, self.in_channels // self.groups

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, usual in (("padding", 0), ("output_padding", 0), ("dilation", 1), ("groups", 1)):
            value = getattr(self, name, usual)
            text += f", {name}={value!r}" if value not in (usual, (usual,) * self.axes) else ""
        text += f", algorithm={self.algorithm!r}" if self.algorithm != "auto" else ""
        text += f", workspace_limit={self.workspace_limit}" if self.workspace_limit is not None else ""
        return text + ("" if self.bias is not None else ", bias=False")


class Conv1d(_Convolution):
    """1-D convolution with trained weight (out_channels, in_channels/groups, S) and bias (out_channels,).

    - kernel_size, stride, padding, dilation: an integer or a tuple of one
    - groups, algorithm, workspace_limit: as in Conv2d
    x (N, in_channels, L) → (N, out_channels, Q), Q = floor((L + 2·padding − dilation·(S − 1) − 1) / stride) + 1.
    """

    axes = 1

    def forward(self, x: Any) -> Any:
        return conv1d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            algorithm=self.algorithm, workspace_limit=self.workspace_limit,
        )  # fmt: skip


class Conv2d(_Convolution):
    """2-D convolution with trained weight (out_channels, in_channels/groups, R, S) and bias (out_channels,).

    - kernel_size, stride, padding, dilation: pixels, an integer or (height, width)
    - groups: divides both channel counts; groups = in_channels is a depthwise convolution
    - algorithm, workspace_limit: as in functional.conv2d
    x (N, in_channels, H, W) → (N, out_channels, P, Q), P = floor((H + 2·padding − dilation·(R − 1) − 1) / stride) + 1.
    """

    axes = 2
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def forward(self, x: Any) -> Any:
        return conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            algorithm=self.algorithm, workspace_limit=self.workspace_limit,
        )  # fmt: skip


class Conv3d(_Convolution):
    """3-D convolution with trained weight (out_channels, in_channels/groups, T, R, S) and bias (out_channels,).

    - kernel_size, stride, padding, dilation: an integer or (depth, height, width)
    - groups, algorithm, workspace_limit: as in Conv2d
    x (N, in_channels, D, H, W) → (N, out_channels, depth, P, Q), sizes along each axis as in Conv2d.
    """

    axes = 3

    def forward(self, x: Any) -> Any:
        return conv3d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            algorithm=self.algorithm, workspace_limit=self.workspace_limit,
        )  # fmt: skip


class ConvTranspose2d(_Convolution):
    """Transposed convolution with trained weight (in_channels, out_channels/groups, R, S) and bias (out_channels,).

    - kernel_size, stride, padding, dilation: those of the convolution that goes the other way
    - output_padding: rows and columns more at the end; smaller than stride or dilation
    - groups, algorithm, workspace_limit: as in Conv2d
    x (N, in_channels, H, W) → (N, out_channels, P, Q),
    P = (H − 1)·stride − 2·padding + dilation·(R − 1) + output_padding + 1.
    """

    axes = 2
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        output_padding: Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Pair = 1,
        *,
        algorithm: str = "auto",
        workspace_limit: int | None = None,
    ) -> None:
        self.output_padding = pair("ConvTranspose2d", "output_padding", output_padding, 0)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            algorithm=algorithm, workspace_limit=workspace_limit,
        )  # fmt: skip

    def _channels(self) -> tuple[int, int]:
        return self.in_channels, self.out_channels // self.groups

    def forward(self, x: Any) -> Any:
        return conv_transpose2d(
            x,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
            algorithm=self.algorithm,
            workspace_limit=self.workspace_limit,
        )
