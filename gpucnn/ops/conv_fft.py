"""What convolution through the Fourier transform can compute: the algorithm "fft" (Mathieu et al., ICLR 2014).

A product of spectra instead of a sum over the kernel's taps, on tiles of the images; the maths is in
csrc/conv2d_fft.cpp.
A value that is not finite spoils the whole tile that reads it (in backward_weight: the whole filter gradient).
"""

from __future__ import annotations

import numpy as np

from gpucnn import _C
from gpucnn.ops.shapes import ConvShape


def supports(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """None, or the reason why not."""
    if device != "cpu":
        return f"it runs on the device cpu, not {device}"
    rules = (("stride 1", shape.stride, (1, 1)), ("dilation 1", shape.dilation, (1, 1)), ("groups 1", shape.groups, 1))
    return next((f"it needs {rule}, not {value}" for rule, value, needed in rules if value != needed), None)


def workspace_bytes(shape: ConvShape, dtype: np.dtype) -> int:
    """Spectra of the filters and of one chunk of tiles, and each thread's block of tiles, of any pass."""
    return _C.conv2d_fft_workspace_bytes(shape.flat, dtype.itemsize)
