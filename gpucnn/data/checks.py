"""Argument checks shared by the files of gpucnn.data."""

import operator
from typing import Any

import numpy as np


def check_integer(operation: str, name: str, value: Any, minimum: int) -> int:
    """value as a Python int >= minimum; else a TypeError or ValueError that names the argument."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{operation}: {name} must be an integer, not {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"{operation}: {name} must be an integer, not {value!r}")
    if number < minimum:
        raise ValueError(f"{operation}: {name} must be at least {minimum}, not {number}")
    return number


def check_size(operation: str, name: str, value: object) -> tuple[int, int]:
    """(height, width) in pixels from one integer (a square) or a pair of them, each at least 1."""
    height, width = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)
    return check_integer(operation, name, height, 1), check_integer(operation, name, width, 1)


def check_images(operation: str, images: np.ndarray) -> None:
    """Raise ValueError unless images are float32 (B, C, H, W)."""
    if images.ndim != 4 or images.dtype != np.float32:
        raise ValueError(f"{operation}: images must be float32 (B, C, H, W), not {images.dtype} {images.shape}")
