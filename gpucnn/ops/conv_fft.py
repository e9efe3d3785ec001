"""Convolution through the Fourier transform: the algorithm "fft" (Mathieu et al., ICLR 2014).

Along both axes, with x̂ the transform of the padded image and * the complex conjugate, for each frequency f:

- forward           ŷ[n,k,f] = Σ_c x̂[n,c,f] · ŵ*[k,c,f]        a correlation
- backward_input    ĝx[n,c,f] = Σ_k ĝy[n,k,f] · ŵ[k,c,f]       a convolution
- backward_weight   ĝw[k,c,f] = Σ_n x̂[n,c,f] · ĝy*[n,k,f]      a correlation

The transforms are as long as the padded image (or a little longer, for smaller prime factors), so nothing that is kept
wraps around. Spectra are arranged frequency by frequency, and the sum is one batched product of complex matrices.
A value that is not finite spoils the whole image that it is in (in backward_weight: the whole filter gradient).
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


def fast_length(length: int) -> int:
    """The least number from `length` on without prime factors above 5, for which transforms take few operations."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


def transform_size(shape: ConvShape) -> tuple[int, int]:
    """(height, width) of the transforms: the padded image's at least."""
    return fast_length(shape.P + shape.R - 1), fast_length(shape.Q + shape.S - 1)


def workspace_bytes(shape: ConvShape, dtype: np.dtype) -> int:
    """At most so many bytes, of any pass: images with their padding, spectra, their copies, and the images of sums."""
    N, C, K = shape.N, shape.C, shape.K
    height, width = transform_size(shape)
    planes = N * C, K * C, N * K
    frequencies = height * (width // 2 + 1)
    # Every spectrum twice, while it is arranged; the product's smaller operand in real and imaginary parts.
    spectra = 2 * frequencies * (3 * sum(planes) + 2 * max(planes))
    return (height * width * (sum(planes) + max(planes)) + spectra) * dtype.itemsize


def forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, y: np.ndarray, shape: ConvShape) -> None:
    """y (N,K,P,Q), overwritten."""
    size = transform_size(shape)
    filters = np.conj(spectra(weight, size))
    sums = correlate_channels(spectra(padded(x, shape), size), filters)
    y[...] = images(sums, size)[..., : shape.P, : shape.Q]
    if bias is not None:
        y += bias[:, None, None]


def backward_input(gy: np.ndarray, weight: np.ndarray, gx: np.ndarray, shape: ConvShape) -> None:
    """gx (N,C,H,W), overwritten."""
    size = transform_size(shape)
    sums = correlate_channels(spectra(gy, size), spectra(weight, size).swapaxes(0, 1))
    top, left = shape.padding
    gx[...] = images(sums, size)[..., top : top + shape.H, left : left + shape.W]


def backward_weight(x: np.ndarray, gy: np.ndarray, gw: np.ndarray, shape: ConvShape) -> None:
    """gw (K,C,R,S), overwritten."""
    size = transform_size(shape)
    gradients = np.conj(spectra(gy, size))
    sums = correlate_channels(gradients.swapaxes(0, 1), spectra(padded(x, shape), size).swapaxes(0, 1))
    gw[...] = images(sums, size)[..., : shape.R, : shape.S]


def padded(x: np.ndarray, shape: ConvShape) -> np.ndarray:
    """x with zeros around it."""
    (top, left), (height, width) = shape.padding, x.shape[2:]
    out = np.zeros((*x.shape[:2], height + 2 * top, width + 2 * left), x.dtype)
    out[..., top : top + height, left : left + width] = x
    return out


def spectra(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(A,B,height,width/2+1), complex: the transforms of real planes (A,B,h,w) with zeros after them."""
    if planes.size == 0:
        return np.zeros((*planes.shape[:2], size[0], size[1] // 2 + 1), np.result_type(planes.dtype, np.complex64))
    return np.fft.rfft2(planes, size)


def images(spectrum: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(A,B,height,width), real: the inverse of `spectra`."""
    if spectrum.size == 0:
        return np.zeros((*spectrum.shape[:2], *size), spectrum.real.dtype)
    return np.fft.irfft2(spectrum, size)


def correlate_channels(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(I,J,height,width) c[i,j,f] = Σ_d a[i,d,f] · b[j,d,f], from spectra (I,D,height,width) and (J,D,height,width)."""
    if b.shape[0] > a.shape[0]:
        return correlate_channels(b, a).swapaxes(0, 1)
    (rows, depth, *size), columns = a.shape, b.shape[0]
    frequencies = size[0] * size[1]
    left = np.ascontiguousarray(a.transpose(2, 3, 0, 1)).view(a.real.dtype).reshape(frequencies, rows, 2 * depth)
    products = np.empty((frequencies, rows, 2 * columns), left.dtype)
    _C.gemm(left, _as_real_matrices(b), products)
    return products.view(a.dtype).reshape(*size, rows, columns).transpose(2, 3, 0, 1)


def _as_real_matrices(b: np.ndarray) -> np.ndarray:
    """(frequencies, 2·D, 2·J): bᵀ with each number as the matrix (re im / −im re), which multiplies (re im)."""
    columns, depth, height, width = b.shape
    right = np.empty((height, width, depth, 2, columns, 2), b.real.dtype)
    turned = b.transpose(2, 3, 1, 0)
    right[..., 0, :, 0] = right[..., 1, :, 1] = turned.real
    right[..., 0, :, 1] = turned.imag
    np.negative(turned.imag, out=right[..., 1, :, 0])
    return right.reshape(height * width, 2 * depth, 2 * columns)
