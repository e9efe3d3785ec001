"""NumPy's .npz files: a zip file of .npy arrays (described at numpy.org, numpy.lib.format).

    "\\x93NUMPY", version, length of the header, {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }, the items

The header is matched with a pattern instead of being evaluated, and the items must fill the entry exactly.
"""

from __future__ import annotations

import math
import re

import numpy as np

from gpucnn.tensorfile import MAX_DIMENSIONS
from gpucnn.weights.archive import Archive

SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # by version: of the header's length
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<>|](f[248]|[iu][1248]))', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(\d{1,18}, ?)*(\d{1,18})?)\),? ?\} *\n"
)


def read_npz(archive: Archive) -> dict[str, np.ndarray]:
    """name → array of every entry, floating-point or integers; one of archive.DAMAGED for anything else."""
    for name in archive.entries:
        if not name.endswith(SUFFIX):
            raise ValueError(f"entry {name!r:.80} is no array; names end with {SUFFIX}")
    return {name.removesuffix(SUFFIX): _read_array(name, archive.read(name)) for name in archive.entries}


def _read_array(name: str, data: bytearray) -> np.ndarray:
    version = data[len(_MAGIC)] if data.startswith(_MAGIC) and len(data) > len(_MAGIC) else 0
    if version not in _LENGTH_BYTES:
        raise ValueError(f"entry {name!r:.80} is no .npy array of version 1 to 3")
    start = len(_MAGIC) + 2 + _LENGTH_BYTES[version]
    end = start + int.from_bytes(data[len(_MAGIC) + 2 : start], "little")
    header = _HEADER.fullmatch(data, start, min(end, len(data)))
    if header is None:
        raise ValueError(f"entry {name!r:.80} is {bytes(data[start:end])!r:.80}; only plain numbers are read")
    shape = tuple(int(size) for size in header["shape"].replace(b" ", b"").split(b",") if size)
    dtype = np.dtype(header["dtype"].decode())
    if len(shape) > MAX_DIMENSIONS or math.prod(shape) * dtype.itemsize != len(data) - end:
        raise ValueError(f"entry {name!r:.80} has {len(data) - end} bytes of items, which is not {dtype} {shape!r:.80}")
    return np.frombuffer(data, dtype, offset=end).reshape(shape, order="F" if header["fortran"] == b"True" else "C")
