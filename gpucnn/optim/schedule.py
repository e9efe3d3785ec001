"""Learning-rate schedules: `schedule.step()` after each step (or epoch) sets the optimiser's rate.

The rates of all groups of parameters follow in proportion. A schedule is a pure function of how often it was stepped,
so its state is one number; Plateau, which follows a measured value, is the exception.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
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


class MultiStepSchedule(Schedule):
    """The rate times gamma at each of the `milestones`, numbers of steps (PyTorch's MultiStepLR)."""

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        if any(milestone < 1 for milestone in self.milestones):
            raise ValueError(f"MultiStepSchedule: milestones are {self.milestones}; each must be at least 1 step")
        super().__init__(optimizer)

    def factor(self, count: int) -> float:
        return self.gamma ** bisect_right(self.milestones, count)


class PolynomialSchedule(Schedule):
    """(1 − steps / total)^power of the base rate, so 0 after `total` steps; power 1 is a straight line."""

    def __init__(self, optimizer: Optimizer, total: int, power: float = 1.0) -> None:
        if total < 1:
            raise ValueError(f"PolynomialSchedule: total is {total}; it must be at least 1 step")
        if not power > 0:
            raise ValueError(f"PolynomialSchedule: power is {power}; it must be above 0")
        self.total, self.power = total, power
        super().__init__(optimizer)

    def factor(self, count: int) -> float:
        return (1 - min(count / self.total, 1.0)) ** self.power


class OneCycleSchedule(Schedule):
    """From base rate / div_factor up to the base rate and down to almost 0, along half cosines, in `total` steps.

    - pct_start: the share of the steps in which it rises; the last rate is the first / final_div_factor
    As PyTorch's OneCycleLR with the base rate as max_lr, of the rate alone; from Smith & Topin 2018, §3.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        for name, value, holds, rule in (
            ("total", total, total >= 1, "at least 1 step"),
            ("pct_start", pct_start, 0 <= pct_start < 1, "at least 0 and below 1"),
            ("div_factor", div_factor, div_factor >= 1, "at least 1"),
            ("final_div_factor", final_div_factor, final_div_factor >= 1, "at least 1"),
        ):
            if not holds:
                raise ValueError(f"OneCycleSchedule: {name} is {value}; it must be {rule}")
        self.total, self.pct_start = total, pct_start
        self.first, self.last = 1 / div_factor, 1 / div_factor / final_div_factor
        super().__init__(optimizer)

    def factor(self, count: int) -> float:
        top, end = self.pct_start * self.total - 1, self.total - 1
        if count < top:
            return _half_cosine(self.first, 1.0, count / top)
        return _half_cosine(1.0, self.last, min((count - top) / (end - top), 1.0))


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


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
