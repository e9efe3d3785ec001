"""Precisions: the arithmetic of products of float32 matrices where kernels run. One place for their names.

- float32: float32 multiply-adds; the default
- float32_tensor: tensor cores on values split in two tf32 parts; errors like float32's (a relative L2 error of at most
  2e-6), but infinities become NaN
- tf32: tensor cores on values rounded to 10 bits of fraction; a relative error of about 3e-4

A precision is a permission: what has no kernel for it, on a GPU before sm_80 or in an algorithm without tensor cores, is
computed in float32. On the CPU everything is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PRECISIONS = ("float32", "float32_tensor", "tf32")

_chosen = "float32"


def get_precision() -> str:
    """The precision in force."""
    return _chosen


def set_precision(name: str) -> None:
    """Let products of matrices use this precision from now on; raises ValueError for an unknown name."""
    global _chosen
    _chosen = checked(name)


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Inside this context products of matrices use this precision; raises ValueError for an unknown name."""
    before = get_precision()
    set_precision(name)
    try:
        yield
    finally:
        set_precision(before)


def checked(name: str) -> str:
    """The name; raises ValueError for an unknown one."""
    if name not in PRECISIONS:
        raise ValueError(f"precision: {name!r} is unknown; use one of {', '.join(PRECISIONS)}")
    return name
