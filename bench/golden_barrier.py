"""Scripts of mbarriers for golden maps: phases, bytes that are expected before or after they come, and parities.

The program is in tests/kernels/golden_barrier.cu. It needs sm_90.
"""

from __future__ import annotations

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import launch, tensor_map

RENEW, ARRIVE, EXPECT, LOAD, WAIT = range(5)  # of a line of a script, which has a number as well
BOX_BYTES, BOXES = 128, 2
SCRIPTS = {
    "barrier_arrivals": ((RENEW, 1), *5 * ((ARRIVE, 0),), (RENEW, 3), *7 * ((ARRIVE, 0),)),
    "barrier_bytes": (
        (RENEW, 2), (ARRIVE, 0), (EXPECT, 128), (LOAD, 0), (WAIT, 0), (EXPECT, 256), (ARRIVE, 0), (LOAD, 0), (LOAD, 1),
        (WAIT, 1), (EXPECT, 0), (ARRIVE, 0), (EXPECT, 128), (EXPECT, 128), (LOAD, 1), (LOAD, 0), (WAIT, 1),
    ),
    "barrier_bytes_come_first": (
        (RENEW, 2), (LOAD, 1), (EXPECT, 128), (ARRIVE, 0), (WAIT, 0), (LOAD, 0), (LOAD, 1), (ARRIVE, 0), (EXPECT, 256),
        (WAIT, 1), (RENEW, 1), (EXPECT, 128), (LOAD, 0), (WAIT, 0), (ARRIVE, 0),
    ),
}  # fmt: skip


def run(name: str, device: str) -> np.ndarray:
    """What both parities' waits find after each line: as golden_barrier.cu says."""
    x, script = (devices.move(each, device) for each in (np.zeros(32, np.float32), np.array(SCRIPTS[name], np.int32)))
    seen = devices.empty((len(script),), np.uint32, x)
    mapped = tensor_map.tiled(x, (BOX_BYTES // 4,))
    launch("golden_barrier", 1, mapped, script, seen, len(script), shared_bytes=BOXES * BOX_BYTES + 8)
    return devices.to_numpy(seen).copy()
