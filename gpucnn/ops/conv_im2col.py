"""Convolution as matrix products with stored patches: the algorithm "im2col" of devices with kernels.

For each image: y (K,P·Q) = w (K,C·R·S) · columns (C·R·S,P·Q); gx sums wᵀ·gy back over the patches, and gw sums
gy·columnsᵀ over all images. Patches are made for as many images as CHUNK_BYTES or the limit of workspace
hold (Chellapilla et al. 2006). Groups are products of their own. Products may split their terms, in workspaces of their
own; under a limit they do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import Strided, grid_for, launch
from gpucnn.launch.division import divisor
from gpucnn.ops.conv_sums import add_planes, image_strides
from gpucnn.ops.gemm import gemm
from gpucnn.ops.shapes import ConvShape

CHUNK_BYTES = 1 << 28  # of patches at a time, or those of one image
CHUNK_TERMS = 1024  # pixels that one product of backward_weight sums, so that rounding errors of long sums stay small


def supports(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """None: it computes every convolution."""
    return None


def _copies(shape: ConvShape) -> bool:
    """Whether patches are made: those of 1×1 kernels, one for each pixel, are the image itself."""
    return (shape.R, shape.S, *shape.stride, *shape.padding) != (1, 1, 1, 1, 0, 0)


def _image_bytes(shape: ConvShape, itemsize: int) -> int:
    """Patches of one image."""
    return shape.C * shape.R * shape.S * shape.P * shape.Q * itemsize


def _images(shape: ConvShape, itemsize: int, limit: int | None) -> int:
    """How many images a chunk has."""
    room = CHUNK_BYTES if limit is None or not _copies(shape) else limit
    return max(1, min(shape.N, room // max(1, _image_bytes(shape, itemsize))))


def forward_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Patches of a chunk."""
    return _images(shape, dtype.itemsize, limit) * _image_bytes(shape, dtype.itemsize) if _copies(shape) else 0


def backward_input_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Gradients of the patches of a chunk."""
    return forward_workspace(shape, dtype, limit)


def backward_weight_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Patches of a chunk, and a plane of sums for each of its images and parts."""
    images = _weight_images(shape, dtype.itemsize, limit)
    planes = (images * _parts(shape) + 1) * math.prod(shape.weight)
    patches = images * _image_bytes(shape, dtype.itemsize) if _copies(shape) else 0
    return patches + planes * dtype.itemsize


def _parts(shape: ConvShape) -> int:
    return -(-shape.P * shape.Q // CHUNK_TERMS)


def _weight_images(shape: ConvShape, itemsize: int, limit: int | None) -> int:
    """As _images, with room for the sums."""
    plane = math.prod(shape.weight) * itemsize
    image = (_image_bytes(shape, itemsize) if _copies(shape) else 0) + _parts(shape) * plane
    room = CHUNK_BYTES if limit is None else max(0, limit - plane)
    return max(1, min(shape.N, room // max(1, image)))


def _chunks(shape: ConvShape, images: int) -> Iterator[tuple[slice, ConvShape]]:
    for first in range(0, shape.N, images):
        part = slice(first, min(first + images, shape.N))
        yield part, shape._replace(N=part.stop - first)


def _channels(shape: ConvShape) -> Iterator[tuple[slice, slice]]:
    """Filters and rows of patches of each group."""
    filters, rows = shape.K // shape.groups, shape.C // shape.groups * shape.R * shape.S
    for group in range(shape.groups):
        yield slice(group * filters, (group + 1) * filters), slice(group * rows, (group + 1) * rows)


def forward(
    x: Any, weight: Any, bias: Any, y: Any, shape: ConvShape, relu: bool = False, workspace_limit: int | None = None
) -> None:
    """y (N,K,P,Q), overwritten; x may have any strides."""
    filters, sums = _filters(weight, shape), y.reshape(shape.N, shape.K, shape.P * shape.Q)
    splits = _splits(workspace_limit)
    for images, chunk in _chunks(shape, _images(shape, y.itemsize, workspace_limit)):
        columns = _columns(x[images], chunk)
        for own, rows in _channels(shape):
            own_bias = None if bias is None else bias[own]
            gemm(filters[:, own], columns[:, rows], sums[images, own], own_bias, "row", relu, splits=splits)
        del columns  # before the next chunk's are made


def backward_input(gy: Any, weight: Any, gx: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gx (N,C,H,W), overwritten; gy may have any strides."""
    gradients = devices.contiguous(gy).reshape(shape.N, shape.K, shape.P * shape.Q)
    filters = _filters(weight, shape).swapaxes(1, 2)
    for images, chunk in _chunks(shape, _images(shape, gx.itemsize, workspace_limit)):
        columns = (
            _empty_columns(gx[images], chunk)
            if _copies(shape)
            else gx[images].reshape(chunk.N, shape.C, shape.H * shape.W)
        )
        for own, rows in _channels(shape):
            gemm(filters[:, :, own], gradients[images, own], columns[:, rows], splits=_splits(workspace_limit))
        if _copies(shape):
            count = chunk.N * shape.C * shape.H * shape.W
            patches = _patches(chunk, count, shape.H * shape.W, shape.W)
            launch("col2im", grid_for(count), columns, gx[images], chunk.flat, patches)
        del columns


def backward_weight(x: Any, gy: Any, gw: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gw (K,C/groups,R,S), overwritten; x and gy may have any strides."""
    gradients = devices.contiguous(gy).reshape(shape.N, shape.K, shape.P * shape.Q)
    gw[...] = 0
    for images, chunk in _chunks(shape, _weight_images(shape, gw.itemsize, workspace_limit)):
        _add_chunk(x[images], gradients[images], gw, chunk, _splits(workspace_limit))


def _add_chunk(x: Any, gradients: Any, gw: Any, shape: ConvShape, splits: int | None) -> None:
    """gw += the gradient of some images; what it allocates is free before the next chunk."""
    parts, columns = _parts(shape), _columns(x, shape).swapaxes(1, 2)
    planes = devices.empty((1 + parts * shape.N, shape.K, gw.size // shape.K), gw.dtype, gw)
    planes[0] = gw.reshape(planes.shape[1:])
    for part in range(parts):
        pixels, own_planes = slice(part * CHUNK_TERMS, (part + 1) * CHUNK_TERMS), planes[1 + part :: parts]
        for own, rows in _channels(shape):
            gemm(gradients[:, own, pixels], columns[:, pixels, rows], own_planes[:, own], splits=splits)
    add_planes(planes, gw)


def _splits(limit: int | None) -> int | None:
    """In how many parts products sum their terms: not split where a limit holds, for planes are workspace, too."""
    return None if limit is None else 1


def _filters(weight: Any, shape: ConvShape) -> Any:
    return weight.reshape(1, shape.K, math.prod(shape.weight[1:]))


def _columns(x: Any, shape: ConvShape) -> Any:
    """Patches (N,C·R·S,P·Q) of images x (N,C,H,W)."""
    if not _copies(shape):
        return devices.contiguous(x).reshape(shape.N, shape.C, shape.H * shape.W)
    columns = _empty_columns(x, shape)
    x, strides = image_strides("im2col", x, shape)
    count = shape.N * shape.C * shape.P * shape.Q
    launch("im2col", grid_for(count), Strided(x), columns, shape.flat, strides,
           _patches(shape, count, shape.P * shape.Q, shape.Q))  # fmt: skip
    return columns


def _empty_columns(like: Any, shape: ConvShape) -> Any:
    pixels = shape.P * shape.Q
    if max(shape.C * shape.R * shape.S, pixels, shape.N * shape.C) >= 2**31:
        raise ValueError(
            f"im2col: patches (N·C·R·S, P·Q) of {shape} need counts below 2^31: split the batch or channels"
        )
    return devices.empty((shape.N, shape.C * shape.R * shape.S, pixels), like.dtype, like)


def _patches(shape: ConvShape, count: int, pixels: int, row: int) -> tuple[Any, ...]:
    """The struct Patches of kernels/im2col.cu."""
    return count, divisor(pixels), divisor(row), divisor(shape.C), *map(divisor, shape.stride)
