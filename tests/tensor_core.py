"""What tensor cores compute, written out with exact rational numbers: the reference of the simulator's mma.sync."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np

NAN = np.array(0x7FFFFFFF, np.uint32).view(np.float32)
LANES = np.arange(32)
GROUP, MEMBER = LANES // 4, LANES % 4


def mma(form: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, fraction: int = 25, step: int = 16) -> np.ndarray:
    """d of every problem, as the lanes hold it: a (n,32,4), b (n,32,2) registers, c (n,32,4)."""
    left, right = values(form, a), values(form, b)
    terms = 8 if form == "tf32" else 16
    smallest = -14 if form == "f16" else -126
    i, j = np.arange(terms // 2), np.arange(terms // 4)
    if form == "tf32":
        rows, a_terms, b_terms = GROUP[:, None] + 8 * (i % 2), MEMBER[:, None] + 4 * (i // 2), MEMBER[:, None] + 4 * j
    else:
        rows = GROUP[:, None] + 8 * (i // 2 % 2)
        a_terms, b_terms = (2 * MEMBER[:, None] + n % 2 + 8 * (n // s) for n, s in ((i, 4), (j, 2)))
    c_rows = GROUP[:, None] + 8 * (np.arange(4) // 2)
    c_columns = 2 * MEMBER[:, None] + np.arange(4) % 2
    d = np.empty_like(c)
    for n in range(len(a)):
        A, B = np.empty((16, terms), np.float32), np.empty((terms, 8), np.float32)
        A[rows, a_terms], B[b_terms, GROUP[:, None]] = left[n], right[n]
        for lane in range(32):
            for r in range(4):
                row, column = A[c_rows[lane, r]], B[:, c_columns[lane, r]]
                d[n, lane, r] = dot(row, column, c[n, lane, r], fraction, min(step, terms), smallest)
    return d


def values(form: str, registers: np.ndarray) -> np.ndarray:
    """The numbers in registers of 32 bits, the lower half first."""
    if form == "tf32":
        return (registers & 0xFFFFE000).view(np.float32)
    halves = registers.view(np.uint16)
    return halves.view(np.float16).astype(np.float32) if form == "f16" else (halves.astype(np.uint32) << 16).view("f4")


def dot(a: np.ndarray, b: np.ndarray, c: np.float32, fraction: int, step: int, smallest: int) -> np.float32:
    """c + a · b, `step` terms at a time, each cut off below 2**-fraction of the largest term's power of 2."""
    with np.errstate(all="ignore"):
        plain = np.float64(c) + (a.astype(np.float64) * b).sum()
    if not np.isfinite([*a, *b, c]).all():
        return NAN if np.isnan(plain) else np.float32(plain)
    for first in range(0, len(a), step):
        pairs = zip(a[first : first + step].tolist(), b[first : first + step].tolist(), strict=True)
        terms = [(Fraction(float(c)), exponent(float(c), -126))] if c else []
        terms += [
            (Fraction(x) * Fraction(y), exponent(x, smallest) + exponent(y, smallest)) for x, y in pairs if x and y
        ]
        if not terms:
            return np.float32(0)
        unit = Fraction(2) ** (max(e for _, e in terms) - fraction)
        c = cut_off(sum(truncated(value / unit) for value, _ in terms) * unit)
    return c


def exponent(value: float, smallest: int) -> int:
    return max(int(np.frexp(value)[1]) - 1, smallest)


def truncated(value: Fraction) -> int:
    return floor(abs(value)) * (1 if value > 0 else -1)


def cut_off(value: Fraction) -> np.float32:
    """The float32 between 0 and the value that is nearest to it."""
    if value == 0:
        return np.float32(0)
    magnitude = abs(value)
    power = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    power -= magnitude < Fraction(2) ** power
    unit = Fraction(2) ** (max(power, -126) - 23)
    result = floor(magnitude / unit) * unit * (1 if value > 0 else -1)
    with np.errstate(over="ignore"):
        return np.float32(float(result))


def round_tf32(values: np.ndarray) -> np.ndarray:
    """Bits of the nearest number with ten bits of fraction, ties away from zero."""
    bits = values.view(np.uint32).astype(np.uint64)
    special = (bits & 0x7F800000) == 0x7F800000
    return ((np.where(special, bits, bits + 0x1000)) & 0xFFFFE000).astype(np.uint32)


def load_matrices(halves: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Registers (2,32,7) of ldmatrix x4, x2 and x1, then transposed, of 32 rows of 8 halves in the order `rows`."""
    matrices = halves.view(np.uint16).reshape(32, 8)[rows].reshape(4, 8, 8)
    result = np.empty((2, 32, 7), np.uint32)
    for transposed in (0, 1):
        pairs = (matrices.transpose(0, 2, 1) if transposed else matrices).reshape(4, 8, 4, 2)
        words = np.ascontiguousarray(pairs).view(np.uint32)[..., 0]  # (matrix, group, member)
        registers = words[:, GROUP, MEMBER].T
        result[transposed] = registers[:, [0, 1, 2, 3, 0, 1, 0]]
    return result
