"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.optim.optimizer import Optimizer, Parameters, kept, require, start


class SGD(Optimizer):
    """p ← p − lr·v with v ← momentum·v + (1 − dampening)·g and g = gradient + weight_decay·p; v = g at the first step.

    - nesterov: step along g + momentum·v (Sutskever et al. 2013, as in PyTorch); needs momentum > 0 and dampening = 0
    - dampening = momentum gives the running mean g ← (1 − α)·g + α·gradient
    - parameters, l1_decay: as in Optimizer
    Raises ValueError for a rate or a factor out of range.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        l1_decay: float = 0.0,
    ) -> None:
        super().__init__(
            parameters,
            lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            l1_decay=l1_decay,
        )

    def check(self, options: dict[str, Any]) -> None:
        super().check(options)
        momentum, nesterov = options["momentum"], options["nesterov"]
        require(self, momentum=(momentum, momentum >= 0, "at least 0"))
        usable = not nesterov or (momentum > 0 and options["dampening"] == 0)
        require(self, nesterov=(nesterov, usable, "used with momentum > 0 and dampening = 0"))

    def state_names(self, options: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if options["momentum"] else ()

    @property
    def skips_on_device(self) -> bool:
        return not any(group.options["dampening"] for group in self.groups)  # else its first step is another one

    def update(
        self,
        parameters: list[np.ndarray],
        gradients: list[np.ndarray],
        states: list[dict[str, np.ndarray]],
        step: int,
        options: dict[str, Any],
    ) -> None:
        first = not states[0]
        start(states, self.state_names(options), parameters)
        ops.sgd_update(parameters, gradients, kept(states, "momentum_buffer"), first=first, **options)
