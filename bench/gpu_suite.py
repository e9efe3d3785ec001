"""The GPU suite: golden maps, tests, and benchmarks beside PyTorch, each part in a process of its own, in one command.

    bench/gpu_suite --out DIR [--parts golden,tests,conv,gemm,tensor,pool,net] [--device cuda] [--quick]

It needs the checkout, a C++ compiler, and in the Python that runs it: numpy, typer, rich, tqdm, safetensors, Pillow,
pybind11, setuptools, CuPy; pytest and hypothesis for `tests`, PyTorch for what stands beside it. It installs nothing:
the extension is built in the tree where it is missing, and the parts see the tree as an installation would look.

Every part writes DIR/<part>.json after each case, so what is cut off is kept. DIR/summary.txt has a line a part. A part
that lost its GPU to a fault is started again behind the case that did it. Uses only the standard library.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "golden": "gpucnn.bench.golden",
    "tests": "gpucnn.bench.device_tests",
    "conv": "gpucnn.bench.conv",
    "gemm": "gpucnn.bench.gemm",
    "tensor": "gpucnn.bench.tensor",
    "pool": "gpucnn.bench.pool",
    "net": "gpucnn.bench.net",
}
LIMIT_SECONDS = 480.0  # of a part
MARGIN_SECONDS = 40.0  # a part starts no case so long before its limit
LOST_DEVICE = 3  # as in report.py
STARTS = 8  # of one part, after faults of the GPU
SHOWN_FAILURES = 5


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, print a line for each; 0 if all finished and nothing failed."""
    parser = argparse.ArgumentParser(prog="bench/gpu_suite", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; at most 8 files")
    parser.add_argument("--parts", default=",".join(MODULES), help="comma-separated, in this order; default: all")
    parser.add_argument("--device", default="cuda", help="cuda (default) or sim")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to try the path")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds a part may take, at most 480")
    parser.add_argument("--commit", default="", help="what is measured, where git cannot tell")
    parser.add_argument("--without-torch", action="store_true", help="no PyTorch beside gpucnn")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    for part in parts:
        if part not in MODULES:
            parser.error(f"--parts {part}: use some of {','.join(MODULES)}")
    if not 0 < options.limit <= LIMIT_SECONDS:
        parser.error(f"--limit {options.limit:g}: it must be above 0 and at most {LIMIT_SECONDS:g}")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpucnn-suite-") as folder:
        environment = {**os.environ, "PYTHONPATH": str(prepare(Path(folder)))}
        return run_parts(parts, options, environment)


def prepare(folder: Path) -> Path:
    """Build the extension if it is missing; lay the package out in `folder` by links, as if it were installed."""
    if not list((ROOT / "gpucnn").glob(f"_C*{sysconfig.get_config_var('EXT_SUFFIX')}")):
        print("gpu_suite: building the extension", flush=True)
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, check=True)
    package = folder / "gpucnn"
    package.mkdir()
    mapped = {name.partition(".")[2]: ROOT / path for name, path in mapped_folders().items()}
    for path in (ROOT / "gpucnn").iterdir():
        if path.name not in mapped:
            (package / path.name).symlink_to(path)
    for name, path in mapped.items():
        (package / name).symlink_to(path)
    return folder


def mapped_folders() -> dict[str, str]:
    """setup.py's FOLDERS: packages that stand elsewhere in the tree."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "FOLDERS":
            return ast.literal_eval(node.value)
    raise ValueError("gpu_suite: setup.py has no FOLDERS")


def run_parts(parts: list[str], options: argparse.Namespace, environment: dict[str, str]) -> int:
    """Run them one after the other; the lines go to the terminal and to DIR/summary.txt."""
    lines = []
    for part in parts:
        path = options.out / f"{part}.json"
        path.unlink(missing_ok=True)
        start = time.monotonic()
        ended = run_part(part, path, options, environment)
        lines.append(f"{part}: {summarize(path, ended)}, {time.monotonic() - start:.0f} s")
        print(lines[-1], flush=True)
        (options.out / "summary.txt").write_text("\n".join(lines) + "\n")
    return int(any(" 0 failed, finished," not in line for line in lines))


def run_part(part: str, path: Path, options: argparse.Namespace, environment: dict[str, str]) -> str:
    """Run one part, again after each loss of the GPU; returns how it ended where its file cannot tell."""
    end = time.monotonic() + options.limit
    for _ in range(STARTS):
        left = end - time.monotonic()
        if left <= 0:
            break
        seconds = str(max(left - MARGIN_SECONDS, left / 2))
        command = [sys.executable, "-P", "-m", MODULES[part], "--out", str(path.absolute()), "--seconds", seconds]
        command += ["--device", options.device, "--commit", options.commit]
        command += [f"--{name}" for name in ("quick", "without-torch") if getattr(options, name.replace("-", "_"))]
        try:
            code = subprocess.run(command, cwd=ROOT, env=environment, timeout=left).returncode
        except subprocess.TimeoutExpired:
            return f"cut off after {options.limit:g} s"
        if code != LOST_DEVICE and code >= 0:  # below 0 a signal ended it
            return "" if path.exists() else f"exit code {code}"
    return "the device was lost too often"


def summarize(path: Path, ended: str) -> str:
    """Counts of a part's rows, with its first failures on lines of their own above; notes a cut in the file."""
    if not path.exists():
        path.write_text(json.dumps({"ended": ended, "rows": []}) + "\n")
    content = json.loads(path.read_text())
    if ended:
        content["ended"] = ended
        path.write_text(json.dumps(content, indent=1) + "\n")
    failed = [row for row in content["rows"] if not row["ok"]]
    for row in failed[:SHOWN_FAILURES]:
        print("  failed:", json.dumps(row)[:400])
    return f"{len(content['rows'])} rows, {len(failed)} failed, {content['ended']}"


if __name__ == "__main__":
    sys.exit(main())
