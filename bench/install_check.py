"""What an installation costs: `make install-check` prints downloads, disk space and times beside their limits.

Uses only the standard library: it runs before gpucnn is installed anywhere. It copies the tree, makes a fresh virtual
environment, installs with plain `pip install .`, and measures from there.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {
    "downloaded, MB": 60.0,
    "on disk beyond an empty environment, MB": 140.0,
    "install, s": 60.0,
    "import, s": 0.25,
}
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__")


def main() -> int:
    """Print the table; returns 1 if a limit is passed."""
    with tempfile.TemporaryDirectory(prefix="gpucnn-install-") as folder:
        measured = measure(Path(folder))
    print(f"{'what':42}{'measured':>10}{'limit':>8}")
    for what, limit in LIMITS.items():
        print(f"{what:42}{measured[what]:>10.2f}{limit:>8g}{'' if measured[what] <= limit else '  too much'}")
    return int(any(measured[what] > limit for what, limit in LIMITS.items()))


def measure(folder: Path) -> dict[str, float]:
    """The measured value of each limit's name."""
    source, python = folder / "source", folder / "environment" / "bin" / "python"
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    run(sys.executable, "-m", "venv", folder / "environment")
    empty = size_of(folder / "environment")
    start = time.perf_counter()
    run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", ".", cwd=source)
    seconds = time.perf_counter() - start
    installed = size_of(folder / "environment") - empty
    requirements = run(python, "-m", "pip", "list", "--format=freeze", "--exclude", "gpucnn", "--exclude", "pip")
    names = [line for line in requirements.split() if not line.startswith("setuptools==")]
    run(python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder / "wheels", *names)
    return {
        "downloaded, MB": size_of(folder / "wheels"),
        "on disk beyond an empty environment, MB": installed,
        "install, s": seconds,
        "import, s": import_seconds(python, folder),
    }


def import_seconds(python: Path, folder: Path) -> float:
    """The shortest of five imports, each in a process of its own, away from the source tree."""
    code = "import time; start = time.perf_counter(); import gpucnn; print(time.perf_counter() - start)"
    return min(float(run(python, "-c", code, cwd=folder)) for _ in range(5))


def size_of(folder: Path) -> float:
    """Megabytes (10^6 bytes) of the files below `folder`, links not followed."""
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in paths) / 1e6


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """The standard output of a command; its errors go to the terminal."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
