"""CIFAR's binary files: right ones, and wrong ones, of which only ValueError or OSError may come."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpucnn import data
from gpucnn.cli import main

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def records(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, bytes]:
    """(images, labels, bytes of the file); the coarse label of CIFAR-100 is 255, which no reader may look at."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, classes, count, dtype=np.uint8)
    first = b"\xff" if classes == 100 else b""
    return (
        images,
        labels,
        b"".join(first + bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)),
    )


def write_cifar10(folder: Path, batches: int = 2) -> Path:
    for number in range(1, batches + 1):
        (folder / f"data_batch_{number}.bin").write_bytes(records(4, 10, number)[2])
    (folder / "test_batch.bin").write_bytes(records(3, 10, 0)[2])
    return folder


# ---- right files


def test_cifar10(tmp_path):
    write_cifar10(tmp_path, 11)  # 10 and 11 come after 9, not after 1
    train, test = data.load(tmp_path)
    assert train.images.shape == (44, 3, 32, 32) and train.classes == tuple("0123456789")
    for number in range(1, 12):
        images, labels, _ = records(4, 10, number)
        part = slice(4 * (number - 1), 4 * number)
        assert (train.images[part] == images).all() and (train.labels[part] == labels).all()
    images, labels, _ = records(3, 10, 0)
    assert (test.images == images).all() and (test.labels == labels).all()
    assert train.name == test.name == tmp_path.name and test.images.flags.c_contiguous


def test_cifar100_reads_the_fine_labels(tmp_path):
    images, labels, content = records(40, 100)
    (tmp_path / "train.bin").write_bytes(content)
    (tmp_path / "test.bin").write_bytes(content[:3074])
    train, test = data.load(tmp_path)
    assert (train.images == images).all() and (train.labels == labels).all() and len(test) == 1
    assert train.classes == tuple(map(str, range(100)))


def test_class_names(tmp_path):
    (write_cifar10(tmp_path) / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    assert data.load(tmp_path).test.classes == tuple(NAMES)


def test_command_line(tmp_path, capsys):
    """Channels and classes follow the data."""
    write_cifar10(tmp_path)
    out = tmp_path / "run"
    options = ["--data", str(tmp_path), "--epochs", "1", "--batch-size", "4", "--out", str(out)]
    assert main(["train", "lenet5", *options]) == 0
    assert "8 training and 3 test images of 10 classes" in capsys.readouterr().out
    assert main(["eval", str(out / "checkpoint.safetensors")]) == 0


# ---- wrong files


@pytest.mark.parametrize(
    ("gone", "text"),
    [
        (["data_batch_1.bin"], "CIFAR-10, but lacks data_batch_1.bin; unpack the whole binary version"),
        (["data_batch_1.bin", "data_batch_2.bin"], "lacks data_batch_1.bin"),
        (["test_batch.bin"], "lacks test_batch.bin"),
    ],
)
def test_missing_files(tmp_path, gone, text):
    write_cifar10(tmp_path)
    for name in gone:
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=text):
        data.load(tmp_path)


def test_missing_half_of_cifar100(tmp_path):
    (tmp_path / "test.bin").write_bytes(records(1, 100)[2])
    with pytest.raises(FileNotFoundError, match="CIFAR-100, but lacks train.bin"):
        data.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "has 3073 bytes an image, .* but this one has 0; it is incomplete or damaged, fetch it again"),
        (bytes(3072), "this one has 3072"),
        (bytes(3074), "this one has 3074"),
        (bytes(3073) + b"\x0a" + bytes(3072), "image 1 has the label 10; CIFAR-10 has the labels 0 to 9"),
        (b"\xff" + bytes(3072), "label 255"),
    ],
)
@pytest.mark.parametrize("name", ["data_batch_2.bin", "test_batch.bin"])
def test_damaged_files(tmp_path, name, content, text):
    (write_cifar10(tmp_path) / name).write_bytes(content)
    with pytest.raises(ValueError, match=text) as caught:
        data.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "it must name 10 classes, one a line, not 0; delete or replace it"),
        (b"a\n" * 11, "not 11"),
        (b"\xff\n" * 10, "must be text in UTF-8"),
        (b"a" * 9000 + b"\na" * 9 + b"\n" * 60000, "it must name 10 classes"),
    ],
)
def test_damaged_names(tmp_path, content, text):
    (write_cifar10(tmp_path) / "batches.meta.txt").write_bytes(content)
    with pytest.raises(ValueError, match=text):
        data.load(tmp_path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    with open(write_cifar10(tmp_path) / "test_batch.bin", "wb") as file:
        file.truncate(3073 * 2**20)  # sparse: takes no space on the disk
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="at most 1073741824 bytes in all, but this one has 3222274048"):
            data.load(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_folders_and_pipes_are_no_files(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    os.mkfifo(tmp_path / "test_batch.bin")
    (tmp_path / "data_batch_3.bin").mkdir()
    with pytest.raises(FileNotFoundError, match="lacks test_batch.bin"):
        data.load(tmp_path)


@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.builds(lambda label, rest: bytes([label]) + bytes(3072) + rest, st.integers(0, 255), st.binary(max_size=2)),
    ),
    names=st.one_of(st.none(), st.binary(max_size=60), st.lists(st.sampled_from("ab \n\0é"), max_size=30)),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_data_set_or_a_named_error(tmp_path, content, names):
    write_cifar10(tmp_path, 1)
    (tmp_path / "data_batch_1.bin").write_bytes(content)
    meta = tmp_path / "batches.meta.txt"
    meta.unlink(missing_ok=True)
    if names is not None:
        meta.write_bytes(names if isinstance(names, bytes) else "".join(names).encode())
    try:
        train = data.load(tmp_path).train
    except ValueError as error:
        assert str(error).startswith(str(tmp_path))
    else:
        assert len(train) == 1 and train.images.tobytes() == content[1:] and train.labels[0] == content[0]
