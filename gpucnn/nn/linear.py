"""Fully connected layers."""

from __future__ import annotations

from typing import Any

from gpucnn.functional import flatten, linear
from gpucnn.nn import init
from gpucnn.nn.module import Module, Parameter


class Linear(Module):
    """y = x · weightᵀ + bias with trained weight (out_features, in_features) and bias (out_features,).

    x (…, in_features) → (…, out_features).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        if min(in_features, out_features) < 1:
            raise ValueError(
                f"Linear: in_features (={in_features}) and out_features (={out_features}) must be positive"
            )
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(init.kaiming_uniform((out_features, in_features)))
        self.bias = Parameter(init.uniform((out_features,), in_features**-0.5)) if bias else None

    def forward(self, x: Any) -> Any:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}" + ("" if self.bias is not None else ", bias=False")


class Flatten(Module):
    """All dimensions from start_dim on made one: (N, C, H, W) → (N, C·H·W)."""

    def __init__(self, start_dim: int = 1) -> None:
        self.start_dim = start_dim

    def forward(self, x: Any) -> Any:
        return flatten(x, self.start_dim)
