"""What is installed, what is missing and what is wrong, each with its fix. Nothing here needs a GPU or a network.

"missing" is what gpucnn does without (a GPU, extras, compilers); "problem" is what keeps it from working as it should.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from gpucnn import _C
from gpucnn import functional as F
from gpucnn.files import cache_root
from gpucnn.launch.sources import folder as kernels_folder
from gpucnn.threads import get_num_threads
from gpucnn.version import __version__

OK, MISSING, PROBLEM = "ok", "missing", "problem"
STYLES = {OK: "green", MISSING: "yellow", PROBLEM: "bold red"}

# What the compiler's x86-64-v3 and -v4 mean, in the words of /proc/cpuinfo: the extension holds code for both.
LEVELS = {
    "x86-64-v4 (AVX-512)": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma"},
    "x86-64-v3 (AVX2, FMA)": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
}
MOST_THREADS = 1024  # as in csrc/threads.cpp
LEAST_FREE_BYTES = 200_000_000  # a checkpoint of LeNet-5 takes 0.5 MB, one of VGG-16 1.1 GB
CUDA_ERROR_NO_DEVICE = 100
NO_NEED = "the devices 'cpu' and 'sim' need none"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    - name: what was looked at; status: "ok", "missing" or "problem"; detail: what was found
    - fix: what to do; always there for a problem, and for what is missing; advice where all is well
    """

    name: str
    status: str
    detail: str
    fix: str = ""


def checks() -> list[Check]:
    """Look at everything. Never raises for what it finds, and imports neither CuPy nor matplotlib."""
    driver, cuda = _driver()
    return [
        Check("python", OK, f"{platform.python_version()} ({sys.executable})"),
        _package(),
        _numpy(),
        _extension(),
        _cpu(),
        _threads(),
        driver,
        _cupy(cuda),
        _nvrtc(),
        _tool("nvcc", _nvcc_path(), "only needed to build kernels ahead of time: install the CUDA toolkit"),
        _tool("g++", _compiler_path(), "needed to build from source, and for the device 'sim': apt install g++"),
        _simulator(),
        _matplotlib(),
        _cache(),
        _disk(),
    ]


def exit_code(found: list[Check]) -> int:
    """1 if there is a problem, else 0."""
    return int(any(check.status == PROBLEM for check in found))


def to_json(found: list[Check]) -> dict[str, Any]:
    """The report as a dictionary that JSON can hold: {"ok": whether there is no problem, "checks": [...]}."""
    return {"ok": exit_code(found) == 0, "checks": [asdict(check) for check in found]}


def print_report(found: list[Check], console: Console | None = None) -> None:
    """Print a line for each check, with its fix below, and the number of problems."""
    console = Console() if console is None else console
    indent = " " * (9 + max(len(check.name) for check in found) + 2)
    for check in found:
        line = Text(f"{check.status:<9}", style=STYLES[check.status])
        line.append(f"{check.name:<{len(indent) - 9}}{check.detail}", style="default not bold")
        console.print(line, soft_wrap=True)
        if check.fix:
            console.print(Text(f"{indent}fix: {check.fix}"), soft_wrap=True)
    problems = sum(check.status == PROBLEM for check in found)
    console.print({0: "no problems", 1: "1 problem"}.get(problems, f"{problems} problems"), highlight=False)


def _package() -> Check:
    """gpucnn itself, and whether it hides another copy: Python looks in the folder it is started in first."""
    here = _package_folder()
    detail = f"{__version__} ({here})"
    found = [each.locate_file("gpucnn") for each in importlib.metadata.distributions(name="gpucnn")]
    others = sorted({Path(str(folder)).resolve() for folder in found} - {here})
    hidden = [str(folder) for folder in others if (folder / "__init__.py").is_file()]
    if hidden:
        fix = f"start Python in another folder than {here.parent}, or: pip uninstall gpucnn"
        return Check("gpucnn", PROBLEM, f"{detail} hides the copy installed in {hidden[0]}", fix)
    return Check("gpucnn", OK, detail)


def _package_folder() -> Path:
    return Path(__file__).resolve().parent


def _numpy() -> Check:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    threads = _blas_threads()
    with_threads = f", {threads} thread{'s' if threads > 1 else ''}" if threads else ""
    return Check("numpy", OK, f"{np.__version__}, {blas.get('name')} {blas.get('version')}{with_threads}")


def _blas_threads() -> int:
    """Threads of the OpenBLAS that comes with NumPy's wheels; 0 where NumPy has another library."""
    folder = Path(np.__file__).parent.parent / "numpy.libs"
    for path in folder.glob("libscipy_openblas*"):
        library = ctypes.CDLL(str(path))
        for name in ("scipy_openblas_get_num_threads64_", "scipy_openblas_get_num_threads"):
            if hasattr(library, name):
                return int(getattr(library, name)())
    return 0


def _extension() -> Check:
    """The compiled extension: whether it is this copy's, how it was built, and one convolution of known result."""
    built = f"built with {'GCC ' if _C.compiler[:1].isdigit() else ''}{_C.compiler}"
    rebuild = f"build it again: pip install -e {_package_folder().parent}"
    folder = Path(_C.__file__).resolve().parent
    if folder != _package_folder():
        return Check("extension", PROBLEM, f"it is that of another copy, in {folder}", rebuild)
    x, weight = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3), np.array([[[[1, -1], [0, 2]]]], np.float32)
    if F.conv2d(x, weight).ravel().tolist() != [7, 9, 13, 15]:
        return Check("extension", PROBLEM, f"{built}; it computes a wrong convolution", rebuild)
    if not _C.openmp:
        fix = f"install a compiler with OpenMP (apt install g++), then {rebuild}"
        return Check("extension", PROBLEM, f"{built} without OpenMP: everything runs on one thread", fix)
    return Check("extension", OK, f"{built}, OpenMP")


def _cpu() -> Check:
    """The processor, and which of the extension's code paths it can run."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        name, flags = (re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE) for key in ("model name", "flags"))
        if name and flags:
            present = set(flags[1].split())
            level = next((level for level, needed in LEVELS.items() if needed <= present), "x86-64")
            return Check("cpu", OK, f"{name[1]}; runs the code for {level}")
    return Check("cpu", OK, f"{platform.machine()}; runs the code for any such processor")


def _threads() -> Check:
    cpus, threads = len(os.sched_getaffinity(0)), get_num_threads()
    detail = f"{threads} of the extension, on {cpus} of the machine's {os.cpu_count()} CPUs"
    text = os.environ.get("GPUCNN_NUM_THREADS")
    if text is not None:
        detail += f" (GPUCNN_NUM_THREADS={text})"
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_THREADS):
            fix = f"set GPUCNN_NUM_THREADS to a number from 1 to {MOST_THREADS}, such as {cpus}, or unset it"
            return Check("threads", PROBLEM, f"{detail}: not a number of threads", fix)
    limit = min(cpus, _cpu_quota())
    if threads > limit:
        fix = f"faster: export GPUCNN_NUM_THREADS={max(1, int(limit))}"
        return Check("threads", OK, f"{detail}, more than the {limit:g} CPUs this process may use", fix)
    return Check("threads", OK, detail)


def _cpu_quota() -> float:
    """CPUs' worth of time that a container may use (cgroup v2, else v1); infinite where nothing is set."""
    with contextlib.suppress(OSError, ValueError):  # "max", where there is no quota, is no integer
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        return quota / period
    with contextlib.suppress(OSError, ValueError):
        files = [Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period")]
        quota, period = (int(file.read_text()) for file in files)
        return quota / period if quota > 0 else float("inf")
    return float("inf")


def _driver() -> tuple[Check, int | None]:
    """The NVIDIA driver with its GPUs, and the CUDA version it supports (12040 is 12.4)."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        if Path("/dev/nvidiactl").exists():
            fix = "in a container: docker run --gpus all (NVIDIA Container Toolkit); else reinstall the driver"
            return Check(
                "driver", PROBLEM, f"there is a GPU, but the driver's library does not load: {error}", fix
            ), None
        return Check("driver", MISSING, f"no NVIDIA driver (libcuda.so.1); {NO_NEED}", "install it to use a GPU"), None
    version = ctypes.c_int()
    code = library.cuDriverGetVersion(ctypes.byref(version)) or library.cuInit(0)
    if code == CUDA_ERROR_NO_DEVICE:
        return Check("driver", MISSING, f"{_cuda(version.value)}, but no GPU is visible", _visible_fix()), version.value
    if code:
        fix = "see whether nvidia-smi works; after an update of the driver, restart the machine"
        return Check("driver", PROBLEM, f"libcuda.so.1 does not work: {_cuda_error(library, code)}", fix), None
    return Check("driver", OK, f"{_cuda(version.value)}; {'; '.join(_gpus(library))}"), version.value


def _cuda_error(library: Any, code: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorString(code, ctypes.byref(text))
    return f"error {code} ({text.value.decode() if text.value else 'unknown'})"


def _cuda(version: int) -> str:
    return f"for CUDA up to {version // 1000}.{version % 1000 // 10}"


def _visible_fix() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"unset CUDA_VISIBLE_DEVICES (it is {visible!r}) to use a GPU"
    return "check that the machine, or the container (docker run --gpus all), has one"


def _gpus(library: Any) -> Iterator[str]:
    """A line for each GPU; needs cuInit."""
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    for number in range(count.value):
        name, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        library.cuDeviceGet(ctypes.byref(device), number)
        library.cuDeviceGetName(name, len(name), device)
        library.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        library.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        library.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        yield f"{name.value.decode()}, {size.value / 2**30:.0f} GiB, compute capability {major.value}.{minor.value}"


def _cupy(cuda: int | None) -> Check:
    """CuPy by its packages' metadata: two overwrite each other's files, and one may be too new for the driver."""
    found = {}
    for each in importlib.metadata.distributions():
        name = (each.metadata["Name"] or "").lower()
        if re.fullmatch(r"cupy(-cuda\d+x?|-rocm-[\d-]+)?", name):
            found[name] = each.version
    suited = "cupy-cuda13x" if cuda and cuda >= 13000 else "cupy-cuda12x"
    if not found:
        return Check("cupy", MISSING, f"not installed; {NO_NEED}", f"on a machine with a GPU: pip install {suited}")
    names = sorted(found)
    detail = ", ".join(f"{name} {found[name]}" for name in names)
    if len(names) > 1:
        fix = f"pip uninstall -y {' '.join(names)} && pip install {suited}"
        return Check("cupy", PROBLEM, f"{detail}: they overwrite each other's files", fix)
    wanted = re.search(r"cuda(\d+)x", names[0])
    if cuda and wanted and int(wanted[1]) > cuda // 1000:
        fix = f"pip uninstall -y {names[0]} && pip install {suited}, or update the driver"
        return Check("cupy", PROBLEM, f"{detail} needs CUDA {wanted[1]}, the driver is {_cuda(cuda)}", fix)
    return Check("cupy", OK, detail)


def _nvrtc() -> Check:
    """The compiler library for kernels: of the system, of the toolkit's usual folder, or of a Python package."""
    fix = "only needed to compile for a GPU: pip install nvidia-cuda-nvrtc (CUDA 13) or nvidia-cuda-nvrtc-cu12"
    for path in _nvrtc_paths():
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            return Check("nvrtc", PROBLEM, f"{path} does not load: {error}", "reinstall it")
        major, minor = ctypes.c_int(), ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return Check("nvrtc", OK, f"{major.value}.{minor.value} ({path})")
    return Check("nvrtc", MISSING, f"no libnvrtc; {NO_NEED}", fix)


def _nvrtc_paths() -> Iterator[str]:
    for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        for each in importlib.metadata.distributions(name=name):
            files = each.files or []
            yield from (str(each.locate_file(file)) for file in files if re.match(r"libnvrtc\.so\.\d+$", file.name))
    on_system = ctypes.util.find_library("nvrtc")
    if on_system:
        yield on_system
    yield from map(str, sorted(Path("/usr/local/cuda/lib64").glob("libnvrtc.so.*")))


def _nvcc_path() -> str | None:
    folders = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [os.path.join(folder, "bin") for folder in (*folders, "/usr/local/cuda") if folder]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(places))


def _compiler_path() -> str | None:
    return shutil.which(os.environ.get("CXX") or "g++")


def _simulator() -> Check:
    """Whether the device 'sim' can compile the kernels, and how many of their files it has compiled already."""
    count = len(list(kernels_folder().glob("*.cu")))
    if _compiler_path() is None:
        return Check("simulator", MISSING, f"no g++ to compile {count} files of kernels with", "apt install g++")
    compiled = len(list((cache_root() / "simulator").glob("*.so")))
    return Check("simulator", OK, f"{count} files of kernels; {compiled} compiled libraries in the cache")


def _tool(name: str, path: str | None, fix: str) -> Check:
    """A compiler that gpucnn can do without, with the line of its --version that has the number."""
    if path is None:
        return Check(name, MISSING, "not found", fix)
    try:
        result = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name, PROBLEM, f"{path} does not run: {error}", f"reinstall {name}, or take it out of PATH")
    numbered = [line for line in result.stdout.splitlines() if re.search(r"\d+\.\d+", line)]
    if result.returncode or not numbered:
        return Check(name, PROBLEM, f"{path} --version fails (exit code {result.returncode})", f"reinstall {name}")
    return Check(name, OK, f"{numbered[0].strip()} ({path})")


def _matplotlib() -> Check:
    try:
        return Check("matplotlib", OK, importlib.metadata.version("matplotlib"))
    except importlib.metadata.PackageNotFoundError:
        return Check("matplotlib", MISSING, "no training curves are drawn", "pip install 'gpucnn[viz]'")


def _cache() -> Check:
    """The folder for compiled kernels and tuning results; code is loaded from it, so nobody else may write there."""
    path = cache_root()
    name = "GPUCNN_CACHE_DIR" if os.environ.get("GPUCNN_CACHE_DIR") else "the default cache"
    fix = "set GPUCNN_CACHE_DIR to a folder you may write to"
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        return Check("cache", PROBLEM, f"{name} {path}: {existing} is a file", fix)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check("cache", PROBLEM, f"{name} {path} cannot be written", fix)
    if existing != path:
        return Check("cache", OK, f"{path} (not made yet)")
    if path.stat().st_mode & 0o002:
        return Check(
            "cache", PROBLEM, f"{path}: everybody may write to it, and so run code as you", f"chmod 700 {path}"
        )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Check("cache", OK, f"{path}, {size / 1e6:.1f} MB")


def _disk() -> Check:
    try:
        folder = os.getcwd()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check("disk", PROBLEM, f"the current folder cannot be read: {error}", "cd to a folder that exists")
    detail = f"{free / 1e9:.1f} GB free in {folder}"
    if free < LEAST_FREE_BYTES:
        return Check("disk", PROBLEM, detail, "free some space, or write elsewhere with --out")
    return Check("disk", OK, detail)
