"""The command line: what it prints and writes, and one line for whatever is wrong."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn import data, train
from gpucnn.cli import main
from gpucnn.version import __version__

TRAIN_KEYS = {
    *("model", "data", "device", "epochs", "seed", "train_loss", "test_accuracy", "test_top5"),
    *("images_per_second", "seconds", "checkpoint"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained LeNet-5 and pictures of the first test digits, digit-0.png …"""
    from PIL import Image

    path = tmp_path_factory.mktemp("cli")
    splits = data.load("digits")
    train.fit("lenet5", splits, path, epochs=4, batch_size=16, limit=600)
    for index in range(3):
        Image.fromarray(splits.test.images[index, 0]).save(path / f"digit-{index}.png")
    return path


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """python -m gpucnn ARGUMENTS."""
    command = [sys.executable, "-m", "gpucnn", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """What main says about wrong arguments: one line on stderr, and nothing on stdout."""
    assert main([*arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("error: ").rstrip("\n")


# End to end


def test_train_eval_predict(tmp_path: Path) -> None:
    settings = ["--epochs", "3", "--limit", "400", "--batch-size", "16", "--seed", "2"]
    trained = python("train", "lenet5", *settings, "--json", "train.json", cwd=tmp_path)
    assert (trained.returncode, trained.stderr) == (0, "")
    result = json.loads((tmp_path / "train.json").read_text())
    assert result.keys() >= TRAIN_KEYS
    assert (result["model"], result["data"], result["device"]) == ("lenet5", "digits", "cpu")
    assert (result["epochs"], result["seed"]) == (3, 2)
    lines = [json.loads(line) for line in (tmp_path / "runs/lenet5/metrics.jsonl").read_text().splitlines()]
    assert result["train_loss"] == lines[-1]["train_loss"]
    assert len(lines) == 3
    assert f"test accuracy {result['test_accuracy']:.4f}" in trained.stdout
    assert {path.name for path in (tmp_path / "runs/lenet5").iterdir()} >= {
        *("checkpoint.safetensors", "metrics.jsonl", "filters.png", "predictions.png")
    }
    measured = python("eval", result["checkpoint"], "--limit", "400", "--json", "eval.json", cwd=tmp_path)
    assert (measured.returncode, measured.stderr) == (0, "")
    found = json.loads((tmp_path / "eval.json").read_text())
    assert [found["test_accuracy"], found["test_top5"]] == [result["test_accuracy"], result["test_top5"]]
    assert found["loss"] == pytest.approx(result["test_loss"], rel=1e-12)


def test_predict(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    images = [str(folder / f"digit-{index}.png") for index in range(3)]
    output = tmp_path / "predict.json"
    assert main(["predict", str(folder / "checkpoint.safetensors"), *images, "--json", str(output)]) == 0
    found = json.loads(output.read_text())
    assert [entry["image"] for entry in found] == images
    for entry in found:
        assert entry.keys() == {"image", "top5"}
        probabilities = [each["probability"] for each in entry["top5"]]
        assert len(probabilities) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1 + 1e-6
    printed = capsys.readouterr()
    first = found[0]["top5"][0]
    assert printed.out.splitlines()[:2] == [images[0], f"  {first['probability']:7.2%}  {first['label']}"]
    assert printed.err == ""


def test_predict_warns_on_stderr(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from PIL import Image, ImageOps

    dark = tmp_path / "dark.png"
    ImageOps.invert(Image.open(folder / "digit-0.png")).save(dark)
    assert main(["predict", str(folder / "checkpoint.safetensors"), str(dark)]) == 0
    assert capsys.readouterr().err == (
        f"warning: {dark}: it looks dark on light, but the network was trained on light on dark; try --invert\n"
    )
    assert main(["predict", str(folder / "checkpoint.safetensors"), str(dark), "--invert"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("compressed", [False, True])
def test_train_on_idx_files(compressed: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    digits = data.load("digits")
    source = tmp_path / "mnist"
    source.mkdir()
    for part, dataset in (("train", digits.train.limit(64)), ("t10k", digits.test.limit(32))):
        for kind, array in (("images-idx3", dataset.images[:, 0]), ("labels-idx1", dataset.labels.astype(np.uint8))):
            content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            name = source / f"{part}-{kind}-ubyte"
            if compressed:
                name.with_name(f"{name.name}.gz").write_bytes(gzip.compress(content))
            else:
                name.write_bytes(content)
    out = tmp_path / "run"
    assert main(["train", "lenet5", "--data", str(source), "--epochs", "1", "--out", str(out)]) == 0
    assert "64 training and 32 test images of 10 classes" in capsys.readouterr().out
    assert main(["eval", str(out / "checkpoint.safetensors"), "--data", str(source)]) == 0
    assert main(["eval", str(out / "checkpoint.safetensors")]) == 0  # the folder is known from the checkpoint


def test_train_takes_all_options(tmp_path: Path) -> None:
    out, output = tmp_path / "a/b", tmp_path / "a/b/result.json"
    options = {
        "--data": "digits",
        "--epochs": "1",
        "--batch-size": "8",
        "--optimizer": "adam",
        "--lr": "1e-3",
        "--schedule": "step",
        "--weight-decay": "0",
        "--l1-decay": "1e-5",
        "--clip-norm": "2.5",
        "--validation": "0.25",
        "--early-stop": "2",
        "--device": "cpu",
        "--limit": "40",
        "--seed": "7",
        "--variant": "modern",
        "--width": "0.5",
        "--image-size": "32",
        "--out": str(out),
        "--json": str(output),
    }
    assert main(["train", "lenet5", "--no-augment", *(part for pair in options.items() for part in pair)]) == 0
    result = json.loads(output.read_text())
    config = result["config"]
    assert (config["optimizer"], config["lr"], config["schedule"], config["augment"]) == ("adam", 1e-3, "step", [])
    assert (config["l1_decay"], config["clip_norm"]) == (1e-5, 2.5)
    assert config["arguments"]["width"] == 0.5
    assert result["checkpoint"] == str(out / "best.safetensors")
    assert result["best"]["epoch"] == 1


def test_augment_may_be_repeated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    changes = ["crop:2", "flip:0.25", "rotate:10", "sharpness:0.5"]
    start = ["train", "lenet5", "--epochs", "1", "--limit", "40", "--out", str(tmp_path), "--json", str(tmp_path / "x")]
    assert main([*start, *(part for change in changes for part in ("--augment", change))]) == 0
    assert json.loads((tmp_path / "x").read_text())["config"]["augment"] == changes
    capsys.readouterr()
    message = refused(capsys, 1, *start, "--resume", "--no-augment")
    assert message.startswith(f"cannot resume {tmp_path} with augment []: its run has ['crop:2', ")


def test_paper_variant(tmp_path: Path) -> None:
    assert (
        main(["train", "lenet5", "--variant", "paper", "--epochs", "1", "--limit", "40", "--out", str(tmp_path)]) == 0
    )
    assert train.load_model(tmp_path / "checkpoint.safetensors").model.arguments["variant"] == "paper"


def test_resume_and_overwrite(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)]
    first = ["train", "lenet5", "--epochs", "1", "--limit", "40", *out]
    assert main(["train", "lenet5", "--resume", "--epochs", "1", "--limit", "40", *out]) == 0  # nothing to resume
    capsys.readouterr()
    assert f"{tmp_path} holds a run already" in refused(capsys, 1, *first)
    assert main(["train", "lenet5", "--resume", *out]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{tmp_path} is complete: test accuracy ")
    assert printed.endswith(" after 1 epochs; nothing to do\n")
    assert main([*first, "--overwrite"]) == 0


def test_summary(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "summary.json"
    assert main(["summary", "alexnet", "--json", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["total_parameters"] == 61_100_840
    assert found.keys() >= {"total_multiply_adds", "total_activation_values", "layers"}
    assert found["layers"][0].keys() >= {
        *("name", "type", "output_shape", "activation_values", "weights", "biases", "multiply_adds")
    }
    assert "61,100,840" in capsys.readouterr().out.replace(" ", "")


def test_doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "doctor.json"
    code = main(["doctor", "--json", str(output)])
    found = json.loads(output.read_text())
    assert code == (0 if found["ok"] else 1)
    assert "numpy" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gpucnn {__version__}\n"


@pytest.mark.parametrize("command", [[], ["train"], ["eval"], ["predict"], ["summary"], ["doctor"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(" ".join(["Usage: gpucnn", *command]))


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "predict" in capsys.readouterr().out


def test_broken_pipe_is_quiet(tmp_path: Path) -> None:
    command = f"{sys.executable} -m gpucnn summary lenet5 | head -c 1"
    found = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (len(found.stdout), found.stderr) == (1, "")


# Whatever is wrong is told in one line, before anything is made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "Invalid value for '--epochs': '0' is not a whole number of at least 1"),
        (["--epochs", "-1"], "Invalid value for '--epochs': '-1' is not a whole number of at least 1"),
        (["--epochs", "abc"], "Invalid value for '--epochs': 'abc' is not a whole number of at least 1"),
        (["--batch-size", "1.5"], "Invalid value for '--batch-size': '1.5' is not a whole number of at least 1"),
        (["--lr", "nan"], "Invalid value for '--lr': 'nan' is not a finite number above 0"),
        (["--lr", "inf"], "Invalid value for '--lr': 'inf' is not a finite number above 0"),
        (["--validation", "1"], "Invalid value for '--validation': '1' is not a fraction of at least 0 and below 1"),
        (["--width", "0"], "Invalid value for '--width': '0' is not a number above 0 and at most 16"),
        (["--limit", "0"], "Invalid value for '--limit': '0' is not a whole number of at least 1"),
        (["--l1-decay", "-1"], "Invalid value for '--l1-decay': '-1' is not a finite number of at least 0"),
        (["--clip-norm", "0"], "Invalid value for '--clip-norm': '0' is not a finite number above 0"),
        (["--augment", "rotate:x"], "Invalid value for '--augment': 'rotate:x': 'x' is not an angle from 0 to 180"),
        (
            ["--augment", "flip", "--augment", "turn"],
            "Invalid value for '--augment': 'turn' is no change of images; use",
        ),
        (["--seed", "-1"], "Invalid value for '--seed': '-1' is not a whole number from 0 to 2**63 - 1"),
        (["--speed", "3"], "No such option: --speed"),
        (["--epochs"], "Option '--epochs' requires an argument; see gpucnn"),
    ],
)
def test_train_refuses_arguments(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, 2, "train", "lenet5", *arguments).startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet6"], "model 'lenet6' is unknown; use one of lenet5, alexnet, vgg11"),
        (["lenet5", "--data", "none"], "load: 'none' is no directory and no bundled data set (digits, shapes)"),
        (["lenet5", "--data", "empty"], "load: 'empty' holds no data set in a known format; looked for MNIST's"),
        (["lenet5", "--data", "file"], "load: 'file' is a file; give the directory it is in"),
        (["lenet5", "--device", "cuda"], "device 'cuda': CuPy"),
        (["lenet5", "--device", "foo"], "device 'foo' is unknown; use 'auto', 'cuda:1' or one of 'cpu', 'cuda', 'sim'"),
        (["lenet5", "--optimizer", "foo"], "optimizer 'foo' is unknown; use one of sgd, adam, adamw, rmsprop"),
        (["lenet5", "--schedule", "foo"], "schedule 'foo' is unknown; use one of cosine, step, constant, plateau"),
        (["lenet5", "--early-stop", "3"], "early_stop is 3, which follows the validation part, but there is none"),
        (["lenet5", "--augment", "flip", "--no-augment"], "--no-augment and --augment flip exclude each other; leave"),
        (["lenet5", "--image-size", "5"], "lenet5: image_size is 5; it must be at least"),
        (["alexnet", "--image-size", "62"], "alexnet: image_size is 62; it must be at least"),
        (["vgg16", "--variant", "paper"], "vgg16 has no argument 'variant'; it takes num_classes"),
        (["lenet5", "--variant", "foo"], "lenet5: variant is 'foo'; it must be one of 'modern', 'paper'"),
        (["lenet5", "--resume", "--overwrite"], "--resume continues the run in a folder, --overwrite replaces it"),
        (["lenet5", "--out", "file"], "file: "),
        (["lenet5", "--out", "file/below"], "file/below: "),
        (["lenet5", "--json", "none/x.json"], "--json none/x.json: "),
        (["lenet5", "--json", "empty"], "--json empty is a folder; name a file in it"),
        (["lenet5", "--json", "file/x"], "--json file/x: "),
    ],
)
def test_train_refuses_what_cannot_be(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").write_text("")
    assert refused(capsys, 1, "train", *arguments).startswith(message)
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "file"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command 'nothing'; see gpucnn --help"),
        (["train"], "Missing argument 'MODEL'; see gpucnn train --help"),
        (["predict", "x"], "Missing argument 'IMAGE…'; see gpucnn predict --help"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, 2, *arguments) == message


def test_checkpoints_that_are_none(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no such checkpoint" in refused(capsys, 1, "eval", str(tmp_path / "none.safetensors"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((folder / "checkpoint.safetensors").read_bytes()[:-1])
    for command in (["eval", str(cut)], ["predict", str(cut), str(folder / "digit-0.png")]):
        assert refused(capsys, 1, *command).startswith(f"{cut}: ")
    assert str(folder) in refused(capsys, 1, "eval", str(folder))


def test_eval_refuses_other_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(folder / "checkpoint.safetensors")
    assert "'none' is no directory" in refused(capsys, 1, "eval", checkpoint, "--data", "none")
    assert "device 'cuda'" in refused(capsys, 1, "eval", checkpoint, "--device", "cuda")


def test_pictures_that_are_none(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from PIL import Image

    text, large = tmp_path / "text.png", tmp_path / "large.png"
    text.write_text("no picture")
    Image.new("1", (9_000, 9_000)).save(large)
    start = ["predict", str(folder / "checkpoint.safetensors"), str(folder / "digit-0.png")]
    assert refused(capsys, 1, *start, "none.png") == "none.png: no such image; check the path"
    assert refused(capsys, 1, *start, str(text)) == f"{text}: not a PNG or JPEG image; convert it first"
    assert refused(capsys, 1, *start, str(large)).startswith(f"{large}: the image has 9000×9000 pixels; at most 64,")
    assert refused(capsys, 1, *start[:2], str(tmp_path)).startswith(f"{tmp_path}: the image cannot be read")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(5, "Input/output error", "/disk"), "error: /disk: Input/output error\n"),
        (ValueError("two\nlines"), "error: two lines\n"),
        (MemoryError("Unable to allocate 9 TiB"), "error: not enough memory (Unable to allocate 9 TiB); use a smaller"),
    ],
)
def test_expected_errors_are_one_line(
    error: Exception, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr("gpucnn.cli.train.fit", fail)
    assert main(["train", "lenet5"]) == 1
    assert capsys.readouterr().err.startswith(text)
