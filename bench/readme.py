"""The README's tables, written from the results that are kept: `make tables`.

python -m gpucnn.bench.readme [README.md] [--results bench/results] [--check]
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpucnn.bench import figures
from gpucnn.bench.pages import FOLDER, Kept, cell, code, kept, markdown_table, means_table
from gpucnn.files import write_atomically

README = Path("README.md")
NOT_ON_A_GPU = "Not measured on a GPU yet."
NOT_MEASURED = "not measured yet."
NETWORKS = {"lenet5": "LeNet-5", "alexnet": "AlexNet", "vgg16": "VGG-16"}


def short(value: float | None) -> str:
    """1.7×"""
    return "" if value is None else f"{value:.1f}×" if value < 99.95 else f"{value:.0f}×"


def tables(folder: Path) -> dict[str, str]:
    """The text of each block of the README by its name."""
    found = kept(folder)
    on_the_cpu = [each for each in found if each.device == "cpu"]
    on_gpus = [each for each in found if each.device not in ("cpu", "simulator")]
    return {
        "networks": _networks(on_the_cpu, folder),
        "algorithms": _algorithms(on_the_cpu, folder),
        "convolutions": _convolutions(on_the_cpu, folder) or f"Convolutions by `gpucnn bench conv`: {NOT_MEASURED}",
        "gpu": _convolutions(on_gpus, folder) or NOT_ON_A_GPU,
    }


def update(text: str, blocks: Mapping[str, str]) -> str:
    """The README's text with its blocks anew; raises ValueError for a block without markers."""
    for name, block in blocks.items():
        start, end = f"<!-- table: {name} -->\n", "<!-- end of table -->"
        if text.count(start) != 1 or end not in text.partition(start)[2]:
            raise ValueError(f"README: one block between {start.strip()} and {end} is needed")
        before, _, rest = text.partition(start)
        text = f"{before}{start}{block.strip()}\n{end}{rest.partition(end)[2]}"
    return text


def under(head: str, table: str) -> str:
    """A table under its head, which is folded to lines."""
    return textwrap.fill(head, 120, break_long_words=False, break_on_hyphens=False) + "\n\n" + table


def _source(each: Kept, folder: Path) -> str:
    """Commit, date and file, to stand behind what the figures are."""
    content = each.content
    name = Path(folder.parent.name, folder.name, each.path.relative_to(folder)).as_posix()
    return f"commit {cell(content.get('commit'))}, {cell(content.get('date'))}, `{name}`"


def _networks(found: Sequence[Kept], folder: Path) -> str:
    """Networks beside PyTorch."""
    for each in found:
        if "cpu" not in each.content or not each.content["rows"]:
            continue
        rows = {row["case"]: row for row in each.content["rows"]}
        lines = []
        for model, batch in dict.fromkeys(tuple(case.split("-")[:2]) for case in rows):
            pair = [rows.get(f"{model}-{batch}-{step}") for step in ("forward", "train")]
            speeds = [short(row["ratio"]) if row else "" for row in pair]
            shares = [f"{row['peak_bytes'] / row['torch_peak_bytes']:.2f}×" if row else "" for row in pair]
            lines.append([f"{NETWORKS.get(model, cell(model))}, {batch}", *speeds, *shares])
        content = each.content
        version = cell(content.get("torch", "")).partition("+")[0]
        where = f"{version} on {content['threads']} threads of an {cell(content['cpu'])} ({_source(each, folder)}"
        head = (
            f"Networks beside PyTorch {where}; medians of {content['rounds']} turns; speed above 1: gpucnn is faster; "
            "memory below 1: its process takes less at its peak):"
        )
        headings = "network, batch", "forward", "training step", "memory, forward", "memory, training"
        return under(head, markdown_table(headings, lines))
    return f"Networks beside PyTorch: {NOT_MEASURED}"


def _algorithms(found: Sequence[Kept], folder: Path) -> str:
    """Algorithms beside im2col, layer by layer."""
    for each in found:
        layers = each.content.get("layers") if "cpu" in each.content else None
        if not layers:
            continue
        measured = {name for layer in layers for name in layer["milliseconds"]} - {"im2col"}
        names = [name for name in figures.COLOURS if name in measured]
        lines = []
        for layer in layers:
            times = layer["milliseconds"]
            ratios = [short(times["im2col"] / times[name]) if name in times else "" for name in names]
            lines.append([cell(layer["layer"]), str(layer["batch"]), *ratios])
        head = f"Algorithms of convolution beside `im2col`, forward ({_source(each, folder)}):"
        return under(head, markdown_table(["layer", "batch", *map(code, names)], lines))
    return f"Algorithms of convolution beside `im2col`: {NOT_MEASURED}"


def _convolutions(found: Sequence[Kept], folder: Path) -> str:
    """Geometric means beside a reference, of each file of `gpucnn bench conv`."""
    parts = []
    for each in found:
        if each.content.get("settings", {}).get("part") != "conv":
            continue
        result = each.result
        if text := means_table(result):
            names = ", ".join(map(code, dict.fromkeys(name for row in result["rows"] for name in row["references"])))
            what = f"Speed of convolutions beside {names}" if names else "Rates of convolutions"
            where = f"{cell(result['device'])}; {_source(each, folder)}"
            parts.append(under(f"{what}, geometric means over each suite's layers ({where}):", text))
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Write the README's tables anew; 1 with --check if they are not what the results say."""
    parser = argparse.ArgumentParser(prog="tables", description="Write the README's tables anew from the results.")
    parser.add_argument("readme", type=Path, nargs="?", default=README)
    parser.add_argument("--results", type=Path, default=FOLDER, help="the folder of results")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something would change")
    options = parser.parse_args(arguments)
    before = options.readme.read_text()
    after = update(before, tables(options.results))
    if after == before:
        print(f"{options.readme}: its tables are those of {options.results}")
        return 0
    if options.check:
        print(f"{options.readme}: its tables are not those of {options.results}: make tables", file=sys.stderr)
        return 1
    write_atomically(options.readme, after.encode())
    print(f"{options.readme}: tables written anew from {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
