"""Tensor, Function and the tape: reverse-mode differentiation over any graph of functions.

A Function computes arrays from arrays and keeps what its backward needs. Calling one on Tensors links it to the
functions that its inputs came from, and to the inputs that are leaves; `Tensor.backward` walks these links, each
function once, in topological order. The links lead from function to function, not through Tensors: an array that no
function keeps for its backward is freed as soon as the forward pass has left it behind.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import dtypes
from gpucnn.launch import grid_for, launch

_state = threading.local()


def is_grad_enabled() -> bool:
    """Whether functions called in this thread are recorded for backward."""
    return getattr(_state, "enabled", True)


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside this context (or decorated function) nothing is recorded: no memory is kept for a backward pass."""
    before = is_grad_enabled()
    _state.enabled = False
    try:
        yield
    finally:
        _state.enabled = before


class Tensor:
    """An array that remembers how it was computed.

    - data: the array; float32, float64 (CPU only), bfloat16, float16, an integer type or bool
    - requires_grad: whether `backward` shall leave the gradient of this leaf in `.grad` (floating point only)
    """

    __array_ufunc__ = None  # so that `array * tensor` asks Tensor.__rmul__ instead of looping over elements

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        self.data = devices.as_array(data)
        if not dtypes.is_supported(self.data.dtype):
            raise TypeError(
                f"Tensor: dtype {self.data.dtype} is not supported; use float32, float64, bfloat16, float16, integers "
                "or bool"
            )
        if requires_grad and not dtypes.is_float(self.data.dtype):
            raise TypeError(f"Tensor: requires_grad needs a floating-point dtype, not {self.data.dtype}")
        self.requires_grad = requires_grad
        self.grad: Tensor | None = None
        self._function: Function | None = None
        self.stands_for: Tensor | None = None  # the leaf whose cast this is: it gets the gradient

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def device(self) -> str:
        return devices.of(self.data)

    @property
    def is_leaf(self) -> bool:
        return self._function is None

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array; on the devices cpu and sim it shares the Tensor's memory."""
        return devices.to_numpy(self.data)

    def item(self) -> float | int | bool:
        """The value of a Tensor with one element, as a Python number; raises ValueError otherwise."""
        if self.size != 1:
            raise ValueError(f"item: the Tensor has {self.size} elements (shape {self.shape}); it must have one")
        return self.data.item()

    def detach(self) -> Tensor:
        """A Tensor of the same memory that is not linked to the graph."""
        return Tensor(self.data)

    def to(self, target: Any) -> Tensor:
        """This Tensor on a device (a string) or in a dtype; itself if nothing changes, else a leaf without history."""
        if devices.is_device(target):
            data = devices.move(self.data, devices.resolve(target))
        else:
            data = devices.astype(self.data, dtypes.resolve(target))
        return self if data is self.data else Tensor(data, self.requires_grad)

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add the gradient of this Tensor to `.grad` of every leaf with requires_grad that it was computed from.

        - gradient: array or Tensor of this shape, the gradient of the final result with respect to this Tensor; may be
          left out for a Tensor of one element (then 1)
        - retain_graph: keep what the functions saved, so that backward may run over them again
        Raises ValueError if nothing requires a gradient, shapes differ, or the graph was used already.
        """
        if not self.requires_grad:
            raise ValueError("backward: nothing that this Tensor was computed from has requires_grad=True")
        initial = self._initial_gradient(gradient)
        if self.is_leaf:
            return self._accumulate(initial, shared=initial)
        assert self._function is not None
        gradients: dict[Function, np.ndarray] = {self._function: initial}
        for function in topological_order(self._function):
            output_gradient = gradients.pop(function, None)
            if output_gradient is None:
                continue
            for source, part in zip(function.sources, function.checked_backward(output_gradient), strict=True):
                if part is None:
                    continue
                if isinstance(source, Tensor):
                    source._accumulate(part, output_gradient)
                elif isinstance(source, Function):
                    gradients[source] = _sum(gradients[source], part) if source in gradients else part
            if not retain_graph:
                function.release()

    def _initial_gradient(self, gradient: Any) -> np.ndarray:
        if gradient is None:
            if self.size != 1:
                raise ValueError(f"backward: a Tensor of shape {self.shape} needs gradient=, an array of its shape")
            return devices.full_like(self.data, 1)
        array = devices.as_array(gradient.data if isinstance(gradient, Tensor) else gradient)
        array = devices.move(devices.astype(array, self.dtype), self.device)
        if array.shape != self.shape:
            raise ValueError(f"backward: gradient has shape {array.shape} but the Tensor has {self.shape}")
        return array

    def _accumulate(self, part: np.ndarray, shared: np.ndarray) -> None:
        if part.dtype != self.dtype:  # of a 16-bit leaf: operations give the gradients of weights in float32
            part = _rounded(part, self.dtype)
        if self.grad is not None:
            self.grad = Tensor(_sum(self.grad.data, part))
            return
        owned = devices.owns_memory(part) and part is not shared  # two leaves must never hold the same memory
        if not owned:
            devices.require_launch(f"a copy of a gradient of shape {part.shape}")
        self.grad = Tensor(part if owned else part.copy())

    def __len__(self) -> int:
        return len(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.data, dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        if self.dtype == dtypes.BFLOAT16:
            raise BufferError("__dlpack__: NumPy shares no bfloat16; use .to('float32') first")
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.data.__dlpack_device__()

    def __repr__(self) -> str:
        values = self.numpy()
        if dtypes.is_half(values):
            values = values.astype(np.float32)
        text = np.array2string(values, separator=", ", prefix="tensor(")
        suffix = ", requires_grad=True" if self.requires_grad else ""
        return f"tensor({text}, dtype={self.dtype}{suffix})"


class Function:
    """A differentiable operation. A subclass takes its options in `__init__` and defines

    - forward(*arrays) → array, or (array, *others); only the first result is differentiable
    - backward(gradient) → one gradient (array or None) for each input
    - launches, False where it takes arithmetic of arrays (NumPy's, CuPy's): such a call cannot be recorded
    Calling it on Tensors returns Tensors and records the call; calling it on arrays returns arrays.
    """

    sources: tuple[Tensor | Function | None, ...] = ()  # of each input: a leaf, a function, or nothing to differentiate
    output_shape: tuple[int, ...] = ()
    released = False
    launches = True

    def forward(self, *arrays: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        raise NotImplementedError(f"{type(self).__name__} does not define backward")

    def __call__(self, *inputs: Any) -> Any:
        if not self.launches:
            devices.require_launch(f"{type(self).__name__} of arrays")
        results = self.forward(*(value.data if isinstance(value, Tensor) else value for value in inputs))
        if not any(isinstance(value, Tensor) for value in inputs):
            return results
        first, *others = results if isinstance(results, tuple) else (results,)
        output = Tensor(first)
        if is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
            self.sources, self.output_shape = tuple(map(_source, inputs)), first.shape
            output.requires_grad, output._function = True, self
        return (output, *map(Tensor, others)) if others else output

    def needs_gradient(self, index: int) -> bool:
        """Whether backward must compute the gradient of input `index`."""
        return self.sources[index] is not None

    def checked_backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        """backward, after making sure that what it needs is still there; its gradients must have the inputs' shapes."""
        if self.released:
            raise ValueError(
                "backward: the graph was already used by an earlier backward() and its memory freed; compute the "
                "result again, or pass retain_graph=True the first time"
            )
        parts = self.backward(gradient)
        for source, part in zip(self.sources, parts, strict=True):
            shape = source.output_shape if isinstance(source, Function) else getattr(source, "shape", None)
            if shape is not None and part is not None and part.shape != shape:
                raise ValueError(
                    f"{type(self).__name__}.backward: a gradient has shape {part.shape}, its input {shape}"
                )
        return parts

    def release(self) -> None:
        """Forget the sources and everything forward kept."""
        self.__dict__.clear()
        self.released = True


def _rounded(gradient: Any, dtype: np.dtype) -> Any:
    if not devices.runs_kernels(gradient):
        return devices.astype(gradient, dtype)
    gradient = devices.contiguous(gradient)
    rounded = devices.empty(gradient.shape, dtype, gradient)
    launch(f"cast_{gradient.dtype.name}_{dtype.name}", grid_for(-(-rounded.size // 4)), gradient, rounded, rounded.size)
    return rounded


def _sum(gradient: Any, part: Any) -> Any:
    if dtypes.is_half(gradient) and gradient.dtype == part.dtype and devices.runs_kernels(gradient):
        gradient, part = devices.contiguous(gradient), devices.contiguous(part)
        total = devices.empty_like(gradient)
        launch(f"add_{total.dtype.name}", grid_for(-(-total.size // 8)), gradient, part, total, total.size)
        return total
    devices.require_launch(f"a sum of gradients of shape {part.shape}")
    return gradient + part


def _source(value: Any) -> Tensor | Function | None:
    if not isinstance(value, Tensor) or not value.requires_grad:
        return None
    return value._function or value.stands_for or value


def topological_order(root: Function) -> list[Function]:
    """Every function that root depends on, each before those it got its inputs from; no recursion: nets may be deep."""
    order: list[Function] = []
    seen = {root}
    stack = [(root, iter(root.sources))]
    while stack:
        function, sources = stack[-1]
        for source in sources:
            if isinstance(source, Function) and source not in seen:
                seen.add(source)
                stack.append((source, iter(source.sources)))
                break
        else:
            order.append(function)
            stack.pop()
    return order[::-1]


def tensor(data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor of `data`: nested lists, a number, or anything with `__array__` or `__dlpack__`; arrays are copied.

    Python floats become float32, an array keeps its dtype.

    - device: where the Tensor shall be, as `Tensor.to` explains; None: where the array is, for anything else the CPU
    Raises TypeError for a dtype that is not supported and ValueError for a device that is not there.
    """
    data = data.data if isinstance(data, Tensor) else data
    if hasattr(data, "__dlpack__") and not devices.is_array(data):
        data = devices.from_dlpack(data)
    if device is not None:
        where = devices.resolve(device)
    else:
        where = devices.of(data) if devices.is_array(data) else "cpu"
    if devices.is_array(data) and devices.runs_kernels(data):
        copy = devices.contiguous(devices.astype(data, data.dtype if dtype is None else dtypes.resolve(dtype)))
        return Tensor(devices.move(copy.copy() if copy is data else copy, where), requires_grad)
    array = np.array(
        data, dtype=None if dtype is None else dtypes.resolve(dtype), order="C"
    )  # contiguous, so that optimisers can change it in place
    from_python = not hasattr(data, "__array__") and dtype is None
    if from_python and array.dtype == np.float64:
        array = array.astype(np.float32)
    return Tensor(devices.move(array, where), requires_grad)
