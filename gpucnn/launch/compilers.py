"""CUDA compilers, which need no GPU: nvcc and NVRTC, wherever the system or PyPI's packages have them."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from gpucnn.files import cache_folder, write_atomically
from gpucnn.launch.sources import digest, files, folder, suits

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
COMPILERS = ("nvcc", "nvrtc")
SHIPPED = Path(__file__).parents[1] / "cubins"  # code that was compiled when the package was built, if any


class CompileError(RuntimeError):
    """A kernel does not compile; the text is the compiler's."""


def check_architecture(name: str) -> None:
    """Raise ValueError unless `name` is written as nvcc takes it for code of one GPU, such as "sm_90a"."""
    if not re.fullmatch(r"sm_\d{2,3}[af]?", name):
        raise ValueError(f"architecture {name!r}: it must be such as {', '.join(ARCHITECTURES)}")


def flags(architecture: str) -> list[str]:
    """What both compilers are given, so that their code is the same; CuPy adds -ftz=true, too."""
    return [f"-arch={architecture}", "-std=c++17", "-ftz=true", f"-I{folder()}"]


def _package_folders() -> list[Path]:
    """Where PyPI's CUDA packages put their files: nvidia/cu13 and its like."""
    found = importlib.util.find_spec("nvidia")
    roots = found.submodule_search_locations if found else None
    return [path for root in roots or () for path in sorted(Path(root).glob("cu[0-9]*"), reverse=True)]


@cache
def find_tool(name: str) -> str:
    """The path of nvcc, cuobjdump, …: on PATH, in CUDA_HOME, or of PyPI's packages; raises ValueError without one."""
    places = [os.environ.get("PATH", ""), *(str(path / "bin") for path in _toolkits())]
    path = shutil.which(name, path=os.pathsep.join(places))
    if path is None:
        raise ValueError(f"{name} is not installed; pip install 'gpucnn[gate]', or a CUDA toolkit whose bin is on PATH")
    return path


def _toolkits() -> list[Path]:
    homes = [os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"]
    return [*map(Path, homes), *_package_folders()]


def has_tool(name: str) -> bool:
    """Whether `find_tool` finds it."""
    try:
        return bool(find_tool(name))
    except ValueError:
        return False


@cache
def nvcc_version() -> str:
    """Such as "13.0.88"."""
    text = subprocess.run([find_tool("nvcc"), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bV(\d+\.\d+\.\d+)", text)
    return found[1] if found else text.strip().splitlines()[-1]


def compile_with_nvcc(file: str, architecture: str) -> tuple[bytes, str]:
    """(cubin, what the compiler said) of a file of kernels; raises CompileError."""
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary, "kernels.cubin")
        options = ["-cubin", *flags(architecture), "-Xptxas", "-v,-warn-spills"]
        command = [find_tool("nvcc"), *options, file, "-o", str(target)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise CompileError(f"{file}, {architecture}, nvcc:\n{result.stderr[-4000:]}")
        return target.read_bytes(), result.stderr


@cache
def nvrtc() -> ctypes.CDLL:
    """The NVRTC library; raises ValueError where there is none."""
    names = [path for root in _toolkits() for sub in ("lib", "lib64") for path in (root / sub).glob("libnvrtc.so.*")]
    if not names:
        raise ValueError("NVRTC is not installed; pip install 'gpucnn[gate]', or a CUDA toolkit in /usr/local/cuda")
    for builtins in names[0].parent.glob("libnvrtc-builtins.so.*"):  # it finds them only if they are loaded already
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(names[0]))


def nvrtc_version() -> str:
    """Such as "13.0"."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_with_nvrtc(file: str, architecture: str) -> tuple[bytes, str]:
    """(cubin, what the compiler said) of a file of kernels; raises CompileError."""
    program = ctypes.c_void_p()
    nvrtc().nvrtcCreateProgram(ctypes.byref(program), Path(file).read_bytes(), Path(file).name.encode(), 0, None, None)
    try:
        options = [*flags(architecture), "--ptxas-options=-v", "--ptxas-options=-warn-spills"]
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = nvrtc().nvrtcCompileProgram(program, len(options), encoded)
        log = _nvrtc_output(program, "ProgramLog").rstrip(b"\0").decode()
        if failed:
            raise CompileError(f"{file}, {architecture}, NVRTC:\n{log[-4000:]}")
        return _nvrtc_output(program, "CUBIN"), log
    finally:
        nvrtc().nvrtcDestroyProgram(ctypes.byref(program))


def _nvrtc_output(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc(), f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


def version(compiler: str) -> str:
    """The version of "nvcc" or "nvrtc"; raises ValueError where it is not installed."""
    return nvcc_version() if compiler == "nvcc" else nvrtc_version()


def is_installed(compiler: str) -> bool:
    """Whether `version` has an answer."""
    try:
        return bool(version(compiler))
    except ValueError:
        return False


def cubin(file: str, architecture: str, compiler: str) -> tuple[bytes, str]:
    """(cubin, what the compiler said): shipped with the package, from the cache, or compiled now into the cache.

    Of code that is there already, that of the installed compiler's version is taken; if none is installed, any.
    Raises ValueError where there is neither code nor a compiler, and CompileError.
    - compiler: "nvcc" or "nvrtc"
    """
    path = cubin_path(file, architecture, compiler)
    return path.read_bytes(), path.with_suffix(".log").read_text()


def cubin_path(file: str, architecture: str, compiler: str) -> Path:
    """Where `cubin` has it; what the compiler said is beside it, in a .log."""
    check_architecture(architecture)
    stem = _stem(file, architecture, compiler)
    suffix = f"-{version(compiler)}" if is_installed(compiler) else "-*"
    for place in (SHIPPED, cache_folder("cubin")):
        for path in sorted(place.glob(f"{stem}{suffix}.cubin"), reverse=True):
            if path.with_suffix(".log").exists():
                return path
    return compile_into(cache_folder("cubin"), file, architecture, compiler)


def _stem(file: str, architecture: str, compiler: str) -> str:
    """What tells compiled code apart but for the compiler's version: file, architecture, digest of texts and flags."""
    text = repr((compiler, flags(architecture)[:-1], digest(file)))
    return f"{Path(file).stem}-{architecture}-{compiler}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def compile_into(folder: Path, file: str, architecture: str, compiler: str) -> Path:
    """Compile a file of kernels; returns the cubin's path, beside which a .log has what the compiler said."""
    path = folder / f"{_stem(file, architecture, compiler)}-{version(compiler)}.cubin"
    code, said = (compile_with_nvcc if compiler == "nvcc" else compile_with_nvrtc)(file, architecture)
    write_atomically(path.with_suffix(".log"), said.encode())
    write_atomically(path, code)
    return path


def jobs(architectures: Sequence[str]) -> int:
    """How many rows `build` gives."""
    return len(_pairs(architectures))


def _pairs(architectures: Sequence[str]) -> list[tuple[str, str]]:
    """Every file of kernels with every architecture that it is meant for."""
    return [
        (str(file), architecture) for file in files() for architecture in architectures if suits(file, architecture)
    ]


def build(architectures: Sequence[str], compiler: str) -> Iterator[dict[str, Any]]:
    """Compile every file of kernels that is not there yet, several at a time.

    Gives a row each: file, arch, bytes, seconds, error ("" if there is none).
    """
    pairs = _pairs(architectures)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(lambda pair: _build_one(pair[0], pair[1], compiler), pairs)


def _build_one(file: str, architecture: str, compiler: str) -> dict[str, Any]:
    start, size, error = time.perf_counter(), 0, ""
    try:
        size = len(cubin(file, architecture, compiler)[0])
    except CompileError as failure:
        error = str(failure)
    seconds = round(time.perf_counter() - start, 2)
    return {"file": Path(file).name, "arch": architecture, "bytes": size, "seconds": seconds, "error": error}
