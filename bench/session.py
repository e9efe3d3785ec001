"""One run of `gpucnn bench`: settings, a reference's process, progress, Ctrl-C, and where the results go."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from gpucnn.bench import machine, page, plot, references, results, table, timing
from gpucnn.bench.contest import Arena, Limits
from gpucnn.bench.report import Report
from gpucnn.threads import get_num_threads, set_num_threads

INTERRUPTED = 130
BUSY = 0.1  # of the machine; other programs that take more make times doubtful
Progress = Callable[[list[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Outputs:
    """The files that results go to, each None if it is not wanted."""

    json: Path | None = None
    csv: Path | None = None
    plot: Path | None = None
    html: Path | None = None

    def check(self) -> None:
        """Raise OSError unless all can be written, and ValueError where a picture needs what is not installed."""
        for name, path in vars(self).items():
            if path is not None:
                check_file(f"--{name}", path)

    def write(self, result: results.Result) -> None:
        """Write each file that is wanted."""
        writers = {"json": results.save, "csv": results.save_csv, "plot": plot.plot, "html": page.write_html}
        for name, path in vars(self).items():
            if path is not None:
                writers[name](result, path)


def check_file(option: str, path: Path) -> None:
    """Raise OSError, naming the option, unless a file can be written at `path`."""
    parent = path.absolute().parent
    if path.is_dir():
        raise IsADirectoryError(f"{option} {path} is a folder; name a file in it")
    if not parent.is_dir():
        raise NotADirectoryError(f"{option} {path}: {parent} is no folder; make it first")
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise PermissionError(f"{option} {path}: no permission to write there; name another file")


@dataclass(frozen=True)
class Session:
    """What all benchmarks have in common.

    - device: "cpu", "sim" or a GPU
    - reference: "torch", "onnxruntime" or "none"
    - threads: of gpucnn and of a reference on the CPU; None: as they are
    """

    device: str
    reference: str = "torch"
    limits: Limits = Limits()
    threads: int | None = None
    outputs: Outputs = Outputs()

    def run(self, part: str, measure: Callable[[Arena, Progress], None], **settings: Any) -> int:
        """Measure, print and write the rows; returns the exit code.

        0; 1 if a candidate failed or gave a wrong answer; 130 after Ctrl-C, with what was done by then.
        """
        self.outputs.check()
        if self.threads is not None:
            set_num_threads(self.threads)
        report = Report(part, self.device, None, with_torch=self.reference == "torch")
        report.content["settings"] |= {**self._settings(), **settings}
        others, code = machine.Others(), 0
        try:
            with references.opened(self.reference, self.device) as worker:
                measure(Arena(report, self.limits, worker), progress)
        except KeyboardInterrupt:
            report.drop_pending()
            report.content["interrupted"] = True
            code = INTERRUPTED
        if self.device != "sim" or part == "sim":
            report.content["settings"]["others"] = _others(others.share())
        self._show(report.content, code == INTERRUPTED)  # type: ignore[arg-type]
        return code or int(any(map(results.failed, report.content["rows"])))

    def _settings(self) -> dict[str, Any]:
        """What changes the meaning of a time."""
        found: dict[str, Any] = {"reference": self._reference()}
        if self.device == "sim":
            return {**found, "times": "none: a simulator's say nothing of a GPU; counters instead, of small shapes"}
        found |= {"repeat": self.limits.repeat, "max_seconds": self.limits.max_seconds}
        found["caches"] = f"emptied before each call by writing {timing.flush_bytes(self.device) >> 20} MiB"
        if self.device == "cpu":
            return {"threads": get_num_threads(), **found}
        return {**found, "tf32": "PyTorch in float32 with it off and on", "cudnn.benchmark": self._has_torch}

    @property
    def _has_torch(self) -> bool:
        return self.reference == "torch"

    def _reference(self) -> str:
        if self.reference == "none" or self.device == "sim":
            return "none"
        if self.device == "cpu":
            quiet = ", which do not spin" if self.reference == "onnxruntime" else ""
            return f"{self.reference} in a process of its own, with the same threads{quiet}, in turns with gpucnn"
        return f"{self.reference}, NCHW and channels-last (cudnn_nhwc), from arrays in that layout"

    def _show(self, result: results.Result, interrupted: bool) -> None:
        console = Console()
        table.print_table(result, console if console.is_terminal else Console(width=160))
        self.outputs.write(result)
        for name, path in vars(self.outputs).items():
            if path is not None:
                print(f"{name}: {path}")
        if interrupted:
            print("interrupted: these are the rows measured by then", file=sys.stderr)


def progress(contests: list[Any]) -> Iterable[Any]:
    """A bar on a terminal, with the time left."""
    return tqdm(contests, desc="bench", unit="contest", disable=None, leave=False)


def _others(share: float) -> str:
    text = f"other programs took {share:.0%} of the machine"
    return f"{text}: times are doubtful, run it again on a quiet one" if share > BUSY else text
