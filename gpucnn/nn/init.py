"""Initial weights, drawn on the host from `gpucnn.random.default_generator` in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from gpucnn.random import default_generator

_skipped = ContextVar("skipped", default=False)


@contextmanager
def skipped() -> Iterator[None]:
    """Inside this context nothing is drawn and weights are zeros: for networks that are looked at, not trained.

    VGG-16's 138 million weights then take no time, and hardly any memory until something is written to them.
    """
    token = _skipped.set(True)
    try:
        yield
    finally:
        _skipped.reset(token)


def uniform(shape: tuple[int, ...], bound: float) -> np.ndarray:
    """Uniform between −bound and bound."""
    if _skipped.get():
        return np.zeros(shape, np.float32)
    return (default_generator.host.random(shape, np.float32) * 2 - 1) * np.float32(bound)


def normal(shape: tuple[int, ...], std: float) -> np.ndarray:
    """Normal with mean 0 and the given standard deviation."""
    if _skipped.get():
        return np.zeros(shape, np.float32)
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
