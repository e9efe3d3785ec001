"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gpucnn import ops
from gpucnn.optim.optimizer import Optimizer, require
from gpucnn.tensor import Tensor


class SGD(Optimizer):
    """p ← p − lr·v with v ← momentum·v + (1 − dampening)·g and g = gradient + weight_decay·p; v = g at the first step.

    - nesterov: step along g + momentum·v (Sutskever et al. 2013, as in PyTorch); needs momentum > 0 and dampening = 0
    - dampening = momentum gives the running mean g ← (1 − α)·g + α·gradient
    Raises ValueError for a rate or a factor out of range.
    """

    state_names = ("momentum_buffer",)

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        require(self, momentum=(momentum, momentum >= 0, "at least 0"))
        usable = not nesterov or (momentum > 0 and dampening == 0)
        require(self, nesterov=(nesterov, usable, "used with momentum > 0 and dampening = 0"))
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov

    def update(self, parameter: np.ndarray, gradient: np.ndarray, state: dict[str, np.ndarray], step: int) -> None:
        first = "momentum_buffer" not in state
        if first and self.momentum:
            state["momentum_buffer"] = np.empty_like(parameter)
        ops.sgd_update(
            parameter,
            gradient,
            state.get("momentum_buffer"),
            lr=self.lr,
            momentum=self.momentum,
            dampening=self.dampening,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            first=first,
        )
