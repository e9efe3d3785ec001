"""Nothing is lost: runs that are interrupted, killed or out of disk go on to the same bits."""

from __future__ import annotations

import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn import checkpoint, data, train
from gpucnn.data import Splits
from gpucnn.train.folder import RunFolder
from gpucnn.train.signals import interruption

# Batch norm, dropout, Adam's moments, the random shifts and the schedule all have state that must come back.
MODEL = "vgg11_bn"
SETTINGS: dict[str, Any] = {"width": 1 / 32, "epochs": 3, "limit": 120, "batch_size": 32, "validation": 0.2, "seed": 3}

# The command line's runs: 40 short epochs, of which each takes some 20 ms.
ARGUMENTS = [
    *("train", "lenet5", "--width", "0.5", "--limit", "128", "--batch-size", "16"),
    *("--epochs", "40", "--validation", "0.25", "--schedule", "plateau"),
]
# Child processes take Ctrl-C, even where this one was started in the background and ignores it.
MAIN = """
import resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
limit = int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from gpucnn.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def digits() -> Splits:
    return data.load("digits")


class Crash(Exception):
    """What ends a run without giving it time to save."""


class StopAfter(train.Report):
    """Sends a signal to this process, or raises Crash, when a number of batches are done."""

    def __init__(self, batches: int, number: int | None = signal.SIGTERM) -> None:
        self.left, self.number = batches, number

    def bar(self, title: str, total: int, done: int = 0) -> train.Bar:
        return StoppingBar(self)


class StoppingBar(train.Bar):
    def __init__(self, report: StopAfter) -> None:
        self.report = report

    def step(self, loss: float, accuracy: float) -> None:
        self.report.left -= 1
        if self.report.left == 0:
            if self.report.number is None:
                raise Crash
            signal.raise_signal(self.report.number)


def start(*arguments: str, limit: int = 0) -> subprocess.Popen[str]:
    """`gpucnn ARGUMENTS` in a process of its own, with a limit on the size of files in bytes if it is not 0."""
    command = [sys.executable, "-c", MAIN, str(limit), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str, limit: int = 0) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of start(...)."""
    with start(*arguments, limit=limit) as process:
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read the process' output up to the line that begins with `text`."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(f"{text!r} did not come; {process.stderr and process.stderr.read()}")


def content(folder: Path) -> tuple[str, dict[str, Any]]:
    """(SHA-256 of weights and the optimiser's state, state) of the checkpoint; measured times are left out."""
    stored = checkpoint.load(folder / "checkpoint.safetensors")
    digest = hashlib.sha256()
    for name, array in sorted(stored.tensors.items()):
        digest.update(name.encode() + array.tobytes())
    state = stored.metadata["state"]
    state["sums"].pop("seconds")
    for entry in [*state["history"], state["best"] or {}]:
        entry.pop("seconds", None)
        entry.pop("images_per_second", None)
    return digest.hexdigest(), {**state, "random": stored.metadata["random"]}


@pytest.fixture(scope="module")
def whole(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The content after a run that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train.fit(MODEL, digits, folder, **SETTINGS)
    return content(folder)


@pytest.fixture(scope="module")
def whole_from_shell(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The content after `gpucnn ARGUMENTS`."""
    folder = tmp_path_factory.mktemp("shell")
    code, _, err = run(*ARGUMENTS, "--out", str(folder))
    assert (code, err) == (0, "")
    return content(folder)


# An epoch has 3 training batches and 1 validation batch: 2 is within an epoch, 3 before its validation, 4 after it.
@pytest.mark.parametrize("batches", [1, 2, 3, 4, 6, 11, 12])
def test_resume_is_bit_for_bit(batches: int, digits: Splits, whole: Any, tmp_path: Path) -> None:
    with pytest.raises(train.Interrupted, match=f"gpucnn train {MODEL} --out {tmp_path} --resume"):
        train.fit(MODEL, digits, tmp_path, report=StopAfter(batches), **SETTINGS)
    train.fit(MODEL, digits, tmp_path, resume=True)
    assert content(tmp_path) == whole


def test_stopping_again_and_again_changes_nothing(digits: Splits, whole: Any, tmp_path: Path) -> None:
    for _ in range(12):
        with pytest.raises(train.Interrupted):
            train.fit(MODEL, digits, tmp_path, resume=True, report=StopAfter(1), **SETTINGS)
    train.fit(MODEL, digits, tmp_path, resume=True, **SETTINGS)
    assert content(tmp_path) == whole


def test_saves_within_an_epoch(digits: Splits, whole: Any, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        train.fit(MODEL, digits, tmp_path, report=StopAfter(6, None), save_every=0, **SETTINGS)
    _, state = content(tmp_path)
    assert (state["epoch"], state["batch"], state["step"]) == (1, 1, 4)  # the batch that crashed is not in it
    train.fit(MODEL, digits, tmp_path, resume=True)
    assert content(tmp_path) == whole


def test_augmentation_decay_and_clipping_are_resumed_bit_for_bit(digits: Splits, tmp_path: Path) -> None:
    settings = {
        **{"width": 0.5, "epochs": 2, "limit": 96, "batch_size": 32, "l1_decay": 1e-4, "clip_norm": 0.5},
        "augment": ["crop:2", "flip", "rotate:15", "brightness:0.2", "contrast:0.2", "saturation:0.2", "sharpness:1"],
    }
    train.fit("lenet5", digits, tmp_path / "whole", **settings)
    with pytest.raises(train.Interrupted):
        train.fit("lenet5", digits, tmp_path / "stopped", report=StopAfter(2), **settings)
    train.fit("lenet5", digits, tmp_path / "stopped", resume=True)
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")


class Warnings(train.Report):
    def __init__(self) -> None:
        self.found: list[str] = []

    def warning(self, text: str) -> None:
        self.found.append(text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, None),
        ({"threads": 77}, r"was stored with 77 as its number of threads \(here \d+\); the last bits of its result may"),
        ({"processor": "8086"}, "was stored with '8086' as its processor"),
        ({"machine": "pdp11", "threads": []}, r"with \[\] as its number of threads \(.*\), 'pdp11' as its kind of mac"),
    ],
)
def test_resume_on_another_machine_warns(
    change: dict[str, Any], text: str | None, digits: Splits, tmp_path: Path
) -> None:
    with pytest.raises(train.Interrupted):
        train.fit("lenet5", digits, tmp_path, report=StopAfter(1), epochs=1, limit=64)
    stored = checkpoint.load(tmp_path / "checkpoint.safetensors")
    stored.metadata["environment"] |= change
    checkpoint.save(stored.path, stored.tensors, stored.metadata)
    report = Warnings()
    train.fit("lenet5", digits, tmp_path, resume=True, report=report)
    assert len(report.found) == (text is not None)
    assert text is None or re.search(text, report.found[0])


@pytest.mark.parametrize("schedule", ["cosine", "step", "multi-step", "polynomial", "one-cycle"])
def test_a_planned_schedule_cannot_be_prolonged(schedule: str, digits: Splits, tmp_path: Path) -> None:
    train.fit("lenet5", digits, tmp_path, epochs=1, limit=64, schedule=schedule)
    message = (
        f"its {schedule} schedule is planned for 1 .*; leave --epochs out to end the run as planned, or train 3 from"
    )
    with pytest.raises(ValueError, match=message):
        train.fit("lenet5", digits, tmp_path, epochs=3, resume=True)
    assert train.fit("lenet5", digits, tmp_path, epochs=1, resume=True).measured is None


def test_twice_n_epochs_are_n_and_n_more(tmp_path: Path) -> None:
    common = ["train", "lenet5", "--limit", "100", "--schedule", "constant", "--seed", "1"]
    outs = [["--out", str(tmp_path / name)] for name in ("whole", "parts")]
    assert run(*common, "--epochs", "4", *outs[0])[0] == 0
    assert run(*common, "--epochs", "2", *outs[1])[0] == 0
    code, out, _ = run(*common, "--epochs", "4", *outs[1], "--resume")
    assert code == 0
    assert "epoch 3/4" in out
    assert "epoch 2/4" not in out
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_says_how_to_go_on(number: int, whole_from_shell: Any, tmp_path: Path) -> None:
    with start(*ARGUMENTS, "--out", str(tmp_path)) as process:
        wait_for(process, "epoch  2/40")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"continue with: gpucnn train lenet5 --out {tmp_path} --resume" in err
    assert "Traceback" not in err
    code, out, err = run("train", "lenet5", "--out", str(tmp_path), "--resume")
    assert (code, err) == (0, "")
    assert f"resuming {tmp_path}" in out
    assert content(tmp_path) == whole_from_shell


def test_a_second_signal_acts_as_it_did_before() -> None:
    seen: list[int] = []

    def handler(number: int, frame: Any) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with interruption() as interrupted:
            assert not interrupted()
            signal.raise_signal(signal.SIGTERM)
            assert interrupted()
            assert seen == []
            signal.raise_signal(signal.SIGTERM)
            assert seen == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_kill_at_any_moment(whole_from_shell: Any, tmp_path: Path) -> None:
    moments = random.Random(7)
    arguments = [*ARGUMENTS, "--out", str(tmp_path), "--resume"]
    for _ in range(5):
        with start(*arguments) as process:
            wait_for(process, "epoch")
            time.sleep(moments.uniform(0, 0.15))
            process.kill()
    code, _, err = run(*arguments)
    assert (code, err) == (0, "")
    assert content(tmp_path) == whole_from_shell
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 41))
    assert list(tmp_path.glob(".*")) == []  # no temporary files


def test_full_disk_keeps_the_old_checkpoint(whole_from_shell: Any, tmp_path: Path) -> None:
    with start(*ARGUMENTS, "--out", str(tmp_path)) as process:
        wait_for(process, "epoch  2/40")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    file = tmp_path / "checkpoint.safetensors"
    before = file.read_bytes()
    code, _, err = run(*ARGUMENTS, "--out", str(tmp_path), "--resume", limit=len(before) // 2)
    assert code == 1
    assert err.startswith(f"error: cannot write {tmp_path}/")
    assert " bytes): File too large; raise the limit on file sizes" in err
    assert err.count("\n") == 1
    assert file.read_bytes() == before
    assert list(tmp_path.glob(".*")) == []
    assert run(*ARGUMENTS, "--out", str(tmp_path), "--resume")[0] == 0
    assert content(tmp_path) == whole_from_shell


# What resume and overwrite refuse, and what they leave alone


@pytest.fixture
def finished(digits: Splits, tmp_path: Path) -> Path:
    """A folder with a complete run of one epoch."""
    train.fit("lenet5", digits, tmp_path, epochs=1, limit=64, validation=0.25)
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.125}, "with lr 0.125: its run has 0.0"),
        ({"seed": 9}, "with seed 9: its run has 0"),
        ({"width": 0.5}, "with arguments.width 0.5: its run has 1.0"),
        ({"augment": ["flip"]}, r"with augment \['flip'\]: its run has \['shift:2'\]"),
        ({"clip_norm": 1.0}, "with clip_norm 1.0: its run has None"),
        ({"limit": 65}, "with limit 65: its run has 64"),
        (
            {"epochs": 2},
            r"with epochs 2: its cosine schedule is planned for 1 \(only constant and plateau ones can be ",
        ),
    ],
)
def test_resume_refuses_other_settings(finished: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"cannot resume .* {message}"):
        train.fit("lenet5", "digits", finished, resume=True, **settings)


def test_resume_refuses_another_model(finished: Path) -> None:
    with pytest.raises(ValueError, match="with model 'alexnet': its run has 'lenet5'"):
        train.fit("alexnet", "digits", finished, resume=True)


def test_resume_refuses_other_images(digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(train.Interrupted):
        train.fit("lenet5", digits, tmp_path, report=StopAfter(1), limit=64)
    other = Splits(digits.train.take(np.arange(1, 100)), digits.test)
    with pytest.raises(ValueError, match="its run had other training images than 'digits' holds now"):
        train.fit("lenet5", other, tmp_path, resume=True)


def test_resume_refuses_fewer_epochs_than_there_were(digits: Splits, tmp_path: Path) -> None:
    train.fit("lenet5", digits, tmp_path, epochs=2, limit=64, schedule="constant")
    with pytest.raises(ValueError, match="with epochs 1: its run is past epoch 2 already"):
        train.fit("lenet5", digits, tmp_path, resume=True, epochs=1)


def test_resume_of_a_complete_run_does_nothing(finished: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished.iterdir()}
    outcome = train.fit("lenet5", None, finished, resume=True)
    assert outcome.measured is None
    assert outcome.result["epochs"] == 1
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished.iterdir()} == before


def test_resume_refuses_weights_without_a_state(finished: Path) -> None:
    (finished / "best.safetensors").rename(finished / "checkpoint.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match="it holds no run to resume"):
        train.fit("lenet5", None, finished, resume=True)


def test_damaged_checkpoint_is_refused_and_kept(finished: Path) -> None:
    file = finished / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    before = file.read_bytes()
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoint\.safetensors"):
        train.fit("lenet5", "digits", finished, resume=True)
    assert file.read_bytes() == before


def test_a_run_is_not_replaced_unasked(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a run already .*--resume.*--overwrite.*another --out"):
        train.fit("lenet5", "digits", finished)
    with pytest.raises(ValueError, match="choose one of them"):
        train.fit("lenet5", "digits", finished, resume=True, overwrite=True)


def test_overwrite_takes_the_old_run_only_when_the_new_one_can_start(finished: Path, digits: Splits) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(ValueError, match="image_size is 5"):
        train.fit("lenet5", digits, finished, overwrite=True, image_size=5)
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    train.fit("lenet5", digits, finished, overwrite=True, epochs=1, limit=64)
    assert sorted(path.name for path in finished.iterdir()) == ["checkpoint.safetensors", "metrics.jsonl"]


def test_what_a_replaced_run_left_is_removed_on_resume(finished: Path, digits: Splits) -> None:
    best = (finished / "best.safetensors").read_bytes()
    with pytest.raises(Crash):
        train.fit("lenet5", digits, finished, overwrite=True, epochs=1, limit=64, report=StopAfter(1, None))
    (finished / "best.safetensors").write_bytes(best)  # as if killed before it went
    train.fit("lenet5", digits, finished, resume=True)
    assert not (finished / "best.safetensors").exists()


def test_a_folder_serves_one_process_at_a_time(finished: Path, digits: Splits) -> None:
    with RunFolder(finished).locked(), pytest.raises(ValueError, match="another process is training in this folder"):
        train.fit("lenet5", digits, finished, overwrite=True, limit=64)


def test_non_finite_loss_keeps_the_last_good_state(digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(train.NonFiniteError, match=r"use a smaller --lr.*checkpoint\.safetensors keeps the last good"):
        train.fit("lenet5", digits, tmp_path, lr=1e12, limit=640, save_every=0)
    stored = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert all(np.isfinite(array).all() for array in stored.tensors.values())


# The validation part


def test_validation_decides_what_is_measured(digits: Splits, tmp_path: Path) -> None:
    outcome = train.fit("lenet5", digits, tmp_path, epochs=4, limit=300, validation=0.2, batch_size=16)
    best = max(outcome.history, key=lambda entry: (entry["validation_accuracy"], -entry["validation_loss"]))
    assert outcome.result["best"]["epoch"] == best["epoch"]
    assert outcome.result["checkpoint"] == str(tmp_path / "best.safetensors")
    trained = train.load_model(tmp_path / "best.safetensors")
    found = train.evaluate(trained.model, digits.test.limit(300), trained.normalize)
    assert (found.accuracy, found.top5) == (outcome.result["test_accuracy"], outcome.result["test_top5"])


def test_early_stop(digits: Splits, tmp_path: Path) -> None:
    settings = {"lr": 1e-9, "epochs": 30, "limit": 100, "validation": 0.2, "early_stop": 2, "schedule": "constant"}
    outcome = train.fit("lenet5", digits, tmp_path, **settings)
    assert outcome.result["epochs"] == outcome.result["best"]["epoch"] + 2 < 30
    again = train.fit("lenet5", digits, tmp_path, resume=True)
    assert again.measured is None


def test_without_validation_there_is_no_best(digits: Splits, tmp_path: Path) -> None:
    outcome = train.fit("lenet5", digits, tmp_path, epochs=1, limit=64)
    assert not (tmp_path / "best.safetensors").exists()
    assert "best" not in outcome.result
    assert outcome.result["checkpoint"] == str(tmp_path / "checkpoint.safetensors")
