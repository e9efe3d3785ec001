"""Arrays in files: bit-equal round trips, 30 kills, full disks, and files that are damaged or lie."""

from __future__ import annotations

import ast
import errno
import json
import math
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpucnn
from gpucnn import files, tensorfile
from gpucnn.tensorfile import CheckpointError

METADATA = {"text": "Zürich ∑ 😀 \udcff", "numbers": [1, -2.5, 1e-300, 2**70, True, None], "deep": {"er": {"": []}}}
DTYPES = [np.dtype(name) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """The same names, dtypes, shapes and bits: NaNs and signed zeros too."""
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        expected = np.asarray(wanted[name])
        assert (name, array.dtype, array.shape) == (name, expected.dtype.newbyteorder("="), expected.shape)
        assert array.tobytes() == expected.astype(expected.dtype.newbyteorder("=")).tobytes(), name


def small() -> dict[str, np.ndarray]:
    return {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(7), "empty": np.zeros((0, 2))}


# Round trips


def arrays() -> dict[str, Any]:
    base = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 5e-324, np.finfo(np.float64).max])
    integers = np.arange(24, dtype=np.int64).reshape(4, 6)
    return {
        "contiguous": base,
        "transposed": base.T,
        "permuted": base.transpose(1, 2, 0),
        "strided": base[::2, 1::3, ::-2],
        "reversed": base[::-1, ::-1, ::-1],
        "column": integers[:, 2],
        "fortran": np.asfortranarray(integers),
        "repeated": np.broadcast_to(base[0, 0], (3, 6)),
        "big-endian": base.astype(">f4"),
        "big-endian transposed": integers.astype(">i8").T,
        "unaligned": np.frombuffer(b"x" + base.tobytes(), np.uint8)[1:].view(np.float32)[::-1],
        "special": special,
        "zero-dimensional": np.array(1.5),
        "NumPy's scalar": np.float32(-2.25),
        "number": 3,
        "empty": np.zeros((0,), np.float32),
        "emptier": np.zeros((3, 0, 2), np.int8)[::-1],
        "eight": np.ones((1,) * 8, np.uint16),
        'name/with.dots and spaces, ümläuts, "quotes" \\ \n and \0': integers.astype(np.uint8),
        "": np.ones(2),
        "n" * 512: np.ones(3),
    }


def test_every_kind_of_array_comes_back(tmp_path: Path) -> None:
    tensorfile.save(tmp_path / "file", arrays(), METADATA)
    found = tensorfile.load(tmp_path / "file")
    assert_equal(found.tensors, arrays())
    assert (found.path, found.metadata) == (str(tmp_path / "file"), METADATA)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back(tmp_path: Path, dtype: np.dtype) -> None:
    bits = np.random.default_rng(1).integers(0, 256, 8 * 30, dtype=np.uint8).view(dtype)
    wanted = {"flat": bits, "turned": bits.reshape(5, -1).T[::-1], "one": bits[3]}
    tensorfile.save(tmp_path / "file", wanted, {})
    assert_equal(tensorfile.load(tmp_path / "file").tensors, wanted)


@given(data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_view_comes_back(tmp_path: Path, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    array = np.arange(math.prod(shape), dtype=data.draw(st.sampled_from(DTYPES))).reshape(shape)
    array = array.transpose(data.draw(st.permutations(range(array.ndim))))
    array = array[tuple(slice(None, None, data.draw(st.sampled_from([1, -1, 2, -3]))) for _ in shape)]
    name = data.draw(st.text(max_size=20))
    tensorfile.save(tmp_path / "file", {name: array}, {"name": name})
    found = tensorfile.load(tmp_path / "file")
    assert_equal(found.tensors, {name: array})
    assert found.metadata == {"name": name}


def test_nothing_at_all_comes_back(tmp_path: Path) -> None:
    tensorfile.save(tmp_path / "file", {}, {})
    found = tensorfile.load(tmp_path / "file")
    assert (found.tensors, found.metadata) == ({}, {})


def test_what_comes_back_can_be_changed(tmp_path: Path) -> None:
    tensorfile.save(tmp_path / "file", small(), {})
    found = tensorfile.load(tmp_path / "file").tensors["weight"]
    found += 1
    assert (found == small()["weight"] + 1).all()


def test_files_are_the_same_on_every_run(tmp_path: Path) -> None:
    """Whatever the order of the arrays and the seed of Python's hashes."""
    program = (
        "import sys, numpy as np; from gpucnn import tensorfile\n"
        "names = sorted({'a', 'b', 'c', 'd'}, key=hash)\n"
        "tensorfile.save(sys.argv[1], {name: np.full(3, ord(name)) for name in names}, {'x': 1, 'y': [2]})\n"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", program, str(tmp_path / seed)], check=True, env=environment, timeout=60)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_saving_takes_no_copy(tmp_path: Path) -> None:
    """VGG-16 with momentum is 1.1 GB already."""
    state = {name: np.ones((4, 1 << 20), np.float32) for name in ("weight", "momentum_buffer")}
    tracemalloc.start()
    try:
        tensorfile.save(tmp_path / "file", state, METADATA)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert_equal(tensorfile.load(tmp_path / "file").tensors, state)


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    tensorfile.save(tmp_path / "file", arrays(), METADATA)
    content = (tmp_path / "file").read_bytes()
    length = int.from_bytes(content[:8], "little")
    entries = {name: entry for name, entry in json.loads(content[8 : 8 + length]).items() if name != "__metadata__"}
    assert len(entries) == len(arrays())
    for name, entry in entries.items():
        assert (8 + length + entry["data_offsets"][0]) % np.asarray(arrays()[name]).itemsize == 0, name


def test_other_programs_can_read_it(tmp_path: Path) -> None:
    tensorfile.save(tmp_path / "file", arrays(), METADATA)
    assert_equal(safetensors.numpy.load_file(tmp_path / "file"), arrays())


def test_other_programs_weights_can_be_read(tmp_path: Path) -> None:
    safetensors.numpy.save_file(small(), tmp_path / "file", {"format": "pt", "name": "weights"})
    assert_equal(tensorfile.load_weights(tmp_path / "file"), small())
    with pytest.raises(CheckpointError, match="it holds tensors but no state of gpucnn; load_weights reads such files"):
        tensorfile.load(tmp_path / "file")


def test_weights_of_our_own_files_can_be_read(tmp_path: Path) -> None:
    tensorfile.save(tmp_path / "file", small(), METADATA)
    assert_equal(tensorfile.load_weights(tmp_path / "file"), small())


def test_select_takes_the_prefix_away() -> None:
    one, two = np.ones(1), np.ones(2)
    found = tensorfile.Checkpoint("", {"a/b": one, "a/a/c": two, "ab": one, "b/a/": two}, {})
    assert tensorfile.select(found, "a/") == {"b": one, "a/c": two}
    assert tensorfile.select(found, "c/") == {}


# What cannot be saved


@pytest.mark.parametrize(
    ("tensors", "metadata", "text"),
    [
        ({"x": np.ones(2, complex)}, {}, "tensor 'x' is complex128, not floating-point of at most 64 bits or integers"),
        ({"x": np.ones(2, bool)}, {}, "tensor 'x' is bool"),
        ({"x": np.array([{}])}, {}, "tensor 'x' is object"),
        ({"x": np.array("text")}, {}, "tensor 'x' is <U4"),
        ({"x": np.ones(2, np.longdouble)}, {}, "tensor 'x' is float128"),
        ({"x": np.ones((1,) * 9)}, {}, r"tensor 'x' has the shape \[1, 1, 1, 1, 1, 1, 1, 1, 1\]"),
        ({"n" * 513: np.ones(2)}, {}, "a tensor's name has 513 characters; at most 512 are read"),
        ({"__metadata__": np.ones(2)}, {}, "its metadata are not text"),
        ({"\ud800": np.ones(2)}, {}, "surrogates not allowed"),
        ({3: np.ones(2)}, {}, "a tensor's name is 3, not a string"),
        ({}, {"loss": math.nan}, "Out of range float values are not JSON compliant"),
        ({}, {"loss": -math.inf}, "Out of range float values are not JSON compliant"),
        ({}, {"loss": np.float32(1)}, "Object of type float32 is not JSON serializable"),
        ({}, {"one": {1: "a", "1": "b"}}, "a key comes twice in its JSON"),
        ({}, {"long": "x" * (16 << 20)}, "its header has 16777"),
    ],
)
def test_what_cannot_be_read_back_is_not_saved(
    tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, Any], text: str
) -> None:
    tensorfile.save(tmp_path / "file", small(), METADATA)
    with pytest.raises(CheckpointError) as caught:
        tensorfile.save(tmp_path / "file", tensors, metadata)
    assert re.search(text, str(caught.value))
    assert str(caught.value).startswith(f"cannot save {tmp_path / 'file'}: ")
    assert len(str(caught.value)) < 1000
    assert_equal(tensorfile.load(tmp_path / "file").tensors, small())
    assert os.listdir(tmp_path) == ["file"]


def test_too_many_tensors_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "MAX_TENSORS", 2)
    with pytest.raises(CheckpointError, match="it has 3 tensors; at most 2 are read"):
        tensorfile.save(tmp_path / "file", small(), {})


def test_metadata_without_end_are_not_saved(tmp_path: Path) -> None:
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    with pytest.raises(CheckpointError, match="Circular reference"):
        tensorfile.save(tmp_path / "file", {}, ring)


# Kills and full disks

KILLS = """
import os, random, signal, sys, time
import numpy as np
from gpucnn import tensorfile

folder = sys.argv[1]
path = os.path.join(folder, "state.safetensors")

def save_for_ever(first, done):
    for step in range(first, 1 << 60):
        state = {f"part{part}": np.full((512, 1024), step + part, np.float32) for part in range(4)}  # 8 MB
        tensorfile.save(path, state, {"step": step})
        os.write(done, b"%d\\n" % step)

chance = random.Random(0)
inside, step = 0, 0
for kill in range(30):
    done, child_done = os.pipe()
    child = os.fork()
    if child == 0:
        save_for_ever(step + 1, child_done)
    os.close(child_done)
    acknowledged = os.read(done, 100)
    time.sleep(chance.uniform(0, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(done, 1 << 16):
        acknowledged += piece
    os.close(done)
    found = tensorfile.load(path)
    step = found.metadata["step"]
    assert step - int(acknowledged.split()[-1]) in (0, 1), (step, acknowledged)
    for part in range(4):
        assert (found.tensors[f"part{part}"] == np.float32(step + part)).all()
    litter = [name for name in os.listdir(folder) if name != "state.safetensors"]
    assert len(litter) <= 1, litter
    inside += len(litter)
print(inside)
"""


def test_thirty_kills_while_saving(tmp_path: Path) -> None:
    """The last state, complete, is there after each; what was said to be saved is; litter does not add up."""
    found = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 0, "no kill hit a file being written: the test shows nothing"
    files.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["state.safetensors"]


def test_a_full_disk_keeps_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "state"
    tensorfile.save(path, small(), METADATA)
    program = (
        "import resource, sys, numpy as np; from gpucnn import tensorfile\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: tensorfile.save(sys.argv[1], {'x': np.ones(100_000)}, {})\n"
        "except OSError as error: sys.exit(str(error))\n"
    )
    found = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60)
    size, fix = int(found.stderr.partition("(")[2].partition(" ")[0]), files.FIXES[errno.EFBIG]
    assert 800_000 < size < 801_000
    assert found.stderr.strip() == f"cannot write {path} ({size} bytes): File too large; {fix}"
    assert_equal(tensorfile.load(path).tensors, small())
    assert os.listdir(tmp_path) == ["state"]


# Damaged files


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    """The bytes of a file with every part that a file can have."""
    tensorfile.save(tmp_path / "good", small(), {"step": 3, "loss": 0.25})
    return (tmp_path / "good").read_bytes()


def refused(path: Path, content: bytes, read: Callable[[Path], object] = tensorfile.load) -> str:
    """What is said of a file of these bytes."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and len(text) < len(str(path)) + 600
    return text


def test_every_truncation_is_refused(tmp_path: Path, good: bytes) -> None:
    for length in range(len(good)):
        text = refused(tmp_path / "cut", good[:length])
        assert "cut short" in text and "use another copy or train again" in text


def test_more_bytes_are_refused(tmp_path: Path, good: bytes) -> None:
    for more in (b"\0", good):
        refused(tmp_path / "longer", good + more)


def test_a_flipped_bit_is_found_in_every_byte(tmp_path: Path, good: bytes, rng: np.random.Generator) -> None:
    for place, bit in enumerate(rng.integers(0, 8, len(good)).tolist()):
        refused(tmp_path / "flipped", good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :])


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header (bytes, or what JSON turns into them) and this length told of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(begin: Any = 0, end: Any = 4, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it has 0 bytes"),
    "header of 2**63": (raw({}, length=1 << 63), "claims a header of 9223372036854775808"),
    "header of 2**64 - 1": (raw({}, length=(1 << 64) - 1), "claims a header of 18446744073709551615"),
    "header past the end": (raw({}, length=3), "it has 10 bytes and claims a header of 3"),
    "large header": (raw(b"{}" + b" " * (16 << 20)), "claims a header of 16777218; at most 16777216 are read"),
    "no header": (raw(b""), "Expecting value"),
    "no JSON": (raw(b"{]"), "Expecting property name"),
    "no UTF-8": (raw(b'{"\xff": 1}'), "can't decode byte 0xff"),
    "a list": (raw([]), "its header is no table of tensors"),
    "a number": (raw(b"1"), "its header is no table of tensors"),
    "deep": (raw(b'{"a":' * 100_000), ""),
    "deeper": (raw(b"[" * 5_000_000), ""),
    "many digits": (raw(b'{"a": ' + b"9" * 10_000 + b"}"), "Exceeds the limit"),
    "not a number": (raw(b'{"a": NaN}'), "its JSON holds NaN"),
    "name twice": (raw(b'{"a": %s, "a": %s}' % ((json.dumps(tensor()).encode(),) * 2), bytes(4)), "comes twice"),
    "key twice": (raw(b'{"a": {"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', bytes(4)), "comes twice"),
    "metadata twice": (raw(b'{"__metadata__": {"a": "b", "a": "c"}}'), "comes twice"),
    "metadata no text": (raw({"__metadata__": {"a": 1}}), "its metadata are not text"),
    "metadata a list": (raw({"__metadata__": []}), "its metadata are not text"),
    "long name": (raw({"n" * 513: tensor()}, bytes(4)), "a tensor's name has 513 characters"),
    "many tensors": (raw({str(n): tensor(0, 0, [0]) for n in range(100_001)}), "it has 100001 tensors"),
    "no entry": (raw({"a": None}), "tensor 'a' lacks dtype, shape or offsets"),
    "no dtype": (raw({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "tensor 'a' lacks"),
    "more keys": (raw({"a": {**tensor(), "more": 1}}, bytes(4)), "tensor 'a' lacks"),
    "other dtype": (raw({"a": tensor(dtype="F8_E4M3", end=1)}, bytes(1)), "tensor 'a' is 'F8_E4M3'; only F64, I64"),
    "unknown dtype": (raw({"a": tensor(dtype="O" * 9000)}, bytes(4)), "tensor 'a' is 'OOOO"),
    "dtype a list": (raw({"a": tensor(dtype=["F32"])}, bytes(4)), "only F64, I64"),
    "negative": (raw({"a": tensor(shape=[-1])}, bytes(4)), r"tensor 'a' has the shape \[-1\]"),
    "two negatives": (raw({"a": tensor(shape=[-1, -1])}, bytes(4)), r"has the shape \[-1, -1\]"),
    "fraction": (raw({"a": tensor(shape=[1.0])}, bytes(4)), r"has the shape \[1.0\]"),
    "truth": (raw({"a": tensor(shape=[True])}, bytes(4)), r"has the shape \[True\]"),
    "shape no list": (raw({"a": tensor(shape=1)}, bytes(4)), "has the shape 1"),
    "many axes": (raw({"a": tensor(shape=[1] * 9)}, bytes(4)), "has the shape"),
    "large shape": (raw({"a": tensor(shape=[1 << 62, 4])}, bytes(4)), "has the shape"),
    "large empty shape": (raw({"a": tensor(0, 0, [0, 1 << 62, 1 << 62])}), "has the shape"),
    "huge shape": (raw({"a": tensor(shape=[1 << 64])}, bytes(4)), "has the shape"),
    "shape past the bytes": (raw({"a": tensor(shape=[2])}, bytes(4)), r"of F32 and shape \[2\] cannot lie at \[0, 4\]"),
    "offsets backwards": (raw({"a": tensor(4, 0)}, bytes(4)), r"cannot lie at \[4, 0\]"),
    "negative offset": (raw({"a": tensor(-4, 0)}, bytes(4)), r"has the offsets \[-4, 0\]"),
    "huge offsets": (raw({"a": tensor((1 << 64) - 4, 1 << 64)}, bytes(4)), "has the offsets"),
    "one offset": (raw({"a": {**tensor(), "data_offsets": [4]}}, bytes(4)), r"has the offsets \[4\]"),
    "past the end": (raw({"a": tensor(0, 8, [2])}, bytes(4)), "bytes but its header tells of"),
    "claims 2**42 bytes": (raw({"a": tensor(0, 1 << 42, [1 << 40])}, bytes(4)), "bytes but its header tells of"),
    "hole": (raw({"a": tensor(), "b": tensor(8, 12)}, bytes(12)), ""),
    "hole at the start": (raw({"a": tensor(4, 8)}, bytes(8)), ""),
    "overlap": (raw({"a": tensor(0, 8, [2]), "b": tensor(4, 8)}, bytes(8)), ""),
    "the same bytes": (raw({"a": tensor(), "b": tensor()}, bytes(4)), ""),
    "a rest": (raw({"a": tensor()}, bytes(5)), "bytes but its header tells of"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "claims a header of"),
    "a pickle": (b"\x80\x04\x95" + bytes(100), "claims a header of"),
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("read", [tensorfile.load, tensorfile.load_weights])
def test_lies_are_refused(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    content, text = LIES[name]
    assert re.search(text, refused(tmp_path / "lie", content, read))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["header of 2**63", "large header", "claims 2**42 bytes", "large empty shape"])
def test_memory_follows_what_is_there(tmp_path: Path, name: str) -> None:
    """Nor is a large file read of which the header tells something else."""
    path = write(tmp_path / "lie", LIES[name][0])
    os.truncate(path, 1 << 40)  # takes no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            tensorfile.load(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "Expecting value"),
        ("[]", "its metadata are not of gpucnn's form"),
        ("{}", "its metadata are not of gpucnn's form"),
        ('{"format": 2}', "its format is 2, not 1: another version of gpucnn wrote it"),
        ('{"format": 1}', "its contents do not give the digest"),
        ('{"format": 1, "digest": null, "metadata": {}}', "its contents do not give the digest"),
        ('{"format": 1, "digest": "0", "metadata": []}', "its contents do not give the digest"),
        ('{"format": 1, "digest": "0", "metadata": {"a": 1, "a": 2}}', "a key comes twice"),
        ('{"format": 1, "digest": "0", "metadata": {"a": Infinity}}', "its JSON holds Infinity"),
        ('{"format": 1, "digest": "0", "metadata": {"a": 1e999}}', "Out of range float"),
        ('{"format": 1, "metadata": ' + '{"a":' * 100_000, ""),
        ("\ud800", ""),
    ],
)
def test_metadata_that_lie_are_refused(tmp_path: Path, text: str, found: str) -> None:
    content = raw({"__metadata__": {"gpucnn": text}, "a": tensor()}, bytes(4))
    assert found in refused(tmp_path / "lie", content)


def test_metadata_or_names_of_another_file_are_refused(tmp_path: Path) -> None:
    """What a digest of the arrays' bytes alone would not find."""
    path = tmp_path / "file"
    for old, new in ((b"step", b"stop"), (b"weight", b"weighs"), (b": 1.5", b": 2.5")):
        tensorfile.save(path, {"weight": np.ones(2)}, {"step": 1.5})
        changed = path.read_bytes().replace(old, new)
        assert "do not give the digest" in refused(path, changed)


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_bytes(tmp_path: Path, good: bytes, data: st.DataObject) -> None:
    content = bytearray(good if data.draw(st.booleans()) else LIES[data.draw(st.sampled_from(SHORT))][0])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    if data.draw(st.booleans()) and len(content) >= 8:  # let the header's length be right again
        content[:8] = (content.find(b"}}") + 2).to_bytes(8, "little")
    path = write(tmp_path / "mutated", bytes(content))
    for read in (tensorfile.load, tensorfile.load_weights):
        try:
            read(path)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")


SHORT = [name for name, (content, _) in LIES.items() if 0 < len(content) < 1000]


@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(["F32", "I8", "a"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["a", "b", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
            )
        ),
    )
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_header(tmp_path: Path, header: Any) -> None:
    path = write(tmp_path / "any", raw(header, bytes(4)))
    try:
        found = tensorfile.load_weights(path)
    except CheckpointError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert sum(array.nbytes for array in found.values()) == 4


# Wrong paths


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint; check the path, or train first.*none"):
        tensorfile.load(tmp_path / "none")
    with pytest.raises(CheckpointError, match="this is a folder; name the file in it"):
        tensorfile.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(CheckpointError, match=f"{path}: this is no ordinary file; copy it to one"):
            tensorfile.load_weights(path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="file/deeper"):
        tensorfile.load(tmp_path / "file" / "deeper")


def test_descriptors_are_given_back(tmp_path: Path, good: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for content in (good, good[:-1], b""):
        path = write(tmp_path / "file", content)
        if content == good:
            tensorfile.load(path)
        else:
            refused(path, content)
    assert len(os.listdir("/proc/self/fd")) == before


# No pickle


PTH = Path(gpucnn.__file__).parent / "weights" / "pth.py"  # reads pickles, as few of their operations as it can


def test_nothing_here_unpickles() -> None:
    """Loading a file never runs code: one file alone imports a module that could, and NumPy is never allowed to."""
    for path in sorted(Path(gpucnn.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            dangerous = roots & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
            assert not dangerous or (path == PTH and names == ["pickle"]), path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path


def test_the_reader_of_pickles_takes_only_the_unpickler_it_restricts() -> None:
    """No pickle.load, but the base of a class with its own find_class and operations, its error, and their names."""
    tree = ast.parse(PTH.read_text(encoding="utf-8"))
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "pickle"]
    attributes = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle"
    ]
    assert len(uses) == len(attributes)  # pickle itself is never handed on
    assert {name for name in attributes if not name.isupper()} == {"_Unpickler", "UnpicklingError"}
    (reader,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "_Unpickler")
    assert {node.name for node in reader.body if isinstance(node, ast.FunctionDef)} >= {"find_class", "persistent_load"}
