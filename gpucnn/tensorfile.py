"""Arrays and what is known about them in one safetensors file, written whole or not at all and read with suspicion.

Nothing here knows of networks: `gpucnn.checkpoint` does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import safetensors

from gpucnn import dtypes, files

FORMAT = 1  # raised when a reader of the old format would misread the new one
KEY = "gpucnn"  # one key: with several, their order in the file changes from run to run
MAX_HEADER = 16 << 20  # bytes
MAX_TENSORS = 100_000
MAX_NAME = 512  # characters
MAX_DIMENSIONS = 8
MAX_VALUES = 1 << 48  # of one tensor, zero dimensions counted as 1: keeps NumPy's sizes within 64 bits
ITEM_SIZES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8"), 1),
}  # bytes


class CheckpointError(ValueError):
    """A file is damaged, of another kind, or does not fit; the text names the file, what is wrong and the fix."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds: its path, its arrays by name, and the metadata (what JSON can hold)."""

    path: str
    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]


def save(path: str | os.PathLike[str], tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Write arrays and metadata to `path`, which holds the old file or the new one at any moment.

    tensors: arrays of any shape, strides and byte order, floating-point (16 to 64 bits) or integers.
    metadata: as JSON can hold it; tuples come back as lists.
    Takes memory only for copies of arrays that are not contiguous.
    Raises CheckpointError for what could not be read back, files.WriteError (an OSError) for what the disk refuses; the
    old file then remains.
    """
    path = os.fspath(path)
    try:
        arrays = {name: _plain(name, array) for name, array in tensors.items()}
        digest = _digest(arrays, metadata)
        stored = json.dumps({"format": FORMAT, "digest": digest, "metadata": metadata}, allow_nan=False)
        _parse_json(stored.encode())
        start, pieces = _layout(arrays, stored)
        _check_start(start, len(start) + sum(len(piece) for piece in pieces))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"cannot save {path}: {_short(error)}; leave that out or convert it") from error
    files.write_atomically(path, [start, *pieces])


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what `save` wrote, checking every byte.

    Raises FileNotFoundError, or CheckpointError for a file that is damaged, cut short or of another kind.
    """
    path = os.fspath(path)
    arrays, strings = _read(path)
    if KEY not in strings:
        raise CheckpointError(f"{path}: it holds tensors but no state of gpucnn; load_weights reads such files")
    with _naming(path):
        return Checkpoint(path, arrays, _verified(strings[KEY], arrays))


def load_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of any safetensors file, such as weights saved by another program; metadata are left aside.

    Raises FileNotFoundError, or CheckpointError for a file that is damaged, cut short or of another kind.
    """
    return _read(os.fspath(path))[0]


def select(checkpoint: Checkpoint, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, named without it."""
    return {name[len(prefix) :]: array for name, array in checkpoint.tensors.items() if name.startswith(prefix)}


def _plain(name: str, array: Any) -> np.ndarray:
    """The array as the format has it: C-contiguous, little-endian, of a dtype that can be read back."""
    if not isinstance(name, str):
        raise TypeError(f"a tensor's name is {name!r}, not a string")
    array = np.asarray(array, order="C")
    if array.dtype == dtypes.BFLOAT16:
        return array
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise TypeError(f"tensor {name!r} is {array.dtype}, not floating-point of at most 64 bits or integers")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _layout(arrays: dict[str, np.ndarray], text: str) -> tuple[bytes, list[memoryview]]:
    """The file's start (length, header) and the tensors' bytes where they lie; the library's writer copies them twice.

    Wide items come first and the header is padded to a multiple of 8 bytes, so that every tensor is aligned.
    """
    header: dict[str, Any] = {"__metadata__": {KEY: text}}
    pieces, offset = [], 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        array = arrays[name]
        end = offset + array.nbytes
        kind = "BF" if array.dtype == dtypes.BFLOAT16 else array.dtype.kind.upper()
        dtype = f"{kind}{8 * array.itemsize}"
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [offset, end]}
        pieces.append(_bytes_of(array))
        offset = end
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded, pieces


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _digest(arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> str:
    """BLAKE2b of the metadata and of every name, dtype, shape and byte, whatever the order of the arrays."""
    digest = hashlib.blake2b(json.dumps(metadata, allow_nan=False).encode(), digest_size=32)
    for name in sorted(arrays):
        array = arrays[name]
        kind = "<bf2" if array.dtype == dtypes.BFLOAT16 else array.dtype.str
        digest.update(json.dumps([name, kind, array.shape]).encode())
        digest.update(_bytes_of(array))
    return digest.hexdigest()


def _verified(text: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The metadata in `text`, if the digest that stands beside them is that of metadata and arrays."""
    stored = _parse_json(text.encode())
    if not isinstance(stored, dict) or "format" not in stored:
        raise ValueError("its metadata are not of gpucnn's form")
    if stored["format"] != FORMAT:
        raise ValueError(f"its format is {stored['format']!r:.40}, not {FORMAT}: another version of gpucnn wrote it")
    metadata = stored.get("metadata")
    if not isinstance(metadata, dict) or stored.get("digest") != _digest(arrays, metadata):
        raise ValueError("its contents do not give the digest stored with them")
    return metadata


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn what is raised for wrong contents into a CheckpointError that names the file and a fix."""
    try:
        yield
    except (ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: it is cut short, damaged or no safetensors file: {_short(error)}; use another copy or train again"
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: its {os.path.getsize(path)} bytes do not fit into memory") from error


def _read(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, metadata's strings) of a safetensors file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # do not wait for a pipe's writer
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such checkpoint; check the path, or train first", path) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            folder = stat.S_ISDIR(status.st_mode)
            raise CheckpointError(
                f"{path}: this is {'a folder; name the file in it' if folder else 'no ordinary file; copy it to one'}"
            )
        with _naming(path), open(descriptor, "rb", closefd=False) as file:
            return _read_file(file, status.st_size)
    finally:
        os.close(descriptor)


def _read_file(file: BinaryIO, size: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(MAX_HEADER, size - 8):
        raise ValueError(f"it has {size} bytes and claims a header of {length}; at most {MAX_HEADER} are read")
    start += file.read(length)
    strings = _check_start(start, size)
    file.seek(0)
    data = file.read(size)
    if len(data) != size or not data.startswith(start):
        raise ValueError("it changed while it was read")
    arrays = {name: _array_of(entry) for name, entry in safetensors.deserialize(data)}
    return dict(sorted(arrays.items())), strings  # the library's order changes from run to run


def _array_of(entry: dict[str, Any]) -> np.ndarray:
    """The array of a tensor in the file, read-only."""
    name = entry["dtype"]
    dtype = dtypes.BFLOAT16 if name == "BF16" else np.dtype(f"<{name[0].lower()}{ITEM_SIZES[name]}")
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])


def _check_start(start: bytes, size: int) -> dict[str, str]:
    """Check the header by rules the library does not have; return the metadata. It finds gaps and overlaps itself.

    start: the header's length (8 bytes) and the header; size: of the whole file in bytes.
    Source: the format's description at github.com/huggingface/safetensors.
    """
    if len(start) > 8 + MAX_HEADER:
        raise ValueError(f"its header has {len(start) - 8} bytes; at most {MAX_HEADER} are read")
    header = _parse_json(start[8:])
    if not isinstance(header, dict):
        raise ValueError("its header is no table of tensors")
    strings = header.pop("__metadata__", {})
    if len(header) > MAX_TENSORS:
        raise ValueError(f"it has {len(header)} tensors; at most {MAX_TENSORS} are read")
    if not isinstance(strings, dict) or not all(isinstance(text, str) for text in strings.values()):
        raise ValueError("its metadata are not text")
    ends = [_check_tensor(name, entry) for name, entry in header.items()]
    if len(start) + max(ends, default=0) != size:
        raise ValueError(f"it has {size} bytes but its header tells of {len(start) + max(ends, default=0)}")
    return strings


def _check_tensor(name: str, entry: Any) -> int:
    """Check one entry of the header; return where the tensor's bytes end."""
    if len(name) > MAX_NAME:
        raise ValueError(f"a tensor's name has {len(name)} characters; at most {MAX_NAME} are read")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} lacks dtype, shape or offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise ValueError(f"tensor {name!r} is {dtype!r:.40}; only {', '.join(ITEM_SIZES)} are read")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS or math.prod(max(1, d) for d in shape) > MAX_VALUES:
        raise ValueError(f"tensor {name!r} has the shape {shape!r:.80}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has the offsets {offsets!r:.80}")
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_SIZES[dtype]:
        raise ValueError(f"tensor {name!r} of {dtype} and shape {shape} cannot lie at {offsets!r:.80}")
    return offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _parse_json(text: bytes) -> Any:
    """JSON without what readers disagree about: a key that comes twice, and numbers that are not finite."""
    return json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in its JSON")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"its JSON holds {name}")


def _short(value: Any) -> str:
    return str(value) if len(str(value)) <= 300 else str(value)[:300] + "…"
