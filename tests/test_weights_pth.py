"""State dicts that torch.save wrote: what PyTorch makes is read, and no pickle gets to call, import or allocate."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpucnn import Tensor, models, train, weights
from gpucnn.cli import main

WIDTH, SIZE = 0.03, 63
ORDERED = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", count: int = 6, kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(
    items: bytes | None = None, offset: int = 0, size: tuple[int, ...] = (2, 3), stride: tuple[int, ...] = (3, 1)
) -> bytes:
    """The operations that PyTorch writes for a tensor."""
    items = storage() if items is None else items
    places = number(offset) + numbers(size) + numbers(stride)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + items + places + b"\x89" + ORDERED + b"tR"


def state(*entries: bytes) -> bytes:
    """A whole pickle of a state dict with these tensors, named a, b, …"""
    pairs = b"".join(text(name) + entry for name, entry in zip("abcdef", entries, strict=False))
    return b"\x80\x02" + ORDERED + b"(" + pairs + b"u."


ITEMS = np.arange(6, dtype="<f4").tobytes()


def pth(program: bytes, items: bytes = ITEMS, **more: bytes) -> bytes:
    """The archive that torch.save makes of a pickle and one storage."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("file/data.pkl", program)
        archive.writestr("file/data/0", items)
        for name, content in more.items():
            archive.writestr(f"file/{name}", content)
    return file.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refused(path: Path, content: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        weights.read_weights(write(path, content))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


# ---- right files


def test_by_hand(tmp_path):
    program = state(tensor(), tensor(offset=1, size=(), stride=()), tensor(size=(0, 4), stride=(4, 1)))
    with pytest.raises(ValueError, match="its tensors share items"):
        weights.read_weights(write(tmp_path / "a", pth(program)))
    program = state(tensor(size=(3,), stride=(2,)), tensor(offset=1, size=(), stride=()), tensor(size=(0, 4)))
    found = weights.read_weights(write(tmp_path / "a", pth(program)))
    assert list(found) == ["a", "b", "c"] and found["c"].shape == (0, 4)
    assert found["a"].tolist() == [0, 2, 4] and found["b"] == 1 and found["a"].dtype == np.float32


@pytest.mark.parametrize(
    ("kind", "items", "wanted"),
    [
        ("DoubleStorage", np.array([1.5, -2], "<f8"), "f8"),
        ("HalfStorage", np.array([1.5, -2], "<f2"), "f2"),
        ("BFloat16Storage", np.array([0x3FC0, 0xC000], "<u2"), "f4"),
        ("LongStorage", np.array([3, -2], "<i8"), "i8"),
        ("CharStorage", np.array([3, -2], "i1"), "i1"),
        ("ByteStorage", np.array([3, 254], "u1"), "u1"),
    ],
)
@pytest.mark.parametrize("order", [b"little", b"big"])
def test_types_and_orders_of_bytes(tmp_path, kind, items, wanted, order):
    program = state(tensor(storage(count=2, kind=kind), size=(2,), stride=(1,)))
    content = items.astype(items.dtype.newbyteorder("<" if order == b"little" else ">")).tobytes()
    found = weights.read_weights(write(tmp_path / "a", pth(program, content, byteorder=order)))["a"]
    assert found.dtype.newbyteorder("=") == np.dtype(wanted)
    assert found.tolist() == ([1.5, -2] if wanted[0] == "f" else items.tolist())


def test_what_torch_writes(tmp_path, torch, rng):
    values = {
        "f4": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "f8": rng.standard_normal(5),
        "f2": rng.standard_normal((3, 4)).astype(np.float16),
        "count": np.array(7),
        "u1": np.arange(9, dtype=np.uint8),
    }
    tensors = {name: torch.tensor(array) for name, array in values.items()}
    tensors["turned"] = torch.arange(6).reshape(2, 3).T
    values["turned"] = np.arange(6).reshape(2, 3).T
    torch.save(tensors, tmp_path / "a.pth")
    found = weights.read_weights(tmp_path / "a.pth")
    assert list(found) == list(tensors)
    for name, array in values.items():
        assert found[name].dtype == array.dtype and (found[name] == array).all() and found[name].shape == array.shape
    torch.save({"epoch": 3, "lr": 0.5, "state_dict": {"a": tensors["f4"]}, "hyper": [1, None]}, tmp_path / "b.pth")
    assert (weights.read_weights(tmp_path / "b.pth")["a"] == values["f4"]).all()


def test_a_torch_network_is_imported(tmp_path, torch, capsys):
    """The state dict of modules, with its attributes and parameters, through the command line."""
    made = models.alexnet(num_classes=4, width=WIDTH, image_size=SIZE)
    other = torch.nn.ModuleDict({"features": torch.nn.ModuleList(), "classifier": torch.nn.ModuleList()})
    for part in ("features", "classifier"):
        for layer in getattr(made, part):
            kind = type(layer).__name__
            if kind == "Conv2d":
                count, channels, side, _ = layer.weight.shape
                other[part].append(torch.nn.Conv2d(channels, count, side))
            elif kind == "Linear":
                other[part].append(torch.nn.Linear(layer.weight.shape[1], layer.weight.shape[0]))
            else:
                other[part].append(torch.nn.Identity())
    torch.save(other.state_dict(), tmp_path / "a.pth")
    command = ["import-weights", "alexnet", str(tmp_path / "a.pth"), "--out", str(tmp_path / "out")]
    assert main([*command, "--width", str(WIDTH), "--image-size", str(SIZE)]) == 0
    loaded = train.load_model(tmp_path / "out" / "checkpoint.safetensors").model
    for name, value in other.state_dict().items():
        assert (loaded.state_dict()[name] == value.numpy()).all()
    assert loaded(Tensor(np.zeros((1, 3, SIZE, SIZE), np.float32))).shape == (1, 4)


def test_old_files_are_told_how_to_be_renewed(tmp_path, torch):
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="old.pth: a file of PyTorch before 1.6; write it anew with torch.save"):
        weights.read_weights(tmp_path / "old.pth")


# ---- hostile pickles


class Caller:
    """Pickled, it calls os.mkdir when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_nothing_is_called(tmp_path):
    for protocol in range(6):
        program = pickle.dumps({"a": Caller(tmp_path / "made")}, protocol)
        refused(tmp_path / "file", pth(program), "which no state dict needs")
        refused(tmp_path / "file", program, "no safetensors file")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        (b"os\nsystem", "os.system"),
        (b"builtins\neval", "builtins.eval"),
        (b"torch\nload", "torch.load"),
        (b"torch\n__dict__", "torch.__dict__"),
        (b"torch\nnn.FloatStorage", "torch.nn.FloatStorage"),
        (b"collections\nOrderedDict.fromkeys", "collections.OrderedDict.fromkeys"),
        (b"collections\nChainMap", "collections.ChainMap"),
        (b"torch._utils\n_rebuild_parameter", "torch._utils._rebuild_parameter"),
        (b"gpucnn.weights.pth\n_make_tensor", "gpucnn.weights.pth._make_tensor"),
    ],
)
def test_globals_that_are_refused(tmp_path, name, asked):
    refused(tmp_path / "file", pth(b"\x80\x02c" + name + b"\n."), f"asks for '{asked}', which no state dict needs")


EMPTY = b"ccollections\nOrderedDict\n"
DEEP = b")" + b"\x85" * 100_000  # a tuple in a tuple in a tuple …
DOUBLED = b")q\0" + b"h\0\x86q\0" * 100  # a tuple of 2¹⁰⁰ empty ones, which takes as long to be hashed


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (b"\x80\x02\x8c\x01a.", "operation b'.x8c', which no state dict needs"),
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "operation b'.x96'"),
        (b"\x80\x02B\xff\xff\xff\x7f.", "operation b'B'"),
        (b"\x80\x02I1\n.", "operation b'I'"),
        (b"\x80\x02(cos\nsystem\no.", "operation|asks for"),
        (b"\x80\x02" + EMPTY + b"]\x85R.", "makes a dictionary as no state dict does"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls something else than a function"),
        (b"\x80\x02" + EMPTY + b"]R.", "calls something else than a function"),
        (b"\x80\x02}" + DOUBLED + b"Ns.", "a name is of type tuple, not text"),
        (b"\x80\x02}" + DEEP + b"Ns.", "a name is of type tuple, not text"),
        (b"\x80\x02}" + text("a") + DEEP + b"s.", "'a' is no tensor but tuple; save model.state_dict"),
        (b"\x80\x02}" + text("a") + EMPTY + b"s.", "'a' is no tensor but function"),
        (b"\x80\x02](NNu.", "puts entries into something that is no dictionary"),
        (b"\x80\x02}(Nu.", "puts entries into something that is no dictionary"),
        (b"\x80\x02}Na.", "damaged"),
        (b"\x80\x02h\5.", "damaged"),
        (b"\x80\x02u.", "damaged"),
        (b"\x80\x02K\1.", "it holds no state dict"),
        (b"\x80\x02", "damaged"),
        (b"", "damaged"),
        (state(tensor(storage("1"))), "damaged.*data/1"),
        (state(tensor(storage("../data.pkl"))), "damaged"),
        (state(tensor(storage(count=7))), "has not the 7 items or the type"),
        (state(tensor(storage(kind="DoubleStorage"))), "has not the 6 items or the type"),
        (state(tensor(), tensor(storage(kind="IntStorage"))), "has not the 6 items or the type"),
        (state(tensor(b"N")), "makes a tensor of something that is no storage"),
        (state(tensor(tensor())), "makes a tensor of something that is no storage"),
        (state(tensor(b"NQ")), "refers to something that is no storage"),
        (state(tensor(offset=1)), r"size \(2, 3\) at 1 does not lie within its 6 items"),
        (state(tensor(offset=-1)), "an offset, a size or strides that cannot be"),
        (state(tensor(stride=(-3, 1))), "an offset, a size or strides that cannot be"),
        (state(tensor(size=(2, 3, 1))), "an offset, a size or strides that cannot be"),
        (state(tensor(size=(1,) * 9, stride=(1,) * 9)), "an offset, a size or strides that cannot be"),
        (state(tensor(size=(2**31 - 1, 2**31 - 1), stride=(0, 0))), "does not lie within its 6 items"),
        (state(tensor(stride=(2**31 - 1, 1))), "does not lie within its 6 items"),
        (state(tensor(), tensor()), "its tensors share items, and come to more than it has"),
    ],
)
def test_pickles_that_are_refused(tmp_path, program, match):
    tracemalloc.start()
    try:
        refused(tmp_path / "file", pth(program), match)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_large_pickle_is_not_read(tmp_path):
    refused(tmp_path / "file", pth(bytes(5 << 20)), "its pickle has 5242880 bytes; at most 4194304 are read")


@given(
    edits=st.lists(st.tuples(st.integers(0, 2**12), st.binary(min_size=1, max_size=3)), max_size=5),
    cut=st.one_of(st.none(), st.integers(0, 2**12)),
)
@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_pickles_give_named_errors_only(tmp_path, edits, cut):
    program = bytearray(state(tensor(size=(3,), stride=(1,)), tensor(offset=3, size=(3, 1), stride=(1, 1))))
    for place, content in edits:
        place %= len(program)
        program[place : place + len(content)] = content
    if cut is not None:
        del program[cut % len(program) :]
    check_reading(tmp_path / "file", pth(bytes(program)))


OPERATIONS = [bytes([code]) for code in b"\x80.(N\x88\x89t)\x85\x86\x87}]aehqR Qbsu0123"]
PIECES = [*OPERATIONS, text("a"), number(1), tensor(), storage(), ORDERED, EMPTY, b"q\0", b"h\0", b"cos\nsystem\n"]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12))
@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_operations_give_named_errors_only(tmp_path, pieces):
    check_reading(tmp_path / "file", pth(b"\x80\x02" + b"".join(pieces) + b"."))


def check_reading(path: Path, content: bytes) -> None:
    try:
        found = weights.read_weights(write(path, content))
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert sum(array.size for array in found.values()) <= 6
