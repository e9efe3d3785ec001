"""What the driver's encoder of tensor maps takes and refuses, at its limits, for golden maps.

`gpucnn.launch.tensor_map` must refuse what the driver does: on the device "sim" the codes are those of its checks. What
it refuses beyond that, because no document says what happens, is not among the cases.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn.launch.tensor_map import TensorMap

NAME = "tma_encoder_codes"
INVALID_VALUE = 1  # CUDA_ERROR_INVALID_VALUE
TILED = {"dims": (64, 8), "strides": (256,), "element_strides": (1, 1), "box": (32, 4), "swizzle": 128}
WALK = {"dims": (32, 6, 5, 2), "strides": (128, 768, 3840), "element_strides": (1, 1, 1, 1), "lower": (-1, -1),
        "upper": (-1, -1), "channels": 32, "pixels": 64, "swizzle": 128}  # fmt: skip
RANK_6 = {"dims": (8,) * 6, "strides": (32, 256, 2048, 16384, 131072), "element_strides": (1,) * 6, "box": (8,) * 6}
# (the values of a map, whether the encoder takes it); offset: elements that the array starts late by
CASES: tuple[tuple[dict[str, Any], bool], ...] = (
    (TILED, True),
    ({**TILED, "box": (32, 256)}, True),
    ({**TILED, "box": (32, 257)}, False),
    ({**TILED, "box": (32, 0)}, False),
    ({**TILED, "box": (2, 4), "swizzle": 0}, False),  # 8 bytes
    ({**TILED, "box": (64, 4)}, False),  # wider than the swizzle
    ({**TILED, "strides": (264,)}, False),
    ({**TILED, "strides": (2**40 - 16,)}, True),
    ({**TILED, "strides": (2**40,)}, False),
    ({**TILED, "dims": (0, 8)}, False),
    ({**TILED, "dims": (2**32, 1)}, True),
    ({**TILED, "dims": (2**32 + 1, 1)}, False),
    ({**TILED, "element_strides": (1, 8)}, True),
    ({**TILED, "element_strides": (1, 9)}, False),
    ({**TILED, "element_strides": (1, 0)}, False),
    ({**RANK_6, "swizzle": 32}, False),
    ({**TILED, "offset": 2}, False),  # an address of 8
    (WALK, True),
    ({**WALK, "pixels": 1024}, True),
    ({**WALK, "pixels": 1025}, False),
    ({**WALK, "channels": 256, "swizzle": 0}, True),
    ({**WALK, "channels": 260, "swizzle": 0}, False),
    ({**WALK, "lower": (-128, -1)}, True),
    ({**WALK, "lower": (-129, -1)}, False),
    ({**WALK, "dims": (32, 6), "strides": (128,), "element_strides": (1, 1), "lower": (), "upper": ()}, False),
)


class Unchecked(TensorMap):
    """A map of which nothing is checked."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", "tiled" if self.box else "im2col")


def codes(device: str) -> np.ndarray:
    """0 for each case that is taken, 1 for each that is refused."""
    x = devices.move(np.zeros(2048, np.float32), device)
    return np.array([code(x, **values) for values, _ in CASES], np.uint32)


def code(x: Any, offset: int = 0, **values: Any) -> int:
    """Of a map of the array from an element on: the driver's, or on "sim" that of the library's checks."""
    array = x[offset:]
    if devices.of(x) != "sim":
        return Unchecked(array, **values).status()
    try:
        TensorMap(array, **values)
    except ValueError:
        return INVALID_VALUE
    return 0
