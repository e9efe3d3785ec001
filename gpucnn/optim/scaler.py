"""Loss scaling: gradients of 16-bit activations, kept from vanishing (Micikevicius et al. 2018, section 3.2)."""

from __future__ import annotations

import math
from typing import Any

from gpucnn import ops
from gpucnn.functional import arithmetic
from gpucnn.optim.optimizer import Optimizer, require
from gpucnn.tensor import Tensor


class GradScaler:
    """Multiplies the loss, so that small gradients do not round to zero in float16, and finds a scale that fits.

    `scaler.scale(loss).backward()`, then `scaler.step(optimizer)` and `scaler.update()` in place of `optimizer.step()`;
    to clip in between, call `scaler.unscale(optimizer)` first. A step whose gradients are not all finite is skipped and
    the scale falls; after growth_interval good ones it grows. One kernel launch checks up to 64 gradients, and the host
    reads one flag a step. bfloat16 has float32's range and needs no scaling.

    - init_scale, growth_factor, backoff_factor, growth_interval: as torch.amp.GradScaler's
    Raises ValueError for a factor or a scale out of range.
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        require(
            self,
            init_scale=(init_scale, 0 < init_scale < math.inf, "a finite number above 0"),
            growth_factor=(growth_factor, 1 < growth_factor < math.inf, "above 1"),
            backoff_factor=(backoff_factor, 0 < backoff_factor < 1, "between 0 and 1"),
            growth_interval=(growth_interval, growth_interval >= 1, "at least 1"),
        )
        self.factor = float(init_scale)
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval = growth_interval
        self.good_steps = 0  # since the scale last changed
        self.skipped = 0  # steps in all
        self._finite: bool | None = None  # what `unscale` found in this step

    def scale(self, loss: Any) -> Any:
        """The loss times the scale."""
        scaled: Tensor = arithmetic.multiply(loss, self.factor)
        return scaled

    def unscale(self, optimizer: Optimizer) -> bool:
        """Divide the gradients of the optimiser's parameters by the scale; return whether all are finite.

        Raises ValueError where it was done in this step already.
        """
        if self._finite is not None:
            raise ValueError("GradScaler.unscale: the gradients of this step are unscaled already; call update() first")
        chosen = [parameter for parameter in optimizer.parameters if parameter.grad is not None]
        gradients = [parameter.grad.data for parameter in chosen if parameter.grad is not None]
        scaled, self._finite = ops.unscale(gradients, 1 / self.factor)
        for parameter, gradient in zip(chosen, scaled, strict=True):
            parameter.grad = Tensor(gradient)
        return self._finite

    def step(self, optimizer: Optimizer) -> bool:
        """optimizer.step() along the unscaled gradients, unless one is not finite; return whether it was made."""
        finite = self.unscale(optimizer) if self._finite is None else self._finite
        if finite:
            optimizer.step()
        return finite

    def update(self) -> None:
        """Adjust the scale, at the end of each step; raises ValueError without a step."""
        if self._finite is None:
            raise ValueError("GradScaler.update: there was no step(optimizer) since the last update()")
        if self._finite:
            self.good_steps += 1
            if self.good_steps >= self.growth_interval:
                self.factor, self.good_steps = min(self.factor * self.growth_factor, 2.0**127), 0
        else:
            self.skipped += 1
            self.factor, self.good_steps = max(self.factor * self.backoff_factor, 2.0**-126), 0
        self._finite = None

    def state_dict(self) -> dict[str, Any]:
        """{"scale", "good_steps", "skipped"}: what training goes on from."""
        return {"scale": self.factor, "good_steps": self.good_steps, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; raises ValueError unless the scale is a finite number above 0."""
        factor = float(state["scale"])
        require(self, scale=(factor, 0 < factor < math.inf, "a finite number above 0"))
        self.factor, self.good_steps, self.skipped = factor, int(state["good_steps"]), int(state["skipped"])
        self._finite = None
