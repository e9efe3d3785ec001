"""Convolution through the Fourier transform: the algorithm "fft" (Mathieu et al., ICLR 2014).

A product of spectra instead of a sum over the kernel's taps, on tiles of the images that overlap (overlap-save).
On the CPU csrc/conv2d_fft.cpp computes it. Where kernels run, tiles of images, filters and gradients are transformed
(kernels/fft_tiles.cu), multiplied as one complex matrix product a frequency (kernels/fft_multiply.cu), and transformed
back; images are taken in chunks, so that the spectra keep a limit of memory.
A value that is not finite spoils the whole tile that reads it (in backward_weight: the whole filter gradient).

In every precision but float32 the products are float32_tensor's (kernels/fft_multiply_tensor.cu): what tf32 leaves of a
spectrum is an error of the largest pixels of a tile, which a small pixel beside them has as well.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gpucnn import _C
from gpucnn import device as devices
from gpucnn.launch import Strided, launch
from gpucnn.launch.division import divisor
from gpucnn.ops.gemm import arithmetic_of
from gpucnn.ops.shapes import ConvShape

TILES = (16, 32, 64)  # their sizes
MAX_KERNEL = 32  # a tile of 64 then has at least 33 × 33 results
WORKSPACE_LIMIT = 1 << 28  # bytes of all spectra, or what one image needs
FFT_THREADS = 128
FULL_GPU = 264  # blocks that occupy a large GPU, two for each multiprocessor
MOVED = 32  # products in the time that a number of a spectrum takes to be written and read
SPLIT_TERMS = 256  # tiles that a split sums at least
Pair = tuple[int, int]


def supports(shape: ConvShape, dtype: np.dtype, device: str) -> str | None:
    """None, or the reason why not."""
    rules = (("stride 1", shape.stride, (1, 1)), ("dilation 1", shape.dilation, (1, 1)), ("groups 1", shape.groups, 1))
    refused = next((f"it needs {rule}, not {value}" for rule, value, needed in rules if value != needed), None)
    if refused is None and device != "cpu" and max(shape.R, shape.S) > MAX_KERNEL:
        return f"it needs kernels of at most {MAX_KERNEL}x{MAX_KERNEL}, not {shape.R}x{shape.S}"
    return refused


def workspace_bytes(shape: ConvShape, dtype: np.dtype) -> int:
    """On the CPU: spectra of the filters and of one chunk of tiles, and each thread's block of tiles, of any pass."""
    return _C.conv2d_fft_workspace_bytes(shape.flat, dtype.itemsize)


class Correlation(NamedTuple):
    """out (N,filters,…) = images (N,channels,…) correlated with filters (filters,channels,…); a padding may be < 0."""

    channels: int
    filters: int
    size: Pair
    out: Pair
    kernel: Pair
    padding: Pair


class Tiling(NamedTuple):
    """Tiles of size × size, `grid` of them along the axes, of which `step` results are kept."""

    size: int
    grid: Pair
    step: Pair

    @property
    def bins(self) -> int:
        """Complex numbers that describe a real tile."""
        return self.size**2 // 2 + 2

    @property
    def of_image(self) -> int:
        return self.grid[0] * self.grid[1]


def forward_correlation(shape: ConvShape) -> Correlation:
    kernel = (shape.R, shape.S)
    return Correlation(shape.C, shape.K, (shape.H, shape.W), (shape.P, shape.Q), kernel, shape.padding)


def backward_correlation(shape: ConvShape) -> Correlation:
    """The gradient of x is gy correlated with filters rotated by 180°, their channels and filters exchanged."""
    padding = (shape.R - 1 - shape.padding[0], shape.S - 1 - shape.padding[1])
    return Correlation(shape.K, shape.C, (shape.P, shape.Q), (shape.H, shape.W), (shape.R, shape.S), padding)


def choose_tiling(c: Correlation, images: int, limit: int | None = None) -> Tiling:
    """The tiles of the least cost whose spectra of one image keep the limit, else those of the least memory.

    The cost counts what grows with size²: products, and numbers of the spectra, of which a GPU moves one while it
    computes about MOVED products. It prefers small tiles for few images, whose filters are most of the work.
    """
    able = [tiling(c, size) for size in TILES if size >= max(c.kernel)]
    limit = WORKSPACE_LIMIT if limit is None else limit
    keeping = [tiles for tiles in able if _correlation_bytes(c, tiles, 1) <= limit]
    return (
        min(keeping, key=partial(_cost, c, images)) if keeping else min(able, key=lambda t: _correlation_bytes(c, t, 1))
    )


def _cost(c: Correlation, images: int, tiles: Tiling) -> int:
    count, filters = images * tiles.of_image, c.channels * c.filters
    return tiles.size**2 * (count * filters + MOVED * (count * (c.channels + c.filters) + filters))


def tiling(c: Correlation, size: int) -> Tiling:
    """Tiles of one size for a correlation."""
    axes = [_tile_axis(size, *axis) for axis in zip(c.size, c.out, c.kernel, c.padding, strict=True)]
    return Tiling(size, (axes[0][0], axes[1][0]), (axes[0][1], axes[1][1]))


def _tile_axis(size: int, extent: int, out: int, kernel: int, padding: int) -> Pair:
    """(tiles, results of each) along one axis.

    Results of which a tap would pass the tile's end are wrong, for the tile goes on at its start. But if image and
    padding before it fit a tile, zeros stand there, as the padding after the image would be: then all are right.
    """
    if padding >= 0 and max(extent + padding, out) <= size:
        return 1, out
    step = size - kernel + 1
    return -(-out // step), step


def _even(count: int) -> int:
    return count + count % 2


def _correlation_bytes(c: Correlation, tiles: Tiling, images: int) -> int:
    """Spectra of the filters, and of a chunk of images and of their results."""
    filters = c.channels * _even(c.filters)
    return 8 * tiles.bins * (filters + _even(images * tiles.of_image) * (c.channels + c.filters))


def _images(c: Correlation, tiles: Tiling, images: int, limit: int | None) -> int:
    """How many images a chunk may have within the limit, at least one."""
    left = (WORKSPACE_LIMIT if limit is None else limit) - _correlation_bytes(c, tiles, 0)
    fitting = left // (8 * tiles.bins * (c.channels + c.filters)) // 2 * 2 // tiles.of_image
    return max(1, min(images, fitting))


def _correlation_workspace(c: Correlation, images: int, limit: int | None) -> int:
    if images == 0:
        return 0
    tiles = choose_tiling(c, images, limit)
    return _correlation_bytes(c, tiles, _images(c, tiles, images, limit))


def forward_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Spectra of the filters, and of x and y of a chunk of images that keeps `limit` bytes, or of one image."""
    return _correlation_workspace(forward_correlation(shape), shape.N, limit)


def backward_input_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Spectra of the filters, and of gy and gx of a chunk of images that keeps `limit` bytes, or of one image."""
    return _correlation_workspace(backward_correlation(shape), shape.N, limit)


def forward(
    x: Any, weight: Any, bias: Any, y: Any, shape: ConvShape, relu: bool = False, workspace_limit: int | None = None
) -> None:
    """y (N,K,P,Q), overwritten; x may have any strides."""
    _correlate("conv2d_forward", forward_correlation(shape), x, weight, bias, y, relu, workspace_limit)


def backward_input(gy: Any, weight: Any, gx: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gx (N,C,H,W), overwritten; gy may have any strides."""
    rotated = weight.swapaxes(0, 1)[:, :, ::-1, ::-1]
    _correlate("conv2d_backward_input", backward_correlation(shape), gy, rotated, None, gx, False, workspace_limit)


def _correlate(
    operation: str, c: Correlation, images: Any, filters: Any, bias: Any, out: Any, relu: bool, limit: int | None
) -> None:
    """out = images correlated with filters (filters,channels,R,S), plus bias, ReLU; images and filters by strides."""
    if len(images) == 0:
        return
    tiles = choose_tiling(c, len(images), limit)
    filter_spectra = _spectra(out, tiles, c.channels, _even(c.filters))
    _transform(operation, filters, filter_spectra, Tiling(tiles.size, (1, 1), (1, 1)), (0, 0), tiles.size**-2)
    chunk = _images(c, tiles, len(images), limit)

    def compute(part: Any, result: Any) -> None:  # a function, so that its arrays are free before the next chunk's
        width = _even(len(part) * tiles.of_image)
        spectra, products = (_spectra(out, tiles, count, width) for count in (c.channels, c.filters))
        _transform(operation, part, spectra, tiles, c.padding)
        _multiply(spectra, filter_spectra, products)
        _invert(products, result, bias, tiles, relu)

    for first in range(0, len(images), chunk):
        compute(images[first : first + chunk], out[first : first + chunk])


class _WeightPlan(NamedTuple):
    tiles: Tiling
    splits: int
    images: int  # of a chunk
    workspace: int


def _weight_plan(shape: ConvShape, limit: int | None) -> _WeightPlan:
    """How backward_weight divides its sum over all tiles: splits side by side, and chunks one after the other."""
    limit = WORKSPACE_LIMIT if limit is None else limit
    tiles = choose_tiling(forward_correlation(shape), shape.N, limit)
    channels, filters = _even(shape.C), _even(shape.K)
    plane = 8 * tiles.bins * shape.K * channels
    blocks = _product_tiles(_product_tile(channels, filters), channels, filters) * tiles.bins
    wanted = min(-(-FULL_GPU // blocks), -(-shape.N * tiles.of_image // SPLIT_TERMS))
    splits = max(1, min(wanted, limit // 4 // plane))
    image = 8 * tiles.bins * tiles.of_image * (channels + filters)
    images = max(1, min(shape.N, (limit - splits * plane) // image))
    return _WeightPlan(tiles, splits, images, splits * plane + images * image)


def backward_weight_workspace(shape: ConvShape, dtype: np.dtype, limit: int | None = None) -> int:
    """Spectra of gw, one for each split, and of x and gy of a chunk of images that keeps `limit` bytes, or of one."""
    return _weight_plan(shape, limit).workspace if shape.N else 0


def backward_weight(x: Any, gy: Any, gw: Any, shape: ConvShape, workspace_limit: int | None = None) -> None:
    """gw (K,C,R,S), overwritten: the first R × S numbers of Σ X · conj(Y) over all tiles; any strides of x and gy."""
    if shape.N == 0:
        gw[...] = 0
        return
    tiles, splits, chunk, _ = _weight_plan(shape, workspace_limit)
    channels, filters = _even(shape.C), _even(shape.K)
    sums = _spectra(gw, tiles, shape.K, channels, splits)

    def add(images: Any, gradients: Any, first: bool) -> None:  # a function, as in _correlate
        count, operation = len(images) * tiles.of_image, "conv2d_backward_weight"
        x_spectra, gy_spectra = (_spectra(gw, tiles, count, width) for width in (channels, filters))
        _transform(operation, images, x_spectra, tiles, shape.padding, channels_fast=True)
        _transform(operation, gradients, gy_spectra, tiles, (0, 0), tiles.size**-2, True, tiles.step)
        _multiply(x_spectra, gy_spectra, sums, add=not first)

    for start in range(0, shape.N, chunk):
        add(x[start : start + chunk], gy[start : start + chunk], start == 0)
    single = Tiling(tiles.size, (1, 1), (shape.R, shape.S))
    _invert(sums, gw, None, single, channels_fast=True)


def _spectra(like: Any, tiles: Tiling, rows: int, width: int, splits: int = 1) -> Any:
    """Room for (splits,bins,rows,width) complex numbers; kernels count rows · width in 31 bits."""
    if rows * width >= 2**31:
        raise ValueError(f"fft: spectra of {rows} x {width} tiles; kernels count fewer than 2^31: split the batch")
    return devices.empty((splits, tiles.bins, rows, width, 2), like.dtype, like)


def _transform(
    operation: str, images: Any, spectra: Any, tiles: Tiling, padding: Pair, scale: float = 1.0,
    channels_fast: bool = False, extent: Pair | None = None,
) -> None:  # fmt: skip
    """spectra of the tiles of images (N,C,H,W), of which rows and columns from `extent` on count as zeros."""
    images, strides = _strided(operation, images, tiles.size)
    origin, extent = (-padding[0], -padding[1]), extent or (tiles.size, tiles.size)
    numbers = _tiles(images.shape, spectra, tiles, origin, extent, channels_fast, scale=scale / 2)
    _launch(f"fft_tiles_{tiles.size}", tiles, spectra, Strided(images), spectra, numbers, strides)


def _invert(
    spectra: Any, images: Any, bias: Any, tiles: Tiling, relu: bool = False, channels_fast: bool = False
) -> None:
    """images (N,C,H,W), overwritten: the results of the tiles whose spectra, sums of all splits, are given."""
    numbers = _tiles(images.shape, spectra, tiles, (0, 0), tiles.step, channels_fast, relu=relu)
    _launch(f"fft_inverse_tiles_{tiles.size}", tiles, spectra, spectra, images, bias, numbers)


def _launch(kernel: str, tiles: Tiling, spectra: Any, *arguments: Any) -> None:
    """A block has FFT_THREADS rows of tiles, `size` complex numbers each."""
    items, rows = spectra.shape[2] * spectra.shape[3], tiles.size // 2
    shared = FFT_THREADS * tiles.size * 8
    launch(kernel, -(-items // (FFT_THREADS // rows)), *arguments, shared_bytes=shared)


def _tiles(
    images: tuple[int, ...], spectra: Any, tiles: Tiling, origin: Pair, extent: Pair, channels_fast: bool,
    relu: bool = False, scale: float = 0.0,
) -> tuple[Any, ...]:  # fmt: skip
    """The struct FftTiles of kernels/fft_tiles.cu."""
    N, C, H, W = images
    splits, _, rows, width, _ = spectra.shape
    counts = C, N * tiles.of_image, int(channels_fast), H, W
    divisors = divisor(width), divisor(tiles.of_image), divisor(tiles.grid[1])
    return *counts, *origin, *tiles.step, *extent, rows * width, splits, int(relu), divisors, scale


def _strided(operation: str, array: Any, tile: int) -> tuple[Any, tuple[int, ...]]:
    """(array, strides in elements); copied if strides are no whole elements."""
    if any(stride % array.itemsize for stride in array.strides):
        array = devices.contiguous(array)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    reach = sum((n + tile) * abs(s) for n, s in zip(array.shape[2:], strides[2:], strict=True))
    if reach >= 2**31:
        raise ValueError(
            f"{operation}: planes of shape {array.shape[2:]} and strides {strides[2:]} span {reach} elements; kernels "
            "count fewer than 2^31: copy the array to a contiguous one"
        )
    return array, strides


PRODUCT_TILES = {"128x64": (128, 64), "32x32": (32, 32)}


def _product_tile(rows: int, columns: int) -> str:
    """The kernel of a product: large tiles, unless they would be mostly empty."""
    large, small = (m * n * _product_tiles(name, rows, columns) for name, (m, n) in PRODUCT_TILES.items())
    return "128x64" if large <= 1.5 * small else "32x32"


def _product_tiles(name: str, rows: int, columns: int) -> int:
    """Tiles of one bin."""
    m, n = PRODUCT_TILES[name]
    return -(-rows // m) * -(-columns // n)


def _multiply(a: Any, b: Any, c: Any, add: bool = False) -> None:
    """c (splits,bins,n,m) = Σ_k a (bins,k,m) · conj(b (bins,k,n)), added to c if `add`."""
    _, bins, terms, rows, _ = a.shape
    columns, splits = b.shape[3], c.shape[0]
    name = _product_tile(rows, columns)
    tiles = _product_tiles(name, rows, columns)
    prefix = "" if arithmetic_of("fft", c) == "float32" else "float32_tensor_"
    launch(f"fft_multiply_{prefix}{name}", tiles * bins * splits, a, b, c,
           (rows, columns, terms, bins, c.shape[2], splits, -(-terms // splits), int(add)))  # fmt: skip
