"""Wheel, sdist and editable installs, offline: each into a bare environment, used from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__", ".hypothesis"
)
USE = """
import numpy, pathlib, gpucnn, gpucnn.bench
from gpucnn import data, functional as F
assert pathlib.Path(gpucnn.__file__).is_relative_to({home!r}), gpucnn.__file__
assert len(data.load("digits").train) == 4000
assert F.conv2d(numpy.ones((1, 1, 3, 3), "f"), numpy.ones((1, 1, 3, 3), "f")).item() == 9
assert F.relu(gpucnn.tensor([-1.0, 2.0], device="sim")).numpy().tolist() == [0, 2]
print(gpucnn.__version__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def bare_environment(folder: Path) -> Path:
    """A new virtual environment; returns its python. Python 3.11 gives it a setuptools too old to build with."""
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools", cwd=folder)
    return python


def add_dependencies(python: Path) -> None:
    """Let the environment see this one's packages; only after gpucnn is installed, or pip would find it done."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", code, cwd=python.parent).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")


def use(python: Path, home: Path, folder: Path) -> None:
    """Import gpucnn from `home` and run its command, away from the source tree."""
    away = folder / "away"
    away.mkdir()
    version = run(python, "-c", USE.format(home=str(home)), cwd=away).strip()
    assert version in run(python.parent / "gpucnn", "--version", cwd=away)
    assert "doctor" in run(python, "-m", "gpucnn", "--help", cwd=away)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, cwd=folder / "source")
    return next(folder.glob("gpucnn-*.tar.gz"))


def test_sdist_holds_what_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    patterns = "csrc/*.[ch]pp", "bench/*.py", "examples/*.py"
    sources = {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}
    assert sources | {"LICENSE", "NOTICE", "README.md", "gpucnn/data/digits5k.npz", "gpucnn/py.typed"} <= names
    assert not [name for name in names if name.endswith(".so") or name.startswith("bench/results/")]


def test_wheel_built_from_the_sdist(sdist: Path, tmp_path: Path) -> None:
    options = "--no-build-isolation", "--no-deps", "--no-index"
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", tmp_path, sdist, cwd=tmp_path)
    wheel = next(tmp_path.glob("gpucnn-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"gpucnn/py.typed", "gpucnn/_C.pyi", "gpucnn/data/digits5k.npz", "gpucnn/bench/cpu.py"} <= set(names)
    assert {f"gpucnn/bench/{name}" for name in ("page.css", "page.js", "ceiling.cu")} <= set(names)
    assert [name for name in names if name.startswith("gpucnn/_C.") and name.endswith(".so")]
    assert [name for name in names if name.endswith("licenses/NOTICE")]
    assert not [name for name in names if name.endswith(".cubin")]
    python = bare_environment(tmp_path / "environment")
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    add_dependencies(python)
    use(python, tmp_path / "environment", tmp_path)


def test_editable_install(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    for built in ROOT.glob("gpucnn/_C*.so"):  # what `make test` has just compiled from the same files
        shutil.copy2(built, source / "gpucnn")
    python = bare_environment(tmp_path / "environment")
    add_dependencies(python)
    options = "--no-build-isolation", "--no-deps", "--no-index", "--force-reinstall"
    run(python, "-m", "pip", "install", *options, "--editable", source, cwd=tmp_path)
    use(python, source, tmp_path)
