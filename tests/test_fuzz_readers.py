"""Every reader of files against thousands of damaged ones: it reads them, or raises one line that names the file.

Each case is a valid file that one of MUTATIONS has damaged, or a file made to lie; the same ones on every run. A case
must end in a result, or in a ValueError, OSError or TypeError with the file's path in one line; within SECONDS, and
with no more memory than MEMORY for what Python and NumPy allocate and ADDRESS_SPACE for all.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import resource
import signal
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import test_data_cifar as cifar_files
import test_data_folders as picture_files
import test_data_idx as idx_files
import test_tensorfile as tensor_files
import test_weights as npz_files
import test_weights_pth as pth_files

from gpucnn import data, tensorfile, weights
from gpucnn.data import cifar, pictures

CASES = 400  # for each reader, beside the files that lie
SECONDS = 10  # a case, on a busy machine; most take less than a millisecond
MEMORY = 48 << 20  # bytes: compressed files may unpack to 16 MiB, of which some are converted
ADDRESS_SPACE = 128 << 20  # bytes: what Pillow and zlib take themselves is in here, too


class Hang(Exception):
    """A case that did not end in time."""


class Reader(NamedTuple):
    """What is called on the file, valid contents, how what is damaged is packed into a file, and contents that lie.

    name: of the file; beside: other files in its folder
    """

    read: Callable[[Path], Any]
    valid: list[bytes]
    pack: Callable[[bytes], bytes] = bytes
    lies: Callable[[], list[bytes]] = list
    name: str = "file"
    beside: dict[str, bytes] = {}


# ---- valid files


def array_bytes(kind: str, *shape: int) -> bytes:
    return np.arange(np.prod(shape)).astype(kind).tobytes()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def safetensors_file(metadata: dict[str, Any]) -> bytes:
    tensors = {"a": tensor_files.tensor(0, 8, [2]), "b": tensor_files.tensor(8, 12)}
    return tensor_files.raw({"__metadata__": metadata, **tensors}, array_bytes("<f4", 3))


ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.int64)}
IDX = [
    idx_files.idx_bytes(np.arange(np.prod(shape)).reshape(shape)) for shape in ((5,), (2, 3), (2, 3, 4), (2, 1, 3, 2))
]
PROGRAM = pth_files.state(
    pth_files.tensor(size=(3,), stride=(1,)), pth_files.tensor(offset=3, size=(3, 1), stride=(1, 1))
)
PICTURES = picture_files.originals()


# ---- files that lie: bombs, huge headers, entries that overlap


def idx_lies() -> list[bytes]:
    shapes = ((2**32 - 1,), (2**32 - 1,) * 4, (2**31, 2), (1, 0), (2**16, 2**16, 2**16))
    return [idx_files.header(*shape) + bytes(24) for shape in shapes]


def gzip_lies() -> list[bytes]:
    bombs = [idx_files.header(size) + bytes(64 << 20) for size in (64 << 20, 2**32 - 1, 16)]
    return [gzip.compress(bomb, 1) for bomb in bombs] + [gzip.compress(lie) for lie in idx_lies()]


def npz_lies() -> list[bytes]:
    bomb = npz_files.zip_bytes(("a.npy", bytes(64 << 20)), compression=zipfile.ZIP_DEFLATED)
    place = bomb.index(b"PK\1\2") + 24  # of the size announced
    sizes = [struct.pack("<I", size) for size in (0, 10, 2**31, 2**32 - 1)]
    many = npz_files.zip_bytes(*((f"{index}.npy", npy(np.zeros(1))) for index in range(300)))
    return [bomb, *(bomb[:place] + size + bomb[place + 4 :] for size in sizes), npz_files.overlapping(), many]


def npy_lies() -> list[bytes]:
    shapes = (
        "(1099511627776,)",
        "(999999999999999999, 999999999999999999)",
        "(" * 3000,
        "(-1,)",
        "(2**70,)",
        "(0,)" * 99,
    )
    texts = [npz_files.header(shape=shape) for shape in shapes] + [
        npz_files.header(kind) for kind in ("|O", "<U9", "<c8")
    ]
    return [b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + bytes(8) for text in texts]


def pickle_lies() -> list[bytes]:
    calls = [b"cos\nsystem\n(X\4\0\0\0true" + b"tR.", b"cbuiltins\neval\n)R.", b"c__main__\nx\n."]
    sizes = [pth_files.state(pth_files.tensor(size=(2**31 - 1,) * 2, stride=(0, 0)))]
    return [b"\x80\x02" + call for call in calls] + sizes + [b"\x80\x02" + pth_files.DEEP + b"."]


def safetensors_lies() -> list[bytes]:
    """All but the slowest, which test_tensorfile.py tries."""
    return [content for content, _ in tensor_files.LIES.values() if len(content) < 1 << 20]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_lies() -> list[bytes]:
    """Pictures of impossible sizes, with chunks of 2 GiB, or with texts and profiles that unpack to 64 MiB."""
    content = PICTURES[1]
    sizes = [
        (2**31 - 1, 2**31 - 1),
        (9000, 9000),
        (7999, 7999),
        (64_000_000, 1),
        (1, 64_000_000),
        (0, 5),
        (2**16, 2**16),
    ]
    resized = [content[:16] + struct.pack(">II", *size) + content[24:] for size in sizes]
    place = content.index(b"IDAT") - 4
    resized.append(content[:place] + struct.pack(">I", 2**31 - 1) + content[place + 4 :])
    packed = zlib.compress(bytes(64 << 20), 1)
    bombs = [
        chunk(b"zTXt", b"a\0\0" + packed),
        chunk(b"iCCP", b"a\0\0" + packed),
        chunk(b"iTXt", b"a\0\1\0\0\0" + packed),
    ]
    return resized + [content[:33] + bomb + content[33:] for bomb in bombs] + [content[:33] + chunk(b"IDAT", packed)]


def jpeg_lies() -> list[bytes]:
    content = PICTURES[5]
    place = content.index(b"\xff\xc0") + 5  # of the height and width
    sizes = ((65535, 65535), (65500, 900), (8000, 7999), (0, 0), (1, 65535))
    return [content[:place] + struct.pack(">HH", *size) + content[place + 4 :] for size in sizes]


# ---- readers


def read_picture(path: Path) -> Any:
    return pictures.read_image(path, (3, 5, 4))


READERS = {
    "IDX": Reader(data.read_idx, IDX, lies=idx_lies),
    "IDX, gzip": Reader(data.read_idx, [gzip.compress(content) for content in IDX], lies=gzip_lies),
    "IDX in gzip": Reader(data.read_idx, IDX, gzip.compress),
    "CIFAR-10": Reader(
        lambda path: cifar.load_cifar10(path.parent),
        [cifar_files.records(3, 10)[2]],
        name="test_batch.bin",
        beside={"data_batch_1.bin": cifar_files.records(2, 10)[2]},
    ),
    "CIFAR-100": Reader(
        lambda path: cifar.load_cifar100(path.parent),
        [cifar_files.records(3, 100)[2]],
        name="train.bin",
        beside={"test.bin": cifar_files.records(1, 100)[2]},
    ),
    "CIFAR's names": Reader(
        lambda path: cifar.load_cifar10(path.parent),
        ["\n".join("abcdéfghij").encode()],
        name="batches.meta.txt",
        beside=dict.fromkeys(("data_batch_1.bin", "test_batch.bin"), cifar_files.records(2, 10)[2]),
    ),
    "PNG": Reader(read_picture, PICTURES[:4], lies=png_lies),
    "PNG, right sums": Reader(read_picture, PICTURES[:4], picture_files.with_checksums, png_lies),
    "JPEG": Reader(read_picture, PICTURES[4:], lies=jpeg_lies),
    "npz": Reader(
        weights.read_weights,
        [npz_files.npz_bytes(ARRAYS, kind) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)],
        lies=npz_lies,
    ),
    "npy in npz": Reader(
        weights.read_weights,
        [npy(array) for array in (*ARRAYS.values(), np.float64(1), np.zeros((0, 3), ">i2"))],
        lambda content: npz_files.zip_bytes(("a.npy", content)),
        npy_lies,
    ),
    "pth": Reader(weights.read_weights, [pth_files.pth(PROGRAM), pth_files.pth(PROGRAM, byteorder=b"little")]),
    "pickle in pth": Reader(weights.read_weights, [PROGRAM], pth_files.pth, pickle_lies),
    "safetensors": Reader(weights.read_weights, [safetensors_file({})], lies=safetensors_lies),
    "checkpoint": Reader(tensorfile.load, [], lies=safetensors_lies),
}


# ---- damage


def truncate(content: bytes, other: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def flip_bits(content: bytes, other: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def set_length(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """An integer of 1 to 8 bytes, where a length may stand, at the edge of what it can be."""
    width, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
    top = 1 << 8 * width
    value = (
        draw.choice((0, 1, len(content), len(content) + 1, top - 1, top // 2, top // 2 - 1, draw.randrange(top))) % top
    )
    place = draw.randrange(min(len(content), 64)) if draw.random() < 0.5 else draw.randrange(len(content))
    return content[:place] + value.to_bytes(width, order) + content[place + width :]


def remove(content: bytes, other: bytes, draw: random.Random) -> bytes:
    start, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + content[end:]


def repeat(content: bytes, other: bytes, draw: random.Random) -> bytes:
    start, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[start:end] * draw.randint(1, 3) + content[end:]


def splice(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """The start of one file and the end of another, perhaps of another kind."""
    return content[: draw.randrange(len(content) + 1)] + other[draw.randrange(len(other) + 1) :]


def overwrite(content: bytes, other: bytes, draw: random.Random) -> bytes:
    place, noise = (
        draw.randrange(len(content)),
        draw.choice((draw.randbytes(draw.randint(1, 16)), bytes(16), b"\xff" * 16)),
    )
    return content[:place] + noise + content[place + len(noise) :]


def noise(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """Random bytes, behind the first ones of a valid file."""
    return content[: draw.choice((0, 2, 4, 8, 16))] + draw.randbytes(draw.randrange(200))


MUTATIONS = (truncate, flip_bits, set_length, remove, repeat, splice, overwrite, noise)


def damaged(reader: Reader, draw: random.Random) -> Iterator[bytes]:
    """CASES contents; every fourth is damaged twice."""
    everything = [content for each in READERS.values() for content in each.valid]
    for index in range(CASES if reader.valid else 0):
        content = draw.choice(reader.valid)
        for _ in range(1 + (index % 4 == 0)):
            other = draw.choice(reader.valid if draw.random() < 0.7 else everything)
            content = MUTATIONS[index % len(MUTATIONS)](content or b"\0", other, draw)
        yield content


# ---- what must hold


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """At most ADDRESS_SPACE more than now; what takes more gets a MemoryError, which no reader may end in."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESS_SPACE, before[1]))
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def timed() -> Iterator[None]:
    def stop(*arguments: object) -> None:
        raise Hang(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def survives(read: Callable[[Path], Any], path: Path, content: bytes) -> bool:
    """Whether the file was read; fails for what is neither that nor a proper refusal."""
    path.write_bytes(content)
    tracemalloc.reset_peak()
    start = tracemalloc.get_traced_memory()[0]
    try:
        with timed():
            read(path)
        return True
    except (ValueError, OSError, TypeError) as error:
        assert str(path) in str(error) and "\n" not in str(error), repr(error)
        return False
    finally:
        taken = tracemalloc.get_traced_memory()[1] - start
        assert taken <= MEMORY, f"{len(content)} bytes took {taken} bytes of memory"


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(
    name: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    reader, draw = READERS[name], random.Random(name)
    path = tmp_path / reader.name
    for other, content in reader.beside.items():
        (tmp_path / other).write_bytes(content)
    contents = [reader.pack(content) for content in (*damaged(reader, draw), *reader.lies())]
    with limited():
        assert all(survives(reader.read, path, reader.pack(content)) for content in reader.valid)
        for index, content in enumerate(contents):
            try:
                survives(reader.read, path, content)
            except Exception as error:
                error.add_note(f"case {index}: {content[:400]!r}")
                raise
    record_property("fuzz cases", len(contents))


def test_there_are_two_thousand_cases() -> None:
    """What the end of the tests' output adds up, counted without the files that lie."""
    assert CASES * sum(bool(reader.valid) for reader in READERS.values()) >= 2000
