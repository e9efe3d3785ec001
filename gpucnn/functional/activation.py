"""Activations and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.functional.cast import to_float32
from gpucnn.tensor import Function


class ReLU(Function):
    def forward(self, x: Any) -> np.ndarray:
        self.y = ops.relu_forward(x)
        return self.y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.relu_backward(self.y, gradient),)


class LeakyReLU(Function):
    def __init__(self, negative_slope: float) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Any) -> np.ndarray:
        self.x = x
        return ops.leaky_relu_forward(x, self.negative_slope)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.leaky_relu_backward(self.x, gradient, self.negative_slope),)


class ELU(Function):
    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def forward(self, x: Any) -> np.ndarray:
        self.x = x
        return ops.elu_forward(x, self.alpha)

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.elu_backward(self.x, gradient, self.alpha),)


class Tanh(Function):
    def forward(self, x: Any) -> np.ndarray:
        self.y = ops.tanh_forward(x)
        return self.y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.tanh_backward(self.y, gradient),)


class Sigmoid(Function):
    def forward(self, x: Any) -> np.ndarray:
        self.y = ops.sigmoid_forward(x)
        return self.y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.sigmoid_backward(self.y, gradient),)


class Softmax(Function):
    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, x: Any) -> np.ndarray:
        self.y = ops.softmax_forward(x, self.axis)
        return self.y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.softmax_backward(self.y, gradient, self.axis),)


class LogSoftmax(Function):
    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, x: Any) -> np.ndarray:
        self.y = ops.log_softmax_forward(x, self.axis)
        return self.y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.log_softmax_backward(self.y, gradient, self.axis),)


def relu(x: Any) -> Any:
    """max(x, 0) element by element (Nair & Hinton 2010); the gradient at 0 is 0."""
    return ReLU()(x)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    """x where x > 0, else negative_slope · x (Maas et al. 2013); the gradient at 0 is negative_slope."""
    return LeakyReLU(float(negative_slope))(x)


def elu(x: Any, alpha: float = 1.0) -> Any:
    """x where x > 0, else alpha · (e^x − 1) (Clevert et al. 2016); the gradient at 0 is alpha."""
    return ELU(float(alpha))(x)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent, element by element."""
    return Tanh()(x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^−x) element by element."""
    return Sigmoid()(x)


def softmax(x: Any, axis: int = -1) -> Any:
    """e^x / Σ e^x along `axis`: probabilities from scores; float32 ones of 16-bit scores."""
    return Softmax(axis)(to_float32(x))


def log_softmax(x: Any, axis: int = -1) -> Any:
    """x − log Σ e^x along `axis`: the logarithm of softmax, without its overflow; float32 of 16-bit x."""
    return LogSoftmax(axis)(to_float32(x))
