"""Module: parameters, buffers and sub-modules by attribute; Sequential; Parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import dtypes
from gpucnn.precision import parameters_changed
from gpucnn.tensor import Tensor


class Parameter(Tensor):
    """A Tensor that a Module trains: requires_grad from the start, and contiguous, so that updates happen in place."""

    def __init__(self, data: Any) -> None:
        super().__init__(devices.contiguous(devices.as_array(data)), requires_grad=True)


class Module:
    """A layer or a network. A subclass sets Parameters and Modules as attributes and defines `forward`.

    Attributes that are Parameters or Modules are found by their names, in the order in which they were set; arrays that
    belong to the state but are not trained are set with `register_buffer`.
    """

    training = True

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *inputs: Any) -> Any:
        output = self.forward(*inputs)
        for hook in list(self.__dict__.get("_forward_hooks", {}).values()):
            hook(self, inputs, output)
        return output

    def register_forward_hook(self, hook: Callable[[Module, tuple[Any, ...], Any], None]) -> HookHandle:
        """Call hook(module, inputs, output) after every forward, until `.remove()` of the returned handle."""
        hooks = self.__dict__.setdefault("_forward_hooks", {})
        return HookHandle(hooks, hook)

    def register_buffer(self, name: str, array: np.ndarray, persistent: bool = True) -> None:
        """Set attribute `name` to an array that moves with the module and that no optimiser trains.

        - persistent: whether `state_dict` holds it; a constant need not be stored
        """
        self.__dict__.setdefault("_buffer_names" if persistent else "_constant_names", []).append(name)
        setattr(self, name, array)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the modules directly inside this one."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(dotted name, module) of this module, whose name is empty, and of every module inside it, each once."""
        seen: set[int] = set()
        for name, module in self._walk(prefix):
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def _walk(self, prefix: str) -> Iterator[tuple[str, Module]]:
        yield prefix, self
        for name, child in self.named_children():
            yield from child._walk(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and every module inside it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter), each shared parameter once."""
        seen: set[int] = set()
        for name, value in self._state():
            if isinstance(value, Parameter) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def parameters(self) -> Iterator[Parameter]:
        """The parameters, each shared one once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        """(dotted name, array) of the registered buffers."""
        return ((name, value) for name, value in self._state() if not isinstance(value, Parameter))

    def _state(self) -> Iterator[tuple[str, Any]]:
        """(dotted name, Parameter or array) of everything that state_dict holds."""
        for prefix, module in self._walk(""):
            buffers = module.__dict__.get("_buffer_names", ())
            for name, value in vars(module).items():
                if isinstance(value, Parameter) or name in buffers:
                    yield (f"{prefix}.{name}" if prefix else name), value

    @property
    def device(self) -> str:
        """The device of the first parameter or buffer; "cpu" where there is none."""
        return next((devices.of(array) for array in self.state_dict().values()), "cpu")

    def state_dict(self) -> dict[str, np.ndarray]:
        """Name → array of every parameter and buffer; the arrays are the live ones, not copies."""
        return {name: value.data if isinstance(value, Parameter) else value for name, value in self._state()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays (or Tensors) into the parameters and buffers of the same names.

        Everything is checked before anything is changed. Raises ValueError for missing or unknown names (unless
        strict=False) and for shapes that differ.
        """
        own = self.state_dict()
        given = {name: value.data if isinstance(value, Tensor) else value for name, value in state.items()}
        arrays = {name: devices.as_array(value) for name, value in given.items() if name in own}
        _check_state(type(self).__name__, own, arrays, state, strict)
        for name, array in arrays.items():
            own[name][...] = devices.move(array, devices.of(own[name]))
        parameters_changed()

    def train(self, mode: bool = True) -> Module:
        """Set training mode here and in every module inside: dropout drops, batch norm uses the batch's statistics."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Set evaluation mode: the opposite of `train`."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Set requires_grad of every parameter: False freezes them."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, target: Any) -> Module:
        """Move to a device (a string such as "auto") or convert floating-point state to a dtype, in place.

        Buffers, such as running statistics, stay float32 beside 16-bit parameters.
        """
        moves = devices.is_device(target)
        buffers = target if moves else dtypes.wide(dtypes.resolve(target))
        for module in self.modules():
            arrays = (*module.__dict__.get("_buffer_names", ()), *module.__dict__.get("_constant_names", ()))
            for name, value in list(vars(module).items()):
                if isinstance(value, Parameter):
                    value.data = value.to(target).data
                    value.grad = None if value.grad is None else value.grad.to(target)
                elif name in arrays and (moves or dtypes.is_float(value.dtype)):
                    setattr(module, name, Tensor(value).to(buffers).data)
        return self

    def extra_repr(self) -> str:
        """The constructor's arguments, as `print(model)` shall show them."""
        return ""

    def __repr__(self) -> str:
        children = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        if not children:
            return f"{type(self).__name__}({self.extra_repr()})"
        head = f"{type(self).__name__}({self.extra_repr()}"
        return "\n  ".join([head, *children]) + "\n)"


class HookHandle:
    """A registered hook; `remove` takes it away again."""

    def __init__(self, hooks: dict[int, Any], hook: Any) -> None:
        self._hooks = hooks
        hooks[id(self)] = hook

    def remove(self) -> None:
        """Stop calling the hook; a second call does nothing."""
        self._hooks.pop(id(self), None)


class Sequential(Module):
    """Modules one after the other; their names are "0", "1", …"""

    def __init__(self, *modules: Module) -> None:
        for position, module in enumerate(modules):
            setattr(self, str(position), module)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x

    def __iter__(self) -> Iterator[Module]:
        return (child for _, child in self.named_children())

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, position: int | slice) -> Any:
        chosen = list(self)[position]
        return Sequential(*chosen) if isinstance(chosen, list) else chosen


def _check_state(
    model: str, own: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], given: Mapping[str, Any], strict: bool
) -> None:
    missing = [name for name in own if name not in given]
    unknown = [name for name in given if name not in own]
    if strict and (missing or unknown):
        parts = [f"{what} {_some(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise ValueError(f"load_state_dict: names do not fit {model}: {'; '.join(parts)}; strict=False takes what fits")
    for name, array in arrays.items():
        if array.shape != own[name].shape:
            raise ValueError(f"load_state_dict: {name} has shape {array.shape} but {model} needs {own[name].shape}")
        if not np.can_cast(array.dtype, own[name].dtype, "same_kind"):
            raise ValueError(f"load_state_dict: {name} is {array.dtype} but {model} needs {own[name].dtype}")


def _some(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
