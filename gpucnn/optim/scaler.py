"""Loss scaling: gradients of 16-bit activations, kept from vanishing (Micikevicius et al. 2018, section 3.2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.functional import arithmetic
from gpucnn.ops.scaling import FOUND, GOOD_STEPS, SCALE, SKIPPED
from gpucnn.optim.optimizer import Optimizer, require
from gpucnn.tensor import Tensor

LONGEST_INTERVAL = 2**24  # steps are counted in float32


class GradScaler:
    """Multiplies the loss, so that small gradients do not round to zero in float16, and finds a scale that fits.

    `scaler.scale(loss).backward()`, then `scaler.step(optimizer)` and `scaler.update()` in place of `optimizer.step()`;
    to clip in between, call `scaler.unscale(optimizer)` first. A step whose gradients are not all finite is skipped and
    the scale falls; after growth_interval good ones it grows. The scale and what was found stay on the device of the
    gradients: where kernels run the optimiser's read there whether to skip, and the host waits for nothing, unless the
    optimiser's `skips_on_device` says no. bfloat16 has float32's range and needs no scaling.

    - init_scale, growth_factor, backoff_factor, growth_interval: as torch.amp.GradScaler's
    - factor, good_steps, skipped: the scale, the good steps since it last changed, the skipped ones in all; to read
      them waits for the device
    Raises ValueError for a factor or a scale out of range.
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        interval = 1 <= growth_interval <= LONGEST_INTERVAL
        require(
            self,
            growth_factor=(growth_factor, 1 < growth_factor < math.inf, "above 1"),
            backoff_factor=(backoff_factor, 0 < backoff_factor < 1, "between 0 and 1"),
            growth_interval=(growth_interval, interval, f"from 1 to {LONGEST_INTERVAL}"),
        )
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval = growth_interval
        self._numbers: Any = self._new("init_scale", init_scale, 0, 0)
        self._unscaled = False  # in this step
        self._skips: Any = None  # of the optimiser that stepped

    @property
    def factor(self) -> float:
        return self._read(SCALE)

    @property
    def good_steps(self) -> int:
        return int(self._read(GOOD_STEPS))

    @property
    def skipped(self) -> int:
        return int(self._read(SKIPPED))

    def scale(self, loss: Any) -> Any:
        """The loss times the scale."""
        scaled: Tensor = arithmetic.multiply(loss, self.factor if loss.device == "cpu" else Tensor(self.seed(loss)))
        return scaled

    def seed(self, loss: Tensor) -> Any:
        """The scale as an array of the loss's shape: `loss.backward(scaler.seed(loss))` is `scale(loss).backward()`."""
        return self._on(loss.device)[SCALE : SCALE + 1].reshape(loss.shape)

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients of the optimiser's parameters by the scale.

        Raises ValueError where it was done in this step already.
        """
        if self._unscaled:
            raise ValueError("GradScaler.unscale: the gradients of this step are unscaled already; call update() first")
        chosen = [parameter for parameter in optimizer.parameters if parameter.grad is not None]
        gradients = [parameter.grad.data for parameter in chosen if parameter.grad is not None]
        numbers = self._on(chosen[0].device) if chosen else self._numbers
        for parameter, gradient in zip(chosen, ops.unscale(gradients, numbers), strict=True):
            if parameter.grad is None or parameter.grad.data is not gradient:
                parameter.grad = Tensor(gradient)
        self._unscaled = True

    def step(self, optimizer: Optimizer) -> None:
        """optimizer.step() along the unscaled gradients, unless one is not finite."""
        if not self._unscaled:
            self.unscale(optimizer)
        if devices.runs_kernels(self._numbers) and optimizer.skips_on_device:
            self._skips = optimizer.step_or_skip(self._numbers)
        elif not self._read(FOUND):
            optimizer.step()

    def update(self) -> None:
        """Adjust the scale, at the end of each step; raises ValueError without a step."""
        if not self._unscaled:
            raise ValueError("GradScaler.update: there was no step(optimizer) since the last update()")
        factors = self.growth_factor, self.backoff_factor
        ops.adjust_scale(self._numbers, self._skips, *factors, self.growth_interval)
        self._unscaled, self._skips = False, None

    def state_dict(self) -> dict[str, Any]:
        """{"scale", "good_steps", "skipped"}: what training goes on from."""
        return {"scale": self.factor, "good_steps": self.good_steps, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; raises ValueError unless the scale is a finite number above 0."""
        numbers = self._new("scale", float(state["scale"]), int(state["good_steps"]), int(state["skipped"]))
        devices.write(self._numbers, numbers)
        self._unscaled, self._skips = False, None

    def _new(self, name: str, scale: float, good_steps: int, skipped: int) -> np.ndarray:
        usable = bool(0 < np.float32(scale) < math.inf)
        require(self, **{name: (scale, usable, "a finite number of float32 above 0")})
        return np.array([scale, good_steps, skipped, 0], np.float32)

    def _on(self, device: str) -> Any:
        """The numbers, moved to a device if they are not there."""
        self._numbers = devices.move(self._numbers, device)
        return self._numbers

    def _read(self, which: int) -> float:
        return float(devices.to_numpy(self._numbers)[which])
