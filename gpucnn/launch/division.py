"""Divisors for kernels/division.cuh."""

from __future__ import annotations


def divisor(value: int) -> tuple[int, int, int]:
    """(d, magic, shift) with n // d == ((n·magic >> 32) + n) >> shift for every n from 0 to 2^31 − 1; d below 2^31."""
    shift = (value - 1).bit_length()
    return value, ((1 << 32) * ((1 << shift) - value)) // value + 1, shift
