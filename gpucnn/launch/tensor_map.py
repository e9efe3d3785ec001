"""Tensor maps: what the tensor memory accelerator (TMA, sm_90) is told about an array, as an argument of a kernel.

A `TensorMap` stands where a kernel declares `TENSOR_MAP name`. Everything in it is in the order of the kernel's
coordinates: the innermost dimension, whose elements lie side by side, comes first. Limits are those of the CUDA driver
API (cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col) and PTX ISA 5.5, "Tensors".
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np

from gpucnn import device as devices

BYTES = 128
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}  # CUtensorMapSwizzle
UNSIGNED = {1: 0, 2: 1, 4: 2, 8: 4}  # CUtensorMapDataType by bytes: nothing is rounded
FLOATS = {"float16": 6, "float32": 7, "float64": 8, "bfloat16": 9}
TF32 = 11
LIBRARY = "libcuda.so.1"
PROMOTION_128B = 2
LAST_DRIVER_WITH_SMALL_TENSOR_FAULT, SMALL_TENSOR_BYTES, SMALL_TENSOR_BIT = 13010, 131_072, 21
CORNERS = {3: (-(2**15), 2**15 - 1), 4: (-128, 127), 5: (-16, 15)}  # of an im2col map, by rank


@dataclass(frozen=True, eq=False)
class TensorMap:
    """A tensor map of `array`; `tiled`, `im2col` and `im2col_backward` make it. Innermost dimension first.

    - dims: elements of each dimension; strides: bytes of each dimension but the first
    - box: elements that one copy spans, of a map of the kind tiled; of which each element_strides[i]-th is copied
    - lower, upper: (W, H) where the walk over an image has its first pixel, and its last as seen from the image's last
    - channels, pixels: what one copy by a map of the kind im2col brings
    - swizzle: bytes of a row in shared memory whose 16-byte groups are exchanged: 128, 64 or 32; 0 for none
    - tf32: round float32 to tf32, to nearest even, while loading
    - nan: what is outside the array arrives as NaN, not as zeros
    - stores: the kernel writes the array by the map
    Raises ValueError for what the hardware has no encoding of, naming the value and the rule.
    """

    array: Any = field(repr=False)
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    element_strides: tuple[int, ...]
    box: tuple[int, ...] = ()
    lower: tuple[int, ...] = ()
    upper: tuple[int, ...] = ()
    channels: int = 0
    pixels: int = 0
    swizzle: int = 0
    tf32: bool = False
    nan: bool = False
    stores: bool = False
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", "tiled" if self.box else "im2col")
        _check(self)

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def copy_bytes(self) -> int:
        """Bytes that every load by the map counts at its barrier, also where it reaches past the array."""
        count = self.channels * self.pixels
        if self.kind == "tiled":
            steps = (1, *self.element_strides[1:])
            count = int(np.prod([-(-size // step) for size, step in zip(self.box, steps, strict=True)]))
        return count * self.array.dtype.itemsize

    def encode(self) -> np.ndarray:
        """The map as the CUDA driver encodes it: 128 bytes in an array of one element, as CuPy passes by value."""
        return _encode(self._key())

    def status(self) -> int:
        """The driver's answer to the encoding, a CUresult: 0, or 1 for what it has none of."""
        return _ask_driver(self._key())[0]

    def simulated(self) -> bytes:
        """The map as the simulator reads it (csrc/simulator/tma.cpp)."""
        pad = (0,) * (5 - self.rank)
        corners = [(*corner, 0, 0, 0)[:3] for corner in (self.lower, self.upper)]
        packed = struct.pack(
            "<8sQ4Q5I5H2H3h3h5B5B",
            b"simulate",
            devices.address(self.array),
            *(*self.strides, 0, 0, 0, 0)[:4],
            *(size - 1 for size in self.dims),
            *pad,
            *(self.box or (1,) * self.rank),
            *pad,
            self.channels,
            self.pixels,
            *corners[0],
            *corners[1],
            *self.element_strides,
            *pad,
            self.rank,
            self.kind == "im2col",
            self._type(),
            SWIZZLES[self.swizzle],
            self.nan | 2 * self.stores,
        )
        return packed.ljust(BYTES, b"\0")

    def _type(self) -> int:
        if self.tf32:
            return TF32
        return FLOATS[self.array.dtype.name] if self.nan else UNSIGNED[self.array.dtype.itemsize]

    def _key(self) -> tuple[Any, ...]:
        """All that the encoding depends on."""
        return (devices.address(self.array), self._type(), self.array.dtype.itemsize, self.dims, self.strides,
                self.element_strides, self.box, self.lower, self.upper, self.channels, self.pixels, self.swizzle,
                self.nan)  # fmt: skip


def tiled(
    array: Any,
    box: Sequence[int],
    swizzle: int = 0,
    *,
    element_strides: Sequence[int] = (),
    tf32: bool = False,
    nan: bool = False,
    stores: bool = False,
) -> TensorMap:
    """A map for copies of boxes of an array of any strides whose last dimension lies side by side.

    - box: elements, innermost first as the kernel's coordinates; box[0] is the array's last dimension
    - swizzle, element_strides, tf32, nan, stores: as of `TensorMap`
    Raises ValueError as `TensorMap` does.
    """
    dims, strides = _layout(array)
    steps = tuple(element_strides) or (1,) * len(dims)
    return TensorMap(array, dims, strides, steps, tuple(box), swizzle=swizzle, tf32=tf32, nan=nan, stores=stores)


def im2col(
    x: Any,
    *,
    filter: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    channels: int,
    pixels: int,
    swizzle: int = 0,
    tf32: bool = False,
) -> TensorMap:
    """A map for the inputs of a convolution: copies bring a tap's `channels` of `pixels` outputs, as [pixel][channel].

    Row m = (n, p, q) of the outputs starts at {c, q·stride_w − left, p·stride_h − top, n}; tap (r, s) has the offsets
    (s·dilation_w, r·dilation_h). The walk has exactly the outputs' P rows of Q pixels.

    - x: an array (N, H, W, C) whose channels lie side by side
    - filter, stride, dilation: (h, w); padding: ((top, bottom), (left, right))
    Raises ValueError as `TensorMap` does, and where a filter does not fit.
    """
    dims, strides = _layout(x)
    _require_rank(dims, 4)
    lower, upper = [], []
    for axis in (1, 0):  # innermost first: w, h
        before, after = padding[axis]
        size = dims[2 - axis]
        reach = (filter[axis] - 1) * dilation[axis]
        steps = size + before + after - reach - 1
        _require(steps >= 0, f"a filter that spans {reach + 1} does not fit {size} with padding {padding[axis]}")
        lower.append(-before)
        upper.append(steps // stride[axis] * stride[axis] + 1 - size - before)
    _require_offsets(filter, dilation)
    return TensorMap(x, dims, strides, (1, stride[1], stride[0], 1), lower=tuple(lower), upper=tuple(upper),
                     channels=channels, pixels=pixels, swizzle=swizzle, tf32=tf32)  # fmt: skip


def im2col_backward(
    dy: Any,
    *,
    size: tuple[int, int],
    filter: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int] = (1, 1),
    channels: int,
    pixels: int,
    swizzle: int = 0,
    tf32: bool = False,
) -> TensorMap:
    """The same for the gradient of a convolution of stride 1 by its inputs: copies bring dy's `channels` for `pixels`.

    Row (n, h, w) of the inputs starts at {k, w + lower_w, h + lower_h, n} with lower_h = top − (R − 1)·dilation_h; tap
    (r, s) has the offsets ((S − 1 − s)·dilation_w, (R − 1 − r)·dilation_h).

    - dy: an array (N, P, Q, K) whose channels lie side by side
    - size: (H, W) of the inputs
    Raises ValueError as `im2col` does, and where `size` is not that of the inputs.
    """
    dims, strides = _layout(dy)
    _require_rank(dims, 4)
    lower, upper = [], []
    for axis in (1, 0):
        before, after = padding[axis]
        outputs = dims[2 - axis]
        reach = (filter[axis] - 1) * dilation[axis]
        wanted = size[axis] + before + after - reach
        _require(
            outputs == wanted,
            f"dy has {outputs} along {'hw'[axis]}; inputs of {size[axis]} with padding {padding[axis]} and a filter "
            f"that spans {reach + 1} give {wanted}",
        )
        lower.append(before - reach)
        upper.append(lower[-1] + size[axis] - outputs)
    _require_offsets(filter, dilation)
    return TensorMap(dy, dims, strides, (1, 1, 1, 1), lower=tuple(lower), upper=tuple(upper),
                     channels=channels, pixels=pixels, swizzle=swizzle, tf32=tf32)  # fmt: skip


def im2col_window(
    x: Any, *, first: tuple[int, int], size: tuple[int, int], reach: tuple[int, int], channels: int, pixels: int,
    swizzle: int = 0,
) -> TensorMap:  # fmt: skip
    """The same for any windows side by side: row (n, i, j) starts at {c, first_w + j, first_h + i, n}.

    - first: (h, w) of a window's first pixel; size: how many (rows, columns) of windows; reach: the largest offsets
    Raises ValueError as `TensorMap` does.
    """
    dims, strides = _layout(x)
    _require_rank(dims, 4)
    _require_offsets((reach[0] + 1, reach[1] + 1), (1, 1))
    lower, upper = first[::-1], tuple(first[axis] + size[axis] - dims[2 - axis] for axis in (1, 0))
    return TensorMap(x, dims, strides, (1, 1, 1, 1), lower=lower, upper=upper, channels=channels, pixels=pixels,
                     swizzle=swizzle)  # fmt: skip


def _layout(array: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(dims, strides) of an array, innermost first; a dimension of one element gets a stride that is allowed."""
    _require(array.ndim >= 1, "the array has no dimension")
    item = array.dtype.itemsize
    dims = tuple(int(size) for size in array.shape[::-1])
    given = array.strides[::-1]
    _require(dims[0] == 1 or given[0] == item,
             f"the last dimension's stride is {given[0]} bytes; its elements must lie side by side")  # fmt: skip
    strides: list[int] = []
    for i in range(1, len(dims)):
        packed = dims[0] * item if i == 1 else strides[-1] * dims[i - 1]
        strides.append(given[i] if dims[i] > 1 else -(-packed // 16) * 16)
    return dims, tuple(map(int, strides))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(f"TensorMap: {message}")


def _require_range(name: str, values: Sequence[int], low: int, high: int) -> None:
    for i, value in enumerate(values):
        _require(low <= value <= high, f"{name}[{i}] is {value}; it must be from {low} to {high}")


def _require_rank(dims: tuple[int, ...], rank: int) -> None:
    _require(len(dims) == rank, f"the array has {len(dims)} dimensions; im2col takes {rank}")


def _require_offsets(filter: tuple[int, int], dilation: tuple[int, int]) -> None:
    for name, taps, step in zip("hw", filter, dilation, strict=True):
        reach = (taps - 1) * step
        _require(reach < 255, f"the filter's last tap has the offset {reach} along {name}; it must be from 0 to 254")


def _check(m: TensorMap) -> None:
    item = m.array.dtype.itemsize
    _require(item in UNSIGNED, f"elements of {m.array.dtype} have {item} bytes; they may have 1, 2, 4 or 8")
    _require(m.swizzle in SWIZZLES, f"swizzle is {m.swizzle}; it must be 0, 32, 64 or 128")
    address = devices.address(m.array)
    _require(address % 16 == 0, f"the array's address is {address:#x}; it must be a multiple of 16")
    _require(not m.tf32 or m.array.dtype.name == "float32", f"tf32 is for float32, not {m.array.dtype}")
    _require(not m.nan or m.array.dtype.name in FLOATS, f"nan is for floating point, not {m.array.dtype}")
    least = 3 if m.kind == "im2col" else 1
    _require(least <= m.rank <= 5, f"rank is {m.rank}; it must be from {least} to 5 for a map of the kind {m.kind}")
    for name, values, count in (("strides", m.strides, m.rank - 1), ("element_strides", m.element_strides, m.rank)):
        _require(len(values) == count, f"{name} has {len(values)} values; a map of rank {m.rank} takes {count}")
    _require_range("dims", m.dims, 1, 2**32)
    for i, stride in enumerate(m.strides):
        _require(stride % 16 == 0, f"strides[{i}] is {stride} bytes; it must be a multiple of 16")
    _require_range("strides", m.strides, 16, 2**40 - 16)
    _require_range("element_strides", m.element_strides, 1, 8)
    (_check_box if m.kind == "tiled" else _check_walk)(m)


def _check_box(m: TensorMap) -> None:
    _require(len(m.box) == m.rank, f"box has {len(m.box)} values; a map of rank {m.rank} takes {m.rank}")
    _require_range("box", m.box, 1, 256)
    _check_row("box[0]", m.box[0], m)
    plain = m.element_strides == (1,) * m.rank and not m.tf32 and not m.nan
    _require(plain or not m.stores, "a map that stores takes no element_strides, tf32 or nan")


def _check_walk(m: TensorMap) -> None:
    _require(not m.stores, "stores is for maps of the kind tiled")
    for name, values in (("lower", m.lower), ("upper", m.upper)):
        count = m.rank - 2
        _require(len(values) == count, f"{name} has {len(values)} values; a map of rank {m.rank} takes {count}")
        _require_range(name, values, *CORNERS[m.rank])
    for size, low, high in zip(m.dims[1:-1], m.lower, m.upper, strict=True):
        _require(low <= size - 1 + high, f"the walk from {low} to {size - 1 + high} has no pixel")
    _require_range("channels, pixels", (m.channels, m.pixels), 1, 1024)
    _require(m.channels <= 256, f"channels is {m.channels}; it must be from 1 to 256")
    _check_row("channels", m.channels, m)


def _check_row(name: str, count: int, m: TensorMap) -> None:
    row = count * m.array.dtype.itemsize
    _require(row % 16 == 0, f"{name} is {count}: {row} bytes; they must be a multiple of 16")
    # Where rows that are shorter than a swizzle lie is not documented.
    _require(m.swizzle in (0, row), f"{name} is {count}: {row} bytes; with this swizzle they must be {m.swizzle}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL(LIBRARY)


@cache
def _driver_version() -> int:
    version = ctypes.c_int()
    _driver().cuDriverGetVersion(ctypes.byref(version))
    return version.value


def _aligned() -> np.ndarray:
    """128 bytes at a multiple of 128, as the driver's header declares them; Python's own objects lie anywhere."""
    memory = np.zeros(2 * BYTES, np.uint8)
    start = -memory.ctypes.data % BYTES
    return memory[start : start + BYTES]


@lru_cache(maxsize=4096)
def _encode(key: tuple[Any, ...]) -> np.ndarray:
    """The driver's encoding; it needs a current context, which the array's own device has."""
    (_, _, item, dims, strides, _, box, lower, upper, channels, pixels, swizzle, _) = key
    status, found = _ask_driver(key)
    if status:
        name = "cuTensorMapEncodeTiled" if box else "cuTensorMapEncodeIm2col"
        raise RuntimeError(f"{name}: error {status} for dims {dims}, strides {strides}, box {box}, corners {lower} "
                           f"{upper}, {channels} channels, {pixels} pixels, swizzle {swizzle}")  # fmt: skip
    last = sum((size - 1) * stride for size, stride in zip(dims, (item, *strides), strict=True))
    if last + item < SMALL_TENSOR_BYTES and _driver_version() <= LAST_DRIVER_WITH_SMALL_TENSOR_FAULT:
        found.view(np.uint64)[1] &= ~np.uint64(1 << SMALL_TENSOR_BIT)
    return found.view(f"V{BYTES}")


def _ask_driver(key: tuple[Any, ...]) -> tuple[int, np.ndarray]:
    """(CUresult, encoding)."""
    (address, kind, _, dims, strides, steps, box, lower, upper, channels, pixels, swizzle, nan) = key
    found = _aligned()
    rank = len(dims)
    head = (ctypes.c_void_p(found.ctypes.data), ctypes.c_int(kind), ctypes.c_uint32(rank), ctypes.c_void_p(address),
            (ctypes.c_uint64 * rank)(*dims), (ctypes.c_uint64 * max(1, rank - 1))(*strides))  # fmt: skip
    tail = ((ctypes.c_uint32 * rank)(*steps), ctypes.c_int(0), ctypes.c_int(SWIZZLES[swizzle]),
            ctypes.c_int(PROMOTION_128B), ctypes.c_int(nan))  # fmt: skip
    if box:
        middle: tuple[Any, ...] = ((ctypes.c_uint32 * rank)(*box),)
        return _driver().cuTensorMapEncodeTiled(*head, *middle, *tail), found
    corners = ctypes.c_int * max(0, rank - 2)
    middle = (corners(*lower), corners(*upper), ctypes.c_uint32(channels), ctypes.c_uint32(pixels))
    return _driver().cuTensorMapEncodeIm2col(*head, *middle, *tail), found
