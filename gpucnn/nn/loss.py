"""Losses as layers."""

from __future__ import annotations

from typing import Any

from gpucnn.functional import cross_entropy
from gpucnn.nn.module import Module


class CrossEntropyLoss(Module):
    """Softmax and negative log-likelihood: scores (N, classes) and labels (N,) → one number (or (N,) for "none")."""

    def __init__(self, *, reduction: str = "mean", label_smoothing: float = 0.0) -> None:
        self.reduction, self.label_smoothing = reduction, label_smoothing

    def forward(self, x: Any, labels: Any) -> Any:
        return cross_entropy(x, labels, reduction=self.reduction, label_smoothing=self.label_smoothing)
