"""Losses as layers."""

from __future__ import annotations

from typing import Any

from gpucnn import functional as F
from gpucnn.nn.module import Module


class CrossEntropyLoss(Module):
    """Softmax and negative log-likelihood: scores (N, classes) and labels (N,) → one number (or (N,) for "none")."""

    def __init__(self, *, reduction: str = "mean", label_smoothing: float = 0.0) -> None:
        self.reduction, self.label_smoothing = reduction, label_smoothing

    def forward(self, x: Any, labels: Any) -> Any:
        return F.cross_entropy(x, labels, reduction=self.reduction, label_smoothing=self.label_smoothing)


class BCEWithLogitsLoss(Module):
    """Independent yes-or-no questions: scores and targets from 0 to 1 of one shape → one number (or all for "none")."""

    def __init__(self, *, reduction: str = "mean") -> None:
        self.reduction = reduction

    def forward(self, x: Any, target: Any) -> Any:
        return F.binary_cross_entropy_with_logits(x, target, reduction=self.reduction)


class MSELoss(Module):
    """The squared error: x and target of one shape → one number (or all for "none")."""

    def __init__(self, *, reduction: str = "mean") -> None:
        self.reduction = reduction

    def forward(self, x: Any, target: Any) -> Any:
        return F.mse_loss(x, target, reduction=self.reduction)


class L1Loss(Module):
    """The absolute error: x and target of one shape → one number (or all for "none")."""

    def __init__(self, *, reduction: str = "mean") -> None:
        self.reduction = reduction

    def forward(self, x: Any, target: Any) -> Any:
        return F.l1_loss(x, target, reduction=self.reduction)


class HuberLoss(Module):
    """Squared error up to delta, absolute beyond: x and target of one shape → one number (or all for "none")."""

    def __init__(self, *, reduction: str = "mean", delta: float = 1.0) -> None:
        self.reduction, self.delta = reduction, delta

    def forward(self, x: Any, target: Any) -> Any:
        return F.huber_loss(x, target, reduction=self.reduction, delta=self.delta)


class MultiMarginLoss(Module):
    """Multi-class hinge loss: scores (N, classes) and labels (N,) → one number (or (N,) for "none")."""

    def __init__(self, *, margin: float = 1.0, reduction: str = "mean") -> None:
        self.margin, self.reduction = margin, reduction

    def forward(self, x: Any, labels: Any) -> Any:
        return F.multi_margin_loss(x, labels, margin=self.margin, reduction=self.reduction)


class ContrastiveLoss(Module):
    """Pairs a, b (N, features) and whether they are of one kind (N,) → one number (or (N,) for "none")."""

    def __init__(self, margin: float = 1.0, *, reduction: str = "mean") -> None:
        self.margin, self.reduction = margin, reduction

    def forward(self, a: Any, b: Any, same: Any) -> Any:
        return F.contrastive_loss(a, b, same, self.margin, reduction=self.reduction)
