"""Weights of other programs: torchvision's names and shapes, and hostile files, of which only named errors may come."""

import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpucnn import Tensor, data, models, train, weights
from gpucnn.cli import main

SMALL = {"alexnet": {"width": 0.03, "image_size": 63}, "vgg11_bn": {"width": 0.03, "image_size": 32}}


def network(model: str = "alexnet", classes: int = 7) -> models.Network:
    return models.create(model, num_classes=classes, **SMALL[model])


def npz_bytes(arrays: dict[str, np.ndarray], compression: int = zipfile.ZIP_STORED) -> bytes:
    """As np.savez and np.savez_compressed write it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.save(entry, array)
            archive.writestr(f"{name}.npy", entry.getvalue())
    return file.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refused(path: Path, content: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        weights.read_weights(write(path, content))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


# ---- right files


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_npz_of_every_kind(tmp_path, rng, pack):
    arrays = {
        "f4": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "f8": rng.standard_normal(5).astype(">f8"),
        "f2": np.asfortranarray(rng.standard_normal((3, 4)).astype(np.float16)),
        "scalar": np.array(7),
        "u1": np.arange(300).astype(np.uint8),
        "empty": np.zeros((0, 3)),
    }
    pack(tmp_path / "a.npz", **arrays)
    found = weights.read_weights(tmp_path / "a.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape and (found[name] == array).all()


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("model", SMALL)
def test_a_network_comes_back(tmp_path, rng, kind, model):
    made = network(model)
    state = made.state_dict()
    if kind == "npz":
        np.savez(tmp_path / "file", **dict(reversed(state.items())))
    else:
        safetensors.numpy.save_file(state, tmp_path / "file.safetensors")
    path = weights.import_weights(model, tmp_path / f"file.{kind}", tmp_path / "out", **SMALL[model])
    loaded = train.load_model(path)
    assert loaded.classes == tuple("0123456") and loaded.normalize == data.Normalize(**weights.importing.IMAGENET)
    images = rng.standard_normal((2, *made.input_shape)).astype(np.float32)
    made.eval()
    assert (loaded.model(Tensor(images)).data == made(Tensor(images)).data).all()


def test_old_files_lack_the_counters_of_batch_norm(tmp_path):
    state = {name: array for name, array in network("vgg11_bn").state_dict().items() if "num_batches" not in name}
    np.savez(tmp_path / "old.npz", **state)
    path = weights.import_weights("vgg11_bn", tmp_path / "old.npz", tmp_path, **SMALL["vgg11_bn"])
    assert train.load_model(path).model.state_dict()["features.1.num_batches_tracked"] == 0


def test_command_line(tmp_path, capsys):
    np.savez(tmp_path / "file.npz", **network("alexnet", 5).state_dict())
    (tmp_path / "names.txt").write_text("circle\ncross\nring\nsquare\ntriangle\n")
    out = tmp_path / "a" / "b"
    command = ["import-weights", "alexnet", str(tmp_path / "file.npz"), "--out", str(out)]
    options = ["--width", "0.03", "--image-size", "63", "--classes", str(tmp_path / "names.txt")]
    assert main([*command, *options]) == 0
    path = str(out / "checkpoint.safetensors")
    assert capsys.readouterr().out.startswith(f"{path}: alexnet with the weights of {tmp_path}/file.npz; use it with")
    assert main(["eval", path, "--data", "shapes", "--limit", "20"]) == 0
    from PIL import Image

    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    assert main(["predict", path, str(tmp_path / "a.png")]) == 0
    assert "triangle" in capsys.readouterr().out
    assert main([*command, *options]) == 1
    assert "holds a run already" in capsys.readouterr().err
    (out / "metrics.jsonl").write_text("")
    assert main([*command, *options, "--overwrite"]) == 0
    assert not (out / "metrics.jsonl").exists()
    assert main(["eval", path]) == 1
    assert "'imported weights' is no directory" in capsys.readouterr().err
    assert main(["train", "alexnet", "--out", str(out), "--resume"]) == 1
    assert "holds no run to resume" in capsys.readouterr().err


# ---- weights that do not fit


def test_weights_that_do_not_fit(tmp_path):
    def give(state, model="alexnet", **arguments):
        np.savez(tmp_path / "file.npz", **state)
        weights.import_weights(model, tmp_path / "file.npz", tmp_path / "out", **{**SMALL["alexnet"], **arguments})

    state = network().state_dict()
    for wrong, arguments, text in (
        ({**state, "more": np.zeros(2)}, {}, r"do not make a alexnet \(.*unknown more.*\); name the right MODEL"),
        ({**state, "features.0.bias": np.zeros(3, np.float32)}, {}, r"features.0.bias has shape \(3,\)"),
        ({**state, "features.0.bias": np.full(2, np.nan, np.float32)}, {}, "features.0.bias has values that are not f"),
        ({"a": np.zeros(3)}, {}, "no weights of a convolution"),
        (state, {"width": 1.0}, "come to more than the [0-9]+ values allowed here"),
        (state, {"model": "vgg11"}, "do not make a vgg11"),
        (state, {"model": "resnet"}, "model 'resnet' is unknown"),
        ({**state, "classifier.6.weight": np.zeros((10**6, 0))}, {}, "do not make a alexnet"),
    ):
        with pytest.raises(ValueError, match=text):
            give(wrong, **arguments)
    assert not (tmp_path / "out").exists()


def test_class_names_must_be_as_many(tmp_path):
    np.savez(tmp_path / "file.npz", **network().state_dict())
    for content in (b"a\nb\n", b"\xff\n" * 7):
        with pytest.raises(ValueError, match=r"names\.txt: (it must name the network's 7 classes|class names must be)"):
            names = write(tmp_path / "names.txt", content)
            weights.import_weights("alexnet", tmp_path / "file.npz", tmp_path, classes=names, **SMALL["alexnet"])


# ---- hostile files

GOOD = npz_bytes({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.int64)}, zipfile.ZIP_DEFLATED)


def entry(header: str, items: bytes = b"", version: int = 1) -> bytes:
    """A .npz file whose only array has this header."""
    text = header.encode() + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        length = struct.pack("<H" if version == 1 else "<I", len(text))
        archive.writestr("a.npy", b"\x93NUMPY" + bytes([version, 0]) + length + text + items)
    return file.getvalue()


def header(dtype: str = "<f4", shape: str = "(2,)") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"


def test_headers_that_are_refused(tmp_path):
    assert weights.read_weights(write(tmp_path / "good", entry(header(), bytes(8))))["a"].tolist() == [0, 0]
    for content, text in (
        (entry(header("|O"), bytes(16)), "only plain numbers are read"),
        (entry(header("<f1"), bytes(2)), "only plain numbers"),
        (entry(header("<V8"), bytes(16)), "only plain numbers"),
        (entry(header(shape="(2**9,)"), bytes(8)), "only plain numbers"),
        (entry(header(shape="(" * 5000), b""), "only plain numbers"),
        (entry(header(shape="(-2,)"), bytes(8)), "only plain numbers"),
        (entry(header(shape="(1099511627776,)"), bytes(8)), "has 8 bytes of items, which is not float32"),
        (entry(header(shape="(" + "999999999999999999, " * 8 + ")"), bytes(8)), "has 8 bytes of items"),
        (entry(header(shape="(" + "1, " * 9 + ")"), bytes(4)), "has 4 bytes of items"),
        (entry(header(), bytes(9)), "has 9 bytes of items"),
        (entry(header(), bytes(8), version=4), "is no .npy array of version 1 to 3"),
    ):
        refused(tmp_path / "file", content, text)


def zip_bytes(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def overlapping() -> bytes:
    """Two entries in the list, of which the second lies within the first."""
    inner = zip_bytes(("b.npy", bytes(100)))
    content = bytearray(zip_bytes(("a.npy", inner[:135]), ("b.npy", bytes(100))))
    second = content.rindex(b"PK\1\2")
    content[second + 42 : second + 46] = struct.pack("<I", 35)
    return bytes(content)


def test_archives_that_are_refused(tmp_path):
    flagged = bytearray(GOOD)
    flagged[GOOD.index(b"PK\1\2") + 8] |= 1
    for content, text in (
        (zip_bytes(("a.txt", b"")), "entry 'a.txt' is no array; names end with .npy"),
        (zip_bytes(("a.npy", b""), compression=zipfile.ZIP_LZMA), "packed otherwise than by deflate"),
        (bytes(flagged), "entry 'a.npy' is encrypted"),
        (overlapping(), "shares bytes with another one"),
        (GOOD[:-1], "damaged"),
        (GOOD[:40], "damaged"),
        (b"PK\3\4", "damaged"),
    ):
        refused(tmp_path / "file", content, text)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused(tmp_path):
    refused(tmp_path / "file", zip_bytes(("a.npy", b""), ("a.npy", b"")), "an entry's name comes twice")


def peak(path: Path, text: str) -> int:
    """Bytes that are taken to refuse the file."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=text):
            weights.read_weights(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bombs_are_not_unpacked(tmp_path):
    bomb = zip_bytes(("a.npy", bytes(64 << 20)), compression=zipfile.ZIP_DEFLATED)
    assert peak(write(tmp_path / "bomb", bomb), "unpack to more than 200 times as many") < 1 << 20
    modest = bytearray(bomb)  # announces 10 bytes
    place = bomb.index(b"PK\1\2") + 24
    modest[place : place + 4] = struct.pack("<I", 10)
    assert peak(write(tmp_path / "modest", bytes(modest)), "damaged|is no .npy") < 4 << 20
    listed = b"PK\3\4" + bytes(5 << 20) + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 9, 9, 5 << 20, 4, 0)
    assert peak(write(tmp_path / "list", listed), "its list of entries claims 5242880 bytes; at most 41943") < 1 << 20


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", ""):
        with pytest.raises(FileNotFoundError, match="no such file of weights; check the path"):
            weights.read_weights(tmp_path / name)


@given(
    edits=st.lists(st.tuples(st.integers(0, 2**12), st.integers(0, 255)), max_size=5),
    cut=st.one_of(st.none(), st.integers(0, 2**12)),
    stored=st.booleans(),
)
@settings(max_examples=800, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_give_named_errors_only(tmp_path, edits, cut, stored):
    content = bytearray(npz_bytes({"a": np.arange(6.0).reshape(2, 3), "b": np.zeros(3, np.int64)}) if stored else GOOD)
    for place, value in edits:
        content[place % len(content)] = value
    if cut is not None:
        del content[cut % len(content) :]
    path = write(tmp_path / "file", b"PK\3\4" + bytes(content)[4:])
    try:
        found = weights.read_weights(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert all(array.nbytes <= 48 for array in found.values())


@given(text=st.text(max_size=40), items=st.binary(max_size=40))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_header_gives_a_named_error(tmp_path, text, items):
    refused(tmp_path / "file", entry(text, items), "only plain numbers are read")
