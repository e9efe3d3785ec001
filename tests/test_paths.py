"""Paths that cannot be read or written: every reader and writer names the path in its one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn import data, files, models, plot, tensorfile, train, weights
from gpucnn.cli import options
from gpucnn.data import pictures

EPOCH = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "lr": 0.1}

READERS: dict[str, Callable[[Path], Any]] = {
    "read_idx": data.read_idx,
    "read_image": lambda path: pictures.read_image(path, (1, 2, 2)),
    "data.load": data.load,
    "read_weights": weights.read_weights,
    "tensorfile.load": tensorfile.load,
    "load_weights": tensorfile.load_weights,
    "load_model": train.load_model,
}
WRITERS: dict[str, Callable[[Path], Any]] = {
    "write_atomically": lambda path: files.write_atomically(path, b"xyz"),
    "tensorfile.save": lambda path: tensorfile.save(path, {"a": np.zeros(3)}, {}),
    "save_filters": lambda path: plot.save_filters(models.lenet5(), path),
    "save_predictions": lambda path: plot.save_predictions(
        np.zeros((1, 1, 8, 8), np.uint8), np.zeros(1, int), np.zeros(1, int), np.zeros(1), ("a",), path
    ),
    "save_curves": lambda path: plot.save_curves([EPOCH], path),
    "write_json": lambda path: options.write_json(path, {}),
}


def names_it(call: Callable[[Path], Any], path: Path) -> None:
    with pytest.raises((OSError, ValueError)) as caught:
        call(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def places(folder: Path) -> list[Path]:
    """Below a file, of a name too long, a link to itself, nothing at all, a folder."""
    (folder / "file").write_bytes(b"")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    return [folder / name for name in ("file/below", "n" * 300, "loop", "none/below", "folder")]


@pytest.mark.parametrize("name", READERS)
def test_readers(name: str, tmp_path: Path) -> None:
    for path in (*places(tmp_path), tmp_path / "file"):
        names_it(READERS[name], path)


@pytest.mark.parametrize("name", WRITERS)
def test_writers(name: str, tmp_path: Path) -> None:
    for path in places(tmp_path):
        if path.name != "loop":  # which the file takes the place of
            names_it(WRITERS[name], path)
    names_it(WRITERS[name], Path("/dev/full"))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "loop"}


def test_runs(tmp_path: Path) -> None:
    for path in places(tmp_path)[:3]:
        names_it(lambda out: train.fit("lenet5", "digits", out, epochs=1, limit=32), path)
        names_it(lambda out: weights.import_weights("lenet5", tmp_path / "file", out), path)


# Mode bits stop root from nothing, so the child becomes somebody else once it has imported what it needs.
CHILD = """
import os, sys
sys.path.insert(0, sys.argv[1])
import test_paths
from pathlib import Path
from PIL import Image
Image.init()
for call in test_paths.WRITERS.values():
    call(Path("/dev/null"))
if os.geteuid() == 0:
    os.setuid(65534)
secret, closed = map(Path, sys.argv[2:])
for kind, table, path in (("read", test_paths.READERS, secret), ("write", test_paths.WRITERS, closed / "new")):
    for name, call in table.items():
        try:
            call(path)
        except (OSError, ValueError) as error:
            assert str(path) in str(error) and "ermission" in str(error), (kind, name, error)
        else:
            raise AssertionError((kind, name, "nothing was raised"))
"""


def test_permissions(tmp_path: Path) -> None:
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):  # which pytest keeps from others
        parent.chmod(0o755)
    secret, closed = tmp_path / "secret", tmp_path / "closed"
    secret.mkdir(mode=0o000)
    closed.mkdir(mode=0o555)
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(secret / "file"), str(closed)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    secret.chmod(0o755)
    assert found.returncode == 0, found.stderr


# RLIMIT_FSIZE stops a write half-way as a full disk does; in a process of its own, as it cannot be undone.
FULL = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import test_paths
from pathlib import Path
path = Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
for name, call in test_paths.WRITERS.items():
    try:
        call(path)
    except OSError as error:
        assert str(error).startswith(f"cannot write {path} ("), (name, error)
    else:
        raise AssertionError((name, "nothing was raised"))
    assert path.read_bytes() == b"old" and len(list(path.parent.iterdir())) == 1, name
"""


def test_full_disks(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    command = [sys.executable, "-c", FULL, str(Path(__file__).parent), str(tmp_path / "file")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
