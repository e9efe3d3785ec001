"""wgmma, written out: where its operands lie in shared memory, and which element a lane's register holds."""

from __future__ import annotations

import numpy as np

from tests import tensor_core

SWIZZLES = {128: 3, 64: 2, 32: 1, 0: 0}  # bytes of a row, and how many bits of its number are added to its chunks'
LANES = np.arange(128)


def swizzle(address: np.ndarray, swizzle_bytes: int) -> np.ndarray:
    """Bits 7, 8, 9 of an address, as many as the swizzle has, onto bits 4, 5, 6 by exclusive or."""
    return address ^ (address >> 7 & (1 << SWIZZLES[swizzle_bytes]) - 1) << 4


def addresses(
    rows: int, form: str, mn_major: bool, swizzle_bytes: int, start: int, leading: int, stride: int
) -> np.ndarray:
    """(rows, terms): the byte of every element of an operand (PTX ISA, canonical layouts of wgmma)."""
    size = 4 if form == "tf32" else 2
    r, k = np.arange(rows)[:, None], np.arange(32 // size)[None, :]
    width, none = swizzle_bytes or 16, swizzle_bytes == 0
    if not mn_major:
        byte = r // 8 * stride + r % 8 * width
        byte = byte + (k * size // 16 * leading + k * size % 16 if none else k * size)
    elif none:
        byte = r // 8 * stride + k // 8 * leading + k % 8 * 16 + r % 8 * size
    else:
        in_row = width // size
        byte = r // in_row * leading + k // 8 * stride + k % 8 * width + r % in_row * size
    return swizzle(start + byte, swizzle_bytes)


def element_bits(memory: np.ndarray, form: str, at: np.ndarray) -> np.ndarray:
    """The elements at these bytes of a memory of words, as words or halves."""
    if form == "tf32":
        return memory[at // 4]
    return memory.view(np.uint16)[at // 2]


def values(form: str, bits: np.ndarray) -> np.ndarray:
    """The numbers that elements are."""
    if form == "tf32":
        return (bits & 0xFFFFE000).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if form == "f16" else (bits.astype(np.uint32) << 16).view(np.float32)


def d_rows(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of every register of d, each (128, columns / 2)."""
    i, warp, lane = np.arange(columns // 2), LANES[:, None] // 32, LANES[:, None] % 32
    return 16 * warp + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2


def a_registers(form: str, a: np.ndarray) -> np.ndarray:
    """(128,4) registers of the bits of a (64,terms)."""
    warp, lane, i = LANES[:, None] // 32, LANES[:, None] % 32, np.arange(4)
    rows = 16 * warp + lane // 4 + 8 * (i % 2)
    if form == "tf32":
        return a[rows, lane % 4 + 4 * (i // 2)]
    first = 2 * (lane % 4) + 8 * (i // 2)
    return a[rows, first].astype(np.uint32) | a[rows, first + 1].astype(np.uint32) << 16


def product(form: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c + a · b as the hardware cuts it off: a (64,terms), b (N,terms), c (64,N) values."""
    smallest = -14 if form == "f16" else -126
    rows = [[tensor_core.dot(x, y, z, 25, 16, smallest) for y, z in zip(b, line, strict=True)] for x, line in zip(a, c)]
    return np.array(rows, np.float32)


def store_matrices(registers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(6,32,4) words: what stmatrix x4, x2, x1, then transposed, leaves of registers (32,4) over 0xFFFF."""
    result = np.full((6, 32, 8), 0xFFFF, np.uint16)
    halves = registers.view(np.uint16).reshape(32, 4, 2)
    for form, matrices in enumerate((4, 2, 1)):
        for j in range(matrices):
            matrix = np.empty((8, 8), np.uint16)
            for lane in range(32):
                matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2] = halves[lane, j]
            result[form, rows[8 * j : 8 * j + 8]] = matrix
            result[3 + form, rows[8 * j : 8 * j + 8]] = matrix.T
    return result.view(np.uint32)
