"""Optimiser updates of arrays, in place; SGD and Adam in one pass over memory for each parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpucnn import _C


def sgd_update(
    parameter: np.ndarray,
    gradient: np.ndarray,
    momentum_buffer: np.ndarray | None,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    first: bool,
) -> None:
    """parameter −= lr · v with v = momentum·v + (1 − dampening)·g and g = gradient + weight_decay·parameter.

    The first step sets v = g. Nesterov steps along g + momentum·v (Sutskever et al. 2013, as in PyTorch).
    """
    buffer = None if momentum_buffer is None else momentum_buffer.reshape(-1)
    options = momentum, dampening, nesterov, weight_decay, first
    _C.sgd_update(parameter.reshape(-1), _flat(gradient, parameter), buffer, lr, *options)


def adam_update(
    parameter: np.ndarray,
    gradient: np.ndarray,
    first_moment: np.ndarray,
    second_moment: np.ndarray,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
) -> None:
    """Adam (Kingma & Ba 2015, algorithm 1); weight decay joins the gradient or is apart (Loshchilov & Hutter 2019)."""
    flat, moments = _flat(gradient, parameter), (first_moment.reshape(-1), second_moment.reshape(-1))
    _C.adam_update(parameter.reshape(-1), flat, *moments, lr, *betas, eps, weight_decay, decoupled, step)


def rmsprop_update(
    parameter: np.ndarray,
    gradient: np.ndarray,
    square_average: np.ndarray,
    mean: np.ndarray | None,
    momentum_buffer: np.ndarray | None,
    *,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """parameter −= lr · g / (√v + eps), v the running mean of g² (Tieleman & Hinton 2012).

    Where there is a `mean`, its square is taken from v. A momentum buffer sums up the steps before the rate:
    b = momentum·b + g / (√v + eps).
    """
    gradient = gradient + weight_decay * parameter
    _run_mean(square_average, np.square(gradient), alpha)
    variance = square_average
    if mean is not None:
        _run_mean(mean, gradient, alpha)
        variance = np.maximum(square_average - np.square(mean), 0)  # rounding takes it below where g hardly changes
    direction = gradient / (np.sqrt(variance) + eps)
    if momentum_buffer is not None:
        momentum_buffer *= momentum
        momentum_buffer += direction
        direction = momentum_buffer
    parameter -= lr * direction


def adagrad_update(
    parameter: np.ndarray,
    gradient: np.ndarray,
    square_sum: np.ndarray,
    *,
    lr: float,
    lr_decay: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """parameter −= lr / (1 + (step − 1)·lr_decay) · g / (√Σg² + eps) (Duchi, Hazan & Singer 2011), step = 1, 2, …"""
    gradient = gradient + weight_decay * parameter
    square_sum += np.square(gradient)
    parameter -= lr / (1 + (step - 1) * lr_decay) * gradient / (np.sqrt(square_sum) + eps)


def adadelta_update(
    parameter: np.ndarray,
    gradient: np.ndarray,
    square_average: np.ndarray,
    step_average: np.ndarray,
    *,
    lr: float,
    rho: float,
    eps: float,
    weight_decay: float,
) -> None:
    """parameter −= lr · d with d = g · √(mean of d² + eps) / √(mean of g² + eps) (Zeiler 2012, algorithm 1)."""
    gradient = gradient + weight_decay * parameter
    _run_mean(square_average, np.square(gradient), rho)
    direction = np.sqrt(step_average + eps) / np.sqrt(square_average + eps) * gradient
    _run_mean(step_average, np.square(direction), rho)
    parameter -= lr * direction


def add_l1_decay(gradient: np.ndarray, parameter: np.ndarray, l1_decay: float) -> np.ndarray:
    """gradient + l1_decay · sign(parameter): the gradient where l1_decay · Σ|parameter| joins the loss."""
    return gradient + l1_decay * np.sign(parameter) if l1_decay else gradient


def global_norm(arrays: Sequence[np.ndarray]) -> float:
    """√Σx² over all elements of all arrays, summed in float64."""
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays))


def _run_mean(mean: np.ndarray, value: np.ndarray, kept: float) -> None:
    """mean = kept · mean + (1 − kept) · value, in place."""
    mean *= kept
    mean += (1 - kept) * value


def _flat(gradient: np.ndarray, parameter: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(gradient, dtype=parameter.dtype).reshape(-1)
