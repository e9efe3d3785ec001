"""Arithmetic and shape functions, and the one list that attaches them to Tensor as operators and methods."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from gpucnn import device as devices
from gpucnn import dtypes, ops
from gpucnn.functional.cast import cast, in_float32, operands
from gpucnn.tensor import Function, Tensor

Array = Any  # a Tensor, a NumPy array, or a Python number where a function takes one


def _reduce_to(gradient: np.ndarray, like: Any) -> np.ndarray | None:
    """The gradient summed over the dimensions along which `like` was broadcast; None for a Python number."""
    shape = getattr(like, "shape", None)
    if shape is None or shape == gradient.shape:
        return gradient if shape is not None else None
    lead = gradient.ndim - len(shape)
    axes = (*range(lead), *(lead + i for i, n in enumerate(shape) if n == 1 and gradient.shape[lead + i] != 1))
    return ops.sum_over(gradient, axes).reshape(shape)


class Add(Function):
    launches = False

    def forward(self, a: Any, b: Any) -> Any:
        self.a, self.b = a, b
        return a + b

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        return _reduce_to(gradient, self.a), _reduce_to(gradient, self.b)


class Subtract(Function):
    launches = False

    def forward(self, a: Any, b: Any) -> Any:
        self.a, self.b = a, b
        return a - b

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        return _reduce_to(gradient, self.a), _reduce_to(-gradient, self.b)


class Multiply(Function):
    launches = False

    def forward(self, a: Any, b: Any) -> Any:
        self.a, self.b = a, b
        return a * b

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        return (
            _reduce_to(gradient * self.b, self.a) if self.needs_gradient(0) else None,
            _reduce_to(gradient * self.a, self.b) if self.needs_gradient(1) else None,
        )


class Divide(Function):
    launches = False

    def forward(self, a: Any, b: Any) -> Any:
        self.a, self.b = a, b
        return a / b

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        return (
            _reduce_to(gradient / self.b, self.a) if self.needs_gradient(0) else None,
            _reduce_to(-gradient * self.a / (self.b * self.b), self.b) if self.needs_gradient(1) else None,
        )


class Power(Function):
    launches = False

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def forward(self, x: Any) -> Any:
        self.x = x
        return x**self.exponent

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.exponent == 0:
            return (np.zeros_like(gradient),)
        return (gradient * self.exponent * self.x ** (self.exponent - 1),)


class Exponential(Function):
    launches = False

    def forward(self, x: Any) -> Any:
        self.y = np.exp(x)
        return self.y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (gradient * self.y,)


class Logarithm(Function):
    launches = False

    def forward(self, x: Any) -> Any:
        self.x = x
        return np.log(x)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (gradient / self.x,)


class MatrixMultiply(Function):
    def forward(self, a: Any, b: Any) -> Any:
        self.a, self.b = a, b
        return ops.matmul(a, b)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        a = self.a[None, :] if self.a.ndim == 1 else self.a
        b = self.b[:, None] if self.b.ndim == 1 else self.b
        wide = [
            dtypes.wide(gradient.dtype) if isinstance(source, Tensor) else gradient.dtype for source in self.sources
        ]
        gradient = gradient.reshape(*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        return (
            _matrix_gradient(ops.matmul(gradient, b.swapaxes(-1, -2)), a, self.a, wide[0])
            if self.needs_gradient(0)
            else None,
            _matrix_gradient(ops.matmul(a.swapaxes(-1, -2), gradient), b, self.b, wide[1])
            if self.needs_gradient(1)
            else None,
        )


def _matrix_gradient(gradient: np.ndarray, matrix: np.ndarray, like: np.ndarray, dtype: np.dtype) -> np.ndarray:
    summed = gradient.shape != matrix.shape
    reduced = _reduce_to(ops.cast(gradient, dtypes.wide(gradient.dtype)) if summed else gradient, matrix)
    assert reduced is not None
    return ops.cast(reduced, dtype).reshape(like.shape)


class Reshape(Function):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, x: Any) -> Any:
        self.x_shape = x.shape
        return _reshaped(x, self.shape)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (_reshaped(gradient, self.x_shape),)


def _reshaped(x: Any, shape: tuple[int, ...]) -> Any:
    return (devices.contiguous(x) if dtypes.is_half(x) else x).reshape(shape)


class Permute(Function):
    def __init__(self, axes: tuple[int, ...]) -> None:
        self.axes = axes

    def forward(self, x: Any) -> Any:
        return x.transpose(self.axes)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        places = [axis % gradient.ndim for axis in self.axes]
        return (gradient.transpose(tuple(map(places.index, range(gradient.ndim)))),)


class Sum(Function):
    def __init__(self, axis: int | tuple[int, ...] | None, keepdims: bool) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x: Any) -> Any:
        self.x_shape = x.shape
        return ops.sum_over(x, self.axis, self.keepdims)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.axis is not None and not self.keepdims:
            gradient = np.expand_dims(gradient, self.axis)
        return (np.broadcast_to(gradient, self.x_shape),)


class Concatenate(Function):
    launches = False

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, *arrays: Any) -> Any:
        self.ends = np.cumsum([array.shape[self.axis] for array in arrays])[:-1].tolist()
        return np.concatenate(arrays, axis=self.axis)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.split(gradient, self.ends, axis=self.axis))


class Index(Function):
    launches = False

    def __init__(self, key: Any) -> None:
        self.key = key

    def forward(self, x: Any) -> Any:
        self.x = x
        return x[self.key]

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        whole = np.zeros_like(self.x)
        np.add.at(whole, self.key, gradient)  # an element may have been taken several times
        return (whole,)


def add(a: Array, b: Array) -> Any:
    """a + b with broadcasting."""
    return in_float32(Add(), *_operands("add", a, b))


def subtract(a: Array, b: Array) -> Any:
    """a − b with broadcasting."""
    return in_float32(Subtract(), *_operands("subtract", a, b))


def multiply(a: Array, b: Array) -> Any:
    """a · b, element by element, with broadcasting."""
    return in_float32(Multiply(), *_operands("multiply", a, b))


def divide(a: Array, b: Array) -> Any:
    """a / b, element by element, with broadcasting."""
    return in_float32(Divide(), *_operands("divide", a, b))


def power(x: Array, exponent: float) -> Any:
    """x to a constant exponent; raises TypeError for an exponent that is not a number."""
    if isinstance(exponent, bool) or not isinstance(exponent, (int, float)):
        raise TypeError(f"power: exponent is {type(exponent).__name__}; it must be a number (use exp(b * log(a)) else)")
    return in_float32(Power(exponent if isinstance(exponent, int) else float(exponent)), x)


def exp(x: Array) -> Any:
    """e^x."""
    return in_float32(Exponential(), x)


def log(x: Array) -> Any:
    """The natural logarithm."""
    return in_float32(Logarithm(), x)


def matmul(a: Array, b: Array) -> Any:
    """The matrix product a (…,M,K) @ b (…,K,N); leading dimensions broadcast."""
    return MatrixMultiply()(*operands(a, b)[:2])


def reshape(x: Array, *shape: Any) -> Any:
    """x in another shape of as many elements; one extent may be −1."""
    return Reshape(tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)(x)


def flatten(x: Array, start_dim: int = 1) -> Any:
    """x with all dimensions from start_dim on made one; by default (N,…) becomes (N, features).

    Raises ValueError if x has no dimension start_dim.
    """
    start = normalize_axis_index(start_dim, max(x.ndim, 1))
    return reshape(x, *x.shape[:start], int(np.prod(x.shape[start:], dtype=np.int64)))


def permute(x: Array, *axes: Any) -> Any:
    """x with its dimensions in the given order."""
    return Permute(tuple(axes[0]) if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes)(x)


def transpose(x: Array, dim0: int, dim1: int) -> Any:
    """x with two dimensions swapped."""
    axes = list(range(x.ndim))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return permute(x, *axes)


def sum(x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
    """The sum over `axis` (all dimensions if None)."""
    return in_float32(Sum(axis, keepdims), x)


def mean(x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
    """The mean over `axis` (all dimensions if None)."""
    total = sum(x, axis, keepdims)
    return multiply(total, total.size / x.size if x.size else float("nan"))


def concatenate(tensors: Any, axis: int = 0) -> Any:
    """Tensors or arrays joined along an existing dimension; raises ValueError if the other extents differ."""
    return in_float32(Concatenate(axis), *_operands("concatenate", *tensors))


def index(x: Array, key: Any) -> Any:
    """x[key] as in NumPy; Tensors within the key are taken as arrays."""
    keys = tuple(k.data if isinstance(k, Tensor) else k for k in key) if isinstance(key, tuple) else key
    return in_float32(Index(keys.data if isinstance(keys, Tensor) else keys), x)


def _operands(operation: str, *values: Any) -> tuple[Any, ...]:
    """Arrays must have one dtype, so that nothing becomes float64 unasked; Python numbers take the other side's.

    16-bit ones are taken beside float32: the result is float32.
    """
    found = {value.dtype for value in values if hasattr(value, "dtype")}
    if len(found) > 1 and not found <= {dtypes.FLOAT32, *dtypes.HALVES}:
        names = " and ".join(sorted(map(str, found)))
        raise TypeError(f"{operation}: operands are {names}; convert one of them, e.g. a.to('float32')")
    return values


def _attach() -> None:
    """Every operator and method of Tensor that is a differentiable function."""
    methods: dict[str, Any] = {
        "__add__": add,
        "__radd__": lambda a, b: add(b, a),
        "__sub__": subtract,
        "__rsub__": lambda a, b: subtract(b, a),
        "__mul__": multiply,
        "__rmul__": lambda a, b: multiply(b, a),
        "__truediv__": divide,
        "__rtruediv__": lambda a, b: divide(b, a),
        "__pow__": power,
        "__neg__": lambda a: multiply(a, -1),
        "__matmul__": matmul,
        "__rmatmul__": lambda a, b: matmul(b, a),
        "__getitem__": index,
        "astype": cast,
        "exp": exp,
        "log": log,
        "reshape": reshape,
        "flatten": flatten,
        "permute": permute,
        "transpose": transpose,
        "sum": sum,
        "mean": mean,
    }
    for name, function in methods.items():
        setattr(Tensor, name, function)


_attach()
