"""Kernels compiled ahead: `gpucnn build-kernels` into the cache, and setup.py into the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpucnn import device as devices
from gpucnn.cli import build_kernels, main
from gpucnn.launch import compilers, sources

ROOT = Path(__file__).parents[1]
EXTENSION = '#include <pybind11/pybind11.h>\nPYBIND11_MODULE(_C, m) { m.attr("one") = 1; }\n'
needs_nvcc = pytest.mark.skipif(not compilers.has_tool("nvcc"), reason="nvcc is not installed")


@pytest.fixture(autouse=True)
def one_kernel(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A folder with relu.cu and the headers is the library's, and the cache is empty."""
    folder, before = tmp_path / "kernels", sources.folder()
    copy_kernels(folder)
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compilers, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(sources, "_registered", {})
    sources.use_folder(folder)
    yield folder
    sources.use_folder(before)


def copy_kernels(folder: Path) -> None:
    folder.mkdir()
    for path in (*(ROOT / "kernels").glob("*.cuh"), ROOT / "kernels" / "relu.cu", ROOT / "kernels" / "__init__.py"):
        shutil.copy2(path, folder)


@pytest.fixture
def no_compiler(monkeypatch) -> None:
    def refuse(*arguments: str) -> None:
        raise ValueError("nvcc is not installed; get it")

    monkeypatch.setattr(compilers, "version", refuse)


def place(folder: Path, version: str, code: bytes) -> str:
    """Put code of relu.cu for sm_90a into a folder, as one version of nvcc would have; returns the source's path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = str(sources.folder() / "relu.cu")
    path = folder / f"{compilers._stem(file, 'sm_90a', 'nvcc')}-{version}.cubin"
    path.write_bytes(code)
    path.with_suffix(".log").write_text("said")
    return file


@needs_nvcc
def test_kernels_are_compiled_once(tmp_path: Path, monkeypatch, capsys):
    arguments = ["build-kernels", "--arch", "sm_90a", "--arch", "sm_80", "--json", str(tmp_path / "k.json")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("nvcc ") and all(word in out for word in ("relu.cu", "sm_90a", "sm_80", "bytes"))
    content = json.loads((tmp_path / "k.json").read_text())
    assert [row["arch"] for row in content["files"]] == ["sm_90a", "sm_80"]
    assert all(row["bytes"] > 1000 and not row["error"] for row in content["files"])
    monkeypatch.setattr(compilers, "compile_with_nvcc", None)
    assert main(arguments) == 0


def test_hopper_kernels_are_compiled_for_hopper_alone(one_kernel: Path):
    assert compilers.jobs(compilers.ARCHITECTURES) == len(compilers.ARCHITECTURES)
    (one_kernel / "relu.cu").rename(one_kernel / "relu_hopper.cu")
    assert compilers.jobs(compilers.ARCHITECTURES) == compilers.jobs(["sm_90a"]) == 1
    assert compilers.jobs(["sm_80", "sm_100"]) == 0


@needs_nvcc
def test_a_kernel_that_does_not_compile(one_kernel: Path, tmp_path: Path, capsys):
    (one_kernel / "broken.cu").write_text('#include "common.cuh"\nKERNEL(32, 1) broken(float* x) { x[0] = unknown; }\n')
    assert main(["build-kernels", "--arch", "sm_80", "--json", str(tmp_path / "k.json")]) == 1
    said = capsys.readouterr()
    assert "1 of 2 did not compile" in said.err and "broken.cu" in said.err and "unknown" in said.err
    assert len(said.err.splitlines()) == 1
    rows = {row["file"]: row for row in json.loads((tmp_path / "k.json").read_text())["files"]}
    assert rows["relu.cu"]["bytes"] > 0 and "unknown" in rows["broken.cu"]["error"]


def test_no_compiler_is_an_error_of_one_line(no_compiler, capsys):
    assert main(["build-kernels"]) == 1
    assert capsys.readouterr().err == "error: nvcc is not installed; get it\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--arch", "hopper"], "architecture 'hopper': it must be such as sm_75"),
        (["--compiler", "gcc"], "--compiler gcc: it must be one of nvcc, nvrtc"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert main(["build-kernels", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_default_architectures(monkeypatch):
    monkeypatch.setattr(devices, "has_cuda", lambda: False)
    assert build_kernels.present_architectures() == list(compilers.ARCHITECTURES)

    class Cupy:
        class cuda:
            class Device:
                compute_capability = "90"

    monkeypatch.setattr(devices, "has_cuda", lambda: True)
    monkeypatch.setattr(devices, "cupy", lambda: Cupy)
    assert build_kernels.present_architectures() == ["sm_90a"]


@pytest.mark.parametrize("folder", ["shipped", "cache/cubin"])
def test_code_that_is_there_needs_no_compiler(folder, no_compiler, tmp_path: Path):
    file = place(tmp_path / folder, "13.0.88", b"code")
    assert compilers.cubin(file, "sm_90a", "nvcc") == (b"code", "said")
    with pytest.raises(ValueError, match="nvcc is not installed"):
        compilers.cubin(file, "sm_80", "nvcc")


def test_code_of_another_version_or_text_is_not_taken(one_kernel: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(compilers, "version", lambda compiler: "13.1.0")
    monkeypatch.setattr(compilers, "compile_with_nvcc", lambda file, architecture: (b"new", ""))
    file = place(tmp_path / "shipped", "13.0.88", b"old")
    assert compilers.cubin(file, "sm_90a", "nvcc")[0] == b"new"
    place(tmp_path / "shipped", "13.1.0", b"shipped")
    assert compilers.cubin(file, "sm_90a", "nvcc")[0] == b"shipped"
    (one_kernel / "relu.cu").write_text((one_kernel / "relu.cu").read_text() + "\n// changed\n")
    sources.digest.cache_clear()
    assert compilers.cubin(file, "sm_90a", "nvcc")[0] == b"new"


@needs_nvcc
def test_setup_ships_kernels_when_asked(tmp_path: Path, monkeypatch):
    """In a copy of the tree whose extension is a line, for speed; tests/test_install.py has a wheel without them."""
    tree = tmp_path / "tree"
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "bench", "kernels", "simulator_runtime", "cubins")
    shutil.copytree(ROOT / "gpucnn", tree / "gpucnn", ignore=left_out)
    shutil.copytree(ROOT / "csrc" / "simulator", tree / "csrc" / "simulator")
    copy_kernels(tree / "kernels")
    shutil.copytree(ROOT / "bench", tree / "bench", ignore=shutil.ignore_patterns("results", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy2(ROOT / name, tree)
    (tree / "csrc" / "bindings.cpp").write_text(EXTENSION)
    environment = {**os.environ, "GPUCNN_CUDA_ARCHS": "sm_90a;sm_80"}
    command = [sys.executable, "setup.py", "-q", "bdist_wheel"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((tree / "dist").glob("*.whl"))) as wheel:
        shipped = [name for name in wheel.namelist() if name.startswith("gpucnn/cubins/")]
        wheel.extractall(tmp_path / "installed", shipped)
    cubins = [name for name in shipped if name.endswith(".cubin")]
    assert len(cubins) == len(shipped) - len(cubins) == 2
    monkeypatch.setattr(compilers, "SHIPPED", tmp_path / "installed" / "gpucnn" / "cubins")
    monkeypatch.setattr(compilers, "compile_with_nvcc", None)
    code, log = compilers.cubin(str(sources.folder() / "relu.cu"), "sm_90a", "nvcc")
    assert code[:4] == b"\x7fELF" and "relu_forward" in log
