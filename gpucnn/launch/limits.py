"""What a block may take of a device."""

from __future__ import annotations

from functools import cache
from typing import Any

from gpucnn import device as devices
from gpucnn.launch import simulator


def shared_bytes(array: Any) -> int:
    """The shared memory that one block may have on the device of `array`, which runs kernels."""
    if devices.of(array) == "sim":
        return simulator.SHARED_LIMITS[simulator.settings().architecture]
    return _of_gpu(array.device.id)


@cache
def _of_gpu(index: int) -> int:
    return int(devices.cupy().cuda.Device(index).attributes["MaxSharedMemoryPerBlockOptin"])
