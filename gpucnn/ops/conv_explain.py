"""What there is to know of each algorithm for a convolution, and why "auto" takes the one that it takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucnn.ops import cards, conv_cost, conv_settings, conv_tuning
from gpucnn.ops.cards import Card
from gpucnn.ops.conv_choice import Choice
from gpucnn.ops.conv_table import ALGORITHMS, KERNEL_ALGORITHMS, card_of, choice, find, refusal, table
from gpucnn.ops.shapes import ConvShape
from gpucnn.precision import get_precision


class Candidate(NamedTuple):
    """What there is to know of an algorithm for one pass of one convolution on one device.

    - refused: why it cannot be used; None if it can
    - flops, bytes: of the algorithm, by its formula; floor, planned: seconds on a GPU, at its nominal rates and as
      `auto` reckons. None where there is no model, or for workspace_bytes where it cannot run
    - measured: milliseconds that `gpucnn tune` found
    - arithmetic: what its products are computed in where kernels run; bound: what limits the floor: "memory", "l2" or
      "products"
    """

    name: str
    refused: str | None
    workspace_bytes: int | None
    deterministic: bool | None
    flops: int | None
    bytes: int | None
    floor: float | None
    planned: float | None
    measured: float | None
    arithmetic: str | None = None
    bound: str | None = None


class Explanation(NamedTuple):
    """The algorithm that a call takes, why, and all candidates; card: the GPU that times are of, or None."""

    algorithm: str
    reason: str
    candidates: tuple[Candidate, ...]
    card: Card | None


def explain(
    operation: str,
    shape: ConvShape,
    device: str = "cpu",
    dtype: Any = np.float32,
    workspace_limit: int | None = None,
    algorithm: str = "auto",
    card: Card | None = None,
) -> Explanation:
    """Which algorithm a call takes in the precision in force, why, and what is known of each candidate.

    - card: the GPU to reckon with instead of the one there is; also shows a GPU's times for what runs on the CPU
    Raises as a call with these arguments would: UnsupportedAlgorithm.
    """
    limit, dtype = conv_settings.limit_of(operation, workspace_limit), np.dtype(dtype)
    find(operation, shape, dtype, algorithm, device, limit)
    own = card_of(device)
    chosen = Choice(algorithm, "it was asked for")
    if algorithm == "auto":
        chosen = choice(operation, shape, dtype, device, limit, card)
    key = conv_tuning.key(operation, shape, dtype, limit, conv_tuning.precision_on(device))
    measured = {} if card else conv_tuning.entries(device).get(key, {})
    names = dict.fromkeys((*table(operation, device), *ALGORITHMS[operation], *KERNEL_ALGORITHMS[operation]))
    candidates = tuple(
        _candidate(name, operation, shape, dtype, device, limit, card or own, measured.get(name)) for name in names
    )
    return Explanation(chosen.algorithm, chosen.reason, candidates, card or own)


def _candidate(
    name: str,
    operation: str,
    shape: ConvShape,
    dtype: np.dtype,
    device: str,
    limit: int | None,
    card: Card | None,
    measured: float | None,
) -> Candidate:
    entry = table(operation, device).get(name)
    refused = refusal(name, operation, shape, dtype, device, limit)
    if entry is None or entry.supports(shape, dtype, device) is not None:
        return Candidate(name, refused, None, entry.deterministic if entry else None, None, None, None, None, None)
    needed = entry.workspace_bytes(shape, dtype, limit)
    model = "implicit_gemm" if (device, name) == ("cpu", "im2col") else name  # no patch leaves the cache there
    arithmetic = conv_cost.arithmetic_of(get_precision(), dtype.name, card or cards.SIMULATED)
    found = conv_cost.estimate(model, operation, shape, card or cards.SIMULATED, limit, arithmetic)
    if found is None:
        return Candidate(name, refused, needed, entry.deterministic, None, None, None, None, measured)
    known = Candidate(name, refused, needed, entry.deterministic, found.flops, found.bytes, None, None, measured)
    if card is None:
        return known
    return known._replace(floor=found.floor / 1e12, planned=found.planned / 1e12, bound=found.bound,
                          arithmetic=conv_cost.used(model, arithmetic))  # fmt: skip
