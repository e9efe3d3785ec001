"""Learning-rate schedules: `schedule.step()` after each step (or epoch) sets the optimiser's rate.

A schedule is a pure function of how often it was stepped, so its state is one number; Plateau, which follows a measured
value, is the exception.
"""

from __future__ import annotations

import math
from typing import Any

from gpucnn.optim.optimizer import Optimizer


class Schedule:
    """Base of the schedules: rate = base rate · factor(number of steps); the base is the optimiser's at the start."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.base_lr, self.count = optimizer, optimizer.lr, 0
        optimizer.lr = self.base_lr * self.factor(0)

    def factor(self, count: int) -> float:
        """What the base rate is multiplied by after `count` steps."""
        raise NotImplementedError(f"{type(self).__name__} does not define factor")

    def step(self) -> None:
        """Count one step and set the optimiser's rate."""
        self.count += 1
        self.optimizer.lr = self.base_lr * self.factor(self.count)

    def state_dict(self) -> dict[str, Any]:
        """What load_state_dict needs, as JSON can hold it."""
        return {"count": self.count, "base_lr": self.base_lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.count, self.base_lr = int(state["count"]), float(state["base_lr"])
        self.optimizer.lr = self.base_lr * self.factor(self.count)


class ConstantSchedule(Schedule):
    """The base rate throughout."""

    def factor(self, count: int) -> float:
        return 1.0


class StepSchedule(Schedule):
    """The rate times gamma after every step_size steps (PyTorch's StepLR)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        if step_size < 1:
            raise ValueError(f"StepSchedule: step_size is {step_size}; it must be at least 1")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def factor(self, count: int) -> float:
        return self.gamma ** (count // self.step_size)


class CosineSchedule(Schedule):
    """Half a cosine from the base rate to minimum · base rate after `total` steps (Loshchilov & Hutter 2017, eq. 5)."""

    def __init__(self, optimizer: Optimizer, total: int, minimum: float = 0.0) -> None:
        if total < 1:
            raise ValueError(f"CosineSchedule: total is {total}; it must be at least 1 step")
        self.total, self.minimum = total, minimum
        super().__init__(optimizer)

    def factor(self, count: int) -> float:
        progress = min(count / self.total, 1.0)
        return self.minimum + (1 - self.minimum) * 0.5 * (1 + math.cos(math.pi * progress))


class WarmupSchedule(Schedule):
    """The rate grows in a straight line over `warmup` steps, then follows `after`, which starts to count from there.

    `after` is a schedule of the same optimiser, or None for a constant rate (Goyal et al. 2017, §2.2).
    """

    def __init__(self, optimizer: Optimizer, warmup: int, after: Schedule | None = None) -> None:
        if warmup < 0:
            raise ValueError(f"WarmupSchedule: warmup is {warmup}; it must be at least 0 steps")
        self.warmup, self.after = warmup, after
        if after is not None:
            optimizer.lr = after.base_lr
        super().__init__(optimizer)

    def factor(self, count: int) -> float:
        if count < self.warmup:
            return (count + 1) / (self.warmup + 1)
        return 1.0 if self.after is None else self.after.factor(count - self.warmup)


class PlateauSchedule:
    """The rate times `factor` when a measured value has not improved for more than `patience` calls of `step(value)`.

    - mode: "min" if smaller is better, "max" if larger is; threshold: the relative improvement that counts, as in
      PyTorch's ReduceLROnPlateau
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 0.1,
        patience: int = 10,
        mode: str = "min",
        threshold: float = 1e-4,
        minimum_lr: float = 0.0,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"PlateauSchedule: mode is {mode!r}; it must be 'min' or 'max'")
        if not 0 < factor < 1:
            raise ValueError(f"PlateauSchedule: factor is {factor}; it must be above 0 and below 1")
        self.optimizer, self.factor, self.patience, self.mode = optimizer, factor, patience, mode
        self.threshold, self.minimum_lr = threshold, minimum_lr
        self.best: float | None = None
        self.bad = 0

    def step(self, value: float) -> None:
        """Note one measurement; reduces the rate after patience + 1 in a row that are no better."""
        if self._improves(value):
            self.best, self.bad = value, 0
            return
        self.bad += 1
        if self.bad > self.patience:
            self.optimizer.lr = max(self.optimizer.lr * self.factor, self.minimum_lr)
            self.bad = 0

    def _improves(self, value: float) -> bool:
        if self.best is None:
            return not math.isnan(value)
        sign = 1 if self.mode == "max" else -1
        return value * sign > self.best * sign + abs(self.best) * self.threshold

    def state_dict(self) -> dict[str, Any]:
        """What load_state_dict needs, as JSON can hold it."""
        return {"best": self.best, "bad": self.bad, "lr": self.optimizer.lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.best, self.bad, self.optimizer.lr = state["best"], int(state["bad"]), float(state["lr"])
