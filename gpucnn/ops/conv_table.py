"""Which algorithms compute the passes of a convolution: one table for the CPU, one for devices that run kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.ops import conv_direct, conv_fft, conv_im2col, conv_implicit_gemm, conv_toeplitz, conv_winograd
from gpucnn.ops.shapes import ConvShape
from gpucnn.threads import get_num_threads


class UnsupportedAlgorithm(ValueError):
    """The algorithm asked for cannot compute this convolution; the text says why and what would work."""


@dataclass(frozen=True)
class Algorithm:
    """One way to compute one pass.

    - supports(shape, dtype, device): None, or the reason why not
    - workspace_bytes(shape, dtype): memory beyond inputs and output
    - deterministic: two runs give the same bits
    - run: forward (x, w, b, y, shape), backward_input (gy, w, gx, shape) or backward_weight (x, gy, gw, shape).
      On the CPU all arrays are contiguous. Where kernels run, x and gy may have any strides, and forward takes `relu`.
    """

    supports: Callable[[ConvShape, np.dtype, str], str | None]
    workspace_bytes: Callable[[ConvShape, np.dtype], int]
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


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """A function of the extension, which takes the shape as plain integers."""

    def run(*arguments: Any) -> None:
        *arrays, shape = arguments
        function(*arrays, shape.flat)

    return run


def _table(**algorithms: tuple[Any, ...]) -> dict[str, Algorithm]:
    """Rows of (supports, workspace_bytes, run); none of them adds across threads, so all are deterministic."""
    return {name: Algorithm(supports, workspace, True, run) for name, (supports, workspace, run) in algorithms.items()}


ALGORITHMS: dict[str, dict[str, Algorithm]] = {
    "conv2d_forward": _table(
        direct=(_everything, _direct_workspace, _compiled(_C.conv2d_forward_direct)),
        im2col=(_everything, _im2col_workspace, _compiled(_C.conv2d_forward_im2col)),
        toeplitz=(conv_toeplitz.supports, conv_toeplitz.forward_workspace, conv_toeplitz.forward),
        fft=(conv_fft.supports, conv_fft.workspace_bytes, _compiled(_C.conv2d_forward_fft)),
        winograd=(
            conv_winograd.supports,
            conv_winograd.winograd_workspace,
            _compiled(_C.conv2d_forward_winograd),
        ),
        winograd4=(
            conv_winograd.supports,
            conv_winograd.winograd4_workspace,
            _compiled(_C.conv2d_forward_winograd4),
        ),
    ),
    "conv2d_backward_input": _table(
        direct=(_everything, _direct_workspace, _compiled(_C.conv2d_backward_input_direct)),
        im2col=(_everything, _im2col_workspace, _compiled(_C.conv2d_backward_input_im2col)),
        toeplitz=(conv_toeplitz.supports, conv_toeplitz.backward_input_workspace, conv_toeplitz.backward_input),
        fft=(conv_fft.supports, conv_fft.workspace_bytes, _compiled(_C.conv2d_backward_input_fft)),
        winograd=(
            conv_winograd.supports,
            conv_winograd.winograd_workspace,
            _compiled(_C.conv2d_backward_input_winograd),
        ),
        winograd4=(
            conv_winograd.supports,
            conv_winograd.winograd4_workspace,
            _compiled(_C.conv2d_backward_input_winograd4),
        ),
    ),
    "conv2d_backward_weight": _table(
        direct=(_everything, _direct_workspace, _compiled(_C.conv2d_backward_weight_direct)),
        im2col=(_everything, _im2col_workspace, _compiled(_C.conv2d_backward_weight_im2col)),
        toeplitz=(conv_toeplitz.supports, conv_toeplitz.backward_weight_workspace, conv_toeplitz.backward_weight),
        fft=(conv_fft.supports, conv_fft.workspace_bytes, _compiled(_C.conv2d_backward_weight_fft)),
        winograd=(
            conv_winograd.supports,
            conv_winograd.winograd_workspace,
            _compiled(_C.conv2d_backward_weight_winograd),
        ),
        winograd4=(
            conv_winograd.supports,
            conv_winograd.winograd4_workspace,
            _compiled(_C.conv2d_backward_weight_winograd4),
        ),
    ),
}


# Of devices that run kernels: cuda and sim.
KERNEL_ALGORITHMS: dict[str, dict[str, Algorithm]] = {
    "conv2d_forward": _table(
        direct=(conv_direct.supports, conv_direct.no_workspace, conv_direct.forward),
        implicit_gemm=(
            conv_implicit_gemm.supports,
            conv_implicit_gemm.forward_workspace,
            conv_implicit_gemm.forward,
        ),
        im2col=(conv_im2col.supports, conv_im2col.forward_workspace, conv_im2col.forward),
        fft=(conv_fft.supports, conv_fft.forward_workspace, conv_fft.forward),
    ),
    "conv2d_backward_input": _table(
        direct=(conv_direct.supports, conv_direct.no_workspace, conv_direct.backward_input),
        implicit_gemm=(
            conv_implicit_gemm.supports,
            conv_implicit_gemm.backward_input_workspace,
            conv_implicit_gemm.backward_input,
        ),
        im2col=(conv_im2col.supports, conv_im2col.backward_input_workspace, conv_im2col.backward_input),
        fft=(conv_fft.supports, conv_fft.backward_input_workspace, conv_fft.backward_input),
    ),
    "conv2d_backward_weight": _table(
        direct=(conv_direct.supports, conv_direct.backward_weight_workspace, conv_direct.backward_weight),
        implicit_gemm=(
            conv_implicit_gemm.supports,
            conv_implicit_gemm.backward_weight_workspace,
            conv_implicit_gemm.backward_weight,
        ),
        im2col=(conv_im2col.supports, conv_im2col.backward_weight_workspace, conv_im2col.backward_weight),
        fft=(conv_fft.supports, conv_fft.backward_weight_workspace, conv_fft.backward_weight),
    ),
}


def table(operation: str, device: str) -> dict[str, Algorithm]:
    """The algorithms of one pass on a device."""
    return (ALGORITHMS if device == "cpu" else KERNEL_ALGORITHMS)[operation]


def choose(operation: str, shape: ConvShape, device: str = "cpu") -> str:
    """The algorithm that "auto" stands for: a function of integers and the kind of device alone.

    On the CPU: depthwise convolution has one input channel a group, and a GEMM of one row and R·S columns wastes the
    register tile, so direct loops win. Many channels on both sides repay the transforms of `_by_transforms`. Everything
    else has enough reuse for im2col's register tile.

    Where kernels run: implicit_gemm, which writes no patches to memory and sums over the batch in one product; but
    direct for groups of few channels and for first layers (`conv_direct.wins` has the reasons), and im2col for what
    implicit_gemm refuses, filters whose rows and columns do not fit the 32 bits of its masks.
    """
    if device != "cpu":
        if conv_direct.wins(operation, shape):
            return "direct"
        return "implicit_gemm" if conv_implicit_gemm.supports(shape, np.dtype(np.float32), device) is None else "im2col"
    if shape.C == shape.groups and shape.C > 1:
        return "direct"
    plain = shape.groups == 1 and shape.stride == shape.dilation == (1, 1)
    # A transformed number takes part in as many products as there are channels on the other side; with 32 it is a tie.
    if plain and min(shape.C, shape.K) >= 64:
        return _by_transforms(shape)
    return "im2col"


def _by_transforms(shape: ConvShape) -> str:
    """The choice for many channels, stride, dilation and groups 1; measured on VGG's, AlexNet's and larger kernels.

    Transforms of the filters are repaid by many tiles of the images. Beside that of im2col the rounding error of
    winograd is at most twice as large, and that of winograd4 five times (a relative L2 error of at most 1.5e-6).
    """
    enough_tiles = 128
    if (shape.R, shape.S) == (3, 3):
        if shape.N * -(-shape.P // 4) * -(-shape.Q // 4) >= enough_tiles:
            return "winograd4"
        return "winograd" if shape.N * -(-shape.P // 2) * -(-shape.Q // 2) >= enough_tiles else "im2col"
    # Spectra of a filter take up to 17 KB whatever the kernel's size, so there must not be too many filters either.
    pixels, filters = shape.N * shape.P * shape.Q, shape.K * shape.C
    return "fft" if min(shape.R, shape.S) >= 5 and pixels >= 4096 and filters <= 128 * 128 else "im2col"


def find(operation: str, shape: ConvShape, dtype: np.dtype, algorithm: str, device: str = "cpu") -> Algorithm:
    """The entry for `algorithm` in the device's table, or for the choice if it is "auto".

    Raises UnsupportedAlgorithm for an unknown name, or one that cannot compute this shape.
    """
    entries = table(operation, device)
    name = choose(operation, shape, device) if algorithm == "auto" else algorithm
    able = [other for other, entry in entries.items() if entry.supports(shape, dtype, device) is None]
    if name not in entries:
        elsewhere = name in ALGORITHMS[operation] or name in KERNEL_ALGORITHMS[operation]
        problem = f"does not run on the device {device}" if elsewhere else "is unknown"
        raise UnsupportedAlgorithm(f"{operation}: algorithm {name!r} {problem}; use 'auto' or one of {', '.join(able)}")
    reason = entries[name].supports(shape, dtype, device)
    if reason is not None:
        raise UnsupportedAlgorithm(f"{operation}: algorithm {name!r}: {reason}; these would work: {', '.join(able)}")
    return entries[name]


def run(operation: str, shape: ConvShape, algorithm: str, *arguments: Any) -> None:
    """Compute a pass by `algorithm`; where memory does not suffice, "auto" tries the one of the least workspace.

    - arguments: as Algorithm.run takes them; the first is an array
    Raises UnsupportedAlgorithm, and MemoryError if no algorithm takes less.
    """
    dtype, device = arguments[0].dtype, devices.of(arguments[0])
    entry = find(operation, shape, dtype, algorithm, device)
    try:
        return entry.run(*arguments)
    except MemoryError as error:
        frugal = _least_workspace(operation, shape, dtype, device)
        if algorithm != "auto" or frugal.workspace_bytes(shape, dtype) >= entry.workspace_bytes(shape, dtype):
            raise MemoryError(f"{operation}: {error}") from error
    frugal.run(*arguments)  # after the exception, which holds the arrays of the frames it went through


def _least_workspace(operation: str, shape: ConvShape, dtype: np.dtype, device: str) -> Algorithm:
    entries = (entry for entry in table(operation, device).values() if entry.supports(shape, dtype, device) is None)
    return min(entries, key=lambda entry: entry.workspace_bytes(shape, dtype))
