"""Engine `sim`: kernels compiled by g++ as C++ and run on the CPU, one thread after the other, with checks.

Each file of kernels becomes one shared library a mode, built at its first launch and kept in the cache:

- fast: optimised; guard bands around arrays are checked after each launch
- asan: every access must lie inside an array, and nothing may be undefined behaviour
- race: no two threads may access a byte, one of them writing, without a barrier between
- profile: counts what a GPU's memory units would do, for each line
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import simulator_runtime
from gpucnn.files import cache_folder, write_atomically
from gpucnn.launch.sources import Entry, digest, entries, folder, structs
from gpucnn.launch.tensor_map import BYTES, TensorMap

RUNTIME = Path(simulator_runtime.__file__).parent
# DWARF 4: addr2line 2.40 takes the including file's name for an included one's in DWARF 5.
COMMON_FLAGS = ("-std=c++17", "-gdwarf-4", "-fPIC", "-fvisibility=hidden", "-w", f"-I{RUNTIME}")
KERNEL_FLAGS = {
    "fast": ("-O3", "-fno-math-errno", "-fno-trapping-math"),
    "asan": (
        "-O1",
        "-fsanitize=kernel-address,undefined",
        "-fno-sanitize=vptr",
        *("--param=asan-instrumentation-with-call-threshold=0", "--param=asan-stack=0", "--param=asan-globals=0"),
    ),
    "race": ("-O1", "-fsanitize=thread"),
    "profile": ("-O1", "-fsanitize=thread", "-DSIMULATOR_PROFILE"),
}
RUNTIME_FILES = ("runtime", "fiber", "access", "barrier", "tensor_core", "tma", "wgmma")
SHARED_LIMITS = {"sm_75": 64 << 10, "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10,
                 "sm_120": 99 << 10}  # fmt: skip
ORDERS = ("forward", "reverse", "random")
CACHE_BYTES, CACHE_SECONDS = 1 << 30, 86_400.0  # a full set of all modes has about 150 MB


class SimulatorError(RuntimeError):
    """What the simulator found: `kind`, `kernel`, `message` and `place` (file:line, or None)."""

    def __init__(self, kind: str, kernel: str, message: str, place: str | None) -> None:
        super().__init__(f"{kernel}: {kind}: {message}" + (f" at {place}" if place else ""))
        self.kind, self.kernel, self.message, self.place = kind, kernel, message, place


@dataclass(frozen=True)
class Settings:
    """How launches on `sim` run.

    - mode: "fast", "asan", "race" or "profile"
    - order: in which threads and blocks take their turns: "forward", "reverse" or "random" (by `seed`)
    - late_copies: asynchronous copies arrive when they are waited for, rather than at once
    - architecture: whose limit of shared memory a block must keep, and whose tensor cores multiply
    """

    mode: str = "fast"
    order: str = "forward"
    seed: int = 0
    late_copies: bool = True
    architecture: str = "sm_90"

    def __post_init__(self) -> None:
        for name, choices in (("mode", KERNEL_FLAGS), ("order", ORDERS), ("architecture", SHARED_LIMITS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"simulator: {name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}"
                )


def _from_environment() -> Settings:
    return Settings(mode=os.environ.get("GPUCNN_SIM") or "fast")


_settings: Settings | None = None


def settings() -> Settings:
    """The settings in force: those of `configured`, else the mode that GPUCNN_SIM names."""
    return _settings or _from_environment()


@contextmanager
def configured(**changes: Any) -> Iterator[Settings]:
    """Inside this context launches on `sim` run with these settings."""
    global _settings
    before = _settings
    _settings = replace(settings(), **changes)
    try:
        yield _settings
    finally:
        _settings = before


_profiles: list[tuple[str, Profile]] | None = None
_profiles_lines = True


@contextmanager
def profiling(lines: bool = True) -> Iterator[list[tuple[str, Profile]]]:
    """Inside this context launches on `sim` run in the mode "profile"; the list gets (kernel, Profile) of each.

    - lines: look up the source line of each counter, a process apiece; without, all lines are ""
    """
    global _profiles, _profiles_lines
    before, _profiles, _profiles_lines = (_profiles, _profiles_lines), [], lines
    try:
        with configured(mode="profile"):
            yield _profiles
    finally:
        _profiles, _profiles_lines = before


class _Buffer(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_void_p), ("bytes", ctypes.c_size_t), ("writable", ctypes.c_int),
                ("guarded", ctypes.c_int)]  # fmt: skip


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint),
        ("shared_bytes", ctypes.c_uint),
        ("shared_limit", ctypes.c_uint),
        ("buffers", ctypes.c_void_p),
        ("buffer_count", ctypes.c_int),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("late_copies", ctypes.c_int),
        ("architecture", ctypes.c_int),
        ("cluster", ctypes.c_int),
        ("stacks", ctypes.c_void_p),
        ("error", ctypes.c_char_p),
        ("error_bytes", ctypes.c_size_t),
    ]


STACKS_MAX = 1024 * 8  # threads of a block, blocks of a cluster
# Of the fibers of all libraries: each takes two of the 65,530 mappings that Linux lets a process have, so they are
# shared, and launches take turns.
_stacks = (ctypes.c_void_p * STACKS_MAX)()
_running = threading.Lock()


def run(entry: Entry, grid: tuple[int, int, int], arguments: list[Any], shared_bytes: int) -> None:
    """Run all blocks of a launch; raises SimulatorError for what the mode finds."""
    chosen = settings()
    module = library(entry.file, chosen.mode)
    buffers = [_buffer(array, writable) for array, _, writable in _arrays(entry, arguments)]
    values = [_value(argument) for argument in arguments]
    error = ctypes.create_string_buffer(1024)
    launch = _Launch(
        kernel=ctypes.cast(getattr(module, f"simulate_{entry.name}"), ctypes.c_void_p),
        arguments=ctypes.cast((ctypes.c_void_p * len(values))(*map(ctypes.addressof, values)), ctypes.c_void_p),
        grid=grid,
        threads=entry.threads,
        shared_bytes=shared_bytes,
        shared_limit=SHARED_LIMITS[chosen.architecture],
        buffers=ctypes.cast((_Buffer * len(buffers))(*buffers), ctypes.c_void_p),
        buffer_count=len(buffers),
        order=ORDERS.index(chosen.order),
        seed=chosen.seed,
        late_copies=chosen.late_copies,
        architecture=int(chosen.architecture.removeprefix("sm_")),
        cluster=entry.cluster,
        stacks=ctypes.cast(_stacks, ctypes.c_void_p),
        error=ctypes.cast(error, ctypes.c_char_p),
        error_bytes=len(error),
    )
    with _running:
        failed = module.gpucnn_simulate(ctypes.byref(launch))
    if failed:
        raise _error(entry, arguments, module, error.value.decode())
    if _profiles is not None:
        _profiles.append((entry.name, profile(entry.name, _profiles_lines)))


def _arrays(entry: Entry, arguments: list[Any]) -> Iterator[tuple[Any, str, bool]]:
    """(array, name, writable) of every array of the launch; "gradients[2]" is a part of `gradients`."""
    for parameter, argument in zip(entry.parameters, arguments, strict=True):
        writable = argument.stores if isinstance(argument, TensorMap) else not parameter.const
        for position, array in enumerate(devices.arrays_in(argument)):
            part = f"[{position}]" if isinstance(argument, tuple) else ""
            yield array, parameter.name + part, writable


def _buffer(array: Any, writable: bool) -> _Buffer:
    low, high = np.lib.array_utils.byte_bounds(array) if array.size else (array.ctypes.data, array.ctypes.data)
    guarded = (
        array.size > 0 and getattr(array, "guarded", False) and array.flags.forc
    )  # no element twice, none left out
    return _Buffer(low, high - low, writable, guarded)


def _value(argument: Any) -> Any:
    """A ctypes object that holds the argument as the kernel takes it."""
    if argument is None or isinstance(argument, np.ndarray):
        return ctypes.c_void_p(None if argument is None else argument.ctypes.data)
    if isinstance(argument, tuple):
        return (ctypes.c_void_p * structs()["Pointers"][0][1])(*(array.ctypes.data for array in argument))
    if isinstance(argument, TensorMap):
        return _aligned(argument.simulated())
    return ctypes.create_string_buffer(argument.tobytes(), argument.nbytes)


def _aligned(content: bytes) -> Any:
    """A ctypes object with these bytes at a multiple of their number, which is BYTES of a tensor map."""
    memory = ctypes.create_string_buffer(2 * BYTES)
    found = (ctypes.c_char * BYTES).from_buffer(memory, -ctypes.addressof(memory) % BYTES)
    found.raw = content
    return found


def _error(entry: Entry, arguments: list[Any], module: Any, text: str) -> SimulatorError:
    kind, message, *place = text.split("\n")
    names = [name for _, name, _ in _arrays(entry, arguments)]
    for position in reversed(range(len(names))):
        message = message.replace(f"argument {position}", f"argument {names[position]}")
    message = re.sub("@0x[0-9a-f]+", lambda match: _place(f"{match[0]}:0", module), message)
    return SimulatorError(kind, entry.name, message, _place(place[0], module) if place else None)


def _place(text: str, module: Any) -> str:
    """file:line of a place, which may be a code address "@0x…" of the library."""
    if not text.startswith("@"):
        path, _, line = text.rpartition(":")
        return f"{os.path.basename(path)}:{line}"
    return source_line(module, int(text[1:].rpartition(":")[0], 16))


def source_line(module: Any, address: int) -> str:
    """file:line of a code address in the library, from its debug information; the address where no tool can tell."""
    base = ctypes.cast(module.gpucnn_simulate, ctypes.c_void_p).value
    assert base is not None
    offset = address - base + _symbol_offset(module._name)
    return _lines(module._name, offset - 1)


@cache
def _symbol_offset(path: str) -> int:
    table = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    return next(int(line.split()[0], 16) for line in table.splitlines() if line.endswith(" gpucnn_simulate"))


@cache
def _lines(path: str, offset: int) -> str:
    """Where the code of an address comes from: the innermost line in a .cu file, else in a header of kernels."""
    out = subprocess.run(
        ["addr2line", "-i", "-e", path, hex(offset)], capture_output=True, text=True, check=True
    ).stdout
    lines = [os.path.basename(line.split(" ")[0]) for line in out.splitlines()]
    suffixes = (".cu", ".cuh", "")
    return next(line for suffix in suffixes for line in lines if line.split(":")[0].endswith(suffix))


@cache
def library(file: str, mode: str) -> ctypes.CDLL:
    """The shared library of one file of kernels in one mode, from the cache or compiled now."""
    path = cache_folder("simulator") / f"{Path(file).stem}-{mode}-{_key(mode, digest(file))}.so"
    _cached(path, lambda: _build(file, mode, path))
    return ctypes.CDLL(str(path))


def _cached(path: Path, build: Callable[[], None]) -> None:
    """Build the file where it is missing; this process then keeps it from being pruned."""
    if _hold(path):
        return
    while not _hold(path):
        build()
    prune()


_held: dict[Path, int] = {}  # open files with a shared lock: in use


def _hold(path: Path) -> bool:
    """Note that the file is in use, for as long as this process lives; False where it is not there."""
    if path in _held:
        if path.exists():
            return True
        os.close(_held.pop(path))
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not os.fstat(descriptor).st_nlink:  # removed since it was opened
        os.close(descriptor)
        return False
    os.utime(descriptor)
    _held[path] = descriptor
    return True


def prune(limit: int = CACHE_BYTES, age: float = CACHE_SECONDS) -> int:
    """Remove compiled files, those first that were not used for longest, until `limit` bytes are left; their number.

    What a process uses stays, and what one has begun to use less than `age` seconds ago.
    """
    files = [(path, path.stat()) for path in cache_folder("simulator").glob("*.*o") if path.exists()]
    total, removed = sum(status.st_size for _, status in files), 0
    for path, status in sorted(files, key=lambda entry: entry[1].st_mtime):
        if total <= limit or time.time() - status.st_mtime < age:
            break
        if _remove(path):
            total, removed = total - status.st_size, removed + 1
    return removed


def _remove(path: Path) -> bool:
    """Remove the file unless a process uses it."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:
        return False
    return True


@cache
def _key(mode: str, kernels: str) -> str:
    """What tells a compiled file apart: the texts of kernels and runtime, the flags, the compiler."""
    found = hashlib.sha256(repr((kernels, COMMON_FLAGS, KERNEL_FLAGS[mode], compiler())).encode())
    for source in sorted(RUNTIME.glob("*.?pp")):
        found.update(source.read_bytes())
    return found.hexdigest()[:16]


@cache
def compiler() -> tuple[str, str]:
    """(path, version) of the C++ compiler that CXX names, else g++; raises ValueError where there is none."""
    path = shutil.which(os.environ.get("CXX") or "g++")
    if path is None:
        raise ValueError("device 'sim': g++ compiles the kernels and is not installed; apt install g++")
    return path, subprocess.run([path, "-dumpfullversion"], capture_output=True, text=True).stdout.strip()


def _build(file: str, mode: str, path: Path) -> None:
    """Compile the kernels of a file, link them with the mode's runtime, and move the library into the cache."""
    with tempfile.TemporaryDirectory() as temporary:
        wrapper = Path(temporary, "wrapper.cpp")
        wrapper.write_text(_wrapper(file))
        kernel, target = Path(temporary, "kernel.o"), Path(temporary, "library.so")
        _compile("-c", f"-I{folder()}", *KERNEL_FLAGS[mode], str(wrapper), "-o", str(kernel))
        _compile("-shared", str(kernel), *map(str, _runtime(mode)), "-o", str(target))
        write_atomically(path, target.read_bytes())


def _wrapper(file: str) -> str:
    """The C++ text of a file of kernels and one function an entry point, which takes pointers to the arguments."""
    lines = [f'#include "{file}"']
    for entry in entries().values():
        if entry.file == file:
            lines.append(
                f'extern "C" __attribute__((visibility("default"))) void simulate_{entry.name}(void* const* arguments) '
                f"{{ simulator::call({entry.name}, arguments); }}"
            )
    return "\n".join(lines) + "\n"


def _runtime(mode: str) -> list[Path]:
    """The mode's part of the runtime, compiled once."""
    objects, key = [], _key(mode, kernels="")
    for name in (*RUNTIME_FILES, f"access_{mode}"):
        path = cache_folder("simulator") / f"{name}-{mode}-{key}.o"
        _cached(path, partial(_build_runtime, name, path))
        objects.append(path)
    return objects


def _build_runtime(name: str, path: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary, "runtime.o")
        _compile("-c", "-O3", str(RUNTIME / f"{name}.cpp"), "-o", str(target))
        write_atomically(path, target.read_bytes())


def _compile(*arguments: str) -> None:
    command = [compiler()[0], *COMMON_FLAGS, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"simulator: {' '.join(command)} failed:\n{result.stderr[-4000:]}")


@dataclass(frozen=True)
class Counts:
    """Accesses of one instruction: requests of a warp, bytes, and sectors (global) or passes (shared) they take.

    - least: sectors or passes that the same bytes would take side by side
    - partial: requests of fewer lanes than the warp has
    """

    space: str
    writes: bool
    requests: int
    bytes: int
    units: int
    least: int
    partial: int


@dataclass(frozen=True)
class Profile:
    """What the last launch of a kernel in the mode "profile" did; lines: (file:line, code address) → Counts."""

    barriers: int
    flops: int
    lines: dict[tuple[str, int], Counts]


def profile(kernel: str, with_lines: bool = True) -> Profile:
    """The counters of the last launch of `kernel`, or of another kernel in its file, in the mode "profile"."""
    module = library(entries()[kernel].file, "profile")
    module.gpucnn_profile.restype = ctypes.c_char_p
    first, *rows = module.gpucnn_profile().decode().splitlines()
    barriers, flops = map(int, first.split())
    lines = {}
    for row in rows:
        code, space, access, *numbers = row.split()
        counts = Counts("shared" if space == "s" else "global", access == "w", *map(int, numbers))
        lines[source_line(module, int(code, 16)) if with_lines else "", int(code, 16)] = counts
    return Profile(barriers, flops, lines)
