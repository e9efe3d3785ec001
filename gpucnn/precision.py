"""Precisions: the arithmetic of products of float32 matrices where kernels run. One place for their names.

- float32: float32 multiply-adds; the default
- float32_tensor: tensor cores on values split in two tf32 parts; errors like float32's (a relative L2 error of at most
  2e-6), but infinities become NaN
- tf32: tensor cores on values rounded to 10 bits of fraction; a relative error of about 3e-4

A precision is a permission: what has no kernel for it, on a GPU before sm_80 or in an algorithm without tensor cores,
is computed in float32. On the CPU everything is.
"""

from __future__ import annotations

PRECISIONS = ("float32", "float32_tensor", "tf32")

_chosen = "float32"


class precision:
    """Let products of matrices use this precision from now on; as a context manager, inside the context.

    Backward passes use what is in force when they run. Raises ValueError for an unknown name.
    """

    def __init__(self, name: str) -> None:
        global _chosen
        self._before, _chosen = _chosen, checked(name)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _chosen
        _chosen = self._before


def get_precision() -> str:
    """The precision in force."""
    return _chosen


def checked(name: str) -> str:
    """The name; raises ValueError for an unknown one."""
    if name not in PRECISIONS:
        raise ValueError(f"precision: {name!r} is unknown; use one of {', '.join(PRECISIONS)}")
    return name
