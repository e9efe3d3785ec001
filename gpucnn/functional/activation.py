"""Activations and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.tensor import Function


class ReLU(Function):
    def forward(self, x: Any) -> np.ndarray:
        self.y = ops.relu_forward(x)
        return self.y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (ops.relu_backward(self.y, gradient),)


class Tanh(Function):
    def forward(self, x: Any) -> np.ndarray:
        self.y = ops.tanh_forward(x)
        return self.y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (gradient * (1 - self.y * self.y),)


class Sigmoid(Function):
    def forward(self, x: Any) -> np.ndarray:
        self.y = ops.sigmoid_forward(x)
        return self.y

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        return (gradient * self.y * (1 - self.y),)


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


def tanh(x: Any) -> Any:
    """The hyperbolic tangent, element by element."""
    return Tanh()(x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^−x) element by element."""
    return Sigmoid()(x)


def softmax(x: Any, axis: int = -1) -> Any:
    """e^x / Σ e^x along `axis`: probabilities from scores."""
    return Softmax(axis)(x)


def log_softmax(x: Any, axis: int = -1) -> Any:
    """x − log Σ e^x along `axis`: the logarithm of softmax, without its overflow."""
    return LogSoftmax(axis)(x)
