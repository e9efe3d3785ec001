"""What the convolutions of devices with kernels share: strides of images, ordered sums of planes and of channels."""

from __future__ import annotations

from typing import Any

from gpucnn import device as devices
from gpucnn.launch import Strided, grid_for, launch
from gpucnn.launch.division import divisor
from gpucnn.ops.shapes import ConvShape

PART, MAX_PARTS = 1 << 14, 1 << 10  # pixels that one block sums; how many blocks share a channel


def image_strides(operation: str, array: Any, shape: ConvShape) -> tuple[Any, tuple[int, ...]]:
    """(array, strides in elements) of images (N,C,H,W) for a kernel; copied if strides are no whole elements.

    Raises ValueError where an offset inside one image, with the border that windows reach, could pass 31 bits.
    """
    if any(stride % array.itemsize for stride in array.strides):
        array = devices.contiguous(array)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    # Loaders look up to 16 channels ahead, and windows reach beyond the image.
    borders = (16, *(2 * p + d * k for p, d, k in zip(shape.padding, shape.dilation, (shape.R, shape.S), strict=True)))
    reach = sum((n + b) * abs(s) for n, b, s in zip(array.shape[1:], borders, strides[1:], strict=True))
    if reach >= 2**31:
        raise ValueError(
            f"{operation}: an image of shape {array.shape[1:]} and strides {strides[1:]} spans {reach} elements; "
            "kernels count fewer than 2^31: split it, or copy it to a contiguous array"
        )
    return array, strides


def add_planes(planes: Any, target: Any, bias: Any = None, relu: bool = False) -> None:
    """target = Σ planes (S,…) in their order, plus bias (a value for each index of target's axis 1), then ReLU."""
    channels = target.shape[1] if bias is not None else 1
    batch = len(target) if bias is not None else 1
    columns = target.size // max(1, batch * channels)
    contiguous = (columns, channels * columns, 0)
    shape = (channels, columns, 0, len(planes), 0, 1, int(relu), 0, 0, 0, 0, *contiguous)
    launch("gemm_add_splits", grid_for(target.size), planes, target, bias, shape, target.size)


def sum_channels(gy: Any, gb: Any) -> None:
    """gb (K,), float32 = Σ gy (N,K,P,Q) over n, p and q; gy may have any strides, and be of 16 bits."""
    N, K, P, Q = gy.shape
    if N * P * Q >= 2**31:
        raise ValueError(f"conv2d_backward_bias: gy has {N * P * Q} pixels a channel; it must be fewer than 2^31")
    if any(stride % gy.itemsize for stride in gy.strides):
        gy = devices.contiguous(gy)
    part = max(PART, -(-N * P * Q // MAX_PARTS))
    parts = max(1, -(-N * P * Q // part))
    planes = gb if parts == 1 else devices.empty((parts, K), gb.dtype, gb)
    strides = tuple(stride // gy.itemsize for stride in gy.strides)
    divisors = divisor(max(1, P * Q)), divisor(max(1, Q))
    kernel = "conv2d_backward_bias" + ("" if gy.dtype == gb.dtype else f"_{gy.dtype.name}")
    launch(kernel, (K, parts), Strided(gy), planes, strides, (N * P * Q, part, *divisors))
    if parts > 1:
        add_planes(planes, gb)
