"""CPU threads: one pool, one knob (GPUCNN_NUM_THREADS), and workers that sleep when they have nothing to do."""

from __future__ import annotations

import importlib
import os
from types import ModuleType


def _load_extension() -> ModuleType:
    """Import _C, and OpenMP with it, so that idle workers sleep instead of spinning.

    OpenMP reads its environment once, when it is loaded. Workers that spin after each operation take the processor from
    NumPy's own work and from the threads that prepare the next batch.
    """
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return importlib.import_module("gpucnn._C")
    except ModuleNotFoundError as error:
        raise ImportError(_not_built()) from error
    finally:
        if before is None:
            del os.environ["OMP_WAIT_POLICY"]


def _not_built() -> str:
    package = os.path.dirname(os.path.abspath(__file__))
    source = os.path.dirname(package)
    return (
        f"gpucnn: {package} has no compiled extension (gpucnn._C); build it: python -m pip install -e {source}; or, if "
        f"gpucnn is installed elsewhere, start Python in another folder: this source tree hides the installed copy"
    )


_C = _load_extension()


def get_num_threads() -> int:
    """How many threads the CPU operations use."""
    return _C.get_num_threads()


def set_num_threads(count: int) -> None:
    """Let the CPU operations use `count` threads, 1 to 1024; raises ValueError for another number.

    Results have the same bits at every count.
    """
    _C.set_num_threads(count)
