"""Reader of IDX files, the format of MNIST (https://yann.lecun.com/exdb/mnist/, "file formats").

    0, 0, type byte, number of axes; each axis' extent as big-endian uint32; the items, last axis fastest

A file is not trusted: its sizes are checked before memory is taken, and all that is wrong is a ValueError.
"""

import gzip
import math
import os
import stat
import zlib
from pathlib import Path
from typing import IO

import numpy as np

_TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_UINT8 = 0x08
_MAX_AXES = 4
_GZIP_MAGIC = b"\x1f\x8b"

# A compressed file may unpack to so many times its size, or to so many bytes where that is more. Digits reach
# 5; deflate can reach 1,030, and the limit keeps a small file from filling the memory.
_MAX_RATIO = 200
_ALWAYS_ALLOWED = 16 * 2**20
_CHUNK = 2**18  # bytes read at a time

Stream = IO[bytes] | gzip.GzipFile


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """The uint8 array of 1 to 4 axes in an IDX file, gzipped or not (told by its first bytes, not its name).

    Raises OSError for a path that is missing, not readable or not a regular file, and ValueError for anything
    else than one complete array of bytes; both name the path.
    """
    path = Path(path)
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe would wait for its writer
        raise OSError(f"{path}: an IDX file must be a regular file, not a device or a pipe")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        if not compressed:
            return _read_array(path, file, size, compressed=False)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read_array(path, unpacked, size, compressed=True)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{path}: damaged gzip file ({error}); fetch it again") from error


def _read_array(path: Path, stream: Stream, file_size: int, compressed: bool) -> np.ndarray:
    """The array whose header comes next in the stream; file_size is its size on the disk in bytes."""
    shape = _read_header(path, stream)
    count = math.prod(shape)
    length = 4 + 4 * len(shape) + count
    if not compressed and length != file_size:
        raise ValueError(
            f"{path}: an IDX file of shape {shape} has {length} bytes, but this one has {file_size}; "
            "it is incomplete or damaged, fetch it again"
        )
    if compressed and count > max(_ALWAYS_ALLOWED, _MAX_RATIO * file_size):
        raise ValueError(
            f"{path}: {file_size} compressed bytes claim an array of shape {shape}, {count} bytes, "
            f"more than {_MAX_RATIO} times as many; if you trust the file, unpack it with gunzip first"
        )
    return np.frombuffer(_read_items(path, stream, count), dtype=np.uint8).reshape(shape)


def _read_header(path: Path, stream: Stream) -> tuple[int, ...]:
    """The extents of the axes; leaves the stream at the first item."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES:
        start = magic.hex(" ") or "no byte at all"
        raise ValueError(f"{path}: not an IDX file; it starts with {start} in place of 00 00 08 and 01 to 04")
    if magic[2] != _UINT8:
        raise ValueError(f"{path}: an IDX file of {_TYPES[magic[2]]}; only uint8, type 08, can be read")
    axes = magic[3]
    if not 1 <= axes <= _MAX_AXES:
        raise ValueError(f"{path}: an IDX file of {axes} axes; only 1 to {_MAX_AXES} can be read")
    extents = stream.read(4 * axes)
    if len(extents) < 4 * axes:
        raise ValueError(f"{path}: the IDX file ends within its header, which is of {axes} axes; fetch it again")
    shape = tuple(int.from_bytes(extents[i : i + 4], "big") for i in range(0, len(extents), 4))
    if 0 in shape:
        raise ValueError(f"{path}: the IDX file is empty, its shape is {shape}")
    return shape


def _read_items(path: Path, stream: Stream, count: int) -> bytearray:
    """The count bytes that must be all that is left in the stream; memory grows only as they arrive."""
    items = bytearray()
    while chunk := stream.read(min(_CHUNK, count + 1 - len(items))):
        items += chunk
    if len(items) != count:
        found = "more" if len(items) > count else f"only {len(items)}"
        raise ValueError(f"{path}: the IDX header announces {count} bytes of items, but there are {found}")
    return items
