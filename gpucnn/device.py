"""Devices: where arrays live. The only file that may import CuPy, and then lazily."""

from __future__ import annotations

DEVICES = ("cpu",)
PLANNED = {
    "cuda": "CUDA kernels are not part of this release",
    "sim": "the kernel simulator is not part of this release",
}


def resolve(name: str) -> str:
    """The device that `name` stands for: "auto" is the best one present.

    Raises ValueError for a device that is unknown or that this release does not compute on.
    """
    if name == "auto":
        return "cpu"
    if name in DEVICES:
        return name
    kind = name.split(":")[0] if isinstance(name, str) else name
    if kind in PLANNED:
        raise ValueError(f"device {name!r}: {PLANNED[kind]}; use 'cpu' or 'auto'")
    raise ValueError(f"device {name!r} is unknown; use 'auto' or one of {', '.join(map(repr, DEVICES))}")
