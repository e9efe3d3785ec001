"""Programs of wgmma and stmatrix for golden maps, which only Hopper GPUs can run: operands in every layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

WORDS = 10240  # of shared memory, as tests/kernels/golden_wgmma.cu has it
STEPS = 4
SWIZZLES = (128, 64, 32)
# Operands that begin at no multiple of 1024 bytes, but of their swizzle's pattern, 8 rows; without a swizzle, of 16.
SHIFTED = (("bf16_8_kk", 64, 512), ("bf16_8_kk", 32, 256), ("bf16_8_mm", 64, 1536), ("bf16_8_kk", 0, 16),
           ("bf16_8_mm", 0, 48))  # fmt: skip


class Operand(NamedTuple):
    """Where an operand begins in shared memory, its two distances, and how far the next step is, in bytes."""

    start: int
    leading: int
    stride: int
    step: int


class Layout(NamedTuple):
    """Two operands of a kernel golden_wgmma_<name>: the name has type, columns and majors, as bf16_64_km."""

    name: str
    a: Operand
    b: Operand
    swizzle: int
    steps: int


def size_of(form: str) -> int:
    return 4 if form == "tf32" else 2


def encoded(form: str, numbers: np.ndarray) -> np.ndarray:
    """Words of 32 bits that hold numbers of a type which has them exactly."""
    if form == "tf32":
        return numbers.view(np.uint32)
    if form == "f16":
        return numbers.astype(np.float16).view(np.uint32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint32)


def integers(form: str, seed: int) -> np.ndarray:
    """A memory full of integers between −9 and 9."""
    numbers = np.random.default_rng(seed).integers(-9, 10, WORDS * 4 // size_of(form)).astype(np.float32)
    return encoded(form, numbers)


def packed(name: str, swizzle: int) -> Layout:
    """Slabs as wide as the swizzle, one after the other, that hold as many steps as fit."""
    form, columns, majors = name.split("_")
    a, end, room_a = _packed(64, form, majors[0] == "m", swizzle, 0)
    b, end, room_b = _packed(int(columns), form, majors[1] == "m", swizzle, -(-end // 1024) * 1024)
    assert end <= 4 * WORDS, (name, swizzle)
    return Layout(name, a, b, swizzle, min(room_a, room_b))


def _packed(rows: int, form: str, mn_major: bool, swizzle: int, start: int) -> tuple[Operand, int, int]:
    """An operand, its end, and the steps it has room for."""
    terms, width = 32 // size_of(form), swizzle or 16
    if not mn_major:
        if swizzle:  # a step is 32 bytes further in the same rows
            return Operand(start, 16, 8 * width, 32), start + rows * width, swizzle // 32
        return Operand(start, rows * 16, 128, 2 * rows * 16), start + STEPS * 2 * rows * 16, STEPS
    steps = 1 if rows > 64 else STEPS
    depth = terms * steps
    if swizzle:  # a step is two groups of eight terms further
        slabs = max(1, rows * size_of(form) // width)
        return Operand(start, depth * width, 8 * width, 16 * width), start + slabs * depth * width, steps
    return Operand(start, 128, depth * 16, 256), start + rows // 8 * depth * 16, steps


def programs() -> Iterator[tuple[str, str, tuple[Any, ...], tuple[int, ...], str]]:
    """(name, kernel, inputs, shape and dtype of the output): integers in every layout, any bits, stmatrix."""
    generator = np.random.default_rng(10)
    for kernel in ("bf16_64_kk", "bf16_8_mm", "bf16_64_mk", "bf16_128_km", "f16_64_mm", "tf32_8_kk", "bf16_200_kk"):
        for swizzle in SWIZZLES:
            form, columns, _ = kernel.split("_")
            layout, shape = packed(kernel, swizzle), (128, int(columns) // 2)
            c = generator.integers(-999, 1000, shape).astype(np.float32)
            inputs = (integers(form, swizzle), c, *layout[1:], 1)
            yield f"wgmma_{kernel}_{swizzle}", f"golden_wgmma_{kernel}", inputs, shape, "float32"
    for kernel, swizzle, start in SHIFTED:
        layout = packed(kernel, swizzle)
        a, b = (operand._replace(start=operand.start + start) for operand in (layout.a, layout.b))
        c = generator.integers(-999, 1000, (128, 4)).astype(np.float32)
        inputs = (integers("bf16", start), c, a, b, swizzle, layout.steps, 1)
        yield f"wgmma_{kernel}_{swizzle}_at_{start}", f"golden_wgmma_{kernel}", inputs, (128, 4), "float32"
    for form in ("bf16", "f16", "tf32"):
        words = generator.integers(0, 1 << 32, WORDS, np.uint32)
        c = generator.standard_normal((128, 4), np.float32)
        layout = packed(f"{form}_8_kk", 128)._replace(steps=1)
        yield f"wgmma_{form}_bits", f"golden_wgmma_{form}_8_kk", (words, c, *layout[1:], 1), (128, 4), "float32"
    registers, rows = generator.integers(0, 1 << 32, (32, 4), np.uint32), generator.permutation(32).astype(np.int32)
    yield "store_matrices", "golden_store_matrices", (registers, rows), (6, 32, 4), "uint32"
