"""Results of `gpucnn tune`, kept on disk: how long each algorithm took for a convolution on one device.

One JSON file for each device, number of threads and state of the library, so that what was measured with other kernels
is never used. The cache is read once a process, and only looked up where it is on; nothing here measures.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import _C, files
from gpucnn import device as devices
from gpucnn.launch import sources
from gpucnn.ops.shapes import ConvShape
from gpucnn.precision import get_precision
from gpucnn.threads import get_num_threads
from gpucnn.version import __version__

FOLDER = "tuning"
Times = dict[str, float]  # milliseconds of each algorithm
_loaded: dict[Path, dict[str, Times]] = {}
_generation = 0


def state() -> tuple[int, str | None]:
    """Changes whenever results are stored or cleared, or lie elsewhere; what was chosen before may not hold."""
    return _generation, os.environ.get("GPUCNN_CACHE_DIR")


def key(operation: str, shape: ConvShape, dtype: Any, limit: int | None, precision: str = "float32") -> str:
    """What a result is for; precision: that products of float32 may use (`precision_on`)."""
    text = "N{} C{} H{} W{} K{} R{} S{} P{} Q{} stride {}x{} padding {}x{} dilation {}x{} groups {}".format(*shape.flat)
    allowed = f" in {precision}" if np.dtype(dtype) == np.float32 and precision != "float32" else ""
    return f"{operation} {np.dtype(dtype)}{allowed} {text}" + ("" if limit is None else f" limit {limit}")


def precision_on(device: str) -> str:
    """The precision in force, which on the CPU means nothing."""
    return "float32" if device == "cpu" else get_precision()


def fastest(
    operation: str, shape: ConvShape, dtype: Any, device: str, names: Collection[str], limit: int | None
) -> tuple[str, float] | None:
    """(algorithm, milliseconds) of the fastest of `names` that was measured; None where nothing was."""
    times = entries(device).get(key(operation, shape, dtype, limit, precision_on(device)), {})
    return min(((name, ms) for name, ms in times.items() if name in names), key=lambda each: each[1], default=None)


def entries(device: str) -> dict[str, Times]:
    """All results for a device, with its present number of threads and the library as it is; {} for the simulator."""
    if device == "sim" or (device != "cpu" and not devices.has_cuda()):
        return {}
    if not os.path.isdir(files.cache_root() / FOLDER):
        return {}
    path = path_of(device)
    if path not in _loaded:
        _loaded[path] = _read(path)
    return _loaded[path]


def store(device: str, found: dict[str, Times]) -> Path:
    """Add results for a device to those on disk; returns the file. Of two at the same time the later one wins."""
    path = path_of(device)
    files.cache_folder(FOLDER)
    merged = {**_read(path), **found}
    name, threads, digest = identity(device)
    content = {"device": name, "threads": threads, "version": __version__, "library": digest, "entries": merged}
    files.write_atomically(path, json.dumps(content, indent=1).encode() + b"\n")
    _forget()
    return path


def clear() -> list[Path]:
    """Remove all results of all devices; returns the files that there were."""
    found = list(stored())
    for path in found:
        path.unlink()
    _forget()
    return found


def stored() -> Iterator[Path]:
    """The files of results, of all devices and states of the library."""
    yield from sorted((files.cache_root() / FOLDER).glob("*.json"))


def path_of(device: str) -> Path:
    """The file of a device's results."""
    name, threads, digest = identity(device)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return files.cache_root() / FOLDER / f"{slug}-{threads}-{digest[:16]}.json"


def identity(device: str) -> tuple[str, int, str]:
    """(name of the device, threads, digest of the library) by which results are kept apart; threads of a GPU are 0."""
    if device.startswith("cuda"):
        return devices.gpu(device)[0], 0, _kernels_digest()
    if device == "sim":
        return "simulator", 0, _kernels_digest()
    return _processor(), get_num_threads(), _extension_digest()


@cache
def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "cpu"
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else "cpu"


@cache
def _extension_digest() -> str:
    return hashlib.sha256(__version__.encode() + Path(str(_C.__file__)).read_bytes()).hexdigest()


def _kernels_digest() -> str:
    found = hashlib.sha256(__version__.encode())
    for path in sorted(sources.folder().glob("*.cu")):
        found.update(sources.digest(os.fspath(path)).encode())
    return found.hexdigest()


def _read(path: Path) -> dict[str, Times]:
    """The results in a file; {}, with a warning, where it is damaged."""
    try:
        content = json.loads(path.read_bytes())
        return {str(name): _times(times) for name, times in content["entries"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(
            f"{path}: these tuning results cannot be read ({type(error).__name__}: {error}) and are not used; "
            "gpucnn tune measures anew, gpucnn tune --clear removes them",
            stacklevel=2,
        )
        return {}


def _times(times: Any) -> Times:
    if not all(isinstance(ms, (int, float)) and 0 < ms < 1e12 for ms in times.values()):
        raise ValueError(f"milliseconds are {times!r}")
    return {str(name): float(ms) for name, ms in times.items()}


def _forget() -> None:
    global _generation
    _generation += 1
    _loaded.clear()
