"""Locally connected layers on arrays: a convolution whose filters differ from place to place.

For each output pixel one matrix product of the images' patches there with the filters there: a batched GEMM.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gpucnn import device as devices
from gpucnn.ops.cast import in_float32
from gpucnn.ops.gemm import matmul
from gpucnn.ops.shapes import ConvShape, Pair, conv_shape, require_float, require_ndim


def locally_connected2d_weight_shape(shape: ConvShape) -> tuple[int, ...]:
    """(P,Q,K,C,R,S): for each output pixel the filters of the convolution `shape`."""
    return shape.P, shape.Q, *shape.weight


def locally_connected2d_shape(
    x: tuple[int, ...], weight: tuple[int, ...], stride: Pair = 1, padding: Pair = 0
) -> ConvShape:
    """The ConvShape of x (N,C,H,W) and one pixel's filters of weight (P,Q,K,C,R,S).

    Raises ValueError naming what does not fit.
    """
    require_ndim("locally_connected2d", "weight", weight, 6, "(P, Q, K, C, R, S)")
    shape = conv_shape(x, weight[2:], stride, padding, operation="locally_connected2d")
    if weight[:2] != (shape.P, shape.Q):
        raise ValueError(
            f"locally_connected2d: weight has filters for {weight[0]}x{weight[1]} output pixels (weight.shape="
            f"{weight}) but x of {shape.H}x{shape.W} gives {shape.P}x{shape.Q} with stride {shape.stride} and padding "
            f"{shape.padding}; filters belong to places, so x must keep its size"
        )
    return shape


@in_float32()
def locally_connected2d_forward(x: Any, weight: Any, bias: Any, shape: ConvShape) -> np.ndarray:
    """y (N,K,P,Q) from x (N,C,H,W) and weight (P,Q,K,C,R,S), plus bias (K,P,Q) unless it is None.

    Raises TypeError for dtypes that differ or are not float32/float64, ValueError for a bias of another shape.
    """
    require_float("locally_connected2d", x=x, weight=weight, bias=bias)
    if bias is not None and bias.shape != shape.y[1:]:
        raise ValueError(f"locally_connected2d: bias has shape {bias.shape}; it must be (K, P, Q) = {shape.y[1:]}")
    products = matmul(_patches(x, shape), _filters(weight, shape).swapaxes(1, 2))
    y = devices.contiguous(products.transpose(1, 2, 0)).reshape(shape.y)
    if bias is not None:
        y += bias
    return y


@in_float32()
def locally_connected2d_backward_input(gy: Any, weight: Any, shape: ConvShape) -> np.ndarray:
    """gx (N,C,H,W): each patch's gradient gy·filters, added up where patches overlap."""
    require_float("locally_connected2d_backward_input", gy=gy, weight=weight)
    parts = matmul(_pixels(gy, shape), _filters(weight, shape))
    parts = parts.reshape(shape.P, shape.Q, shape.N, shape.C, shape.R, shape.S).transpose(2, 3, 0, 1, 4, 5)
    (sh, sw), (ph, pw) = shape.stride, shape.padding
    padded = np.zeros_like(gy, shape=(shape.N, shape.C, shape.H + 2 * ph, shape.W + 2 * pw), order="C")
    for r in range(shape.R):
        for s in range(shape.S):
            rows, columns = slice(r, r + (shape.P - 1) * sh + 1, sh), slice(s, s + (shape.Q - 1) * sw + 1, sw)
            padded[:, :, rows, columns] += parts[..., r, s]
    return devices.contiguous(padded[:, :, ph : ph + shape.H, pw : pw + shape.W])


@in_float32(rounds=False)
def locally_connected2d_backward_weight(x: Any, gy: Any, shape: ConvShape) -> np.ndarray:
    """gw (P,Q,K,C,R,S): for each pixel gyᵀ·patches, summed over the images."""
    require_float("locally_connected2d_backward_weight", x=x, gy=gy)
    gw = matmul(_pixels(gy, shape).swapaxes(1, 2), _patches(x, shape))
    return gw.reshape(locally_connected2d_weight_shape(shape))


def _patches(x: np.ndarray, shape: ConvShape) -> np.ndarray:
    """The (P·Q, N, C·R·S) windows of padded x: im2col with the pixels in front."""
    (sh, sw), (ph, pw) = shape.stride, shape.padding
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    windows = sliding_window_view(padded, (shape.R, shape.S), axis=(2, 3))[:, :, ::sh, ::sw]
    return windows.transpose(2, 3, 0, 1, 4, 5).reshape(shape.P * shape.Q, shape.N, shape.C * shape.R * shape.S)


def _filters(weight: np.ndarray, shape: ConvShape) -> np.ndarray:
    """weight as matrices (P·Q, K, C·R·S)."""
    return weight.reshape(shape.P * shape.Q, shape.K, shape.C * shape.R * shape.S)


def _pixels(gy: np.ndarray, shape: ConvShape) -> np.ndarray:
    """gy (N,K,P,Q) as matrices (P·Q, N, K)."""
    return gy.reshape(shape.N, shape.K, shape.P * shape.Q).transpose(2, 0, 1)
