"""What numbers must be, for settings and for the command line's options."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What a number must be: int or float, and a condition, in words too."""

    kind: type
    words: str
    holds: Callable[[Any], bool]

    def accepts(self, value: Any) -> bool:
        """Whether `value` is of the kind (an int may stand for a float), finite and within the condition."""
        kinds = (int,) if self.kind is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value) and self.holds(value)

    def parse(self, text: str) -> Any:
        """The number in `text`; raises ValueError, naming text and rule, unless there is one that is accepted."""
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        if not self.accepts(value):
            raise ValueError(f"{text!r} is not {self.words}")
        return value


COUNT = Rule(int, "a whole number of at least 1", lambda value: value >= 1)
POSITIVE = Rule(float, "a finite number above 0", lambda value: value > 0)
NOT_NEGATIVE = Rule(float, "a finite number of at least 0", lambda value: value >= 0)
