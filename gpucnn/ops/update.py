"""Optimiser updates of arrays, in place, of as many parameters as there are: kernels take 64 of them in a launch.

On the CPU SGD and Adam make one pass over memory for each parameter. l1_decay adds l1_decay · sign(parameter) to the
gradient first, as l1_decay · Σ|parameter| in the loss does. Where kernels run, `skip` lets the device leave a step out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.launch import changing, launch, max_pointers
from gpucnn.ops.reduce import sizes, sum_of_squares
from gpucnn.ops.scaling import Skip

Arrays = Sequence[np.ndarray]
UPDATE_BLOCK, UPDATE_BLOCKS = 1024, 1024  # elements for each block, at most so many blocks an array


def sgd_update(
    parameters: Arrays,
    gradients: Arrays,
    momentum_buffers: Arrays | None,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    l1_decay: float = 0.0,
    first: bool,
    skip: Skip | None = None,
) -> None:
    """parameter −= lr · v with v = momentum·v + (1 − dampening)·g and g = gradient + weight_decay·parameter.

    The first step sets v = g. Nesterov steps along g + momentum·v (Sutskever et al. 2013, as in PyTorch).
    """
    if devices.runs_kernels(parameters[0]):
        step = lr, momentum, 1 - dampening, weight_decay, l1_decay, nesterov, first
        if momentum_buffers is None:
            return _launch("sgd_update", (parameters, gradients), step, skip)
        return _launch("sgd_momentum_update", (parameters, gradients, momentum_buffers), step, skip)
    options = momentum, dampening, nesterov, weight_decay, first
    for position, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        buffer = None if momentum_buffers is None else momentum_buffers[position].reshape(-1)
        gradient = _with_l1_decay(gradient, parameter, l1_decay)
        _C.sgd_update(parameter.reshape(-1), _flat(gradient, parameter), buffer, lr, *options)


def adam_update(
    parameters: Arrays,
    gradients: Arrays,
    first_moments: Arrays,
    second_moments: Arrays,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    l1_decay: float = 0.0,
    decoupled: bool,
    step: int,
    skip: Skip | None = None,
) -> None:
    """Adam (Kingma & Ba 2015, algorithm 1); weight decay joins the gradient or is apart (Loshchilov & Hutter 2019)."""
    if devices.runs_kernels(parameters[0]):
        corrections = [1 - beta**step for beta in betas]
        decay = (0.0, l1_decay, 1 - lr * weight_decay) if decoupled else (weight_decay, l1_decay, 1.0)
        scalars = lr / corrections[0], 1 - betas[0], betas[1], 1 - betas[1], math.sqrt(corrections[1]), eps, *decay
        now = None if skip is None else _counted(scalars, (lr, *betas, step), skip)
        return _launch("adam_update", (parameters, gradients, first_moments, second_moments), scalars, skip, now)
    for parameter, gradient, first, second in zip(parameters, gradients, first_moments, second_moments, strict=True):
        gradient = _with_l1_decay(gradient, parameter, l1_decay)
        flat, moments = _flat(gradient, parameter), (first.reshape(-1), second.reshape(-1))
        _C.adam_update(parameter.reshape(-1), flat, *moments, lr, *betas, eps, weight_decay, decoupled, step)


def rmsprop_update(
    parameters: Arrays,
    gradients: Arrays,
    square_averages: Arrays,
    means: Arrays | None,
    momentum_buffers: Arrays | None,
    *,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
    l1_decay: float = 0.0,
    skip: Skip | None = None,
) -> None:
    """parameter −= lr · g / (√v + eps), v the running mean of g² (Tieleman & Hinton 2012).

    Where there are `means`, their squares are taken from v. Momentum buffers sum up the steps before the rate:
    b = momentum·b + g / (√v + eps).
    """
    if devices.runs_kernels(parameters[0]):
        more = {"mean": means, "momentum_buffer": momentum_buffers}
        kept = {name: arrays for name, arrays in more.items() if arrays is not None}
        arrays = parameters, gradients, square_averages, *kept.values()
        step = lr, alpha, 1 - alpha, eps, momentum, weight_decay, l1_decay
        return _launch("_".join(("rmsprop", *kept, "update")), arrays, step, skip)
    for position, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        gradient = _with_l1_decay(gradient, parameter, l1_decay) + weight_decay * parameter
        variance = square_averages[position]
        _run_mean(variance, np.square(gradient), alpha)
        if means is not None:
            _run_mean(means[position], gradient, alpha)
            variance = np.maximum(variance - np.square(means[position]), 0)  # rounding takes it below 0
        direction = gradient / (np.sqrt(variance) + eps)
        if momentum_buffers is not None:
            momentum_buffers[position] *= momentum
            momentum_buffers[position] += direction
            direction = momentum_buffers[position]
        parameter -= lr * direction


def adagrad_update(
    parameters: Arrays,
    gradients: Arrays,
    square_sums: Arrays,
    *,
    lr: float,
    lr_decay: float,
    eps: float,
    weight_decay: float,
    l1_decay: float = 0.0,
    step: int,
    skip: Skip | None = None,
) -> None:
    """parameter −= lr / (1 + (step − 1)·lr_decay) · g / (√Σg² + eps) (Duchi, Hazan & Singer 2011), step = 1, 2, …"""
    rate = lr / (1 + (step - 1) * lr_decay)
    if devices.runs_kernels(parameters[0]):
        numbers = rate, eps, weight_decay, l1_decay
        return _launch("adagrad_update", (parameters, gradients, square_sums), numbers, skip)
    for parameter, gradient, square_sum in zip(parameters, gradients, square_sums, strict=True):
        gradient = _with_l1_decay(gradient, parameter, l1_decay) + weight_decay * parameter
        square_sum += np.square(gradient)
        parameter -= rate * gradient / (np.sqrt(square_sum) + eps)


def adadelta_update(
    parameters: Arrays,
    gradients: Arrays,
    square_averages: Arrays,
    step_averages: Arrays,
    *,
    lr: float,
    rho: float,
    eps: float,
    weight_decay: float,
    l1_decay: float = 0.0,
    skip: Skip | None = None,
) -> None:
    """parameter −= lr · d with d = g · √(mean of d² + eps) / √(mean of g² + eps) (Zeiler 2012, algorithm 1)."""
    arrays = parameters, gradients, square_averages, step_averages
    if devices.runs_kernels(parameters[0]):
        return _launch("adadelta_update", arrays, (lr, rho, 1 - rho, eps, weight_decay, l1_decay), skip)
    for parameter, gradient, square_average, step_average in zip(*arrays, strict=True):
        gradient = _with_l1_decay(gradient, parameter, l1_decay) + weight_decay * parameter
        _run_mean(square_average, np.square(gradient), rho)
        direction = np.sqrt(step_average + eps) / np.sqrt(square_average + eps) * gradient
        _run_mean(step_average, np.square(direction), rho)
        parameter -= lr * direction


def global_norm(arrays: Arrays) -> float:
    """√Σx² over all elements of all arrays, summed in float64, or in float32 and a fixed order where kernels run.

    It is not finite where an element is not, nor where a sum of squares leaves float32 (a norm above 1e19).
    """
    if arrays and devices.runs_kernels(arrays[0]):
        return math.sqrt(float(sum_of_squares(arrays)))
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays))


def _launch(
    kernel: str, arrays: tuple[Arrays, ...], step: tuple[float, ...], skip: Skip | None, now: Any = None
) -> None:  # fmt: skip
    """Run an update over `arrays`: parameters, gradients, and whatever the optimiser keeps.

    - now: the numbers of the step on the device, in place of `step`
    """
    parameters, gradients, *kept = arrays
    lists = parameters, [devices.contiguous(gradient) for gradient in gradients], *kept
    scaling = None if skip is None else skip.scaling
    for start in range(0, len(parameters), max_pointers()):
        some = [list(each[start : start + max_pointers()]) for each in lists]
        blocks = min(-(-max(parameter.size for parameter in some[0]) // UPDATE_BLOCK), UPDATE_BLOCKS)
        numbers = changing(np.array(step, np.float32), parameters[0]) if now is None else now
        launch(kernel, (blocks, len(some[0])), *some, sizes(some[0]), step, numbers, scaling)


def _counted(numbers: tuple[float, ...], count: tuple[float, ...], skip: Skip) -> Any:
    """The numbers of a step of Adam, as the device counts the steps: without those that it left out."""
    result = devices.empty((len(numbers),), np.float32, skip.skips)
    now = changing(np.array(numbers, np.float32), skip.skips), changing(np.array(count, np.float64), skip.skips)
    launch("adam_numbers", 1, numbers, now[0], count, now[1], skip.skips, result)
    return result


def _with_l1_decay(gradient: np.ndarray, parameter: np.ndarray, l1_decay: float) -> np.ndarray:
    return gradient + l1_decay * np.sign(parameter) if l1_decay else gradient


def _run_mean(mean: np.ndarray, value: np.ndarray, kept: float) -> None:
    """mean = kept · mean + (1 − kept) · value, in place."""
    mean *= kept
    mean += (1 - kept) * value


def _flat(gradient: np.ndarray, parameter: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(gradient, dtype=parameter.dtype).reshape(-1)
