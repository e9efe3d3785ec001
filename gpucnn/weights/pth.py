"""State dicts that torch.save wrote since PyTorch 1.6: a zip file of a pickle and of the tensors' bytes.

    NAME/data.pkl, NAME/data/0, NAME/data/1, …, NAME/byteorder

This is the one file that imports pickle, because these files are pickles, and it unpickles nothing but what a state
dict needs. A pickle is a program: it can call whatever can be imported. So of its operations only those that build
numbers, texts, tuples, lists and dictionaries are obeyed, its globals are names on a list that stand for the
functions below instead of being imported, and what it says about attributes is thrown away. The Python unpickler is
used: the C one allocates what a file merely announces, and its table of operations cannot be cut down.
Source: CPython's Lib/pickle.py; PyTorch's torch/serialization.py and torch/_utils.py for the form.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any, NamedTuple

import numpy as np

from gpucnn.tensorfile import MAX_DIMENSIONS, MAX_NAME, MAX_TENSORS
from gpucnn.weights.archive import Archive

PROGRAM = "/data.pkl"
MAX_PROGRAM = 4 << 20  # bytes; those of torchvision's networks have less than 100 KB
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of files from before PyTorch 1.6

Refused = pickle.UnpicklingError

_BFLOAT16 = "bfloat16"  # which NumPy lacks: the upper half of a float32
_ITEMS = {
    **{"DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": _BFLOAT16},
    **{"LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1"},
}


class _StorageType(NamedTuple):
    """torch.FloatStorage and its like, as the type of its items."""

    items: str


def is_pth(archive: Archive) -> bool:
    """Whether the archive has a pickle where torch.save puts it."""
    return any(name.endswith(PROGRAM) for name in archive.entries)


def read_pth(archive: Archive) -> dict[str, np.ndarray]:
    """name → array of a state dict, or of the one that an entry "state_dict" holds.

    Raises Refused for a pickle that wants more than a state dict does, one of archive.DAMAGED for
    anything else that is wrong.
    """
    program = next(name for name in archive.entries if name.endswith(PROGRAM))
    if archive.entries[program] > MAX_PROGRAM:
        raise ValueError(f"its pickle has {archive.entries[program]} bytes; at most {MAX_PROGRAM} are read")
    reader = _Unpickler(archive, program.removesuffix(PROGRAM))
    found = reader.load()
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or len(found) > MAX_TENSORS:
        raise ValueError("it holds no state dict; save model.state_dict()")
    for name, value in found.items():
        if not isinstance(value, np.ndarray) or len(name) > MAX_NAME:
            raise ValueError(f"{name!r:.80} is no tensor but {type(value).__name__}; save model.state_dict()")
    if sum(value.size for value in found.values()) > reader.count:
        raise ValueError("its tensors share items, and come to more than it has")
    return found


class _Operations(dict[int, Any]):
    """The operations that are obeyed, by their codes."""

    def __missing__(self, code: int) -> Any:
        raise Refused(f"its pickle has the operation {bytes([code])!r}, which no state dict needs")


class _Unpickler(pickle._Unpickler):
    """Builds a state dict from the pickle in an archive, and nothing else."""

    def __init__(self, archive: Archive, prefix: str) -> None:
        super().__init__(io.BytesIO(archive.read(prefix + PROGRAM)))
        self._archive, self._prefix = archive, prefix
        order = f"{prefix}/byteorder"
        self._order = ">" if order in archive.entries and archive.read(order) == b"big" else "<"
        self._storages: dict[str, np.ndarray] = {}

    @property
    def count(self) -> int:
        """Items of all storages that have been read."""
        return sum(storage.size for storage in self._storages.values())

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global; Refused for all that are not on the list. Nothing is imported."""
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        if module == "torch" and name in _ITEMS:
            return _StorageType(_ITEMS[name])
        raise Refused(f"its pickle asks for {f'{module}.{name}'!r:.80}, which no state dict needs")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The items of the storage that pid, ("storage", type, key, device, count), describes; (count,)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise Refused("its pickle refers to something that is no storage")
        _, kind, key, _, count = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or type(count) is not int:
            raise Refused("its pickle describes a storage wrongly")
        if key not in self._storages:
            self._storages[key] = self._read_storage(f"{self._prefix}/data/{key}", kind.items)
        if self._storages[key].size != count or self._storages[key].dtype != self._dtype(kind.items):
            raise ValueError(f"its storage {key!r:.40} has not the {count} items or the type that its pickle tells")
        return self._storages[key]

    def _read_storage(self, name: str, items: str) -> np.ndarray:
        data = self._archive.read(name)
        if items == _BFLOAT16:
            return (np.frombuffer(data, f"{self._order}u2").astype("<u4") << 16).view("<f4")
        return np.frombuffer(data, self._order + items)

    def _dtype(self, items: str) -> np.dtype:
        return np.dtype("<f4" if items == _BFLOAT16 else self._order + items)


def _make_dictionary(*arguments: Any) -> dict[str, Any]:
    """For collections.OrderedDict, whose entries come afterwards."""
    if arguments:
        raise Refused("its pickle makes a dictionary as no state dict does")
    return {}


def _make_tensor(storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> np.ndarray:
    """For torch._utils._rebuild_tensor_v2: a view of the storage's items, no more than it has, all within it."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(others) > 3:
        raise Refused("its pickle makes a tensor of something that is no storage")
    if not _are_sizes(size) or not _are_sizes(stride) or not _are_sizes((offset,)) or len(size) != len(stride):
        raise ValueError("a tensor has an offset, a size or strides that cannot be")
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if 0 in size:
        return np.zeros(size, storage.dtype)
    if last >= storage.size or math.prod(size) > storage.size:
        raise ValueError(f"a tensor of size {size} at {offset} does not lie within its {storage.size} items")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < 1 << 48 for size in value)
    )


_FUNCTIONS = {
    ("collections", "OrderedDict"): _make_dictionary,
    ("torch._utils", "_rebuild_tensor_v2"): _make_tensor,
}


def _call(unpickler: Any) -> None:
    """REDUCE: call one of the functions above."""
    arguments = unpickler.stack.pop()
    function = unpickler.stack.pop()
    if not isinstance(arguments, tuple) or not any(function is each for each in _FUNCTIONS.values()):
        raise Refused("its pickle calls something else than a function")
    unpickler.append(function(*arguments))


def _set_item(unpickler: Any) -> None:
    """SETITEM."""
    value = unpickler.stack.pop()
    key = unpickler.stack.pop()
    _put(unpickler.stack[-1], [key, value])


def _set_items(unpickler: Any) -> None:
    """SETITEMS."""
    pairs = unpickler.pop_mark()
    _put(unpickler.stack[-1], pairs)


def _put(target: Any, pairs: list[Any]) -> None:
    """Keys are text: to hash nested tuples could take forever."""
    if type(target) is not dict or len(pairs) % 2:
        raise Refused("its pickle puts entries into something that is no dictionary")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(key, str):
            raise ValueError(f"a name is of type {type(key).__name__}, not text; save model.state_dict()")
        target[key] = value


def _ignore_attributes(unpickler: Any) -> None:
    """BUILD: attributes, of which a state dict has its modules' versions."""
    unpickler.stack.pop()


_OBEYED = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET, pickle.GLOBAL, pickle.BINPERSID),
)
_Unpickler.dispatch = _Operations({code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OBEYED})
_Unpickler.dispatch |= {
    pickle.REDUCE[0]: _call,
    pickle.SETITEM[0]: _set_item,
    pickle.SETITEMS[0]: _set_items,
    pickle.BUILD[0]: _ignore_attributes,
}
