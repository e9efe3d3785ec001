"""What benchmarks have in common: rows, in a file that is whole after every one; and the GPU suite's command line.

A case that fails is a row with its reason. A part that is started again on its file goes on behind the rows that are
there, so a GPU fault, which ends every process that met it, costs one row.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpucnn import device as devices
from gpucnn.bench import machine, peer, results

FINISHED, OUT_OF_TIME, LOST_DEVICE = 0, 2, 3  # exit codes of a part
REASON_LENGTH = 2000


class OutOfTime(Exception):
    """The part's time is used up."""


class LostDevice(Exception):
    """The GPU refuses all further work of this process."""


PENDING = "the process ended here"  # the reason of a row that was begun and not finished


class Report:
    """The rows of one run, and the file that they are kept in.

    - part, device, quick: what runs, where, and whether on tiny shapes
    - path: the file, or None for rows that are only kept in memory
    - deadline: time.monotonic() after which no case starts
    - with_torch: whether PyTorch runs beside gpucnn where it is installed
    - content: a `results.Result`, with `driver` and what a part adds
    """

    def __init__(
        self,
        part: str,
        device: str,
        path: Path | None,
        quick: bool = False,
        deadline: float = math.inf,
        commit: str = "",
        with_torch: bool = True,
    ) -> None:
        self.part, self.device, self.path, self.quick, self.deadline = part, device, path, quick, deadline
        self.with_torch = with_torch
        settings = {"part": part, "device": device, "quick": quick, "versions": versions()}
        self.content: dict[str, Any] = {**where(device), "commit": commit or machine.commit(), "settings": settings}
        self.content |= {"date": datetime.date.today().isoformat(), "rows": []}
        self.kernel_commit = machine.kernel_commit()
        if path is not None and path.exists():
            earlier = json.loads(path.read_text())
            self.content = {**earlier, **self.content, "rows": earlier["rows"]}

    @property
    def torch(self) -> Any:
        """PyTorch on the same device, or None."""
        return peer.torch(self.device) if self.with_torch else None

    def seconds(self, usual: float) -> float:
        """How long a case is timed: `usual`, or hardly at all."""
        return 0.002 if self.quick else usual

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.content["rows"]

    def find(self, **labels: Any) -> dict[str, Any] | None:
        """The first row with these values, if there is one."""
        return next((row for row in self.rows if labels.items() <= row.items()), None)

    def add(self, measure: Callable[[], dict[str, Any]], **labels: Any) -> None:
        """A row of `labels` and of what `measure` returns, or of why it failed; nothing if the row is there already."""
        row = self.begin(**labels)
        if row is not None:
            with self.guard(row):
                self.finish(row, **measure())

    def begin(self, **labels: Any) -> dict[str, Any] | None:
        """A new row, which is a failure until it is finished; None if there is one of these labels already.

        Raises OutOfTime instead of starting late.
        """
        if self.find(**labels):
            return None
        if time.monotonic() > self.deadline:
            raise OutOfTime
        measured = "suite" in labels  # rows of tests and golden maps have no figures
        row = results.blank(kernel_commit=self.kernel_commit, **labels) if measured else dict(labels)
        row |= {"ok": False, "reason": PENDING}
        self.rows.append(row)
        if self.device.startswith("cuda"):  # a fault of a GPU can end the process
            self.write()
        return row

    @contextmanager
    def guard(self, row: dict[str, Any]) -> Iterator[None]:
        """Inside this context an exception is the row's reason, and the other rows go on.

        Raises LostDevice after a failure that ends all work on the GPU.
        """
        try:
            yield
        except Exception as error:  # whatever it is, the other cases go on
            text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            row |= {"ok": False, "reason": text[:REASON_LENGTH]}
            self.write()
            if not self.device_works():
                raise LostDevice from error

    def finish(self, row: dict[str, Any], **values: Any) -> None:
        """The row is measured, or left out for a `reason`; `ok` False among the values makes it a failure."""
        row.pop("reason", None)
        row |= {"ok": True, **values}
        self.write()

    def drop_pending(self) -> None:
        """Leave out the rows that were begun and not finished."""
        self.content["rows"] = [row for row in self.rows if row.get("reason") != PENDING]

    def device_works(self) -> bool:
        """Whether the device still takes work."""
        if not self.device.startswith("cuda"):
            return True
        try:
            devices.cupy().cuda.Device().synchronize()
            devices.cupy().get_default_memory_pool().free_all_blocks()
            return bool(devices.cupy().zeros(1).get()[0] == 0)
        except Exception:  # any answer but the right one means no
            return False

    def write(self) -> None:
        if self.path is not None:
            results.save(self.content, self.path)  # type: ignore[arg-type]


def where(device: str) -> dict[str, str]:
    """Names of the device and of its driver."""
    if not device.startswith("cuda"):
        return {"device": f"{'simulator on ' * (device == 'sim')}{machine.processor()}", "driver": "none"}
    runtime = devices.cupy().cuda.runtime
    name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    return {"device": name, "driver": _driver() or f"CUDA {runtime.driverGetVersion()}"}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return ""


def versions() -> dict[str, str]:
    """Versions of what a result depends on, where they are installed; read without importing them."""
    found = {"python": sys.version.split()[0], "engine": os.environ.get("GPUCNN_ENGINE") or "jit"}
    for name in ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(part: str, cases: Callable[[Report], None], arguments: list[str] | None = None) -> int:
    """The command line of a part: run its cases into --out; returns how it ended."""
    parser = argparse.ArgumentParser(prog=f"python -m gpucnn.bench.{part}")
    parser.add_argument("--out", type=Path, required=True, help="the file of results, JSON")
    parser.add_argument("--device", default="cuda", help="cuda (default) or sim")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to try the path")
    parser.add_argument("--seconds", type=float, default=420.0, help="after which no case is started")
    parser.add_argument("--without-torch", action="store_true", help="no PyTorch beside gpucnn")
    parser.add_argument("--commit", default="", help="what is measured, where git cannot tell")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    device = devices.resolve(options.device)
    how = options.commit, not options.without_torch
    report = Report(part, device, options.out, options.quick, deadline, *how)
    report.content["ended"] = "early"
    report.write()
    try:
        cases(report)
    except OutOfTime:
        report.content["ended"] = "out of time"
        return OUT_OF_TIME
    except LostDevice:
        report.content["ended"] = "the device was lost"
        return LOST_DEVICE
    else:
        report.content["ended"] = "finished"
        return FINISHED
    finally:
        report.write()
