"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.optim.optimizer import Optimizer, Parameters, require, start


class Adam(Optimizer):
    """p ← p − lr · m̂ / (√v̂ + eps), m and v running means of g and g² without their bias (Kingma & Ba 2015, alg. 1).

    - betas: how much of m and of v is kept at each step; weight_decay joins the gradient: g + weight_decay·p
    - parameters, l1_decay: as in Optimizer
    Raises ValueError for a rate or a factor out of range.
    """

    decoupled = False

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        l1_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, betas=betas, eps=eps, weight_decay=weight_decay, l1_decay=l1_decay)

    def check(self, options: dict[str, Any]) -> None:
        super().check(options)
        betas, eps = options["betas"], options["eps"]
        within = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        require(self, betas=(betas, within, "two numbers of at least 0 and below 1"), eps=(eps, eps >= 0, "at least 0"))

    def state_names(self, options: dict[str, Any]) -> tuple[str, ...]:
        return "first_moment", "second_moment"

    @property
    def skips_on_device(self) -> bool:
        return True

    def update(
        self,
        parameters: list[np.ndarray],
        gradients: list[np.ndarray],
        states: list[dict[str, np.ndarray]],
        step: int,
        options: dict[str, Any],
    ) -> None:
        names = self.state_names(options)
        start(states, names, parameters)
        moments = [[state[name] for state in states] for name in names]
        ops.adam_update(parameters, gradients, *moments, decoupled=self.decoupled, step=step, **options)


class AdamW(Adam):
    """Adam with weight decay apart from the gradient: p ← p·(1 − lr·weight_decay) first (Loshchilov & Hutter 2019).

    Only weight_decay is apart; l1_decay joins the gradient.
    """

    decoupled = True

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        l1_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, l1_decay=l1_decay)
