"""Files the results of a GPU suite: `make adopt-results DIR=…` copies them below bench/results/ and tests/golden/.

    python bench/adopt.py DIR

DIR is what `bench/gpu_suite --out DIR` wrote on a GPU. Uses only the standard library.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Copy each part's file, and the golden maps once more to where the tests replay them; say what was done."""
    parser = argparse.ArgumentParser(prog="adopt", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="what bench/gpu_suite --out wrote")
    folder = parser.parse_args(arguments).folder
    files = sorted(folder.glob("*.json"))
    if not files:
        print(f"adopt: {folder} has no *.json; name the folder that bench/gpu_suite --out wrote", file=sys.stderr)
        return 1
    codes = [adopt(file, root) for file in files]
    if 0 in codes:
        print("now write the README's tables anew: make tables")
    return max(codes)


def adopt(file: Path, root: Path) -> int:
    """File one part's results; 1 if they are none of a GPU's."""
    content = json.loads(file.read_text())
    settings = content.get("settings", {})
    if not str(settings.get("device", "")).startswith("cuda") or settings.get("quick"):
        print(f"{file}: left alone: these are no results of a whole run on a GPU")
        return 1
    name = slug(content["device"])
    targets = [root / "bench" / "results" / name / file.name]
    whole = content.get("ended") == "finished"
    if file.stem == "golden" and whole:
        targets.append(root / "tests" / "golden" / f"{name}.json")
    for target in targets:
        replaced = "replaced" if target.exists() else "new"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        failed = sum(not row["ok"] for row in content["rows"])
        print(
            f"{target.relative_to(root)}: {replaced}, {len(content['rows'])} rows, {failed} failed, {content['ended']}"
        )
    return 0


def slug(device: str) -> str:
    """A device's name for files: "NVIDIA H100 80GB HBM3" is nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
