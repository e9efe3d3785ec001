"""Initial weights, drawn on the host from `gpucnn.random.default_generator` in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from gpucnn.random import default_generator


class _Allowance:
    """How many values may still be handed out where initialisation is skipped."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.left = limit, math.inf if limit is None else limit

    def zeros(self, shape: tuple[int, ...]) -> np.ndarray:
        self.left -= math.prod(shape)
        if self.left < 0:
            raise ValueError(f"weights of shape {shape} come to more than the {self.limit} values allowed here")
        return np.zeros(shape, np.float32)


_allowance: ContextVar[_Allowance | None] = ContextVar("allowance", default=None)


@contextmanager
def skipped(limit: int | None = None) -> Iterator[None]:
    """Inside this context nothing is drawn and weights are zeros: for networks that are looked at or loaded.

    VGG-16's 138 million weights then take no time, and hardly any memory until something is written to them.

    limit: how many values are handed out in all before ValueError is raised, and no memory taken for the rest; None
    for any number. Without a limit of its own, a context inside another one keeps to that one's.
    """
    outer = _allowance.get()
    token = _allowance.set(outer if limit is None and outer is not None else _Allowance(limit))
    try:
        yield
    finally:
        _allowance.reset(token)


def uniform(shape: tuple[int, ...], bound: float) -> np.ndarray:
    """Uniform between −bound and bound."""
    allowance = _allowance.get()
    if allowance is not None:
        return allowance.zeros(shape)
    return (default_generator.host.random(shape, np.float32) * 2 - 1) * np.float32(bound)


def normal(shape: tuple[int, ...], std: float) -> np.ndarray:
    """Normal with mean 0 and the given standard deviation."""
    allowance = _allowance.get()
    if allowance is not None:
        return allowance.zeros(shape)
    return default_generator.host.standard_normal(shape, np.float32) * np.float32(std)


def fan_in(shape: tuple[int, ...]) -> int:
    """How many inputs one output of a weight (out, in, …) adds up."""
    return math.prod(shape[1:])


def kaiming_uniform(shape: tuple[int, ...]) -> np.ndarray:
    """PyTorch's default for convolutions and linear layers: uniform within 1/√fan_in (He et al. 2015 with a = √5)."""
    return uniform(shape, 1 / math.sqrt(fan_in(shape)))


def kaiming_normal_fan_out(shape: tuple[int, ...]) -> np.ndarray:
    """Normal with variance 2/fan_out, fan_out = out · R · S: keeps gradients' size through ReLU (He et al. 2015)."""
    return normal(shape, math.sqrt(2 / (shape[0] * math.prod(shape[2:]))))
