"""RMSprop, Adagrad and Adadelta: steps divided by how large the gradients have been."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.optim.optimizer import Optimizer, Parameters, kept, require, start


class RMSprop(Optimizer):
    """p ← p − lr · g / (√v + eps) with v ← alpha·v + (1 − alpha)·g² (Tieleman & Hinton 2012, lecture 6.5).

    - momentum: the steps before the rate are summed up: b ← momentum·b + g / (√v + eps)
    - centered: v less the square of g's running mean, an estimate of the variance (Graves 2013, eq. 38–45)
    - parameters, weight_decay, l1_decay: as in Optimizer
    Raises ValueError for a rate or a factor out of range.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        l1_decay: float = 0.0,
    ) -> None:
        super().__init__(
            parameters,
            lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            l1_decay=l1_decay,
        )

    def check(self, options: dict[str, Any]) -> None:
        super().check(options)
        alpha, eps, momentum = options["alpha"], options["eps"], options["momentum"]
        require(
            self,
            alpha=(alpha, 0 <= alpha < 1, "at least 0 and below 1"),
            eps=(eps, eps >= 0, "at least 0"),
            momentum=(momentum, momentum >= 0, "at least 0"),
        )

    def state_names(self, options: dict[str, Any]) -> tuple[str, ...]:
        more = (("mean", options["centered"]), ("momentum_buffer", options["momentum"]))
        return ("square_average", *(name for name, kept in more if kept))

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
        start(states, self.state_names(options), parameters)
        square_averages = [state["square_average"] for state in states]
        more = kept(states, "mean"), kept(states, "momentum_buffer")
        del options["centered"]
        ops.rmsprop_update(parameters, gradients, square_averages, *more, **options)


class Adagrad(Optimizer):
    """p ← p − lr / (1 + (step − 1)·lr_decay) · g / (√s + eps), s the sum of all g² (Duchi, Hazan & Singer 2011).

    - initial_accumulator_value: what s starts from
    - parameters, weight_decay, l1_decay: as in Optimizer
    Raises ValueError for a rate or a factor out of range.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        l1_decay: float = 0.0,
    ) -> None:
        super().__init__(
            parameters,
            lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            l1_decay=l1_decay,
        )

    def check(self, options: dict[str, Any]) -> None:
        super().check(options)
        names = ("lr_decay", "initial_accumulator_value", "eps")
        require(self, **{name: (options[name], options[name] >= 0, "at least 0") for name in names})

    def state_names(self, options: dict[str, Any]) -> tuple[str, ...]:
        return ("square_sum",)

    @property
    def skips_on_device(self) -> bool:
        return not any(group.options["lr_decay"] for group in self.groups)  # which counts steps

    def update(
        self,
        parameters: list[np.ndarray],
        gradients: list[np.ndarray],
        states: list[dict[str, np.ndarray]],
        step: int,
        options: dict[str, Any],
    ) -> None:
        start(states, self.state_names(options), parameters, options.pop("initial_accumulator_value"))
        square_sums = [state["square_sum"] for state in states]
        ops.adagrad_update(parameters, gradients, square_sums, step=step, **options)


class Adadelta(Optimizer):
    """p ← p − lr · d with d = g · √(mean of d² + eps) / √(mean of g² + eps), running means (Zeiler 2012, alg. 1).

    - rho: how much of the means is kept at each step
    - parameters, weight_decay, l1_decay: as in Optimizer
    Raises ValueError for a rate or a factor out of range.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        l1_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, rho=rho, eps=eps, weight_decay=weight_decay, l1_decay=l1_decay)

    def check(self, options: dict[str, Any]) -> None:
        super().check(options)
        rho, eps = options["rho"], options["eps"]
        require(self, rho=(rho, 0 <= rho < 1, "at least 0 and below 1"), eps=(eps, eps > 0, "above 0"))

    def state_names(self, options: dict[str, Any]) -> tuple[str, ...]:
        return "square_average", "step_average"

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
        ops.adadelta_update(parameters, gradients, *([state[name] for state in states] for name in names), **options)
