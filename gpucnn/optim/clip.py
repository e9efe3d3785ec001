"""Gradient clipping, between `backward` and `step`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gpucnn import ops
from gpucnn.tensor import Tensor


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients by max_norm / norm where norm = √Σg², over all of them together, is larger; return norm.

    A norm that is infinite or not a number shows in the result. Raises ValueError for a negative max_norm. Source:
    Pascanu, Mikolov & Bengio 2013, algorithm 1; as PyTorch's clip_grad_norm_.
    """
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm: max_norm is {max_norm}; it must be at least 0")
    clipped = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    norm = ops.global_norm([gradient.data for _, gradient in clipped])
    scale = max_norm / (norm + 1e-6)
    if not scale >= 1:
        for parameter, gradient in clipped:
            with np.errstate(invalid="ignore"):  # an infinite norm: 0 · inf
                parameter.grad = Tensor(gradient.data * scale)
    return norm


def clip_grad_value(parameters: Iterable[Tensor], clip_value: float) -> None:
    """Limit each element of each gradient to −clip_value … clip_value; raises ValueError for a negative clip_value."""
    if not clip_value >= 0:
        raise ValueError(f"clip_grad_value: clip_value is {clip_value}; it must be at least 0")
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = Tensor(np.clip(parameter.grad.data, -clip_value, clip_value))
