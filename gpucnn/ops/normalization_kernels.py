"""Normalisation on devices that run kernels: layouts, how sums are split, launches.

The functions are those of normalization.py, which checks their arguments. Contiguous and channels-last arrays are read
as they lie in memory, others are copied; results lie as x does.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import grid_for, launch
from gpucnn.ops.cast import kernel_of

PLANE_THREADS = 128  # these four as in kernels/local_response_norm.cu
ROW_TILE = 1024
FORWARD_FLOATS, BACKWARD_FLOATS = 1, 3
RING_SLOTS = 24  # a window of more channels is not kept in shared memory: 36 KB backward
HALO_LIMIT = 2048
MANY_THREADS = 1 << 16  # what a large GPU needs to be busy; below, the channels are cut into segments
REDUCE_THREADS, GROUP, ROW_LANES, WARP = 128, 16, 4, 32  # as in kernels/batch_norm.cuh
MANY_BLOCKS = 1024  # of a reduction; a constant, so that sums are split alike, and have the same bits, on every GPU


class Layout(NamedTuple):
    """Extents of x (N,C,…) with L pixels, and whether it is taken as rows (N·L,C), channels-last."""

    N: int
    C: int
    L: int
    rows: bool

    def arrange(self, array: Any) -> Any:
        """The memory of an array of this shape in this layout: itself, or a copy."""
        return devices.contiguous(np.moveaxis(array, 1, -1) if self.rows else array)

    def view(self, memory: Any) -> Any:
        """Such memory with the axes of x."""
        return np.moveaxis(memory, -1, 1) if self.rows else memory


def layout_of(x: Any) -> Layout:
    """Rows where the channels of a pixel are neighbours in memory, or where each image has a single pixel."""
    (N, C), L = x.shape[:2], math.prod(x.shape[2:])
    channels_last = np.moveaxis(x, 1, -1).flags.c_contiguous
    return Layout(N, C, L, L == 1 or (channels_last and not x.flags.c_contiguous))


def local_response_norm_forward(x: Any, size: int, alpha: float, beta: float, k: float) -> tuple[Any, Any]:
    """(y, scale)."""
    layout = _response_layout(x, size)
    x = layout.arrange(x)
    y, scale = devices.empty_like(x), devices.empty_like(x)
    window = _window(layout, size // 2, (size - 1) // 2)
    _launch_response("forward", layout, window, FORWARD_FLOATS, (x, y, scale), (alpha / size, beta, k))
    return layout.view(y), layout.view(scale)


def local_response_norm_backward(x: Any, scale: Any, gy: Any, size: int, alpha: float, beta: float) -> Any:
    """gx; c lies in the window of j if j lies in the mirrored window of c."""
    layout = _response_layout(x, size)
    arrays = tuple(map(layout.arrange, (x, scale, gy)))
    gx = devices.empty_like(arrays[0])
    window = _window(layout, (size - 1) // 2, size // 2)
    _launch_response("backward", layout, window, BACKWARD_FLOATS, (*arrays, gx), (2 * alpha * beta / size, beta))
    return layout.view(gx)


def _response_layout(x: Any, size: int) -> Layout:
    layout = layout_of(x)
    return layout._replace(rows=False) if min(size, 2 * layout.C) > HALO_LIMIT else layout


def _window(layout: Layout, before: int, after: int) -> tuple[int, ...]:
    """struct ResponseWindow: channels beyond all others add nothing, and are not looked for."""
    reach = max(layout.C - 1, 0)
    before, after = min(before, reach), min(after, reach)
    positions, pixels = layout.N * layout.L, 1 if layout.rows else layout.L
    smallest = 4 * (before + after + 1)  # a segment reads the window's channels around it once more
    segments = max(1, min(-(-layout.C // smallest), MANY_THREADS // max(positions, 1)))
    return positions, layout.C, pixels, before, after, max(1, -(-layout.C // segments))


def _launch_response(
    name: str, layout: Layout, window: tuple[int, ...], floats: int, arrays: tuple[Any, ...], options: tuple[float, ...]
) -> None:
    positions, channels, _, before, after, segment = window
    slots = before + after + 1
    if layout.rows:
        grid, shared = (-(-positions * channels // ROW_TILE), 1), 4 * (ROW_TILE + slots - 1)
        kind = "rows"
    else:
        grid = -(-positions // PLANE_THREADS), -(-channels // segment)
        kind = "planes" if slots <= RING_SLOTS else "direct"
        shared = 4 * PLANE_THREADS * slots * floats if kind == "planes" else 0
    launch(f"local_response_norm_{name}_{kind}", grid, *arrays, window, *options, shared_bytes=shared)


def batch_norm_statistics(x: Any, eps: float, running_mean: Any, running_var: Any, momentum: float) -> tuple[Any, Any]:
    """(mean, inverse_std), each (C,); the running statistics are updated unless they are None."""
    layout = layout_of(x)
    shape, blocks = _norm_shape(layout)
    C, splits, count = layout.C, shape[3], layout.N * layout.L
    partial = devices.empty((C, splits, 3), np.float64, x)
    mean, inverse_std = devices.empty(C, np.float32, x), devices.empty(C, np.float32, x)
    launch(kernel_of("batch_norm_moments", x), blocks, layout.arrange(x), partial, shape)
    launch("batch_norm_finish_moments", C, partial, mean, inverse_std, running_mean, running_var, shape, eps,
           1 - momentum, momentum, count / max(count - 1, 1))  # fmt: skip
    return mean, inverse_std


def batch_norm_count(batches: Any) -> None:
    """One batch more."""
    launch("batch_norm_count", 1, batches)


def batch_norm_running(x: Any, running_mean: Any, running_var: Any, eps: float) -> tuple[Any, Any]:
    """(mean, inverse_std), each (C,), of running statistics, which may move on afterwards."""
    C = x.shape[1]
    mean, inverse_std = devices.empty(C, np.float32, x), devices.empty(C, np.float32, x)
    launch("batch_norm_running", grid_for(C), running_mean, running_var, mean, inverse_std, C, eps)
    return mean, inverse_std


def batch_norm_apply(x: Any, mean: Any, inverse_std: Any, weight: Any, bias: Any) -> Any:
    """y = (x − mean) · inverse_std · weight + bias."""
    layout = layout_of(x)
    x, weight, bias = layout.arrange(x), devices.contiguous(weight), devices.contiguous(bias)
    y = devices.empty_like(x)
    launch(kernel_of("batch_norm_apply", x), _grid(x), x, mean, inverse_std, weight, bias, y, _norm_shape(layout)[0])
    return layout.view(y)


def batch_norm_backward(
    x: Any, gy: Any, mean: Any, inverse_std: Any, weight: Any, training: bool
) -> tuple[Any, Any, Any]:
    """(gx, gweight, gbias)."""
    layout = layout_of(x)
    x, gy, weight = layout.arrange(x), layout.arrange(gy), devices.contiguous(weight)
    shape, blocks = _norm_shape(layout)
    C, splits = layout.C, shape[3]
    partial, gx = devices.empty((C, splits, 2), np.float64, x), devices.empty_like(x)
    gweight, gbias, offset, slope = (devices.empty(C, np.float32, x) for _ in range(4))
    launch(kernel_of("batch_norm_sums", x), blocks, x, gy, mean, partial, shape)
    launch("batch_norm_finish_sums", C, partial, inverse_std, gweight, gbias, offset, slope, shape)
    if training:
        launch(
            kernel_of("batch_norm_backward_training", x),
            _grid(x),
            x,
            gy,
            mean,
            inverse_std,
            weight,
            offset,
            slope,
            gx,
            shape,
        )
    else:
        launch(kernel_of("batch_norm_backward_inference", x), _grid(x), gy, inverse_std, weight, gx, shape)
    return layout.view(gx), gweight, gbias


def _grid(x: Any) -> int:
    return grid_for(-(-x.size // 4))


def _norm_shape(layout: Layout) -> tuple[tuple[int, ...], int]:
    """(struct NormShape, blocks of a reduction): channels are split where there are too few to keep a GPU busy."""
    N, L = (layout.N * layout.L, 1) if layout.rows else (layout.N, layout.L)
    if N * L == 0:
        N, L = 0, 1  # no kernel divides by no pixels
    lanes, columns = (ROW_LANES, -(-layout.C // WARP)) if L == 1 else (REDUCE_THREADS, layout.C)
    smallest = lanes * GROUP
    wanted = min(-(-N * L // smallest), -(-MANY_BLOCKS // max(columns, 1)))
    chunk = smallest * max(1, -(-N * L // (smallest * max(wanted, 1))))
    splits = max(1, -(-N * L // chunk))
    return (N, layout.C, L, splits, chunk), columns * splits
