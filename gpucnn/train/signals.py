"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal; the state is stored and the text says how to go on."""


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT and SIGTERM only make the yielded function return True; a second one acts as it did before.

    Signals that were ignored stay ignored; outside of the main thread nothing changes.
    """
    arrived: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        arrived.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    if threading.current_thread() is threading.main_thread():
        before = {each: signal.getsignal(each) for each in SIGNALS}
        before = {each: handler for each, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        for each in before:
            signal.signal(each, note)
    try:
        yield lambda: bool(arrived)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
