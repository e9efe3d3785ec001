"""What a benchmark found: rows and the settings they were measured with, as JSON and CSV; geometric means of ratios.

A file of results holds one `Result`:

    {"device", "commit", "date", "settings": {…}, "rows": [{"suite", "layer", "pass", "algorithm", "dtype", "precision",
     "layout", "milliseconds", "p20", "p80", "tflops", "percent_of_peak", "workspace_bytes", "max_error", "references",
     "ratio", "kernel_commit", …}]}

A row without a time has `milliseconds` None and a `reason`; `ok` False says that it failed, by an error or by a wrong
answer, rather than that nothing was measured on purpose. A simulator's row has `counters` and no time.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from gpucnn.bench.policies import SUFFIXES
from gpucnn.files import write_atomically

Row = TypedDict(
    "Row",
    {
        "suite": str,  # of the layer: layers, alexnet, …, shape, gemm, pool, net, sim
        "layer": str,
        "pass": str,  # forward, backward_input, backward_weight; NN, NT, TN of gemm; step of pool; train, infer of net
        "algorithm": str,
        "dtype": str,
        "precision": str,  # that products are allowed: fp32, fp64, fp32_tensor, tf32, bf16, fp16
        "layout": str,  # nchw, nhwc
        "milliseconds": float | None,  # median of a call
        "p20": float | None,  # milliseconds too
        "p80": float | None,
        "tflops": float | None,  # effective: those of direct convolution over the time
        "percent_of_peak": float | None,  # of settings["ceiling"], measured in the same run
        "workspace_bytes": int | None,
        "max_error": float | None,  # largest |error| over the sum of magnitudes, against float64
        "references": dict[
            str, float | None
        ],  # milliseconds: torch, onnxruntime, or cudnn_{nchw,nhwc}[_tf32|_bf16|_fp16]
        "ratio": float | None,  # the fastest reference of the same precision over ours: above 1, gpucnn is faster
        "kernel_commit": str,  # the last that changed kernels or compiled code
        "ok": NotRequired[bool],  # False: failed; missing: True
        "reason": NotRequired[str],  # why there is no time, or why the row failed
        "shape": NotRequired[str],  # as measured, in words
        "multiply_adds": NotRequired[int],
        "bytes": NotRequired[int],  # least traffic: inputs and outputs once each
        "repeats": NotRequired[int],  # how often the network has the layer
        "calls": NotRequired[int],  # timed calls that the median is of
        "chosen": NotRequired[str],  # what "auto" stands for
        "deterministic": NotRequired[bool],
        "images_per_second": NotRequired[float | None],
        "gb_per_s": NotRequired[float | None],  # of memory-bound operations: least traffic over the time
        "peak_bytes": NotRequired[int | None],  # most memory the process took
        "reference_peak_bytes": NotRequired[dict[str, int]],
        "others": NotRequired[float],  # share of the machine that other programs took meanwhile
        "counters": NotRequired[dict[str, Any]],  # of the simulator, see COUNTERS
    },
)
COUNTERS = {
    "launches": "kernels launched",
    "flops": "floating-point operations of the kernels",
    "global_bytes": "bytes asked of global memory",
    "ideal_bytes": "inputs and outputs, once each",
    "sectors_per_request": "sectors of 32 bytes that a warp's request to global memory takes",
    "ideal_sectors_per_request": "sectors that the same bytes would take side by side",
    "wavefronts_per_request": "passes over the banks that a warp's request to shared memory takes",
    "ideal_wavefronts_per_request": "passes that the same bytes would take side by side",
    "barriers": "barriers passed by blocks",
}
REQUIRED = Row.__required_keys__
NUMBERS = ("milliseconds", "p20", "p80", "tflops", "percent_of_peak", "workspace_bytes", "max_error", "ratio")
TEXTS = ("suite", "layer", "pass", "algorithm", "dtype", "precision", "layout", "kernel_commit")


class Result(TypedDict):
    """Rows, and what they were measured on and how; `settings` says all that changes a figure's meaning."""

    device: str
    commit: str
    date: str
    settings: dict[str, Any]
    rows: list[Row]
    interrupted: NotRequired[bool]  # some rows are missing


class Mean(TypedDict):
    """Of one algorithm and pass over the layers of a suite that have the figure; None where no layer has it."""

    suite: str
    pass_: str
    algorithm: str  # "best": each layer's fastest
    dtype: str
    precision: str
    layout: str
    layers: int  # with a time
    of: int  # layers of the suite in the result
    ratio: float | None  # geometric mean of the ratios to the fastest reference
    tflops: float | None  # geometric mean
    milliseconds: float | None  # sum over the network: each layer as often as it occurs; None if one is missing


def blank(**labels: Any) -> dict[str, Any]:
    """A row in which nothing is measured yet; `labels` are its suite, layer, pass, algorithm and what else is known."""
    texts = dict.fromkeys(TEXTS, "") | {"dtype": "float32", "precision": "fp32", "layout": "nchw"}
    return {**texts, **dict.fromkeys(NUMBERS), "references": {}, **labels}


def validate(value: Any, where: str = "result") -> Result:
    """`value` as a Result; raises ValueError naming the first key or row that does not fit."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: it must be a JSON object with device, commit, date, settings and rows")
    for key, kind in (("device", str), ("commit", str), ("date", str), ("settings", dict), ("rows", list)):
        if not isinstance(value.get(key), kind):
            raise ValueError(f"{where}: {key!r} is missing or no {kind.__name__}; is this a file of gpucnn bench?")
    for number, row in enumerate(value["rows"]):
        _validate_row(row, f"{where}: row {number}")
    return value  # type: ignore[return-value]


def _validate_row(row: Any, where: str) -> None:
    if not isinstance(row, dict) or not row.keys() >= REQUIRED:
        missing = sorted(REQUIRED - row.keys()) if isinstance(row, dict) else sorted(REQUIRED)
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    for key in TEXTS:
        if not isinstance(row[key], str):
            raise ValueError(f"{where}: {key!r} is {row[key]!r}; it must be text")
    for key in NUMBERS:
        if row[key] is not None and (isinstance(row[key], bool) or not isinstance(row[key], (int, float))):
            raise ValueError(f"{where}: {key!r} is {row[key]!r}; it must be a number or null")
    if not isinstance(row["references"], dict):
        raise ValueError(f"{where}: 'references' is {row['references']!r}; it must be an object")
    if row["milliseconds"] is None and not (row.get("reason") or row.get("counters")):
        raise ValueError(f"{where} has neither milliseconds nor counters nor a reason")


def load(path: Path) -> Result:
    """The Result in a file; raises ValueError naming the file if it holds none, OSError if it cannot be read."""
    try:
        value = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); name a file that gpucnn bench --json wrote") from None
    return validate(value, str(path))


def save(result: Result, path: Path) -> None:
    """Write a Result as JSON, whole or not at all; infinite and undefined numbers become null."""
    write_atomically(path, json.dumps(_finite(result), indent=1, allow_nan=False).encode() + b"\n")


def save_csv(result: Result, path: Path) -> None:
    """Write the rows as CSV: a column a key, `references.torch` and `counters.flops` for what is nested."""
    flat = [{"device": result["device"], "commit": result["commit"], **_flat(row)} for row in _finite(result["rows"])]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_atomically(path, text.getvalue().encode())


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        found |= {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
    return found


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON has no form of."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def failed(row: Row) -> bool:
    """Whether the row is an error or a wrong answer."""
    return not row.get("ok", True)


def timed(row: Row) -> bool:
    """Whether the row has a time that counts."""
    return row["milliseconds"] is not None and not failed(row)


def fastest_reference(references: dict[str, float | None], precision: str) -> float | None:
    """Milliseconds of the fastest reference of the same precision: of tf32, bf16 and fp16 those whose names end so."""
    suffix = f"_{precision}" if f"_{precision}" in SUFFIXES else ""
    able = [name for name in references if name.endswith(suffix) and (suffix or not name.endswith(SUFFIXES))]
    found = [ms for name in able if (ms := references[name]) is not None]
    return min(found, default=None)


def geometric_mean(values: Iterable[float]) -> float | None:
    """exp of the mean logarithm; None of nothing."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def geometric_means(result: Result) -> list[Mean]:
    """A Mean for each suite, pass, dtype, precision, layout and algorithm, with "best" last; in the rows' order."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in result["rows"]:
        key = row["suite"], row["pass"], row["dtype"], row["precision"], row["layout"]
        groups.setdefault(key, []).append(row)
    means = []
    for (suite, pass_, dtype, precision, layout), rows in groups.items():
        by_algorithm = {name: [row for row in rows if row["algorithm"] == name] for name in _names(rows)}
        names = list(dict.fromkeys(row["layer"] for row in rows))
        by_algorithm["best"] = _best(rows)
        for algorithm, own in by_algorithm.items():
            labels = {"suite": suite, "pass_": pass_, "algorithm": algorithm, "dtype": dtype}
            means.append(Mean(**labels, precision=precision, layout=layout, **_mean(own, len(names))))  # type: ignore[typeddict-item]
    return means


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["algorithm"] for row in rows))


def _best(rows: list[Row]) -> list[Row]:
    """Each layer's fastest row."""
    found: dict[str, Row] = {}
    for row in filter(timed, rows):
        if row["layer"] not in found or (row["milliseconds"] or 0) < (found[row["layer"]]["milliseconds"] or 0):
            found[row["layer"]] = row
    return list(found.values())


def _mean(rows: list[Row], of: int) -> dict[str, Any]:
    able = [row for row in rows if timed(row)]
    whole = len(able) == of > 0
    return {
        "layers": len(able),
        "of": of,
        "ratio": geometric_mean(row["ratio"] for row in able if row["ratio"]),
        "tflops": geometric_mean(row["tflops"] for row in able if row["tflops"]),
        "milliseconds": sum((row["milliseconds"] or 0) * row.get("repeats", 1) for row in able) if whole else None,
    }


def header(result: Result) -> list[str]:
    """Lines of text that say on what and how the rows were measured; every output begins with them."""
    settings = result["settings"]
    first = f"{result['device']}, commit {result['commit']}, {result['date']}"
    return [first, *(f"{name.replace('_', ' ')}: {_text(value)}" for name, value in settings.items() if value != "")]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
