"""Pooling layers."""

from __future__ import annotations

from typing import Any

from gpucnn import functional as F
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
        return F.max_pool2d(
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
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)

    def extra_repr(self) -> str:
        return _window(self) + (", ceil_mode=True" if self.ceil_mode else "")


class AdaptiveAvgPool2d(Module):
    """The mean of output_size evenly placed windows: x (N, C, H, W) → (N, C, *output_size)."""

    def __init__(self, output_size: Pair) -> None:
        self.output_size = output_size

    def forward(self, x: Any) -> Any:
        return F.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"{self.output_size}"


class AdaptiveMaxPool2d(Module):
    """The maximum of output_size evenly placed windows: x (N, C, H, W) → (N, C, *output_size)."""

    def __init__(self, output_size: Pair, return_indices: bool = False) -> None:
        self.output_size, self.return_indices = output_size, return_indices

    def forward(self, x: Any) -> Any:
        return F.adaptive_max_pool2d(x, self.output_size, self.return_indices)

    def extra_repr(self) -> str:
        return f"{self.output_size}"


class MaxUnpool2d(Module):
    """Puts maxima back where they stood: see `functional.max_unpool2d`. x, indices (N, C, P, Q) → (N, C, H, W)."""

    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, kernel_size if stride is None else stride, padding

    def forward(self, x: Any, indices: Any, output_size: tuple[int, ...] | None = None) -> Any:
        return F.max_unpool2d(x, indices, self.kernel_size, self.stride, self.padding, output_size)

    def extra_repr(self) -> str:
        return _window(self)


class LPPool2d(Module):
    """The p-norm of each window, p = norm_type: see `functional.lp_pool2d`. x (N, C, H, W) → (N, C, P, Q)."""

    def __init__(
        self, norm_type: float, kernel_size: Pair, stride: Pair | None = None, ceil_mode: bool = False
    ) -> None:
        self.norm_type, self.kernel_size = norm_type, kernel_size
        self.stride, self.ceil_mode = kernel_size if stride is None else stride, ceil_mode

    def forward(self, x: Any) -> Any:
        return F.lp_pool2d(x, self.norm_type, self.kernel_size, self.stride, self.ceil_mode)

    def extra_repr(self) -> str:
        return f"norm_type={self.norm_type}, {_window(self)}" + (", ceil_mode=True" if self.ceil_mode else "")


class L2Pool2d(Module):
    """The Euclidean norm of each window: x (N, C, H, W) → (N, C, P, Q)."""

    def __init__(self, kernel_size: Pair, stride: Pair | None = None, ceil_mode: bool = False) -> None:
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.ceil_mode = ceil_mode

    def forward(self, x: Any) -> Any:
        return F.l2_pool2d(x, self.kernel_size, self.stride, self.ceil_mode)

    def extra_repr(self) -> str:
        return _window(self) + (", ceil_mode=True" if self.ceil_mode else "")


class L2PoolChannels(Module):
    """The Euclidean norm of `size` neighbouring channels: x (N, C, …) → (N, (C − size) // stride + 1, …)."""

    def __init__(self, size: int, stride: int | None = None) -> None:
        self.size, self.stride = size, size if stride is None else stride

    def forward(self, x: Any) -> Any:
        return F.l2_pool_channels(x, self.size, self.stride)

    def extra_repr(self) -> str:
        return f"size={self.size}, stride={self.stride}"


def _window(layer: MaxPool2d | AvgPool2d | MaxUnpool2d | LPPool2d | L2Pool2d) -> str:
    padding = getattr(layer, "padding", 0)
    return f"kernel_size={layer.kernel_size}, stride={layer.stride}" + (f", padding={padding}" if padding else "")
