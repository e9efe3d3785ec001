"""Optimiser updates of arrays, in place, one pass over memory for each parameter."""

from __future__ import annotations

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


def _flat(gradient: np.ndarray, parameter: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(gradient, dtype=parameter.dtype).reshape(-1)
