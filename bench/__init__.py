"""Benchmarks: every figure that gpucnn quotes is printed by a command in here."""
