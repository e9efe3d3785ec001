"""Weights in the order in which kernels read them, packed once for as long as their array stays as it is.

An array whose values somebody may change in place is packed at every use, because nothing tells of a write. Autocast's
casts of parameters are arrays that nobody else has; a parameter that changes gets a new one (gpucnn.precision), so what
was packed of a cast is valid as long as the cast is. Where a step is captured, cast and packing are launches of it, and
each replay writes both anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

MOST = 4  # packed forms of one array: of a layer's two passes, and of batches that get another tile

_stored: dict[int, tuple[weakref.ref[Any], dict[tuple[Any, ...], Any]]] = {}  # by the id of an array


def keep_packed(array: Any) -> None:
    """Let `packed` keep what is packed of an array, until the array is freed: its values never change from now on."""
    number = id(array)
    _stored[number] = weakref.ref(array, lambda _: _stored.pop(number, None)), {}


def packed(weight: Any, form: tuple[Any, ...], pack: Callable[[], Any]) -> Any:
    """What `pack` returns: from before, if the array keeps it and it was packed in this form.

    - form: everything that the packed values depend on beside the array
    """
    source, forms = _stored.get(id(weight), (None, {}))
    if source is None or source() is not weight:
        return pack()
    if form not in forms:
        while len(forms) >= MOST:
            del forms[next(iter(forms))]
        forms[form] = pack()
    return forms[form]
