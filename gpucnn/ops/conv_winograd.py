"""What Winograd's convolutions can compute: the algorithms "winograd", F(2×2,3×3), and "winograd4", F(4×4,3×3).

4 outputs of a 3×3 filter from 16 products instead of 36, or 16 from 36 instead of 144 (Lavin and Gray, CVPR 2016); the
maths is in csrc/conv2d_winograd.cpp. A value that is not finite spoils the whole tile that reads it.
"""

from __future__ import annotations

import numpy as np

from gpucnn import _C
from gpucnn.ops.shapes import ConvShape


def supports(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """None, or the reason why not."""
    if device != "cpu":
        return f"it runs on the device cpu, not {device}"
    rules = (
        ("3x3 kernels", (shape.R, shape.S), (3, 3)),
        ("stride 1", shape.stride, (1, 1)),
        ("dilation 1", shape.dilation, (1, 1)),
        ("groups 1", shape.groups, 1),
    )
    return next((f"it needs {rule}, not {value}" for rule, value, needed in rules if value != needed), None)


def winograd_workspace(shape: ConvShape, dtype: np.dtype) -> int:
    """Transformed filters, and transformed tiles of one chunk, of any pass."""
    return _C.conv2d_winograd_workspace_bytes(shape.flat, dtype.itemsize)


def winograd4_workspace(shape: ConvShape, dtype: np.dtype) -> int:
    """The same for the larger tiles."""
    return _C.conv2d_winograd4_workspace_bytes(shape.flat, dtype.itemsize)
