"""Optimiser updates of arrays, in place, one pass over memory for each parameter."""

from __future__ import annotations

from typing import Any

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
    _C.sgd_update(*_flat(parameter, gradient, momentum_buffer), lr, momentum, dampening, nesterov, weight_decay, first)


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
    arrays = _flat(parameter, gradient, first_moment, second_moment)
    _C.adam_update(*arrays, lr, *betas, eps, weight_decay, decoupled, step)


def _flat(parameter: np.ndarray, gradient: Any, *state: np.ndarray | None) -> list[np.ndarray | None]:
    gradient = np.ascontiguousarray(gradient, dtype=parameter.dtype)
    return [array if array is None else array.reshape(-1) for array in (parameter, gradient, *state)]
