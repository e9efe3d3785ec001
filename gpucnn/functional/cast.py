"""Casts, and what autocast does to the operands of products."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import dtypes, ops
from gpucnn.precision import current_autocast
from gpucnn.tensor import Function, Tensor


class Cast(Function):
    """x in another dtype; the gradient comes back in x's."""

    def __init__(self, dtype: np.dtype, channels_last: bool = False) -> None:
        self.dtype, self.channels_last = dtype, channels_last

    def forward(self, x: Any) -> Any:
        self.x_dtype = x.dtype
        return ops.cast(x, self.dtype, self.channels_last)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.cast(gradient, self.x_dtype),)


def cast(x: Any, dtype: Any, channels_last: bool = False) -> Any:
    """x in another dtype, rounded to nearest, ties to even; differentiable between floating-point dtypes.

    - dtype: "float32", "bfloat16", "float16", on the CPU also "float64" and integers
    - channels_last: let y of x (N, C, H, W) have its channels next to each other in memory, in the same pass
    Raises TypeError for a dtype that is not supported.
    """
    target = dtypes.resolve(dtype)
    if x.dtype == target and not channels_last:
        return x
    if not dtypes.is_float(target) or not dtypes.is_float(x.dtype):
        data = ops.cast(x.data if isinstance(x, Tensor) else x, target, channels_last)
        return Tensor(data) if isinstance(x, Tensor) else data
    return Cast(target, channels_last)(x)


def to_float32(x: Any) -> Any:
    """x, or of a 16-bit x the float32 of its values."""
    return cast(x, dtypes.FLOAT32) if dtypes.is_half(x) else x


def operands(x: Any, weight: Any, bias: Any = None) -> tuple[Any, Any, Any]:
    """What a product takes: under autocast x and weight in 16 bits. Beside 16-bit x a bias is float32."""
    context = current_autocast()
    if context is not None:
        x, weight = _autocast(x, context), _autocast(weight, context)
    if dtypes.is_half(x):
        bias = None if bias is None else to_float32(bias)
    return x, weight, bias


def _autocast(value: Any, context: Any) -> Any:
    """The value in the context's dtype, parameters from its store; float64 and integers stay as they are.

    A parameter's cast stands for it: products give its gradient in float32, and it goes to the parameter itself.
    """
    dtype = getattr(value, "dtype", None)
    if dtype == context.dtype or not (dtype == dtypes.FLOAT32 or dtype in dtypes.HALVES):
        return value
    if not (isinstance(value, Tensor) and value.is_leaf and value.requires_grad):
        return cast(value, context.dtype)
    stored = context.cast_of(value.data)
    if stored is None:
        stored = ops.cast(value.data, context.dtype)
        context.store(value.data, stored)
        ops.keep_packed(stored)
    found = Tensor(stored, requires_grad=True)
    found.stands_for = value
    return found


def in_float32(function: Function, *values: Any) -> Any:
    """function(*values), of 16-bit values computed in float32 and rounded once; beside float32 ones it stays that."""
    halves = {value.dtype for value in values if dtypes.is_half(value)}
    if not halves:
        return function(*values)
    y = function(*map(to_float32, values))
    wide = any(getattr(value, "dtype", None) == dtypes.FLOAT32 for value in values)
    return y if wide or len(halves) > 1 else cast(y, halves.pop())
