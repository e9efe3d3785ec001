"""The doctor, on machines as they are and as they might be: fake drivers, fake packages, fake folders."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import gpucnn
from gpucnn import doctor

NAMES = [
    "python", "gpucnn", "numpy", "extension", "cpu", "threads", "driver", "cupy", "nvrtc", "nvcc", "g++", "simulator",
    "matplotlib", "cache", "disk",
]  # fmt: skip


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine whose environment asks for nothing unusual."""
    for name in ("GPUCNN_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def check(name: str) -> doctor.Check:
    return next(found for found in doctor.checks() if found.name == name)


@pytest.mark.usefixtures("healthy")
def test_this_machine() -> None:
    found = doctor.checks()
    assert [each.name for each in found] == NAMES
    assert {each.status for each in found} <= {"ok", "missing", "problem"}
    assert all(each.detail for each in found)
    assert all(each.fix for each in found if each.status != "ok")
    by_name = {each.name: each for each in found}
    for name in ("python", "gpucnn", "numpy", "extension", "cpu", "threads", "cache", "disk"):
        assert by_name[name].status == "ok", by_name[name]
    assert gpucnn.__version__ in by_name["gpucnn"].detail
    assert str(Path(gpucnn.__file__).resolve().parent) in by_name["gpucnn"].detail


CHECKS = [
    doctor.Check("python", "ok", "3.11"),
    doctor.Check("cupy", "missing", "not installed", "pip install cupy-cuda12x"),
    doctor.Check("threads", "problem", "x" * 200, "set [red]GPUCNN_NUM_THREADS[/red]"),
]


def printed(found: list[doctor.Check]) -> list[str]:
    stream = io.StringIO()
    doctor.print_report(found, Console(file=stream, width=40))
    return stream.getvalue().splitlines()


def test_report_is_neither_wrapped_nor_taken_for_markup() -> None:
    assert printed(CHECKS) == [
        "ok       python   3.11",
        "missing  cupy     not installed",
        "                  fix: pip install cupy-cuda12x",
        "problem  threads  " + "x" * 200,
        "                  fix: set [red]GPUCNN_NUM_THREADS[/red]",
        "1 problem",
    ]


@pytest.mark.parametrize(("problems", "last"), [(0, "no problems"), (1, "1 problem"), (2, "2 problems")])
def test_exit_code_and_last_line_count_problems_only(problems: int, last: str) -> None:
    found = CHECKS[:2] + CHECKS[2:] * problems
    assert doctor.exit_code(found) == min(problems, 1)
    assert printed(found)[-1] == last
    assert doctor.to_json(found)["ok"] == (problems == 0)


def test_json() -> None:
    record = doctor.to_json(CHECKS)
    assert json.loads(json.dumps(record)) == record
    assert record["checks"][1] == {
        "name": "cupy", "status": "missing", "detail": "not installed", "fix": "pip install cupy-cuda12x",
    }  # fmt: skip


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "", "2x", "1025", "²", "9" * 30])
def test_thread_counts_that_are_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GPUCNN_NUM_THREADS", text)
    found = check("threads")
    assert found.status == "problem"
    assert f"GPUCNN_NUM_THREADS={text}" in found.detail
    assert "from 1 to 1024" in found.fix


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(
    ("quota", "advice"),
    [(float("inf"), ""), (1.5, "faster: export GPUCNN_NUM_THREADS=1"), (0.5, "faster: export GPUCNN_NUM_THREADS=1")],
)
def test_more_threads_than_the_container_may_use_is_advice(
    monkeypatch: pytest.MonkeyPatch, quota: float, advice: str
) -> None:
    monkeypatch.setenv("GPUCNN_NUM_THREADS", "2")
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setattr(gpucnn, "get_num_threads", lambda: 2)
    monkeypatch.setattr(doctor, "_cpu_quota", lambda: quota)
    found = check("threads")
    assert (found.status, found.fix) == ("ok", advice)


def set_output(pointer: Any, value: Any) -> int:
    pointer._obj.value = value
    return 0


class FakeDriver:
    """libcuda.so.1 with one GPU; the functions named return an error code instead."""

    def __init__(self, version: int = 13000, **errors: int) -> None:
        self.version = version
        for name, code in errors.items():
            setattr(self, name, lambda *arguments, code=code: code)

    def cuDriverGetVersion(self, version: Any) -> int:
        return set_output(version, self.version)

    def cuInit(self, flags: int) -> int:
        return 0

    def cuGetErrorString(self, code: int, text: Any) -> int:
        return set_output(text, b"unknown error" if code == 999 else None)

    def cuDeviceGetCount(self, count: Any) -> int:
        return set_output(count, 1)

    def cuDeviceGet(self, device: Any, number: int) -> int:
        return set_output(device, number)

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"NVIDIA H200"
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:
        return set_output(size, 140 * 2**30)

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        return set_output(value, {75: 9, 76: 0}[attribute])


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch, healthy: None) -> dict[str, Any]:
    """The shared libraries of the machine by name; what is not among them does not load."""
    present: dict[str, Any] = {}
    real = ctypes.CDLL

    def load(name: str, *arguments: Any) -> Any:
        if "openblas" in name:
            return real(name, *arguments)
        if name not in present:
            raise OSError(f"{name}: cannot open shared object file")
        return present[name]

    monkeypatch.setattr(ctypes, "CDLL", load)
    return present


def test_no_driver_is_no_problem(libraries: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)  # /dev/nvidiactl, on machines that have one
    found = doctor._driver()[0]
    assert found.status == "missing"
    assert "libcuda.so.1" in found.detail


def test_a_gpu_without_the_drivers_library_is_a_problem(
    libraries: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidiactl")
    found, cuda = doctor._driver()
    assert (found.status, cuda) == ("problem", None)
    assert "--gpus all" in found.fix


def test_a_driver_with_a_gpu(libraries: dict[str, Any]) -> None:
    libraries["libcuda.so.1"] = FakeDriver(12040)
    found, cuda = doctor._driver()
    assert (found.status, cuda) == ("ok", 12040)
    assert found.detail == "for CUDA up to 12.4; NVIDIA H200, 140 GiB, compute capability 9.0"


def test_a_driver_without_a_visible_gpu(libraries: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    libraries["libcuda.so.1"] = FakeDriver(cuInit=100)
    found, cuda = doctor._driver()
    assert (found.status, cuda) == ("missing", 13000)
    assert "container" in found.fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor._driver()[0].fix == "unset CUDA_VISIBLE_DEVICES (it is '') to use a GPU"


@pytest.mark.parametrize(
    ("errors", "text"),
    [({"cuInit": 999}, "error 999 (unknown error)"), ({"cuDriverGetVersion": 34}, "error 34 (unknown)")],
)
def test_a_driver_that_fails(libraries: dict[str, Any], errors: dict[str, int], text: str) -> None:
    libraries["libcuda.so.1"] = FakeDriver(**errors)
    found, cuda = doctor._driver()
    assert (found.status, cuda) == ("problem", None)
    assert text in found.detail


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, healthy: None) -> Callable[..., None]:
    """Makes the machine's Python packages those named, each with a version."""

    def install(**versions: str) -> None:
        fakes = [
            SimpleNamespace(metadata={"Name": name.replace("_", "-")}, version=version, files=None)
            for name, version in versions.items()
        ]

        def distributions(**options: str) -> list[Any]:
            return [each for each in fakes if options.get("name") in (None, each.metadata["Name"])]

        monkeypatch.setattr(importlib.metadata, "distributions", distributions)

    return install


@pytest.mark.parametrize(
    ("installed", "cuda", "status", "words"),
    [
        ({}, None, "missing", "pip install cupy-cuda12x"),
        ({}, 13000, "missing", "pip install cupy-cuda13x"),
        ({"numpy": "2.0", "cupyx_tools": "1"}, 12040, "missing", "pip install cupy-cuda12x"),
        ({"cupy_cuda12x": "14.2"}, 12040, "ok", "cupy-cuda12x 14.2"),
        ({"cupy_cuda12x": "14.2"}, 13000, "ok", "cupy-cuda12x 14.2"),
        ({"cupy_cuda13x": "14.2"}, None, "ok", "cupy-cuda13x 14.2"),
        ({"cupy": "14.2"}, 13000, "ok", "cupy 14.2"),
        ({"cupy_cuda13x": "14.2"}, 12040, "problem", "needs CUDA 13, the driver is for CUDA up to 12.4"),
        ({"cupy": "14.1", "cupy_cuda12x": "14.2"}, None, "problem", "pip uninstall -y cupy cupy-cuda12x"),
        ({"cupy_cuda12x": "14.2", "cupy_cuda13x": "14.2"}, 13000, "problem", "&& pip install cupy-cuda13x"),
    ],
)
def test_cupy_packages(
    packages: Callable[..., None], installed: dict[str, str], cuda: int | None, status: str, words: str
) -> None:
    packages(**installed)
    found = doctor._cupy(cuda)
    assert found.status == status
    assert words in f"{found.detail}\n{found.fix}"


def test_another_installed_copy_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = Path(gpucnn.__file__).parent.parent
    (tmp_path / "gpucnn").mkdir()
    (tmp_path / "gpucnn" / "__init__.py").touch()
    places = [here, tmp_path / "editable"]  # an editable install has no folder of that name
    monkeypatch.setattr(
        importlib.metadata,
        "distributions",
        lambda **options: [SimpleNamespace(locate_file=place.joinpath) for place in places],
    )
    assert doctor._package().status == "ok"
    places.append(tmp_path)
    found = doctor._package()
    assert found.status == "problem"
    assert str(tmp_path / "gpucnn") in found.detail
    assert "start Python in another folder" in found.fix


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("openmp", False, "without OpenMP"),
        ("__file__", "/elsewhere/gpucnn/_C.so", "another copy, in /elsewhere/gpucnn"),
    ],
)
def test_extensions_that_are_not_as_they_should_be(
    monkeypatch: pytest.MonkeyPatch, attribute: str, value: Any, words: str
) -> None:
    assert doctor._extension().status == "ok"
    monkeypatch.setattr(doctor._C, attribute, value)
    found = doctor._extension()
    assert found.status == "problem"
    assert words in found.detail
    assert "pip install -e" in found.fix


def test_an_extension_that_computes_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.F, "conv2d", lambda x, weight: x)
    assert "wrong convolution" in doctor._extension().detail


def test_a_source_tree_without_the_extension_says_how_to_build_it(tmp_path: Path) -> None:
    source = Path(gpucnn.__file__).parent
    shutil.copytree(source, tmp_path / "gpucnn", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.npz"))
    # An editable install's finder would fetch the extension from its own tree.
    command = (
        "import sys; sys.meta_path[:] = [each for each in sys.meta_path if 'ditable' not in repr(each)]; import gpucnn"
    )
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=tmp_path)
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: gpucnn: {tmp_path / 'gpucnn'} has no compiled extension")
    assert f"python -m pip install -e {tmp_path}" in last
    assert "start Python in another folder" in last


class FakeNvrtc:
    def nvrtcVersion(self, major: Any, minor: Any) -> int:
        return set_output(major, 12) or set_output(minor, 4)


def test_nvrtc(libraries: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_nvrtc_paths", lambda: iter(()))
    assert doctor._nvrtc().status == "missing"
    monkeypatch.setattr(doctor, "_nvrtc_paths", lambda: iter(("libnvrtc.so.12",)))
    assert doctor._nvrtc().status == "problem"
    libraries["libnvrtc.so.12"] = FakeNvrtc()
    assert doctor._nvrtc().detail == "12.4 (libnvrtc.so.12)"


def test_nvrtc_of_a_python_package(monkeypatch: pytest.MonkeyPatch, packages: Callable[..., None]) -> None:
    packages()
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "libnvrtc.so.13")
    assert next(doctor._nvrtc_paths()) == "libnvrtc.so.13"
    files = [Path("nvidia/cu13/lib/libnvrtc-builtins.so.13.0"), Path("nvidia/cu13/lib/libnvrtc.so.13")]
    package = SimpleNamespace(files=files, locate_file=Path("/site-packages").joinpath)
    monkeypatch.setattr(
        importlib.metadata, "distributions", lambda name: [package] if name == "nvidia-cuda-nvrtc" else []
    )
    assert next(doctor._nvrtc_paths()) == "/site-packages/nvidia/cu13/lib/libnvrtc.so.13"


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("echo 'nvcc: NVIDIA'; echo 'Cuda compilation tools, release 13.0, V13.0.88'", "ok", "release 13.0, V13.0.88"),
        ("exit 3", "problem", "exit code 3"),
        ("printf '\\377'", "problem", "--version fails"),
    ],
)
def test_tools(tmp_path: Path, body: str, status: str, words: str) -> None:
    found = doctor._tool("nvcc", script(tmp_path / "nvcc", body), "install it")
    assert found.status == status
    assert words in found.detail


def test_tools_that_are_missing_or_cannot_run(tmp_path: Path) -> None:
    assert doctor._tool("g++", None, "apt install g++") == doctor.Check(
        "g++", "missing", "not found", "apt install g++"
    )
    (tmp_path / "g++").write_bytes(b"not a program")
    assert doctor._tool("g++", str(tmp_path / "g++"), "").status == "problem"


@pytest.mark.usefixtures("healthy")
def test_nvcc_is_found_below_cuda_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    expected = script(tmp_path / "bin" / "nvcc", "echo 13.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert doctor._nvcc_path() == expected


@pytest.mark.usefixtures("healthy")
def test_cache_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert doctor._cache() == doctor.Check("cache", "ok", f"{cache} (not made yet)")
    cache.mkdir(mode=0o700)
    (cache / "kernel.cubin").write_bytes(b"x" * 1_500_000)
    assert doctor._cache() == doctor.Check("cache", "ok", f"{cache}, 1.5 MB")
    cache.chmod(0o777)
    found = doctor._cache()
    assert (found.status, found.fix) == ("problem", f"chmod 700 {cache}")
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(cache / "kernel.cubin" / "below"))
    found = doctor._cache()
    assert found.status == "problem"
    assert f"{cache / 'kernel.cubin'} is a file" in found.detail
    assert "set GPUCNN_CACHE_DIR" in found.fix


@pytest.mark.usefixtures("healthy")
def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor._cache().status == "problem"
    monkeypatch.delenv("GPUCNN_CACHE_DIR")
    assert "the default cache" in doctor._cache().detail


def test_a_full_disk_and_a_folder_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000_000))
    found = doctor._disk()
    assert found.status == "problem"
    assert "0.1 GB free" in found.detail
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "cannot be read" in doctor._disk().detail


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (sorted(doctor.LEVELS["x86-64-v4 (AVX-512)"] | doctor.LEVELS["x86-64-v3 (AVX2, FMA)"]), "x86-64-v4 (AVX-512)"),
        (sorted(doctor.LEVELS["x86-64-v3 (AVX2, FMA)"]), "x86-64-v3 (AVX2, FMA)"),
        (["sse2", "avx"], "x86-64"),
    ],
)
def test_the_processors_level(monkeypatch: pytest.MonkeyPatch, flags: list[str], level: str) -> None:
    text = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {' '.join(flags)}\n\nprocessor\t: 1\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert doctor._cpu().detail == f"Some CPU; runs the code for {level}"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, float("inf")),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, float("inf")),
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, float("inf")),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 0.5),
    ],
)
def test_the_containers_share_of_the_processors(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: float
) -> None:
    def read_text(path: Path) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert doctor._cpu_quota() == quota


def test_the_doctor_loads_neither_cupy_nor_matplotlib() -> None:
    command = (
        "import sys; from gpucnn import doctor; doctor.checks(); print({'cupy', 'matplotlib', 'PIL'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.usefixtures("healthy")
def test_the_simulator_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache" / "simulator").mkdir(parents=True)
    (tmp_path / "cache" / "simulator" / "relu-fast-0123.so").touch()
    found = check("simulator")
    assert found.status == "ok" and found.detail.endswith("files of kernels; 1 compiled libraries in the cache")
    monkeypatch.setenv("CXX", "no-such-compiler")
    missing = check("simulator")
    assert (missing.status, missing.fix) == ("missing", "apt install g++")
