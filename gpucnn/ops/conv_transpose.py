"""Transposed convolution of arrays: the pass that leads a convolution's gradient back to its input, run forward.

So one ConvShape describes both: of the convolution that maps y to x. Its C, H and W are those of y.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.ops.cast import in_float32
from gpucnn.ops.conv import check_operands, conv2d_backward_input
from gpucnn.ops.shapes import ConvShape, Pair, pair, require_groups, require_ndim


def conv_transpose2d_shape(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> ConvShape:
    """The ConvShape from y (N,K,P,Q) to x (N,C,H,W) for weight (C,K/groups,R,S): its `x` is y's shape, its `y` is x's.

    P = (H − 1)·stride − 2·padding + dilation·(R − 1) + output_padding + 1, and Q alike.
    Raises ValueError naming what does not fit.
    """
    require_ndim("conv_transpose2d", "x", x, 4, "(N, C, H, W)")
    require_ndim("conv_transpose2d", "weight", weight, 4, "(C, K/groups, R, S)")
    strides = pair("conv_transpose2d", "stride", stride, 1)
    paddings = pair("conv_transpose2d", "padding", padding, 0)
    extra = pair("conv_transpose2d", "output_padding", output_padding, 0)
    dilations = pair("conv_transpose2d", "dilation", dilation, 1)
    _check_channels(x[1], weight, groups)
    if any(more >= max(s, d) for more, s, d in zip(extra, strides, dilations, strict=True)):
        raise ValueError(
            f"conv_transpose2d: output_padding is {output_padding!r}; it must be smaller than stride {strides} or "
            f"dilation {dilations}: it only tells apart the sizes from which one x can come"
        )
    N, C, H, W = x
    axes = zip((H, W), weight[2:], strides, paddings, dilations, extra, strict=True)
    P, Q = ((size - 1) * s - 2 * p + d * (k - 1) + more + 1 for size, k, s, p, d, more in axes)
    if min(P, Q, H, W, *weight[2:]) < 1:
        raise ValueError(
            f"conv_transpose2d: the output would be {P}x{Q} for x of {H}x{W}, kernel {tuple(weight[2:])} and padding "
            f"{paddings}; use less padding, a larger kernel or a larger image"
        )
    K = weight[1] * groups
    return ConvShape(N, K, P, Q, C, weight[2], weight[3], H, W, strides, paddings, dilations, groups)


def _check_channels(C: int, weight: tuple[int, ...], groups: int) -> None:
    require_groups("conv_transpose2d", groups)
    if weight[0] != C:
        raise ValueError(
            f"conv_transpose2d: x has {C} channels but weight expects {weight[0]} (weight.shape={tuple(weight)}); "
            f"weight must be (in_channels, out_channels/groups, R, S)"
        )
    if C % groups:
        raise ValueError(f"conv_transpose2d: in_channels (={C}) must be divisible by groups (={groups})")


@in_float32()
def conv_transpose2d_forward(
    x: Any, weight: Any, bias: Any, shape: ConvShape, algorithm: str = "auto", workspace_limit: int | None = None
) -> np.ndarray:
    """y (N,K,P,Q) from x (N,C,H,W) and weight (C,K/groups,R,S), plus bias (K,); raises as conv2d_forward.

    The backward passes are conv2d's own: gx = conv2d_forward(gy, weight), gw = conv2d_backward_weight(gy, x).
    """
    check_operands("conv_transpose2d", x, weight, bias, shape.C)
    y = conv2d_backward_input(x, weight, shape, algorithm, workspace_limit)
    if bias is not None:
        y += bias[:, None, None]
    return y
