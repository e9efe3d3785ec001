"""All results that are kept, whatever wrote them, as rows of `gpucnn bench`; on one page.

Results are kept by device: `cpu/`, `simulator/`, and a folder for each GPU, such as `nvidia-h100-80gb-hbm3/`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpucnn.bench import figures, page, results
from gpucnn.files import write_atomically

FOLDER = Path("bench/results")


class Kept(NamedTuple):
    """A file of results: where it is, the folder of its device, and what it holds."""

    path: Path
    device: str
    content: dict[str, Any]

    @property
    def result(self) -> results.Result:
        """As rows of `gpucnn bench`, whatever wrote the file."""
        return as_result(self.content)


def kept(folder: Path) -> list[Kept]:
    """All files of results below a folder, CPU and simulator first.

    Raises ValueError naming a file that is no JSON object and NotADirectoryError for a folder that is none.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder of results; run this in a checkout, or name one")
    found = []
    for path in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error})") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: it holds no JSON object; is it a file of results?")
        found.append(Kept(path, path.relative_to(folder).parts[0].removesuffix(".json"), content))
    order = {"cpu": 0, "simulator": 1}
    return sorted(found, key=lambda each: (order.get(each.device, 2), each.device, str(each.path)))


def as_result(content: Mapping[str, Any]) -> results.Result:
    """The rows of `gpucnn bench`, of the comparisons with PyTorch's CPU, of the simulator's speed or of a GPU suite."""
    settings = content.get("settings")
    found: dict[str, Any] = {
        "device": figures.plain(content.get("device") or content.get("cpu") or "unknown device"),
        "commit": figures.plain(content.get("commit") or "unknown"),
        "date": figures.plain(content.get("date") or "unknown"),
        "settings": dict(settings) if isinstance(settings, Mapping) else {},
    }
    found["settings"] |= {name: content[name] for name in ("threads", "rounds", "driver", "ended") if name in content}
    if "cpu" in content:
        layers = [row for layer in content["layers"] for row in _layer_rows(layer)]
        rows = [*map(_network_row, content["rows"]), *layers]
    elif "gflops" in content:
        rows = _speed_rows(content)
    else:
        rows = [_whole(row) for row in content.get("rows", []) if isinstance(row, Mapping) and not _passed(row)]
        found["settings"] |= {"passed": passed} if (passed := sum(map(_passed, content.get("rows", [])))) else {}
    return results.validate({**found, "rows": rows})


BLANK: dict[str, Any] = {**dict.fromkeys(results.NUMBERS), **dict.fromkeys(results.TEXTS, ""), "references": {}}
SUITE_NAMES = {"milliseconds": "ms", "p20": "ms_p20", "p80": "ms_p80", "max_error": "error"}
LAYER_NAMES = ("layer", "size", "operation", "model", "launches", "test", "case", "name")
PLAIN = {"dtype": "float32", "precision": "fp32", "layout": "nchw"}


def _passed(row: Any) -> bool:
    """Whether a row says only that a test or a comparison passed."""
    has_figures = any(row.get(key) is not None for key in ("ms", "milliseconds", "counters", "skipped", "reason"))
    return row.get("ok") is True and not has_figures


def _whole(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with all keys; those of a GPU suite's own parts are named as `gpucnn bench` names them."""
    found = {**BLANK, **row}
    for name, other in SUITE_NAMES.items():
        found[name] = row.get(other) if found[name] is None else found[name]
    found["layer"] = next((row[name] for name in LAYER_NAMES if row.get(name)), "")
    found["algorithm"] = found["algorithm"] or row.get("library")
    found |= {key: figures.number(found[key]) for key in results.NUMBERS}
    found |= {key: figures.plain(found[key]) for key in results.TEXTS}
    if not isinstance(found["references"], dict):
        found["references"] = {}
    if found["milliseconds"] is None and not found.get("counters"):
        found["reason"] = figures.plain(row.get("reason") or row.get("skipped") or "no figure")
    return found


def _network_row(row: Mapping[str, Any]) -> dict[str, Any]:
    model, batch, *step = row["case"].split("-")
    names = {"suite": "net", "layer": f"{model}, batch {batch}", "pass": " ".join(step), "algorithm": "auto"}
    return _whole({**row, **names, **PLAIN, "references": {"torch": row["torch_milliseconds"]}})


def _layer_rows(layer: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = {"suite": "algorithms", "layer": layer["layer"], "pass": "forward", "repeats": layer["repeats"], **PLAIN}
    base = layer["milliseconds"]["im2col"]
    names["references"] = {"im2col": base}
    times = layer["milliseconds"].items()
    return [_whole({**names, "algorithm": name, "milliseconds": time, "ratio": base / time}) for name, time in times]


def _speed_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of bench/simulator.py: a product of 256³ by kernel and mode, and a training step."""
    step = {"layer": "LeNet-5, training step, batch 16", "algorithm": "fast"}
    rows = [{**step, "milliseconds": content["lenet_step_seconds"] * 1e3}]
    for name, rate in content["gflops"].items():
        kernel, _, mode = name.rpartition(", ")
        time = 2e-6 * 256**3 / rate
        rows.append({"layer": kernel, "algorithm": mode, "tflops": rate / 1e3, "milliseconds": time})
    return [_whole({"suite": "sim", **row}) for row in rows]


def write_report(
    folder: Path, html: str | os.PathLike[str], markdown: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Write all results below a folder to one page, and their means as Markdown; returns the files that were read.

    Raises what `kept` raises, ValueError where there is nothing to show, and WriteError.
    """
    found = kept(folder)
    if not found:
        raise ValueError(f"{folder} holds no *.json; gpucnn bench … --json writes them")
    sections = []
    for index, each in enumerate(found):
        try:
            sections.append(page.section(each.result, index, str(each.path.relative_to(folder))))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{each.path}: no results that can be shown ({type(error).__name__}: {error})") from error
    write_atomically(html, page.document("gpucnn: all results", [page.contents(_names(found, folder)), *sections]))
    if markdown is not None:
        write_atomically(markdown, report_text(found, folder).encode())
    return [each.path for each in found]


def _names(found: Sequence[Kept], folder: Path) -> list[str]:
    """What each part of the page is called."""
    return [str(each.path.relative_to(folder)) for each in found]


def report_text(found: Sequence[Kept], folder: Path) -> str:
    """A Markdown page: for each file what it was measured on, and its geometric means."""
    parts = ["# gpucnn: all results\n"]
    for each, name in zip(found, _names(found, folder), strict=True):
        result = each.result
        failed = sum(map(results.failed, result["rows"]))
        parts.append(
            f"## {cell(name)}\n\n{cell(results.header(result)[0])}; {len(result['rows'])} rows, {failed} failed\n"
        )
        if text := means_table(result):
            parts.append(text)
    return "\n".join(parts)


def cell(value: Any) -> str:
    """Text inside a Markdown table, where nothing of it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", figures.plain(value))


def code(name: str) -> str:
    """A name in Markdown's type for code."""
    return f"`{re.sub(r'[`|]', '?', figures.plain(name))}`"


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells, which are Markdown already."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows) + "\n"


def means_table(result: results.Result) -> str:
    """Geometric means as Markdown: a row for each suite and pass, a column for each algorithm; "" without means.

    Ratios to the fastest reference where there is one, else rates.
    """
    means: list[Any] = list(figures.means(result))
    by_ratio = any(mean["ratio"] is not None for mean in means)
    rate = figures.rates(means)

    def text(mean: Any) -> str:
        return figures.ratio(mean["ratio"]) if by_ratio else rate.text(mean["tflops"])

    if not any(map(text, means)):
        return ""
    keys = figures.varying(means)
    names = list(dict.fromkeys(mean["algorithm"] for mean in means if mean["algorithm"] != "best"))
    names = [name for name in (*figures.COLOURS, *names) if name in names]
    names = [*dict.fromkeys(names), *["best"] * any(mean["algorithm"] == "best" for mean in means)]
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for mean in means:
        group = groups.setdefault((mean["suite"], mean["pass_"], *(str(dict(mean)[key]) for key in keys)), {})
        group[mean["algorithm"]] = mean
    lines = []
    for (suite, pass_, *rest), group in groups.items():
        texts = []
        for name in names:
            own = group.get(name)
            part = f" ({own['layers']}/{own['of']})" if own and text(own) and own["layers"] < own["of"] else ""
            texts.append(text(own) + part if own else "")
        lines.append([cell(suite), cell(figures.words(pass_)), *map(cell, rest), *texts])
    unit = "" if by_ratio else f", {rate.unit}"
    headings = ["suite", "pass", *keys, *(("best" if name == "best" else code(name)) + unit for name in names)]
    return markdown_table(headings, lines)
