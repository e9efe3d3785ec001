"""What convolutions look at beside their arguments: the limit of workspaces, and whether tuning results are used."""

from __future__ import annotations

import os
from typing import Any


class _Setting:
    """A change of one setting that holds at once; as a context manager it is taken back at the end."""

    def __init__(self, name: str, value: Any) -> None:
        self._name, self._before = name, globals()[name]
        globals()[name] = value

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        globals()[self._name] = self._before


_limit: int | None = None
_tuned: bool = os.environ.get("GPUCNN_TUNING", "1") not in ("0", "off", "false")


def workspace_limit(limit: int | None) -> _Setting:
    """Let convolutions that are given no `workspace_limit` take at most `limit` bytes beside inputs and results.

    With None, as at the start, staged algorithms work in chunks of at most 256 MiB where they can. Holds from the call
    on; `with gpucnn.workspace_limit(64 << 20):` holds inside only, for backward passes that run there as well.
    Raises ValueError unless limit is None or an integer of at least 0.
    """
    return _Setting("_limit", check_limit("workspace_limit", limit))


def tuning(on: bool) -> _Setting:
    """Let "auto" look at the results of `gpucnn tune`, or not; GPUCNN_TUNING=0 switches them off from the start.

    Holds from the call on; `with gpucnn.tuning(False):` holds inside only.
    """
    return _Setting("_tuned", bool(on))


def tuned() -> bool:
    """Whether tuning results are used."""
    return _tuned


def limit_of(operation: str, given: int | None) -> int | None:
    """The limit that holds for a call; raises ValueError as `workspace_limit` does."""
    return _limit if given is None else check_limit(operation, given)


def check_limit(operation: str, limit: int | None) -> int | None:
    """`limit`; raises ValueError unless it is None or an integer of at least 0."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise ValueError(
            f"{operation}: workspace_limit is {limit!r}; it must be bytes, an integer of at least 0, or None"
        )
    return limit
