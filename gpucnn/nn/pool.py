"""Pooling layers."""

from __future__ import annotations

from typing import Any

from gpucnn.functional import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from gpucnn.nn.module import Module
from gpucnn.ops.shapes import Pair


class MaxPool2d(Module):
    """The maximum of each window: see `functional.max_pool2d`. x (N, C, H, W) → (N, C, P, Q)."""

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        dilation: Pair = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, kernel_size if stride is None else stride, padding
        self.dilation, self.ceil_mode, self.return_indices = dilation, ceil_mode, return_indices

    def forward(self, x: Any) -> Any:
        return max_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )

    def extra_repr(self) -> str:
        return _window(self) + (", ceil_mode=True" if self.ceil_mode else "")


class AvgPool2d(Module):
    """The mean of each window: see `functional.avg_pool2d`. x (N, C, H, W) → (N, C, P, Q)."""

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, kernel_size if stride is None else stride, padding
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, x: Any) -> Any:
        return avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)

    def extra_repr(self) -> str:
        return _window(self) + (", ceil_mode=True" if self.ceil_mode else "")


class AdaptiveAvgPool2d(Module):
    """The mean of output_size evenly placed windows: x (N, C, H, W) → (N, C, *output_size)."""

    def __init__(self, output_size: Pair) -> None:
        self.output_size = output_size

    def forward(self, x: Any) -> Any:
        return adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"{self.output_size}"


def _window(layer: MaxPool2d | AvgPool2d) -> str:
    return f"kernel_size={layer.kernel_size}, stride={layer.stride}" + (
        f", padding={layer.padding}" if layer.padding else ""
    )
