"""What the outputs of a benchmark have in common: numbers as text, rows in groups, a colour for each algorithm.

A row is a mapping as `gpucnn bench` writes it. Values may be missing, None or NaN: then there is no text and no bar.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gpucnn.bench import results

Row = Mapping[str, Any]

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#8c8c8c",
)  # fmt: skip
COLOURS = {
    "im2col": BLUE,
    "direct": ORANGE,
    "winograd": GREEN,
    "winograd4": PURPLE,
    "fft": RED,
    "implicit_gemm": SKY,
    "toeplitz": YELLOW,
    "auto": GREY,
}


def number(value: Any) -> float | None:
    """A finite number as float; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def plain(value: Any) -> str:
    """Text for a terminal or a page: on one line, without control characters; "" for None."""
    text = "" if value is None else str(value)
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def digits(value: Any) -> str:
    """Three significant digits without an exponent where that is short: 0.0123, 12.3, 1,234; "" for no number."""
    found = number(value)
    if found is None:
        return ""
    if found == 0:
        return "0"
    if not 1e-3 <= abs(found) < 1e7:
        return f"{found:.1e}"
    places = max(0, 2 - math.floor(math.log10(abs(float(f"{found:.2e}")))))
    return f"{found:,.{places}f}"


def size(value: Any) -> str:
    """Bytes: 0, 512 B, 1.50 MB, 12.0 GB; "" for no number."""
    found = number(value)
    if found is None:
        return ""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if found >= scale * 0.9995:
            return f"{digits(found / scale)} {unit}"
    return f"{found:.0f} B" if found else "0"


def ratio(value: Any) -> str:
    """2.13×"""
    found = number(value)
    return "" if found is None else f"{found:,.2f}×" if found < 100 else f"{found:,.0f}×"


def percent(value: Any) -> str:
    """12.3; without its sign."""
    found = number(value)
    return "" if found is None else f"{found:.1f}" if found < 99.95 else f"{found:.0f}"


def error(value: Any) -> str:
    """1.2e-07"""
    found = number(value)
    return "" if found is None else "0" if found == 0 else f"{found:.1e}"


def spread(row: Row) -> str:
    """p20–p80 of the milliseconds."""
    low, high = digits(row.get("p20")), digits(row.get("p80"))
    return f"{low}–{high}" if low and high else ""


def measured(row: Row) -> bool:
    """Whether a row has a result that counts: a time or counters, and no failure."""
    return row.get("ok", True) is not False and (number(row.get("milliseconds")) is not None or bool(counters(row)))


def reason(row: Row) -> str:
    """Why a row has no result; "" where it has one."""
    return "" if measured(row) else plain(row.get("reason")) or "no result"


def counters(row: Row) -> dict[str, float]:
    """What the simulator counted, by name."""
    return _numbers(row.get("counters"))


def references(row: Row) -> dict[str, float]:
    """Milliseconds of what stands beside a row, by name."""
    return {name: value for name, value in _numbers(row.get("references")).items() if value > 0}


def _numbers(found: Any) -> dict[str, float]:
    pairs = found.items() if isinstance(found, Mapping) else ()
    return {plain(name): value for name, value in ((name, number(value)) for name, value in pairs) if value is not None}


def reference(row: Row) -> float | None:
    """Milliseconds of the fastest reference of the row's own precision."""
    return results.fastest_reference(dict(references(row)), plain(row.get("precision")))


def algorithm(row: Row) -> str:
    """The algorithm, and what "auto" stands for."""
    chosen = plain(row.get("chosen"))
    return plain(row.get("algorithm")) + (f" ({chosen})" if chosen else "")


class Rates(NamedTuple):
    """The unit in which a result's rates are readable."""

    unit: str
    scale: float  # of a figure in TFLOP/s

    def text(self, tflops: Any) -> str:
        """A figure in TFLOP/s, in this unit and without it."""
        found = number(tflops)
        return "" if found is None else digits(found * self.scale)


def rates(rows: Iterable[Row]) -> Rates:
    """TFLOP/s, or GFLOP/s where all rows stay below one TFLOP/s."""
    found = [number(row.get("tflops")) or 0.0 for row in rows]
    return Rates("GFLOP/s", 1e3) if max(found, default=0.0) < 1 else Rates("TFLOP/s", 1.0)


class Column(NamedTuple):
    """A column of the table: what stands over it, what it means, its text, and what it is sorted by."""

    key: str
    heading: str
    meaning: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | None] | None = None  # None: sorted by the text


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that these rows fill, names first and counters last."""
    rate = rates(rows)
    found = [
        _named("suite", "suite", "the network that the layer is from"),
        _named("pass", "pass", "forward, or the gradient of the input or of the weight"),
        _named("layer", "layer", "the layer's name in its suite"),
        Column("algorithm", "algorithm", "what computes it; in brackets what auto stands for", algorithm),
        _named("dtype", "dtype", "the type of the numbers in memory"),
        _named("precision", "precision", "the arithmetic of the products"),
        _named("layout", "layout", "the order of the axes in memory"),
        _figure("milliseconds", "ms", "median time of a call", digits),
        Column("p20", "p20–p80", "ms that a fifth and four fifths of the calls stay below", spread, _value_of("p20")),
        _figure("tflops", rate.unit, "2 × multiply-adds of direct convolution ÷ time", rate.text),
        _figure(
            "percent_of_peak",
            "% of peak",
            "of the ceiling of arithmetic, or of a copy, measured in the same run",
            percent,
        ),
        _figure("gb_per_s", "GB/s", "inputs and outputs once each ÷ time", digits),
        _figure("images_per_second", "images/s", "images ÷ time", digits),
        _figure("workspace_bytes", "workspace", "memory beside the arrays", size),
        _figure("peak_bytes", "memory", "the most that the process took", size),
        _figure("max_error", "error", "the largest, of the sum of magnitudes, against float64", error),
        Column("reference", "reference ms", REFERENCE, lambda row: digits(reference(row)), reference),
        _figure("ratio", "ratio", "reference ÷ ours: above 1, gpucnn is faster", ratio),
        *(_counter(name) for name in counter_names(rows)),
        _named("shape", "shape", "what was computed"),
    ]
    return [column for column in found if any(column.text(row) for row in rows)]


REFERENCE = "the fastest reference of the same precision"


def _named(key: str, heading: str, meaning: str) -> Column:
    return Column(key, heading, meaning, lambda row: plain(row.get(key)))


def _figure(key: str, heading: str, meaning: str, text: Callable[[Any], str]) -> Column:
    return Column(key, heading, meaning, lambda row: text(row.get(key)), _value_of(key))


def _value_of(key: str) -> Callable[[Row], float | None]:
    return lambda row: number(row.get(key))


def _counter(name: str) -> Column:
    meaning = results.COUNTERS.get(name, "counted by the simulator")
    heading = COUNTER_HEADINGS.get(name, name.replace("_", " "))
    return Column(
        f"counter {name}",
        heading,
        meaning,
        lambda row: count(counters(row).get(name)),
        lambda row: counters(row).get(name),
    )


COUNTER_HEADINGS = {
    "flops": "FLOP",
    "global_bytes": "bytes",
    "ideal_bytes": "ideal bytes",
    "sectors_per_request": "sectors",
    "ideal_sectors_per_request": "ideal sectors",
    "wavefronts_per_request": "wavefronts",
    "ideal_wavefronts_per_request": "ideal wavefronts",
}


def count(value: Any) -> str:
    """A counter: whole numbers in full up to a million."""
    found = number(value)
    if found is None:
        return ""
    if found != int(found):
        return digits(found)
    if abs(found) < 1e6:
        return f"{int(found):,}"
    scale, unit = (1e9, "G") if abs(found) >= 1e9 else (1e6, "M")
    return f"{digits(found / scale)} {unit}"


def counter_names(rows: Iterable[Row]) -> list[str]:
    """The names of all counters, in the order of their first row."""
    return list(dict.fromkeys(name for row in rows for name in counters(row)))


def series(rows: Iterable[Row]) -> dict[str, str]:
    """Each algorithm's colour: its own, whatever stands beside it; others take what is left, then grey."""
    names = dict.fromkeys(plain(row.get("algorithm")) for row in rows)
    known = [name for name in COLOURS if name in names]
    left = iter([colour for name, colour in COLOURS.items() if name not in names])
    return {
        name: COLOURS.get(name) or next(left, GREY)
        for name in (*known, *(each for each in names if each not in COLOURS))
    }


def groups(rows: Iterable[Row], keys: tuple[str, ...]) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the text of these keys, in the order of the first of each."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(plain(row.get(key)) for key in keys), []).append(row)
    return found


def fastest(rows: Sequence[Row]) -> set[int]:
    """The id of the fastest row, if several have a time."""
    timed = [(time, id(row)) for row in rows if measured(row) and (time := number(row.get("milliseconds"))) is not None]
    return {min(timed)[1]} if len(timed) > 1 else set()


def words(name: str) -> str:
    """backward_input as words."""
    return plain(name).replace("_", " ")


def means(result: Mapping[str, Any]) -> list[results.Mean]:
    """Geometric means of the rows whose figures are numbers; "best" only where several algorithms were measured."""
    kept = []
    for row in result["rows"]:
        figures = {key: number(row.get(key)) for key in ("milliseconds", "ratio", "tflops")}
        positive = {key: value if value is not None and value > 0 else None for key, value in figures.items()}
        kept.append({**row, **positive})
    found: list[Any] = list(results.geometric_means({**result, "rows": kept}))  # type: ignore[typeddict-item, typeddict-unknown-key]
    counts = Counter(_group(mean) for mean in found if mean["layers"])
    return [mean for mean in found if mean["algorithm"] != "best" or counts[_group(mean)] > 2]


def mean_columns(found: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns that geometric means fill."""
    rate, keys = rates(found), varying(found)

    def named(mean: Row) -> str:
        return plain(mean["algorithm"]) + variant(mean, keys)

    options = [
        _named("suite", "suite", "the network"),
        Column(
            "pass", "pass", "forward, or the gradient of the input or of the weight", lambda mean: words(mean["pass_"])
        ),
        Column("algorithm", "algorithm", "best: each layer's fastest", named),
        Column(
            "layers",
            "layers",
            "those with a time, of all",
            lambda mean: f"{mean['layers']}/{mean['of']}",
            _value_of("layers"),
        ),
        _figure("ratio", "ratio", "reference ÷ ours: above 1, gpucnn is faster", ratio),
        _figure("tflops", rate.unit, "2 × multiply-adds of direct convolution ÷ time", rate.text),
        _figure("milliseconds", "sum of ms", "of the network, each layer as often as it occurs", digits),
    ]
    return [column for column in options if any(map(column.text, found))]


def _group(mean: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(mean[key] for key in ("suite", "pass_", "dtype", "precision", "layout"))


def layers(rows: Sequence[Row]) -> dict[int, str]:
    """The name of each row's layer by the row's id, with what distinguishes its rows of one algorithm and pass."""
    keys = varying(rows)
    return {id(row): plain(row.get("layer")) + variant(row, keys) for row in rows}


def varying(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Those of dtype, precision and layout in which rows differ."""
    others = list(rows)
    return [key for key in ("dtype", "precision", "layout") if len({plain(each.get(key)) for each in others}) > 1]


def variant(row: Mapping[str, Any], keys: Iterable[str]) -> str:
    """A row's values of these keys, to stand behind a name."""
    return "".join(f", {plain(row.get(key))}" for key in keys)


class Measure(NamedTuple):
    """What bars show: its name with the unit, a row's value, and its text."""

    label: str
    value: Callable[[Row], float | None]
    text: Callable[[float], str]
    more_is_better: bool = True

    def of_reference(self, row: Row) -> float | None:
        """The same measure of the fastest reference: rates scale with the time."""
        own, time, theirs = self.value(row), number(row.get("milliseconds")), reference(row)
        if own is None or not time or theirs is None or self.label == TRAFFIC:
            return None
        return own * time / theirs if self.more_is_better else theirs


TRAFFIC = "bytes asked of memory ÷ inputs and outputs"


def measure(rows: Sequence[Row]) -> Measure:
    """What is drawn of these rows: a rate if they have one, else the time, else the simulator's traffic."""
    able = [row for row in rows if measured(row)]
    rate = rates(able)
    options = [
        Measure(f"effective {rate.unit}", _scaled("tflops", rate.scale), digits),
        Measure("GB/s", _value_of("gb_per_s"), digits),
        Measure("images/s", _value_of("images_per_second"), digits),
        Measure("ms", _value_of("milliseconds"), digits, False),
        Measure(TRAFFIC, _traffic, ratio, False),
    ]
    return next((each for each in options if any(each.value(row) for row in able)), options[0])


def _scaled(key: str, scale: float) -> Callable[[Row], float | None]:
    return lambda row: None if (found := number(row.get(key))) is None else found * scale


def _traffic(row: Row) -> float | None:
    found = counters(row)
    moved, ideal = found.get("global_bytes"), found.get("ideal_bytes")
    return moved / ideal if moved and ideal else None


def lengths(rows: Iterable[Row], shown: Measure) -> list[float]:
    """What an axis has to hold: a measure of rows and of their references."""
    pairs = ((shown.value(row), shown.of_reference(row)) for row in rows if measured(row))
    return [value for pair in pairs for value in pair if value is not None and value > 0]


def logarithmic(values: Iterable[float]) -> bool:
    """Whether bars of these lengths need a logarithmic axis: a fifth of them would hardly be seen on a linear one."""
    ordered = sorted(value for value in values if value > 0)
    return bool(ordered) and ordered[-1] > LINEAR_RANGE * ordered[len(ordered) // 5]


LINEAR_RANGE = 60


class Point(NamedTuple):
    """A row on the roofline: FLOP of direct convolution per byte of inputs and outputs, and TFLOP/s."""

    row: Row
    intensity: float
    tflops: float


def points(rows: Iterable[Row]) -> list[Point]:
    """Of the rows that have a rate and say how much they compute and move."""
    found = []
    for row in rows:
        work, moved, rate = (number(row.get(key)) or 0.0 for key in ("multiply_adds", "bytes", "tflops"))
        if measured(row) and work > 0 and moved > 0 and rate > 0:
            found.append(Point(row, 2 * work / moved, rate))
    return found


class Ceiling(NamedTuple):
    """What the device reached in the same run; None where it was not measured."""

    tflops: float | None
    gb_per_s: float | None

    @property
    def ridge(self) -> float | None:
        """FLOP per byte from which arithmetic is the limit."""
        return self.tflops * 1e3 / self.gb_per_s if self.tflops and self.gb_per_s else None

    def at(self, intensity: float) -> float | None:
        """The most TFLOP/s of a kernel that computes directly and moves nothing twice."""
        limits = [self.tflops, None if self.gb_per_s is None else intensity * self.gb_per_s / 1e3]
        return min((limit for limit in limits if limit is not None), default=None)


def ceiling(result: Mapping[str, Any]) -> Ceiling:
    """The measured ceilings among a result's settings."""
    found = result["settings"].get("ceiling")
    found = found if isinstance(found, Mapping) else {}
    if found and "tflops" not in found:  # by precision
        found = next((each for each in found.values() if isinstance(each, Mapping)), {})
    return Ceiling(number(found.get("tflops")), number(found.get("gb_per_s")))


def roof(ceiling: Ceiling, low: float, high: float) -> list[tuple[float, float]]:
    """Corners (FLOP per byte, TFLOP/s) of the measured ceilings between two intensities; none where none is known."""
    corners = {low, high, min(max(ceiling.ridge or low, low), high)}
    found = ((intensity, ceiling.at(intensity)) for intensity in sorted(corners))
    return [(intensity, rate) for intensity, rate in found if rate]


def tick(value: float) -> str:
    """A number on an axis: 0.1, 20, 1,000."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
