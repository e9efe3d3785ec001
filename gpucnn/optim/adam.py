"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gpucnn import ops
from gpucnn.optim.optimizer import Optimizer, require
from gpucnn.tensor import Tensor


class Adam(Optimizer):
    """p ← p − lr · m̂ / (√v̂ + eps), m and v running means of g and g² without their bias (Kingma & Ba 2015, alg. 1).

    - betas: how much of m and of v is kept at each step; weight_decay joins the gradient: g + weight_decay·p
    Raises ValueError for a rate or a factor out of range.
    """

    state_names = ("first_moment", "second_moment")
    decoupled = False

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        within = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        require(self, betas=(betas, within, "two numbers of at least 0 and below 1"), eps=(eps, eps >= 0, "at least 0"))
        self.betas, self.eps = betas, eps

    def update(self, parameter: np.ndarray, gradient: np.ndarray, state: dict[str, np.ndarray], step: int) -> None:
        if not state:
            state["first_moment"], state["second_moment"] = np.zeros_like(parameter), np.zeros_like(parameter)
        ops.adam_update(
            parameter,
            gradient,
            state["first_moment"],
            state["second_moment"],
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            decoupled=self.decoupled,
            step=step,
        )


class AdamW(Adam):
    """Adam with weight decay apart from the gradient: p ← p·(1 − lr·weight_decay) first (Loshchilov & Hutter 2019)."""

    decoupled = True

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)
