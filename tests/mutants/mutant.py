"""What a planted fault is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """In `file`, the text `old`, which stands there once, becomes `new`; `test` must then fail.

    - test: a file in tests/, or tests of it: "test_relu.py", "test_relu.py -k sound"
    """

    name: str
    file: str
    old: str
    new: str
    test: str
