"""Faults planted in the kernels, one at a time: each must make the tests fail, or the tests are not worth much.

    python -m tests.mutants [NAME …]

Every mutant is a copy of kernels/ with one text replaced, on which one file of tests runs until its first failure. The
last line counts the caught ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpucnn.launch import sources

ROOT = Path(__file__).parents[1]
SECONDS = 600  # for the tests of one mutant


@dataclass(frozen=True)
class Mutant:
    """In `file`, the text `old`, which stands there once, becomes `new`; `test` must then fail.

    - test: a file in tests/, or tests of it: "test_relu.py", "test_relu.py -k sound"
    """

    name: str
    file: str
    old: str
    new: str
    test: str


MUTANTS: tuple[Mutant, ...] = ()


def run(mutant: Mutant) -> str:
    """What the tests say of a mutant: "caught", or why not."""
    text = (sources.folder() / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        return f"the text to replace stands {text.count(mutant.old)} times in {mutant.file}"
    with tempfile.TemporaryDirectory() as folder:
        for path in (*sources.folder().glob("*.cu"), *sources.headers()):
            shutil.copy(path, folder)
        Path(folder, mutant.file).write_text(text.replace(mutant.old, mutant.new))
        return _verdict(mutant, folder)


def _verdict(mutant: Mutant, folder: str) -> str:
    file, *options = mutant.test.split(" ", 2)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--kernels", folder]
    try:
        result = subprocess.run(
            [*command, f"tests/{file}", *options], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"its tests did not end within {SECONDS} s"
    if "does not compile" in result.stdout or " failed:\n" in result.stdout and "error: " in result.stdout:
        return "it does not compile"
    return "caught" if result.returncode == 1 else f"not caught (pytest ended with {result.returncode})"


def main(names: list[str]) -> int:
    """Run the mutants of these names, or all; 0 if each is caught."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    caught = 0
    with ThreadPoolExecutor(2) as pool:
        for mutant, verdict in zip(chosen, pool.map(run, chosen), strict=True):
            caught += verdict == "caught"
            print(f"{mutant.name}: {verdict}", flush=True)
    print(f"caught/planted: {caught}/{len(chosen)}")
    return caught != len(chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
