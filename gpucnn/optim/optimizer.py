"""Optimiser: parameters, a learning rate, and per-parameter state that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpucnn.ops.shapes import FLOATS
from gpucnn.tensor import Tensor


class Optimizer:
    """Base of the optimisers. `step` updates every parameter that has a gradient; `lr` may be changed at any time.

    - parameters: a module's parameters, or Tensors such as an image; float32 or float64, and contiguous
    A subclass names in `state_names` what it keeps for each parameter from its first step on.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError(f"{type(self).__name__}: there are no parameters to optimise")
        for position, parameter in enumerate(self.parameters):
            _check_parameter(type(self).__name__, position, parameter.data)
        require(self, lr=(lr, lr >= 0, "at least 0"), weight_decay=(weight_decay, weight_decay >= 0, "at least 0"))
        self.lr, self.weight_decay = lr, weight_decay
        self.state: list[dict[str, np.ndarray]] = [{} for _ in self.parameters]
        self.steps = [0] * len(self.parameters)

    def step(self) -> None:
        """Update each parameter in place along its gradient."""
        for position, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self.steps[position] += 1
                self.update(parameter.data, parameter.grad.data, self.state[position], self.steps[position])

    def update(self, parameter: np.ndarray, gradient: np.ndarray, state: dict[str, np.ndarray], step: int) -> None:
        """Update one parameter array; `state` is this parameter's own, empty before its first step (step = 1)."""
        raise NotImplementedError(f"{type(self).__name__} does not define update")

    def zero_grad(self) -> None:
        """Forget the parameters' gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """{"lr", "steps": one count a parameter, "state": one {name: array} a parameter}, the live arrays."""
        return {"lr": self.lr, "steps": list(self.steps), "state": [dict(state) for state in self.state]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; raises ValueError, changing nothing, if it is another network's."""
        entries, steps = state["state"], state["steps"]
        if not len(entries) == len(steps) == len(self.parameters):
            raise ValueError(
                f"load_state_dict: the state has {len(entries)} parameters but the optimiser has {len(self.parameters)}"
            )
        for position, (entry, parameter) in enumerate(zip(entries, self.parameters, strict=True)):
            self._check_entry(position, entry, parameter)
        self.lr, self.steps = float(state["lr"]), [int(step) for step in steps]
        self.state = [
            {name: np.array(array, parameter.dtype, order="C") for name, array in entry.items()}
            for entry, parameter in zip(entries, self.parameters, strict=True)
        ]

    def _check_entry(self, position: int, entry: dict[str, np.ndarray], parameter: Tensor) -> None:
        if entry and set(entry) != set(self.state_names):
            raise ValueError(
                f"load_state_dict: parameter {position} has the state {', '.join(entry)} but {type(self).__name__} "
                f"needs {', '.join(self.state_names)}; load it into the optimiser that saved it"
            )
        for name, array in entry.items():
            if array.shape != parameter.shape:
                raise ValueError(
                    f"load_state_dict: {name} of parameter {position} is {array.shape}, not {parameter.shape}"
                )


def _check_parameter(optimizer: str, position: int, array: np.ndarray) -> None:
    if array.dtype not in FLOATS:
        raise TypeError(f"{optimizer}: parameter {position} is {array.dtype}; it must be float32 or float64")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{optimizer}: parameter {position} is not contiguous and cannot be changed in place; use gpucnn.tensor(x)"
        )


def require(optimizer: Optimizer, **arguments: tuple[Any, bool, str]) -> None:
    """Raise ValueError naming the first argument whose rule does not hold; name=(value, holds, rule)."""
    for name, (value, holds, rule) in arguments.items():
        if not holds:
            raise ValueError(f"{type(optimizer).__name__}: {name} is {value}; it must be {rule}")
