"""Convolution as the product with a sparse matrix that is written out: the algorithm "toeplitz".

Convolution of one channel with one filter is linear in the pixels: y = T·x, where T (P·Q rows, H·W columns) has the
filter's taps in each row, one column further from row to row: a Toeplitz matrix (of Toeplitz blocks, in 2-D).
The three passes multiply with three arrangements of the same pairs "output pixel meets image pixel under a tap":

- forward: rows are output pixels, columns image pixels, values weights; the matrices of all channels stand side by side
- backward_input: its transpose; the matrices of all filters stand side by side
- backward_weight: rows are taps, columns output pixels, values image pixels; all images stand side by side

Index arrays take 8 bytes for each pair and channel: this is the algorithm to read and to check others against.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpucnn import _C
from gpucnn.ops.shapes import ConvShape


class Pairs(NamedTuple):
    """Output pixel p·Q + q meets image pixel h·W + w under tap r·S + s; pairs with padding are left out."""

    outputs: np.ndarray
    pixels: np.ndarray
    taps: np.ndarray


class Csr(NamedTuple):
    """Compressed sparse rows: row i has the entries from starts[i] to starts[i + 1], in these columns.

    `order` tells which pair each entry came from; an entry of a row is followed by the same one of the next plane.
    """

    starts: np.ndarray
    columns: np.ndarray
    order: np.ndarray

    def multiply(self, values: np.ndarray, dense: np.ndarray) -> np.ndarray:
        """(rows, width) = this matrix @ dense (columns, width), with values (planes, pairs)."""
        out = np.empty((self.starts.size - 1, dense.shape[1]), dense.dtype)
        flat = np.ascontiguousarray(values[:, self.order].T).reshape(-1)
        _C.csr_matmul(flat, self.columns, self.starts, dense, out)
        return out


def pairs_of(shape: ConvShape) -> Pairs:
    """All pairs of a convolution of one channel with one filter, in the order of outputs, then taps."""
    (h, rows_inside), (w, columns_inside) = (
        _axis(*extents)
        for extents in zip(
            (shape.P, shape.Q),
            (shape.R, shape.S),
            (shape.H, shape.W),
            shape.stride,
            shape.padding,
            shape.dilation,
            strict=True,
        )
    )
    inside = rows_inside[:, None, :, None] & columns_inside[None, :, None, :]
    pixels = h[:, None, :, None] * shape.W + w[None, :, None, :]
    outputs, taps = np.nonzero(inside.reshape(shape.P * shape.Q, shape.R * shape.S))
    return Pairs(outputs, pixels[inside], taps)


def _axis(
    outputs: int, taps: int, size: int, stride: int, padding: int, dilation: int
) -> tuple[np.ndarray, np.ndarray]:
    """(outputs, taps): the index of the pixel they meet at, and whether it is one of the image."""
    index = np.arange(outputs)[:, None] * stride + np.arange(taps) * dilation - padding
    return index, (index >= 0) & (index < size)


def csr(rows: np.ndarray, columns: np.ndarray, row_count: int, planes: int, plane_size: int) -> Csr:
    """The matrix with an entry at each (row, column), repeated side by side for planes of plane_size columns."""
    order = np.argsort(rows, kind="stable")
    starts = np.zeros(row_count + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=row_count) * planes, out=starts[1:])
    repeated = columns[order, None] + plane_size * np.arange(planes)
    return Csr(starts, repeated.reshape(-1), order)


def supports(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """None, or the reason why not."""
    return None if device == "cpu" else f"it runs on the device cpu, not {device}"


def forward_workspace(shape: ConvShape, dtype: np.dtype) -> int:
    """At most so many bytes; here and below: indices, values, the dense operand and the result of one product."""
    channels, pixels = shape.C // shape.groups, shape.H * shape.W
    return _workspace(shape, dtype, channels, shape.N * (channels * pixels + shape.P * shape.Q))


def backward_input_workspace(shape: ConvShape, dtype: np.dtype) -> int:
    """At most so many bytes."""
    filters, pixels = shape.K // shape.groups, shape.H * shape.W
    return _workspace(shape, dtype, filters, shape.N * (filters * shape.P * shape.Q + pixels))


def backward_weight_workspace(shape: ConvShape, dtype: np.dtype) -> int:
    """At most so many bytes."""
    filters = shape.K // shape.groups
    return _workspace(shape, dtype, shape.N, filters * (shape.N * shape.P * shape.Q + shape.R * shape.S))


def _workspace(shape: ConvShape, dtype: np.dtype, planes: int, dense: int) -> int:
    pairs = shape.P * shape.Q * shape.R * shape.S
    of_pair = 8 * 8 + planes * (8 + 3 * dtype.itemsize)  # integers; a column index; values: gathered, in order, in rows
    return pairs * of_pair + dense * dtype.itemsize


def forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, y: np.ndarray, shape: ConvShape) -> None:
    """y (N,K,P,Q), overwritten."""
    channels, filters = shape.C // shape.groups, shape.K // shape.groups
    outputs, pixels, taps = pairs_of(shape)
    matrix = csr(outputs, pixels, shape.P * shape.Q, channels, shape.H * shape.W)
    for group in range(shape.groups):
        part = x[:, group * channels : (group + 1) * channels].reshape(shape.N, channels * shape.H * shape.W)
        dense = np.ascontiguousarray(part.T)
        for k in range(group * filters, (group + 1) * filters):
            values = weight[k].reshape(channels, -1)[:, taps]
            y[:, k] = matrix.multiply(values, dense).T.reshape(shape.N, shape.P, shape.Q)
    if bias is not None:
        y += bias[:, None, None]


def backward_input(gy: np.ndarray, weight: np.ndarray, gx: np.ndarray, shape: ConvShape) -> None:
    """gx (N,C,H,W), overwritten."""
    channels, filters = shape.C // shape.groups, shape.K // shape.groups
    outputs, pixels, taps = pairs_of(shape)
    matrix = csr(pixels, outputs, shape.H * shape.W, filters, shape.P * shape.Q)
    for group in range(shape.groups):
        own = slice(group * filters, (group + 1) * filters)
        dense = np.ascontiguousarray(gy[:, own].reshape(shape.N, filters * shape.P * shape.Q).T)
        for c in range(channels):
            values = weight[own, c].reshape(filters, -1)[:, taps]
            gx[:, group * channels + c] = matrix.multiply(values, dense).T.reshape(shape.N, shape.H, shape.W)


def backward_weight(x: np.ndarray, gy: np.ndarray, gw: np.ndarray, shape: ConvShape) -> None:
    """gw (K,C/groups,R,S), overwritten."""
    channels, filters = shape.C // shape.groups, shape.K // shape.groups
    outputs, pixels, taps = pairs_of(shape)
    matrix = csr(taps, outputs, shape.R * shape.S, shape.N, shape.P * shape.Q)
    for group in range(shape.groups):
        own = slice(group * filters, (group + 1) * filters)
        dense = np.ascontiguousarray(gy[:, own].transpose(0, 2, 3, 1)).reshape(-1, filters)
        for c in range(channels):
            values = x[:, group * channels + c].reshape(shape.N, shape.H * shape.W)[:, pixels]
            gw[own, c] = matrix.multiply(values, dense).T.reshape(filters, shape.R, shape.S)
