"""IDX files: right ones in every dress, and wrong ones, of which only ValueError or OSError may come."""

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpucnn import data


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def header(*shape: int, kind: int = 8, axes: int | None = None) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape) if axes is None else axes, *shape)


SMALL = idx_bytes(np.arange(2 * 3 * 2).reshape(2, 3, 2))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refused(path: Path, content: bytes, text: str) -> None:
    """Reading content gives a ValueError with the path and the text in one line."""
    with pytest.raises(ValueError, match=text) as caught:
        data.read_idx(write(path, content))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


# ---- right files


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (2, 1, 3, 2)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_read_back(tmp_path, shape, pack):
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    read = data.read_idx(write(tmp_path / "file", pack(idx_bytes(array))))
    assert read.dtype == np.uint8 and read.shape == shape and (read == array).all() and read.flags.writeable


def test_gzip_in_several_members(tmp_path):
    content = gzip.compress(SMALL[:7]) + gzip.compress(SMALL[7:])
    assert data.read_idx(write(tmp_path / "file", content)).shape == (2, 3, 2)


def test_more_than_one_chunk(tmp_path):
    array = np.random.default_rng(2).integers(0, 256, (3, 1000, 1000), dtype=np.uint8)
    assert (data.read_idx(write(tmp_path / "a", idx_bytes(array))) == array).all()
    assert (data.read_idx(write(tmp_path / "b", gzip.compress(idx_bytes(array), 1))) == array).all()


# ---- wrong files


@pytest.mark.parametrize("length", range(len(SMALL)))
def test_every_truncation(tmp_path, length):
    refused(tmp_path / "file", SMALL[:length], "IDX")


@pytest.mark.parametrize("length", range(len(gzip.compress(SMALL, mtime=0))))
def test_every_truncation_of_gzip(tmp_path, length):
    refused(tmp_path / "file", gzip.compress(SMALL, mtime=0)[:length], "IDX|gzip")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not an IDX file; it starts with no byte at all"),
        (b"PK\3\4" + SMALL[4:], "it starts with 50 4b 03 04 in place of 00 00 08 and 01 to 04"),
        (header(2, kind=0x0A) + b"ab", "it starts with 00 00 0a 01"),
        (header(2, kind=0x0D) + bytes(8), "an IDX file of float32; only uint8, type 08, can be read"),
        (header(axes=0), "an IDX file of 0 axes; only 1 to 4 can be read"),
        (header(1, 1, 1, 1, 1) + b"a", "an IDX file of 5 axes"),
        (header(*[1] * 255) + b"a", "an IDX file of 255 axes"),
        (header(2, axes=3), "the IDX file ends within its header, which is of 3 axes"),
        (header(0, 28, 28), r"the IDX file is empty, its shape is \(0, 28, 28\)"),
        (SMALL + b"\0", r"this one has 29|announces 12 bytes of items, but there are more"),
        (SMALL + bytes(10**6), "this one has 1000028|but there are more"),
        (header(2**31, 2**31, 2**31) + b"a", r"\(2147483648, 2147483648, 2147483648\)"),
        (header(*[2**32 - 1] * 4) + b"a", r"4294967295"),
        (header(2**31, 0) + b"a", "is empty"),
        (header(16 * 2**20) + b"a", r"16777216"),
    ],
)
def test_lies(tmp_path, content, text, pack):
    refused(tmp_path / "file", pack(content), text)


def test_trailing_bytes_after_gzip(tmp_path):
    refused(tmp_path / "file", gzip.compress(SMALL) + b"more", "damaged gzip file .*; fetch it again")


def test_wrong_checksum(tmp_path):
    content = bytearray(gzip.compress(SMALL))
    content[-8] ^= 1
    refused(tmp_path / "file", bytes(content), "damaged gzip file .*CRC")


def traced_peak(action) -> int:
    """Bytes of the largest allocation of Python and NumPy while action() runs."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bomb_with_trailing_bytes_is_not_unpacked(tmp_path):
    content = gzip.compress(SMALL + bytes(200 * 2**20), 1)
    peak = traced_peak(lambda: refused(tmp_path / "file", content, "announces 12 bytes of items, but there are more"))
    assert peak < 4 * 2**20


def test_bomb_of_the_announced_size_is_refused(tmp_path):
    content = gzip.compress(header(200, 2**20) + bytes(200 * 2**20), 1)
    text = r"compressed bytes claim an array of shape \(200, 1048576\), 209715200 bytes, more than 200 times"
    assert traced_peak(lambda: refused(tmp_path / "file", content, text)) < 4 * 2**20


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_memory_follows_what_is_there_not_what_is_said(tmp_path, pack):
    content = pack(header(15 * 2**20) + b"only this")
    assert traced_peak(lambda: refused(tmp_path / "file", content, "IDX")) < 4 * 2**20  # of 15


@given(data_=st.data())
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_bytes(tmp_path, data_):
    valid = data_.draw(st.sampled_from([SMALL, gzip.compress(SMALL, mtime=0)]))
    content = bytearray(valid)
    for _ in range(data_.draw(st.integers(1, 4))):
        place = data_.draw(st.integers(0, max(len(content) - 1, 0)))
        piece = data_.draw(st.binary(max_size=4))
        content[place : place + data_.draw(st.integers(0, 4))] = piece
    path = write(tmp_path / "file", bytes(content))
    try:
        array = data.read_idx(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error)
    else:  # whatever is accepted is what its bytes say
        plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else bytes(content)
        assert idx_bytes(array) == plain


@given(content=st.binary(max_size=64), start=st.sampled_from([b"", b"\0\0\x08", b"\x1f\x8b\x08", b"\x1f\x8b\x08\x1f"]))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes(tmp_path, content, start):
    path = write(tmp_path / "file", start + content)
    try:
        assert data.read_idx(path).size == len(start + content) - 4 - 4 * (start + content)[3]
    except (ValueError, OSError) as error:
        assert str(path) in str(error)


# ---- wrong paths


def test_missing_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        data.read_idx(tmp_path / "nothing-here")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        data.read_idx(tmp_path)


def test_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe: an IDX file must be a regular file, not a device or a pipe"):
        data.read_idx(tmp_path / "pipe")


# ---- directories of four files

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def arrays(labels: int = 10) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    train, test = (generator.integers(0, 256, (count, 6, 5), dtype=np.uint8) for count in (20, 8))
    return [train, np.arange(20) % labels, test, np.arange(8) % labels]


def fill(directory: Path, names: tuple[str, ...] = NAMES, content: list[np.ndarray] | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    for name, array in zip(names, content or arrays(), strict=True):
        write(directory / name, gzip.compress(idx_bytes(array)) if name.endswith(".gz") else idx_bytes(array))
    return directory


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        tuple(name + ".gz" for name in NAMES),
        tuple(name.replace("-idx", ".idx") for name in NAMES),
        tuple("emnist-letters-" + name.replace("t10k", "test") + ".gz" for name in NAMES),
    ],
    ids=["plain", "gz", "dot", "prefix"],
)
def test_load_directory(tmp_path, names):
    train, test = data.load(fill(tmp_path / "mine", names))
    train_images, train_labels, test_images, test_labels = arrays()
    assert (train.images == train_images[:, None]).all() and (test.images == test_images[:, None]).all()
    assert (train.labels == train_labels).all() and (test.labels == test_labels).all()
    assert train.name == "mine" and (train.channels, train.image_size) == (1, (6, 5))
    assert train.classes == test.classes == tuple("0123456789")


def test_an_unpacked_file_goes_before_its_gz_and_directories_are_passed_over(tmp_path):
    fill(tmp_path / "mine")
    write(tmp_path / "mine" / (NAMES[0] + ".gz"), b"not read")
    (tmp_path / "mine" / "train-images.idx3-ubyte").mkdir()
    assert len(data.load(tmp_path / "mine").train) == 20


@pytest.mark.parametrize(("labels", "classes"), [(3, 10), (14, 14)])
def test_classes_follow_the_labels(tmp_path, labels, classes):
    train, test = data.load(str(fill(tmp_path / "mine", content=arrays(labels))))
    assert train.classes == test.classes == tuple(map(str, range(classes)))


def test_a_missing_file_is_named(tmp_path):
    fill(tmp_path / "mine")
    (tmp_path / "mine" / NAMES[3]).unlink()
    with pytest.raises(FileNotFoundError, match="has IDX files, but none for the test labels; needed are train-images"):
        data.load(tmp_path / "mine")


@pytest.mark.parametrize(
    ("place", "array", "text"),
    [
        (0, np.zeros(20), r"train-images-idx3-ubyte: images must have the shape \(N, H, W\), not \(20,\)"),
        (1, np.zeros(19), r"train-labels-idx1-ubyte: labels must have the shape \(20,\), one for each image in train-"),
        (3, np.zeros((8, 1)), r"t10k-labels-idx1-ubyte: labels must have the shape \(8,\), .*, not \(8, 1\)"),
        (2, np.zeros((8, 5, 6)), r"must have one size, not \(6, 5\) pixels for training, \(5, 6\) for testing"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, place, array, text):
    content = arrays()
    content[place] = array
    with pytest.raises(ValueError, match=text):
        data.load(fill(tmp_path / "mine", content=content))


def test_several_sets_in_one_directory(tmp_path):
    fill(tmp_path / "mine")
    fill(tmp_path / "mine", tuple("fashion-" + name for name in NAMES))
    with pytest.raises(ValueError, match=r"has IDX files of several sets, \['', 'fashion-'\]; keep only one"):
        data.load(tmp_path / "mine")


def test_a_damaged_file_is_named(tmp_path):
    fill(tmp_path / "mine")
    write(tmp_path / "mine" / NAMES[2], SMALL[:-1])
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte: .*it is incomplete or damaged, fetch it again"):
        data.load(tmp_path / "mine")
