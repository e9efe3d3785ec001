"""Optimiser: parameters in groups, a learning rate, and per-parameter state that a checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.dtypes import FLOATS
from gpucnn.precision import parameters_changed
from gpucnn.tensor import Tensor

Parameters = Iterable[Tensor] | Iterable[Mapping[str, Any]]


@dataclass
class Group:
    """Parameters with options of their own; their rate is `scale` times the optimiser's, so 0 freezes them."""

    parameters: list[Tensor]
    scale: float
    options: dict[str, Any]


class Optimizer:
    """Base of the optimisers. `step` updates every parameter that has a gradient; `lr` may be changed at any time.

    - parameters: a module's parameters, or Tensors such as an image; float32 or float64, and contiguous. Or groups:
      dictionaries, each with "params" and those of the optimiser's options in which the group differs, as in
      [{"params": features, "lr": 0.001}, {"params": classifier}]. A group's rate keeps its share of `lr` when that
      changes, so schedules scale the rates of all groups
    - weight_decay, l1_decay: g + weight_decay·p + l1_decay·sign(p) takes the gradient's place, the gradient of the loss
      plus ½·weight_decay·|p|² + l1_decay·|p|₁
    A subclass names in `state_names` what it keeps for each parameter from its first step on.
    Raises ValueError for an option that is unknown or out of range, and for a parameter that stands twice.
    """

    def __init__(self, parameters: Parameters, lr: float, **options: Any) -> None:
        self.lr = lr
        self.groups = [_group(self, entry, {"lr": lr, **options}) for entry in _entries(parameters)]
        self.parameters = [parameter for group in self.groups for parameter in group.parameters]
        if not self.parameters:
            raise ValueError(f"{type(self).__name__}: there are no parameters to optimise")
        for position, parameter in enumerate(self.parameters):
            _check_parameter(type(self).__name__, position, parameter)
        if len(set(map(id, self.parameters))) < len(self.parameters):
            raise ValueError(f"{type(self).__name__}: a parameter stands twice; put each into one group, once")
        self.state: list[dict[str, np.ndarray]] = [{} for _ in self.parameters]
        self.steps = [0] * len(self.parameters)
        self._skipping: list[int] = []  # positions whose `steps` have some in them that the device left out …
        self._skips: Any = None  # … and how many: (1,) on their device

    @property
    def rates(self) -> list[float]:
        """The learning rate of each group."""
        return [self.lr * group.scale for group in self.groups]

    @property
    def skips_on_device(self) -> bool:
        """Whether kernels can leave a step out by themselves: `update` hands on the option "skip" to those of `ops`."""
        return False

    def step(self) -> None:
        """Update each parameter in place along its gradient, those of a group that have made as many steps at once."""
        self._count_skips()
        self._step({})

    def step_or_skip(self, scaling: Any) -> Any:
        """`step`, which the device leaves out where `scaling` (gpucnn.ops.scaling) found a gradient that is not finite.

        Returns the array, of one number, that is to be raised by 1 if so (gpucnn.ops.adjust_scale).
        """
        positions = [n for n, parameter in enumerate(self.parameters) if parameter.grad is not None]
        if self._skips is None or positions != self._skipping or devices.of(self._skips) != devices.of(scaling):
            self._count_skips()
            self._skipping, self._skips = positions, devices.full_like(scaling[:1], 0)
        self._step({"skip": ops.Skip(scaling, self._skips)})
        return self._skips

    def _count_skips(self) -> None:
        """Take the steps that the device left out from those that were counted; waits for it."""
        if not self._skipping:
            return
        skips = int(devices.to_numpy(self._skips)[0])
        for position in self._skipping:
            self.steps[position] -= skips
        self._skipping, self._skips = [], None

    def _step(self, more: dict[str, Any]) -> None:
        together: dict[Any, list[int]] = {}
        groups = [group for _, group in self._grouped()]
        for position, (parameter, group) in enumerate(zip(self.parameters, groups, strict=True)):
            if parameter.grad is not None:
                self.steps[position] += 1
                key = id(group), self.steps[position], not self.state[position], parameter.dtype, parameter.device
                together.setdefault(key, []).append(position)
        for positions in together.values():
            self._update(positions, groups[positions[0]], more)
        parameters_changed()

    def _update(self, positions: list[int], group: Group, more: dict[str, Any]) -> None:
        """One step of these parameters of the group, which have made as many steps."""
        options = {**group.options, "lr": self.lr * group.scale, **more}
        chosen = [self.parameters[position] for position in positions]
        arrays = [parameter.data for parameter in chosen]
        gradients = [each.grad.data for each in chosen if each.grad is not None]
        states = [self.state[position] for position in positions]
        self.update(arrays, gradients, states, self.steps[positions[0]], options)

    def update(
        self,
        parameters: list[np.ndarray],
        gradients: list[np.ndarray],
        states: list[dict[str, np.ndarray]],
        step: int,
        options: dict[str, Any],
    ) -> None:
        """Update arrays of one dtype on one device, which make the same step (step = 1, 2, …).

        - states: of each parameter its own, all empty before the first step
        - options: the rate "lr" and whatever else the constructor handed on ("l1_decay", too), as they are here; and
          "skip" if the optimiser's `skips_on_device` says so
        """
        raise NotImplementedError(f"{type(self).__name__} does not define update")

    def check(self, options: dict[str, Any]) -> None:
        """Raise ValueError unless the options of a group are within their range."""
        rules = {name: (options[name], options[name] >= 0, "at least 0") for name in ("lr", "weight_decay", "l1_decay")}
        require(self, **rules)

    def state_names(self, options: dict[str, Any]) -> tuple[str, ...]:
        """The arrays that are kept for each parameter of a group with these options."""
        return ()

    def zero_grad(self) -> None:
        """Forget the parameters' gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """{"lr", "scales": one a group, "steps": one count a parameter, "state": one {name: array} a parameter}.

        The arrays are the live ones; all options but the rate are the constructor's and not part of it.
        """
        self._count_skips()
        return {
            "lr": self.lr,
            "scales": [group.scale for group in self.groups],
            "steps": list(self.steps),
            "state": [dict(state) for state in self.state],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; raises ValueError, changing nothing, if it is another network's."""
        entries, steps, scales = state["state"], state["steps"], [float(scale) for scale in state["scales"]]
        if not len(entries) == len(steps) == len(self.parameters):
            raise ValueError(
                f"load_state_dict: the state has {len(entries)} parameters but the optimiser has {len(self.parameters)}"
            )
        if len(scales) != len(self.groups) or not all(0 <= scale < math.inf for scale in scales):
            raise ValueError(
                f"load_state_dict: scales are {scales}; they must be {len(self.groups)} finite numbers of at least 0, "
                "one for each group of parameters"
            )
        for position, (entry, (parameter, group)) in enumerate(zip(entries, self._grouped(), strict=True)):
            self._check_entry(position, entry, parameter, group)
        self._count_skips()
        self.lr, self.steps = float(state["lr"]), [int(step) for step in steps]
        for group, scale in zip(self.groups, scales, strict=True):
            group.scale = scale
        self.state = [
            {name: _copy(array, parameter) for name, array in entry.items()}
            for entry, parameter in zip(entries, self.parameters, strict=True)
        ]

    def _grouped(self) -> Iterator[tuple[Tensor, Group]]:
        """Each parameter with its group, in the order of `parameters`."""
        return ((parameter, group) for group in self.groups for parameter in group.parameters)

    def _check_entry(self, position: int, entry: dict[str, np.ndarray], parameter: Tensor, group: Group) -> None:
        names = self.state_names(group.options)
        if entry and set(entry) != set(names):
            raise ValueError(
                f"load_state_dict: parameter {position} has the state {', '.join(entry)} but {type(self).__name__} "
                f"needs {', '.join(names) or 'none'}; load it into the optimiser that saved it"
            )
        for name, array in entry.items():
            if array.shape != parameter.shape:
                raise ValueError(
                    f"load_state_dict: {name} of parameter {position} is {array.shape}, not {parameter.shape}"
                )


def _entries(parameters: Parameters) -> list[Mapping[str, Any]]:
    """The groups that were given, or one of all parameters."""
    given: list[Any] = list(parameters)
    if any(isinstance(entry, Mapping) for entry in given):
        return given
    return [{"params": given}]


def _group(optimizer: Optimizer, entry: Any, defaults: dict[str, Any]) -> Group:
    """The group that `entry` describes, with the optimiser's `defaults` ("lr" among them) for what it leaves out."""
    where = type(optimizer).__name__
    if not isinstance(entry, Mapping):
        raise TypeError(f"{where}: a group is a {type(entry).__name__}; give dictionaries only, or Tensors only")
    unknown = set(entry) - {"params", *defaults}
    if unknown or "params" not in entry:
        raise ValueError(
            f"{where}: a group has the keys {', '.join(map(str, entry))}; it must have params, and may have "
            f"{', '.join(defaults)}"
        )
    options = {**defaults, **entry}
    parameters = options.pop("params")
    optimizer.check(defaults)
    optimizer.check(options)
    base, lr = defaults["lr"], options.pop("lr")
    if base == 0 and lr != 0:
        raise ValueError(f"{where}: lr is 0 and a group's {lr}, which is no multiple of it; use an lr above 0")
    scale = 1.0 if lr == base else lr / base
    return Group([parameters] if isinstance(parameters, Tensor) else list(parameters), scale, options)


def _check_parameter(optimizer: str, position: int, parameter: Any) -> None:
    if not isinstance(parameter, Tensor):
        raise TypeError(f"{optimizer}: parameter {position} is a {type(parameter).__name__}; it must be a Tensor")
    if parameter.data.dtype not in FLOATS:
        raise TypeError(f"{optimizer}: parameter {position} is {parameter.data.dtype}; it must be float32 or float64")
    if not parameter.data.flags.c_contiguous:
        raise ValueError(
            f"{optimizer}: parameter {position} is not contiguous and cannot be changed in place; use gpucnn.tensor(x)"
        )


def _copy(array: Any, parameter: Tensor) -> np.ndarray:
    """A copy in C order, in the parameter's dtype and on its device."""
    host = np.array(devices.to_numpy(array), parameter.dtype, order="C")
    return devices.move(host, parameter.device)


def start(
    states: list[dict[str, np.ndarray]], names: tuple[str, ...], like: list[np.ndarray], value: float = 0
) -> None:
    """Fill the states that are empty with arrays of `value` under these names, each like its parameter."""
    for state, array in zip(states, like, strict=True):
        if not state:
            state.update({name: devices.full_like(array, value) for name in names})


def kept(states: list[dict[str, np.ndarray]], name: str) -> list[np.ndarray] | None:
    """The array `name` of each state; None where the states have none."""
    return [state[name] for state in states] if name in states[0] else None


def require(owner: object, **arguments: tuple[Any, bool, str]) -> None:
    """Raise ValueError naming the first argument whose rule does not hold; name=(value, holds, rule)."""
    for name, (value, holds, rule) in arguments.items():
        if not holds:
            raise ValueError(f"{type(owner).__name__}: {name} is {value}; it must be {rule}")
