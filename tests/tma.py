"""What TMA copies, element by element as PTX ISA 5.5 says: the reference of the simulator's loads and stores."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpucnn.bench.golden_tma import MARGIN, SENTINEL, Case


def round_tf32(x: np.ndarray) -> np.ndarray:
    """To 10 bits of fraction, to nearest, ties to even; NaN and infinities stay what they are."""
    bits = x.view(np.uint32).astype(np.uint64)
    down, rest = bits & ~np.uint64(0x1FFF), bits & np.uint64(0x1FFF)
    up = (rest > 0x1000) | ((rest == 0x1000) & (down & np.uint64(0x2000) != 0))
    rounded = (down + np.where(up, 0x2000, 0).astype(np.uint64)).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(x), rounded, x)


def outside(case: Case) -> Any:
    """What an element outside the array arrives as."""
    if not case.options.get("nan"):
        return case.array.dtype.type(0)
    bits = {2: 0x7FFF, 4: 0x7FFFFFFF}[case.array.dtype.itemsize]
    return np.array(bits, f"u{case.array.dtype.itemsize}").view(case.array.dtype)[()]


def box_elements(case: Case) -> list[list[tuple[int, ...]]]:
    """Rows of a tiled copy: the array's indices, outermost first, of every element."""
    box = case.options["box"]
    steps = (1, *(case.options.get("element_strides") or (1,) * len(box))[1:])
    ranges = [range(at, at + size, step) for at, size, step in zip(case.at, box, steps, strict=True)]
    return [[(*outer, c) for c in ranges[0]] for outer in itertools.product(*reversed(ranges[1:]))]


def corners(case: Case) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(first, last, step) along (h, w) of the walk, from the convolution: one pixel for each of its outputs."""
    o = case.options
    first, last, step = [], [], []
    for axis in range(2):
        size, (before, after), taps = case.array.shape[1 + axis], o["padding"][axis], o["filter"][axis]
        dilation, stride = o.get("dilation", (1, 1))[axis], o.get("stride", (1, 1))[axis]
        if case.kind == "im2col_backward":  # an output for each input of the convolution
            first.append(before - (taps - 1) * dilation)
            outputs = o["size"][axis]
        else:
            first.append(-before)
            outputs = (size + before + after - (taps - 1) * dilation - 1) // stride + 1
        last.append(first[-1] + (outputs - 1) * stride)
        step.append(stride)
    return tuple(first), tuple(last), tuple(step)


def walk_elements(case: Case) -> list[list[tuple[int, ...]]]:
    """Rows of an im2col copy, one a pixel."""
    c, w, h, n = case.at
    first, last, step = corners(case)
    rows = []
    for _ in range(case.options["pixels"]):
        pixel = (n, h + case.offsets[1], w + case.offsets[0])
        rows.append([(*pixel, c + i) for i in range(case.options["channels"])])
        w += step[1]
        if w > last[1]:
            w, h = first[1], h + step[0]
        if h > last[0]:
            h, n = first[0], n + 1
    return rows


def elements(case: Case) -> list[list[tuple[int, ...]]]:
    return box_elements(case) if case.kind == "tiled" else walk_elements(case)


def inside(array: np.ndarray, index: tuple[int, ...]) -> bool:
    return all(0 <= i < size for i, size in zip(index, array.shape, strict=True))


def places(case: Case) -> Iterator[tuple[tuple[int, ...], int]]:
    """(index in the array, byte in shared memory) of every element of the copy."""
    item, swizzle = case.array.dtype.itemsize, case.options.get("swizzle", 0)
    byte = case.place
    for row in elements(case):
        for index in row:
            exchanged = (byte // 128) % (swizzle // 16) if swizzle else 0
            yield index, byte ^ exchanged * 16
            byte += item


def loaded(case: Case) -> np.ndarray:
    """All bytes of shared memory after a load."""
    values = round_tf32(case.array) if case.options.get("tf32") else case.array
    item = case.array.dtype.itemsize
    found = list(places(case))
    shared = np.full(case.place + len(found) * item + MARGIN, SENTINEL, np.uint8)
    for index, byte in found:
        value = values[index] if inside(values, index) else outside(case)
        shared[byte : byte + item] = np.frombuffer(np.array(value, values.dtype).tobytes(), np.uint8)
    return shared[: len(shared) // 4 * 4]


def stored(case: Case) -> np.ndarray:
    """The array after a store."""
    assert case.content is not None
    result, item = case.array.copy(), case.array.dtype.itemsize
    for index, byte in places(case):
        if inside(result, index):
            result[index] = np.resize(case.content, byte + item)[byte:].view(result.dtype)[0]
    return result
