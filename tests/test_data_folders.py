"""Pictures in class folders: layouts, modes and sizes; wrong pictures are named, and none is unpacked unchecked."""

import io
import os
import struct
import threading
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpucnn import data, train
from gpucnn.cli import main
from gpucnn.data import folders, pictures


def save(path: Path, pixels: np.ndarray | int, mode: str | None = None, **settings) -> Path:
    """A picture of these pixels, or of 6 × 8 that all have one value."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, int):
        pixels = np.full((6, 8, 3), pixels, np.uint8)
    picture = Image.fromarray(pixels)
    (picture if mode is None else picture.convert(mode)).save(path, **settings)
    return path


def values(dataset: data.Dataset) -> list[int]:
    return dataset.images[:, 0, 0, 0].tolist()


def make_parted(folder: Path, test: str = "val") -> Path:
    for part, first in (("train", 0), (test, 100)):
        for number, name in enumerate(("dog", "cat")):
            for index in range(2):
                save(folder / part / name / f"{index}.png", first + 10 * number + index)
    return folder


# ---- layouts


@pytest.mark.parametrize("test", ["val", "test"])
def test_parted_folders(tmp_path, test):
    found = data.load(make_parted(tmp_path, test))
    assert found.train.classes == found.test.classes == ("cat", "dog")
    assert values(found.train) == [10, 11, 0, 1] and found.train.labels.tolist() == [0, 0, 1, 1]
    assert values(found.test) == [110, 111, 100, 101] and found.test.labels.tolist() == [0, 0, 1, 1]
    assert (found.train.images.shape, found.train.name) == ((4, 3, 6, 8), tmp_path.name)


def test_a_test_folder_without_classes_gives_way_to_val(tmp_path):
    save(make_parted(tmp_path) / "test" / "1.png", 7)
    assert values(data.load(tmp_path).test) == [110, 111, 100, 101]


def test_a_class_may_be_missing_in_the_test_part(tmp_path):
    make_parted(tmp_path)
    for path in (tmp_path / "val" / "cat").iterdir():
        path.unlink()
    (tmp_path / "val" / "cat").rmdir()
    assert data.load(tmp_path).test.labels.tolist() == [1, 1]


def test_plain_class_folders_are_parted_by_a_seeded_draw(tmp_path):
    for number, name in enumerate(("a", "b")):
        for index in range(10):
            save(tmp_path / name / f"{index}.png", 100 * number + index)
    found, again = data.load(tmp_path), data.load(tmp_path)
    assert np.bincount(found.train.labels).tolist() == [8, 8] and np.bincount(found.test.labels).tolist() == [2, 2]
    assert sorted(values(found.train) + values(found.test)) == [*range(10), *range(100, 110)]
    assert values(found.test) == values(again.test)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        for index in range(2):
            save(tmp_path / name / f"{index}.png", 0)
    assert data.load(tmp_path).train.classes == ("bus", "train")


def test_which_files_are_pictures(tmp_path):
    save(tmp_path / "a" / "deep" / "er" / "1.JPEG", 1, format="JPEG")
    save(tmp_path / "a" / "2.jpg", 2)
    save(tmp_path / "b" / "1.png", 1)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / "._2.jpg").write_text("what macOS leaves")
    (tmp_path / ".cache").mkdir()
    os.mkfifo(tmp_path / "b" / "pipe.png")
    (tmp_path / "b" / "folder.png").mkdir()
    (tmp_path / "b" / "circle").symlink_to(tmp_path)
    found = data.load(tmp_path)
    assert len(found.train) + len(found.test) == 3


# ---- modes and sizes


def test_all_grey_pictures_have_one_channel(tmp_path):
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    for name in ("a", "b"):
        for mode in ("L", "LA"):
            save(tmp_path / name / f"{mode}.png", ramp, mode)
        save(tmp_path / name / "16.png", ramp.astype(np.uint16) * 257)
        save(tmp_path / name / "1.png", ramp > 100)
    found = data.load(tmp_path)
    images = np.concatenate([found.train.images, found.test.images])
    assert images.shape == (8, 1, 32, 32) and found.train.images.flags.c_contiguous
    ramps = images[(images[:, 0, 0, 1] == 8)]
    assert len(ramps) == 6 and (ramps[:, 0] == ramp).all()


def test_one_coloured_picture_gives_all_three_channels(tmp_path):
    grey = np.full((4, 4), 9, np.uint8)
    for part, mode in (("train", "L"), ("test", "RGB")):
        for name in ("a", "b"):
            save(tmp_path / part / name / "1.png", grey, mode)
    train_part, test_part = data.load(tmp_path)
    assert train_part.channels == test_part.channels == 3 and (train_part.images == 9).all()


def test_modes_of_colour(tmp_path):
    colour = np.zeros((4, 4, 3), np.uint8) + np.array([204, 102, 51], np.uint8)  # of Pillow's palette
    for mode in ("RGB", "RGBA", "P"):
        save(tmp_path / "a" / f"{mode}.png", colour, mode)
    save(tmp_path / "b" / "cmyk.jpg", colour, "CMYK", quality=100)
    for dataset in data.load(tmp_path):
        assert (np.abs(dataset.images.mean(axis=(2, 3)) - [204, 102, 51]) <= 3).all()


def test_sizes(tmp_path):
    for part in ("train", "test"):
        save(tmp_path / part / "a" / "1.png", np.zeros((50, 100, 3), np.uint8))
        save(tmp_path / part / "b" / "1.png", np.zeros((7, 5, 3), np.uint8))
    assert [part.image_size for part in data.load(tmp_path)] == [(50, 100)] * 2
    assert [part.image_size for part in data.load(tmp_path, image_size=9)] == [(9, 9)] * 2
    assert data.load(tmp_path, image_size=(3, 4)).test.image_size == (3, 4)
    save(tmp_path / "train" / "a" / "0.png", np.zeros((300, 1024, 3), np.uint8))
    assert data.load(tmp_path).train.image_size == (75, 256)
    with pytest.raises(ValueError, match="load: image_size must be at least 1, not 0"):
        data.load(tmp_path, image_size=0)


def test_the_other_sets_are_resized_too():
    assert data.load("digits", image_size=8).test.images.shape == (1000, 1, 8, 8)


def test_pictures_look_as_for_predict(tmp_path, rng):
    """Both are scaled in the same way."""
    pixels = rng.integers(0, 256, (2, 21, 34, 3), dtype=np.uint8)
    for name, each in zip("ab", pixels, strict=True):
        save(tmp_path / name / "1.png", each)
    found = np.concatenate([part.images for part in data.load(tmp_path, image_size=(10, 12))])
    wanted = {train.read_image(tmp_path / name / "1.png", (3, 10, 12)).tobytes() for name in "ab"}
    assert {image.tobytes() for image in found} == wanted


def test_command_line(tmp_path, capsys):
    make_parted(tmp_path)
    out = tmp_path / "run"
    options = ["--data", str(tmp_path), "--epochs", "1", "--batch-size", "4", "--out", str(out)]
    assert main(["train", "lenet5", *options]) == 0
    assert "4 training and 4 test images of 2 classes" in capsys.readouterr().out
    assert main(["eval", str(out / "checkpoint.safetensors")]) == 0
    assert main(["predict", str(out / "checkpoint.safetensors"), str(tmp_path / "val" / "cat" / "0.png")]) == 0
    assert "cat" in capsys.readouterr().out
    (tmp_path / "train" / "cat" / "2.png").write_text("no picture")
    assert main(["eval", str(out / "checkpoint.safetensors")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/train/cat/2.png: not a PNG or JPEG image; convert it first\n"


# ---- wrong folders and pictures


def test_layouts_that_are_refused(tmp_path):
    save(tmp_path / "one" / "a" / "1.png", 1)
    save(tmp_path / "one" / "a" / "2.png", 1)
    with pytest.raises(ValueError, match="has one class folder, 'a'; there must be two or more"):
        data.load(tmp_path / "one")
    (tmp_path / "one" / "b").mkdir()
    with pytest.raises(ValueError, match=r"one/b' holds no picture \(.png, .jpg, .jpeg\); add some or remove it"):
        data.load(tmp_path / "one")
    make_parted(tmp_path / "two", "extra")
    with pytest.raises(ValueError, match="class folders in train, but none in test or val; make one of them, or give"):
        data.load(tmp_path / "two")
    save(make_parted(tmp_path / "three") / "val" / "cow" / "1.png", 1)
    with pytest.raises(ValueError, match=r"val/cow' is no class of the training pictures \(cat, dog\)"):
        data.load(tmp_path / "three")


def test_the_wrong_picture_is_named_and_no_thread_stays(tmp_path):
    for index in range(40):
        save(tmp_path / "a" / f"{index:02}.png", 1)
    save(tmp_path / "b" / "1.png", 1)
    good = (tmp_path / "a" / "07.png").read_bytes()
    before = threading.active_count()
    for content, kind, text in (
        (b"", ValueError, "not a PNG or JPEG image; convert it first"),
        (b"GIF89a" + bytes(20), ValueError, "not a PNG or JPEG image"),
        (good[:50], OSError, "the image cannot be read"),
    ):
        (tmp_path / "a" / "07.png").write_bytes(content)
        with pytest.raises(kind, match=text) as caught:
            data.load(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path}/a/07.png: ")
        assert threading.active_count() == before


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    from PIL import Image, ImageFile

    save(tmp_path / "a" / "1.png", 1)
    (tmp_path / "b").mkdir()
    Image.new("1", (9_700, 9_700)).save(tmp_path / "b" / "bomb.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match="bomb.png: the image has more than 64,000,000 pixels; use a smaller copy"):
        folders._read_all([tmp_path / "b" / "bomb.png"], (8, 8))


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("1", "PNG", {"optimize": True}),
        ("L", "PNG", {}),
        ("RGB", "JPEG", {"quality": 1}),
        ("L", "JPEG", {"quality": 1, "optimize": True, "progressive": True}),
    ],
)
def test_blank_pictures_are_no_bombs(tmp_path, mode, kind, options):
    """Nothing packs better than these."""
    from PIL import Image

    Image.new(mode, (4000, 4000)).save(tmp_path / "blank", kind, **options)
    assert (pictures.read_image(tmp_path / "blank", (1, 2, 2)) <= 1).all()


def test_pictures_of_few_bytes_cannot_have_many_pixels(tmp_path):
    path, (png, jpeg) = tmp_path / "bomb", (originals()[1], originals()[4])
    frame = jpeg.index(b"\xff\xc0") + 5
    for content, text in (
        (
            jpeg[:frame] + struct.pack(">HH", 7000, 900) + jpeg[frame + 4 :],
            "900×7000 pixels, more than 3.. bytes can hold",
        ),
        (
            png[:16] + struct.pack(">II", 7000, 900) + png[24:],
            "7000×900 pixels, more than 1.. bytes can hold; it is dam",
        ),
        (png[:16] + struct.pack(">II", 70_000, 9) + png[24:], "70000×9 pixels; at most 65,535 a side are read; cut it"),
    ):
        path.write_bytes(with_checksums(content))
        with pytest.raises(ValueError, match=f"{path}: the image has {text}"):
            pictures.read_image(path, (1, 2, 2))


def test_pipes_are_no_pictures(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe: an image must be a regular file, not a device or a pipe"):
        pictures.read_image(tmp_path / "pipe", (1, 2, 2))


@cache
def originals() -> list[bytes]:
    """A picture of every kind that the readers meet, small."""
    from PIL import Image

    grey = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [
        ("L", "PNG"),
        ("RGB", "PNG"),
        ("P", "PNG"),
        ("LA", "PNG"),
        ("L", "JPEG"),
        ("RGB", "JPEG"),
        ("CMYK", "JPEG"),
    ]
    found = []
    for mode, kind in kinds:
        file = io.BytesIO()
        options = {"transparency": 3} if mode == "P" else {}
        grey.convert(mode).save(file, kind, exif=exif.tobytes(), **options)
        found.append(file.getvalue())
    return found


@given(
    which=st.integers(0, 6),
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 2**16)),
    repair=st.booleans(),
)
@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_pictures_give_named_errors_only(tmp_path, which, edits, cut, repair):
    content = bytearray(originals()[which])
    for place, value in edits:
        content[place % len(content)] = value
    if cut is not None:
        del content[cut % len(content) :]
    path = tmp_path / "picture"
    path.write_bytes(with_checksums(bytes(content)) if repair else content)
    try:
        found = pictures.read_image(path, (3, 5, 4))
    except (ValueError, OSError) as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert found.shape == (3, 5, 4) and found.dtype == np.uint8


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks' checksums are right again, so that damage reaches what they hold."""
    start, done = 8, content[:8]
    while start + 12 <= len(content):
        length = struct.unpack(">I", content[start : start + 4])[0]
        if start + 12 + length > len(content):
            break
        body = content[start + 4 : start + 8 + length]
        done += content[start : start + 4] + body + struct.pack(">I", zlib.crc32(body))
        start += 12 + length
    return done + content[start:]
