"""Which algorithms compute the passes of a convolution: one table for the CPU, one for devices that run kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.ops import (
    cards,
    conv_choice,
    conv_cost,
    conv_direct,
    conv_fft,
    conv_half,
    conv_im2col,
    conv_implicit_gemm,
    conv_settings,
    conv_toeplitz,
    conv_tuning,
    conv_winograd,
    conv_winograd4,
)
from gpucnn.ops.cards import Card
from gpucnn.ops.conv_choice import Choice
from gpucnn.ops.shapes import ConvShape
from gpucnn.precision import get_precision
from gpucnn.threads import get_num_threads

PASSES = ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight")


class UnsupportedAlgorithm(ValueError):
    """The algorithm asked for cannot compute this convolution; the text says why and what would work."""


@dataclass(frozen=True)
class Algorithm:
    """One way to compute one pass.

    - supports(shape, dtype, device): None, or the reason why not
    - workspace_bytes(shape, dtype, limit=None): memory beyond inputs and output, kept under `limit` bytes if that is
      possible; None: at most 256 MiB where it can work in chunks
    - deterministic: two runs give the same bits
    - run: forward (x, w, b, y, shape), backward_input (gy, w, gx, shape) or backward_weight (x, gy, gw, shape), and the
      keyword workspace_limit. On the CPU all arrays are contiguous. Where kernels run, x and gy may have any strides,
      and forward takes `relu`.
    """

    supports: Callable[[ConvShape, np.dtype, str], str | None]
    workspace_bytes: Callable[..., int]
    deterministic: bool
    run: Callable[..., None]


def _everything(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    return None


def _direct_workspace(shape: ConvShape, dtype: np.dtype) -> int:
    """Depthwise passes take a padded plane and a block of rows for each thread, others nothing."""
    if shape.C != shape.groups:
        return 0
    (sh, sw), (dh, dw) = shape.stride, shape.dilation
    height, width = shape.P + (shape.R - 1) * dh // sh, shape.Q + (shape.S - 1) * dw // sw
    values = sh * sw * height * width + max(2048, width)
    return get_num_threads() * (values * dtype.itemsize + 8 * shape.R * shape.S)


def _im2col_workspace(shape: ConvShape, dtype: np.dtype) -> int:
    return _C.conv2d_im2col_workspace_bytes(shape.flat, dtype.itemsize)


def _fixed(workspace: Callable[[ConvShape, np.dtype], int]) -> Callable[..., int]:
    """The workspace of an algorithm that cannot do with less, whatever the limit."""
    return lambda shape, dtype, limit=None: workspace(shape, dtype)


def _without_limit(run: Callable[..., None]) -> Callable[..., None]:
    return lambda *arguments, workspace_limit=None: run(*arguments)


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """A function of the extension, which takes the shape as plain integers."""
    return _without_limit(lambda *arguments: function(*arguments[:-1], arguments[-1].flat))


def _extension(
    name: str,
    supports: Callable[[ConvShape, np.dtype, str], str | None],
    workspace: Callable[[ConvShape, np.dtype], int],
) -> dict[str, Algorithm]:
    """The rows of an algorithm of the extension, for each pass; none adds across threads, so all are deterministic."""
    functions = {operation: _compiled(getattr(_C, f"{operation}_{name}")) for operation in PASSES}
    return {operation: Algorithm(supports, _fixed(workspace), True, run) for operation, run in functions.items()}


def _python(module: ModuleType) -> dict[str, Algorithm]:
    """The rows of an algorithm of the CPU that is written in Python."""
    return {
        operation: Algorithm(module.supports, _fixed(workspace), True, _without_limit(run))
        for operation, workspace, run in _functions(module)
    }


def _kernels(module: ModuleType) -> dict[str, Algorithm]:
    """The rows of a module's algorithm for devices that run kernels; sums are ordered, so all are deterministic."""
    return {
        operation: Algorithm(module.supports, workspace, True, run) for operation, workspace, run in _functions(module)
    }


def _in_float32(rows: dict[str, Algorithm]) -> dict[str, Algorithm]:
    """The rows of an algorithm that has no kernels for 16-bit arrays."""
    return {operation: replace(row, supports=_only_float32(row.supports)) for operation, row in rows.items()}


def _only_float32(supports: Callable[..., str | None]) -> Callable[..., str | None]:
    def refuses(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
        reason = f"its kernels compute in float32, and {dtype.name} only by implicit_gemm"
        return reason if conv_half.is_half(dtype) else supports(shape, dtype, device)

    return refuses


def _also_half(rows: dict[str, Algorithm], half: dict[str, Algorithm]) -> dict[str, Algorithm]:
    """Rows that take 16-bit arrays to `half`."""
    return {operation: _by_dtype(row, half[operation]) for operation, row in rows.items()}


def _by_dtype(row: Algorithm, half: Algorithm) -> Algorithm:
    def of(dtype: Any) -> Algorithm:
        return half if conv_half.is_half(dtype) else row

    return Algorithm(
        lambda shape, dtype, device: of(dtype).supports(shape, dtype, device),
        lambda shape, dtype, limit=None: of(dtype).workspace_bytes(shape, dtype, limit),
        row.deterministic and half.deterministic,
        lambda *arguments, **options: of(arguments[0].dtype).run(*arguments, **options),
    )


def _functions(module: ModuleType) -> list[tuple[str, Callable[..., int], Callable[..., None]]]:
    """(operation, workspace, run) of each pass: a module's forward_workspace, forward, and so on."""
    passes = {operation: operation.removeprefix("conv2d_") for operation in PASSES}
    return [(each, getattr(module, f"{name}_workspace"), getattr(module, name)) for each, name in passes.items()]


def _table(**algorithms: dict[str, Algorithm]) -> dict[str, dict[str, Algorithm]]:
    """Pass → name → Algorithm."""
    return {operation: {name: rows[operation] for name, rows in algorithms.items()} for operation in PASSES}


ALGORITHMS = _table(
    direct=_extension("direct", _everything, _direct_workspace),
    im2col=_extension("im2col", _everything, _im2col_workspace),
    toeplitz=_python(conv_toeplitz),
    fft=_extension("fft", conv_fft.supports, conv_fft.workspace_bytes),
    winograd=_extension("winograd", conv_winograd.supports, conv_winograd.winograd_workspace),
    winograd4=_extension("winograd4", conv_winograd.supports, conv_winograd.winograd4_workspace),
)

# Of devices that run kernels: cuda and sim.
KERNEL_ALGORITHMS = _table(
    direct=_in_float32(_kernels(conv_direct)),
    implicit_gemm=_also_half(_kernels(conv_implicit_gemm), _kernels(conv_half)),
    im2col=_in_float32(_kernels(conv_im2col)),
    winograd=_in_float32(_kernels(conv_winograd)),
    winograd4=_in_float32(_kernels(conv_winograd4)),
    fft=_in_float32(_kernels(conv_fft)),
)


def table(operation: str, device: str) -> dict[str, Algorithm]:
    """The algorithms of one pass on a device."""
    return (ALGORITHMS if device == "cpu" else KERNEL_ALGORITHMS)[operation]


def refusal(name: str, operation: str, shape: ConvShape, dtype: Any, device: str, limit: int | None) -> str | None:
    """Why the algorithm `name` cannot compute this; None if it can."""
    if name not in table(operation, device):
        return f"it does not run on the device {device}"
    entry, dtype = table(operation, device)[name], np.dtype(dtype)
    reason = entry.supports(shape, dtype, device)
    if reason is not None or limit is None:
        return reason
    needed = entry.workspace_bytes(shape, dtype, limit)
    return f"it needs {needed} bytes of workspace, and the limit is {limit}" if needed > limit else None


def algorithms(
    operation: str, shape: ConvShape, dtype: Any = np.float32, device: str = "cpu", workspace_limit: int | None = None
) -> list[str]:
    """The names of the algorithms that can compute a pass of a convolution on a device within the limit.

    - operation: one of PASSES; device: "cpu", "sim" or "cuda"
    Raises ValueError for an operation that is none of them, or a limit below 0.
    """
    if operation not in PASSES:
        raise ValueError(f"operation is {operation!r}; it must be one of {', '.join(PASSES)}")
    limit = conv_settings.limit_of(operation, workspace_limit)
    names = table(operation, device)
    return [name for name in names if refusal(name, operation, shape, dtype, device, limit) is None]


def choose(
    operation: str,
    shape: ConvShape,
    device: str = "cpu",
    dtype: Any = np.float32,
    workspace_limit: int | None = None,
) -> str:
    """The algorithm that "auto" stands for; `explain` also says why.

    A function of integers, the kind of device and, on a GPU, its model; where `gpucnn tune` has measured this
    convolution on this device, the fastest of what it found instead.
    Raises UnsupportedAlgorithm where none can compute it within the limit.
    """
    limit = conv_settings.limit_of(operation, workspace_limit)
    return choice(operation, shape, np.dtype(dtype), device, limit).algorithm


def choice(
    operation: str, shape: ConvShape, dtype: np.dtype, device: str, limit: int | None, card: Card | None = None
) -> Choice:
    """What `choose` returns, and why; card: another GPU than the one there is, of which no results are at hand."""
    state = card is None and conv_settings.tuned(), conv_tuning.state(), get_num_threads(), get_precision()
    own = card_of(device)
    return _choose(operation, shape, dtype, device, limit, own and (card or own), state)


@lru_cache(maxsize=4096)
def _choose(
    operation: str,
    shape: ConvShape,
    dtype: np.dtype,
    device: str,
    limit: int | None,
    card: Card | None,
    state: tuple[bool, tuple[int, str | None], int, str],
) -> Choice:
    """state: what else the choice depends on: whether tuning results are used, which there are, threads, precision."""
    names = algorithms(operation, shape, dtype, device, limit)
    if not names:
        raise UnsupportedAlgorithm(_nothing_fits(operation, shape, dtype, device, limit))
    measured = conv_tuning.fastest(operation, shape, dtype, device, names, limit) if state[0] else None
    if measured is not None:
        return Choice(measured[0], f"gpucnn tune measured {measured[1]:.3f} ms on this device, the least")
    if card is None:
        return conv_choice.choose_on_cpu(operation, shape, names)
    arithmetic = conv_cost.arithmetic_of(state[3], dtype.name, card)
    return conv_choice.choose_for_kernels(operation, shape, names, card, limit, arithmetic)


def card_of(device: str) -> Card | None:
    """The GPU that a choice reckons with; None for the CPU."""
    if device == "cpu":
        return None
    if not device.startswith("cuda") or not devices.has_cuda():
        return cards.SIMULATED
    return cards.card_of(*devices.gpu(device))


def _nothing_fits(operation: str, shape: ConvShape, dtype: np.dtype, device: str, limit: int | None) -> str:
    reasons = {name: refusal(name, operation, shape, dtype, device, limit) for name in table(operation, device)}
    return f"{operation}: no algorithm can compute this: " + "; ".join(
        f"{name}: {why}" for name, why in reasons.items()
    )


def find(
    operation: str,
    shape: ConvShape,
    dtype: np.dtype,
    algorithm: str,
    device: str = "cpu",
    workspace_limit: int | None = None,
) -> Algorithm:
    """The entry for `algorithm` in the device's table, or for the choice if it is "auto".

    Raises UnsupportedAlgorithm for an unknown name, or one that cannot compute this shape or needs more workspace.
    """
    entries, limit = table(operation, device), conv_settings.limit_of(operation, workspace_limit)
    if algorithm == "auto":
        return entries[choice(operation, shape, dtype, device, limit).algorithm]
    if algorithm not in entries:
        elsewhere = algorithm in ALGORITHMS[operation] or algorithm in KERNEL_ALGORITHMS[operation]
        problem = f"does not run on the device {device}" if elsewhere else "is unknown"
        able = ", ".join(algorithms(operation, shape, dtype, device, limit))
        raise UnsupportedAlgorithm(f"{operation}: algorithm {algorithm!r} {problem}; use 'auto' or one of {able}")
    reason = refusal(algorithm, operation, shape, dtype, device, limit)
    if reason is not None:
        able = ", ".join(algorithms(operation, shape, dtype, device, limit)) or "none"
        raise UnsupportedAlgorithm(f"{operation}: algorithm {algorithm!r}: {reason}; these would work: {able}")
    return entries[algorithm]


def run(operation: str, shape: ConvShape, algorithm: str, workspace_limit: int | None, *arguments: Any) -> None:
    """Compute a pass by `algorithm`; where memory does not suffice, "auto" tries the one of the least workspace.

    - arguments: as Algorithm.run takes them; the first is an array
    Raises UnsupportedAlgorithm, and MemoryError if no algorithm takes less.
    """
    dtype, device = arguments[0].dtype, devices.of(arguments[0])
    limit = conv_settings.limit_of(operation, workspace_limit)
    entry = find(operation, shape, dtype, algorithm, device, limit)
    try:
        return entry.run(*arguments, workspace_limit=limit)
    except MemoryError as error:
        frugal, least = _least_workspace(operation, shape, dtype, device)
        if algorithm != "auto" or least >= entry.workspace_bytes(shape, dtype, limit):
            raise MemoryError(f"{operation}: {error}") from error
    frugal.run(*arguments, workspace_limit=least)  # after the exception, which holds the arrays of its frames


def _least_workspace(operation: str, shape: ConvShape, dtype: np.dtype, device: str) -> tuple[Algorithm, int]:
    """The algorithm that can do with the least, and how much that is."""
    entries = (entry for entry in table(operation, device).values() if entry.supports(shape, dtype, device) is None)
    return min(((entry, entry.workspace_bytes(shape, dtype, 0)) for entry in entries), key=lambda each: each[1])
