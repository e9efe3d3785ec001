"""The tests that take a device, run on it: pytest with a process a file, so that a GPU fault ends one file, not all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from gpucnn.bench.report import Report, main

ROOT = Path(__file__).resolve().parent.parent
FILE_SECONDS = 300
AT_ONCE = 4  # processes that share a GPU; the simulator uses the processors alone
TEXT_LENGTH = 1500
TAKES_DEVICE = re.compile(r"^(?: *def test_\w+|@pytest\.fixture[^\n]*\ndef \w+)\([^)]*\bdevice\b", re.MULTILINE)


def files(quick: bool) -> list[Path]:
    """Test files with a test or fixture that takes `device`; of these one small file if `quick`."""
    found = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if TAKES_DEVICE.search(path.read_text())]
    return [path for path in found if path.stem == "test_golden"] if quick else found


def cases(report: Report) -> None:
    """A row a file; several files run at a time on a GPU."""
    if not (ROOT / "tests").is_dir():
        raise ValueError(f"device_tests: {ROOT / 'tests'} is not there; run it in a checkout of the repository")
    chosen = [path for path in files(report.quick) if not report.find(file=path.name)]
    end = report.deadline - 10  # so that what is cut off is still written
    with ThreadPoolExecutor(AT_ONCE if report.device.startswith("cuda") else 1) as pool:
        names = {pool.submit(run, path, report.device, end, report.quick): path.name for path in chosen}
        for done in as_completed(names):
            report.add(done.result, file=names[done])


def run(path: Path, device: str, deadline: float, quick: bool = False) -> dict[str, Any]:
    """The counts and failures of one file; of its tests of definitions alone if `quick`."""
    seconds = min(FILE_SECONDS, deadline - time.monotonic())
    if seconds < 1:
        return {"ok": False, "reason": "no time was left"}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.xml")
        options = ["-q", "-p", "no:cacheprovider", f"--device={device}", f"--junitxml={results}", "--tb=short"]
        options += ["-k", "definition"] if quick else []
        command = [sys.executable, "-P", "-m", "pytest", *options, str(path)]
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=seconds)
            output, ended = done.stdout + done.stderr, f"exit code {done.returncode}"
        except subprocess.TimeoutExpired as error:
            output, ended = _text(error.stdout), f"stopped after {seconds:.0f} s"
        row = read(results) if results.exists() else {"ok": False, "reason": f"{ended}: {output[-TEXT_LENGTH:]}"}
    return {**row, "seconds": round(time.monotonic() - start, 1)}


def environment() -> dict[str, str]:
    """This process's, with the tree where `tests` is on the path."""
    paths = [path for path in (os.environ.get("PYTHONPATH"), str(ROOT)) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def read(results: Path) -> dict[str, Any]:
    """Counts and failures' texts from pytest's XML; not ok if a test failed."""
    (suite,) = xml.parse(results).getroot().iter("testsuite")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failures = [
        {"test": case.get("name"), "text": f"{each.get('message')}\n{each.text}"[-TEXT_LENGTH:]}
        for case in suite.iter("testcase")
        for kind in ("failure", "error")
        for each in case.findall(kind)
    ]
    row = {**counts, "passed": counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]}
    if not failures:
        return row
    return {"ok": False, "reason": f"{len(failures)} tests failed", **row, "failed": failures}


if __name__ == "__main__":
    sys.exit(main("tests", cases))
