"""Precisions: the arithmetic of matrix products and convolutions. The one place for their names.

| name           | set by               | products of           | sums    | relative error          |
|----------------|----------------------|-----------------------|---------|-------------------------|
| float32        | the default          | float32               | float32 | 1e-7 a step             |
| float32_tensor | precision(…)         | float32 in parts      | float32 | at most 2e-6 (L2)       |
| tf32           | precision(…)         | 10 bits of fraction   | float32 | about 3e-4              |
| bfloat16       | autocast("bfloat16") | 7 bits of fraction    | float32 | about 2e-3, of results  |
| float16        | autocast("float16")  | 10 bits of fraction   | float32 | about 3e-4, of results  |

The first three differ in how float32 arrays are multiplied where kernels run. They are a permission: what has no kernel
for one, on a GPU before sm_80 or in an algorithm without tensor cores, is computed in float32, and on the CPU
everything is. float32_tensor turns infinities into NaN. The last two store activations and the gradients between layers
in 16 bits: half the memory and its traffic; what is multiplied is cast first, parameters stay float32.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from gpucnn import dtypes

PRECISIONS = ("float32", "float32_tensor", "tf32")
HALF_PRECISIONS = tuple(dtype.name for dtype in dtypes.HALVES)
ALL_PRECISIONS = (*PRECISIONS, *HALF_PRECISIONS)

_chosen = "float32"


class precision:
    """Let products of float32 matrices use this precision from now on; as a context manager, inside the context.

    Backward passes use what is in force when they run. Raises ValueError for an unknown name.
    """

    def __init__(self, name: str) -> None:
        global _chosen
        self._before, _chosen = _chosen, checked(name)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _chosen
        _chosen = self._before


def get_precision() -> str:
    """The precision of products of float32 matrices that is in force."""
    return _chosen


def checked(name: str) -> str:
    """The name; raises ValueError for an unknown one."""
    if name in HALF_PRECISIONS:
        raise ValueError(f"precision: {name!r} is one of storage; use `with gpucnn.autocast({name!r}):`")
    if name not in PRECISIONS:
        raise ValueError(f"precision: {name!r} is unknown; use one of {', '.join(PRECISIONS)}")
    return name


def computing(name: str) -> Any:
    """A context in which this precision is in force, one of all that are named above.

    Raises ValueError for an unknown name.
    """
    if name in HALF_PRECISIONS:
        return autocast(name)
    if name not in PRECISIONS:
        raise ValueError(f"precision: {name!r} is unknown; use one of {', '.join(ALL_PRECISIONS)}")
    return precision(name)


_state = threading.local()
_changes = 0  # of parameters in place: casts that are older do not count


class autocast:
    """Inside this context convolutions, linear layers and matrix products compute in 16 bits, in this thread.

    - name: "bfloat16" or "float16"
    - enabled: False switches an outer autocast off inside
    They cast float32 inputs and weights, and give 16-bit results. Sums are float32. Other layers take what they get:
    ReLU, pooling, dropout and batch normalisation keep 16 bits (batch statistics and parameters are float32), softmax
    and losses compute in float32. Parameters and their gradients stay float32; gradients between layers have 16 bits.
    Backward follows what forward did, inside the context or after it. A parameter is cast once, until an optimiser's
    step, a loaded state or the end of the context; after other changes in place call `parameters_changed()`.
    Raises ValueError for another name.
    """

    def __init__(self, name: str, enabled: bool = True) -> None:
        if name not in HALF_PRECISIONS:
            raise ValueError(f"autocast: {name!r} is no 16-bit dtype; use one of {', '.join(HALF_PRECISIONS)}")
        self.dtype = dtypes.resolve(name) if enabled else None
        self._casts: dict[int, tuple[Any, Any, int]] = {}  # by the id of an array: itself, the cast one, its age

    def __enter__(self) -> autocast:
        contexts().append(self)
        return self

    def __exit__(self, *_: object) -> None:
        contexts().remove(self)
        self._casts.clear()

    def cast_of(self, array: Any) -> Any:
        """The cast that was stored for a parameter's array; None if there is none, or it changed since."""
        source, cast, age = self._casts.get(id(array), (None, None, -1))
        return cast if source is array and age == _changes else None

    def store(self, array: Any, cast: Any) -> None:
        """Store the cast of a parameter's array."""
        self._casts[id(array)] = array, cast, _changes


def contexts() -> list[autocast]:
    """This thread's contexts, the innermost last."""
    if not hasattr(_state, "contexts"):
        _state.contexts = []
    found: list[autocast] = _state.contexts
    return found


def current_autocast() -> autocast | None:
    """The innermost context, unless it is switched off or there is none."""
    found = contexts()
    return found[-1] if found and found[-1].dtype is not None else None


def get_autocast() -> np.dtype | None:
    """The 16-bit dtype in which products are computed here, or None."""
    context = current_autocast()
    return None if context is None else context.dtype


def parameters_changed() -> None:
    """Say that values of parameters were changed in place, so that autocast casts them anew."""
    global _changes
    _changes += 1
