"""Faults planted in the kernels, one at a time: each must make the tests fail, or the tests are not worth much.

    python -m tests.mutants [NAME …]

Every mutant is a copy of kernels/ with one text replaced, on which a few tests run until their first failure. The same
tests must pass on the kernels as they are, and a mutant must compile, or it does not count. The last line has the
number of caught ones.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpucnn.launch import sources
from tests.mutants.convolution import CONVOLUTION
from tests.mutants.general import GENERAL
from tests.mutants.hopper_convolution import HOPPER_CONVOLUTION
from tests.mutants.hopper_products import HOPPER_PRODUCTS
from tests.mutants.mutant import Mutant
from tests.mutants.operations import OPERATIONS
from tests.mutants.primitives import PRIMITIVES
from tests.mutants.products import PRODUCTS

ROOT = Path(__file__).parents[2]
SECONDS = 300  # for the tests of one mutant
MUTANTS = GENERAL + CONVOLUTION + PRODUCTS + OPERATIONS + PRIMITIVES + HOPPER_PRODUCTS + HOPPER_CONVOLUTION


def run(mutant: Mutant) -> tuple[bool, str]:
    """Whether the tests catch a mutant, and which does, or why none."""
    text = (sources.folder() / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        return False, f"the text to replace stands {text.count(mutant.old)} times in {mutant.file}"
    with tempfile.TemporaryDirectory() as folder:
        for path in (*sources.folder().glob("*.cu"), *sources.headers()):
            shutil.copy(path, folder)
        Path(folder, mutant.file).write_text(text.replace(mutant.old, mutant.new))
        return _verdict(*_test(mutant.test, Path(folder)))


def _test(test: str, folder: Path) -> tuple[int | None, str]:
    """(pytest's exit status, its output) of tests on the kernels in a folder; None if they do not end in time."""
    file, *options = test.split(" ", 2)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--kernels", str(folder)]
    try:
        result = subprocess.run(
            [*command, f"tests/{file}", *options], cwd=ROOT, env={**os.environ, "COLUMNS": "250"},
            capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, ""
    return result.returncode, result.stdout


def _verdict(status: int | None, output: str) -> tuple[bool, str]:
    if status is None:
        return False, f"its tests did not end within {SECONDS} s"
    if re.search(r"RuntimeError: simulator: .* failed:$", output, re.MULTILINE):
        return False, "it does not compile"
    failed = re.search(r"^FAILED tests/\S+?::(.*)$", output, re.MULTILINE)
    if status != 1 or not failed:
        return False, f"not caught (pytest ended with {status})"
    return True, f"caught by {failed[1]}"


def passes(test: str) -> bool:
    """Whether tests pass on the kernels as they are."""
    return _test(test, sources.folder())[0] == 0


def main(names: list[str]) -> int:
    """Run the mutants of these names, or all; 0 if each is caught, 1 if not, 2 for a name that is none's."""
    unknown = sorted(set(names) - {mutant.name for mutant in MUTANTS})
    if unknown:
        known = "\n  ".join(mutant.name for mutant in MUTANTS)
        print(f"mutants: there is no {', '.join(unknown)}; there are\n  {known}", file=sys.stderr)
        return 2
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        return _run_all(chosen, pool)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        pool.shutdown(cancel_futures=True)


def _run_all(chosen: list[Mutant], pool: ThreadPoolExecutor) -> int:
    tests = sorted({mutant.test for mutant in chosen})
    sound = dict(zip(tests, pool.map(passes, tests), strict=True))
    missed = []
    for mutant, (found, text) in zip(chosen, pool.map(run, chosen), strict=True):
        if not sound[mutant.test]:
            found, text = False, f"{mutant.test} fails on the kernels as they are"
        missed += [] if found else [mutant.name]
        print(f"{mutant.name}: {text}", flush=True)
    print(f"caught/planted: {len(chosen) - len(missed)}/{len(chosen)}" + "".join(f"; not {name}" for name in missed))
    return int(bool(missed))
