"""Loss scaling (Micikevicius et al. 2018, section 3.2): its four numbers stay on the device of the gradients.

They are an array of float32: the scale, the good steps since it last changed, the skipped steps in all, and whether
this step's gradients have a value that is not finite (1 or 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import launch, max_pointers
from gpucnn.ops.reduce import sizes

BLOCK, BLOCKS = 1024, 1024  # elements for each block, at most so many blocks an array
SCALE, GOOD_STEPS, SKIPPED, FOUND = range(4)  # where they stand in the array
SMALLEST, LARGEST = 2.0**-126, 2.0**127


class Skip(NamedTuple):
    """Tells the kernels of an optimiser to leave a step out if `scaling` found a gradient that is not finite.

    - scaling: the four numbers; skips: (1,) float32, how many of the optimiser's counted steps were left out before
    """

    scaling: Any
    skips: Any


def unscale(gradients: Sequence[np.ndarray], scaling: Any) -> list[np.ndarray]:
    """The gradients divided by the scale, in place where kernels run; notes in `scaling` whether one is not finite.

    - gradients: any number of float arrays of any shapes, on the device of `scaling`; scaling: (4,) float32
    """
    if not devices.runs_kernels(scaling):
        scaling[FOUND] = not all(bool(np.isfinite(gradient).all()) for gradient in gradients)
        factor = 1 / float(scaling[SCALE])
        with np.errstate(all="ignore"):
            return [gradient * gradient.dtype.type(factor) for gradient in gradients]
    gradients = [devices.contiguous(gradient) for gradient in gradients]
    groups = [gradients[start : start + max_pointers()] for start in range(0, len(gradients), max_pointers())]
    blocks = [min(max(-(-max(array.size for array in some) // BLOCK), 1), BLOCKS) for some in groups]
    ends = np.cumsum([count * len(some) for count, some in zip(blocks, groups, strict=True)], dtype=int)
    found = devices.empty((int(ends[-1]) if groups else 0,), np.int32, scaling)
    for some, count, end in zip(groups, blocks, ends, strict=True):
        launch("unscale", (count, len(some)), some, sizes(some), scaling, found[end - count * len(some) : end])
    launch("any_found", 1, found, scaling, found.size)
    return gradients


def adjust_scale(scaling: Any, skips: Any, growth_factor: float, backoff_factor: float, growth_interval: int) -> None:
    """After a step: a smaller scale where a gradient was not finite, a larger one after growth_interval good steps.

    - scaling: (4,) float32, changed; skips: (1,) float32 that counts the steps left out, or None
    - growth_factor, backoff_factor: what the scale is multiplied by
    """
    if devices.runs_kernels(scaling):
        return launch("adjust_scale", 1, scaling, skips, growth_factor, backoff_factor, growth_interval)
    if scaling[FOUND]:
        scaling[SKIPPED] += 1
        scaling[GOOD_STEPS] = 0
        scaling[SCALE] = max(float(scaling[SCALE]) * backoff_factor, SMALLEST)
        return
    scaling[GOOD_STEPS] += 1
    if scaling[GOOD_STEPS] >= growth_interval:
        scaling[SCALE] = min(float(scaling[SCALE]) * growth_factor, LARGEST)
        scaling[GOOD_STEPS] = 0
