"""What a figure was measured on: the processor, the commit, and how much of the machine other programs took."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """The commit that this file comes from, "unknown" outside a checkout; "+" where files differ from it."""
    return _git("describe", "--always", "--exclude=*", "--dirty=+")


def kernel_commit() -> str:
    """The last commit that changed kernels or compiled code, "unknown" outside a checkout."""
    return _git("log", "-1", "--format=%h", "--", ":/kernels", ":/csrc")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or "unknown"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cache_bytes() -> int:
    """The size of the CPU's largest cache, as Linux tells it; 32 MiB elsewhere."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0) if text[:-1].isdigit() else 0)
    return max(sizes, default=0) or 32 << 20


class Others:
    """The share of all processors that other programs take from now on, 0 to 1; 0 where Linux does not tell.

    They slow both libraries, and PyTorch more: its threads spin while they wait for one that does not run.
    """

    def __init__(self) -> None:
        self.start = self._seconds()

    def share(self) -> float:
        """Call it when this program's own workers have ended: only then is their time known."""
        elapsed, busy, own = (now - before for now, before in zip(self._seconds(), self.start, strict=True))
        return max(0.0, busy - own) / (elapsed * (os.cpu_count() or 1))

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """The clock, the machine's busy time and this program's, with that of its children that have ended."""
        own = sum(os.times()[:4])
        try:
            user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
        except OSError:
            return time.perf_counter(), own, own
        return time.perf_counter(), (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK"), own
