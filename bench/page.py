"""A benchmark as one page that needs nothing else: a table to sort and to filter, bars, rooflines; light and dark.

All text from results is escaped, and the page's policy lets no script run but the one that is named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gpucnn.bench import figures, results
from gpucnn.bench.figures import Column, Measure, Row
from gpucnn.files import write_atomically

FOLDER = Path(__file__).parent
CHOICES = ("suite", "pass", "algorithm", "dtype", "precision", "layout")  # columns with a list to choose from
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 340, 68, 50, 12, 16  # of a roofline, in its own units
BYTES = "FLOP per byte of inputs and outputs"
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.6 -3.6h7.2v7.2h-7.2z",
    "M0 -5L5 0L0 5L-5 0z",
    "M0 -4.6L4.6 3.8H-4.6z",
    "M0 4.6L4.6 -3.8H-4.6z",
    "M-1.7 -4.6h3.4v2.9h2.9v3.4h-2.9v2.9h-3.4v-2.9h-2.9v-3.4h2.9z",
)  # circle, square, diamond, triangles, cross


def write_html(result: results.Result, path: str | os.PathLike[str]) -> None:
    """Write the page of one result. Raises WriteError for a path that cannot be written."""
    title = f"gpucnn bench {figures.plain(result['settings'].get('part'))}".rstrip()
    write_atomically(path, document(title, [section(result, 0)]))


def document(title: str, sections: Iterable[str]) -> bytes:
    """A whole page around sections of HTML; `title` is text."""
    style, script = ((FOLDER / name).read_text() for name in ("page.css", "page.js"))
    name = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{name}'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{text(title)}</h1><button type="button" id="theme" hidden>Colours: auto</button></header>
<main>
{"".join(sections)}</main>
<script>{script}</script>
</body>
</html>
""".encode()


def text(value: Any) -> str:
    """A value as text inside HTML."""
    return escape(figures.plain(value), quote=True)


def contents(names: Sequence[str]) -> str:
    """Links to the sections of a page that has several, by their names."""
    items = "".join(f'<li><a href="#result-{index}">{text(name)}</a></li>' for index, name in enumerate(names))
    return f'<nav aria-label="results"><ul>{items}</ul></nav>\n'


def section(result: results.Result, index: int, name: str = "") -> str:
    """One result; `index` tells a page's sections apart, `name` stands before what it was measured on."""
    rows: Sequence[Row] = result["rows"]
    head = f"{name}: {results.header(result)[0]}" if name else results.header(result)[0]
    start = f'<section class="result" id="result-{index}"><h2>{text(head)}</h2>\n'
    if not rows:
        return f"{start}{settings(result)}<p>no rows</p></section>\n"
    columns, constant = _split(rows)
    numbers = {id(row): f"{index}-{number}" for number, row in enumerate(rows)}
    parts = [
        settings(result),
        means(result),
        f"<h3>Charts</h3>{filters(rows, columns)}{legend(result)}",
        f'<div class="charts">{bars(rows, numbers)}</div>',
        rooflines(result, numbers),
        f"<h3>Rows</h3>{constant}{table(rows, columns, numbers)}",
    ]
    return start + "\n".join(parts) + "</section>\n"


def _split(rows: Sequence[Row]) -> tuple[list[Column], str]:
    """(the table's columns, a sentence with the names that are the same in every row)."""
    columns = figures.columns(rows)
    same = [column for column in columns if column.key in CHOICES and len({column.text(row) for row in rows}) == 1]
    same = [column for column in same if column.key != "algorithm"]
    names = ", ".join(f"{text(column.heading)} {text(column.text(rows[0]))}" for column in same)
    return [column for column in columns if column not in same], f"<p>All rows: {names}.</p>" if names else ""


def settings(result: results.Result) -> str:
    """What changes the figures' meaning."""
    pairs = [line.partition(": ") for line in results.header(result)[1:]]
    return (
        '<dl class="settings">'
        + "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, _, value in pairs)
        + "</dl>"
    )


def means(result: results.Result) -> str:
    """The geometric means, if there are any."""
    found = [mean for mean in figures.means(result) if mean["ratio"] is not None or mean["tflops"] is not None]
    if not found:
        return ""
    columns = figures.mean_columns(found)
    body = "".join(
        f'<tr data-row="{number}">{"".join(cell(mean, column) for column in columns)}</tr>\n'
        for number, mean in enumerate(found)
    )
    return f"<h3>Geometric means</h3>{_table('means sortable', 'geometric means', columns, body)}"


def _table(kind: str, label: str, columns: Sequence[Column], body: str) -> str:
    headings = "".join(
        f'<th scope="col" aria-sort="none"{" class=figure" if column.value else ""} title="{text(column.meaning)}">'
        f'<button type="button">{text(column.heading)}</button></th>'
        for column in columns
    )
    return (
        f'<div class="scroll" role="region" aria-label="{text(label)}" tabindex="0"><table class="{kind}">'
        f"<thead><tr>{headings}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def cell(row: Any, column: Column) -> str:
    """One cell, with the number that it is sorted by."""
    if column.value is None:
        return f'<td class="{"name" if column.key == "layer" else column.key}">{text(column.text(row))}</td>'
    value = column.value(row)
    sort_key = "" if value is None or not math.isfinite(value) else f' data-value="{value!r}"'
    return f'<td class="figure"{sort_key}>{text(column.text(row))}</td>'


def table(rows: Sequence[Row], columns: Sequence[Column], numbers: dict[int, str]) -> str:
    """All rows; those without a result say why in the last column."""
    shown = list(columns)
    if any(figures.reason(row) for row in rows):
        shown.append(
            Column("reason", "no result because", "why a candidate failed, or was not measured", figures.reason)
        )
    fastest = {
        number
        for group in figures.groups(rows, ("suite", "pass", "layer", "dtype", "precision", "layout")).values()
        for number in figures.fastest(group)
    }
    lines = []
    for row in rows:
        kind = "failed" if row.get("ok", True) is False else "fastest" if id(row) in fastest else "row"
        cells = "".join(cell(row, column) for column in shown)
        lines.append(f'<tr class="{kind}" data-row="{numbers[id(row)]}">{cells}</tr>\n')
    return _table("rows sortable", "rows", shown, "".join(lines))


def filters(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Words to look for, and a list for each column of names that differ."""
    lists = []
    for place, column in enumerate(columns):
        values = list(dict.fromkeys(column.text(row) for row in rows))
        if column.key in CHOICES and len(values) > 1:
            options = "".join(f'<option value="{text(value)}">{text(value)}</option>' for value in values)
            lists.append(
                f'<label>{text(column.heading)} <select name="{column.key}" data-column="{place}">'
                f'<option value="">all</option>{options}</select></label>'
            )
    search = '<label>filter <input type="search" name="text" placeholder="words" autocomplete="off"></label>'
    return f'<form class="filters" hidden>{search}{"".join(lists)}<output aria-live="polite"></output></form>'


def legend(result: results.Result) -> str:
    """Colours and marks of the algorithms."""
    rows: Sequence[Row] = result["rows"]
    entries = [
        f'<li><svg viewBox="-7 -7 14 14" aria-hidden="true">{marker(index, 0, 0, colour, 1.3)}</svg>{text(name)}</li>'
        for index, (name, colour) in enumerate(figures.series(rows).items())
    ]
    if any(figures.reference(row) for row in rows):
        entries.append('<li><span class="tick"></span>fastest reference</li>')
    if figures.points(rows) and figures.ceiling(result) != (None, None):
        entries.append('<li><span class="dash"></span>measured ceiling</li>')
    return f'<ul class="legend">{"".join(entries)}</ul>'


def bars(rows: Sequence[Row], numbers: dict[int, str]) -> str:
    """A chart for each suite and pass, on one scale for each suite."""
    colours = figures.series(rows)
    charts = []
    for (suite,), group in figures.groups(rows, ("suite",)).items():
        measure, label = figures.measure(group), figures.layers(group)
        scale = _scale(figures.lengths(group, measure))
        more = "more" if measure.more_is_better else "less"
        note = f"{measure.label}{'' if scale.linear else ', logarithmic'} ({more} is better)"
        for (name,), own in figures.groups(group, ("pass",)).items():
            by_layer: dict[str, list[Row]] = {}
            for row in own:
                by_layer.setdefault(label[id(row)], []).append(row)
            bands = "".join(_band(layer, each, measure, scale, colours, numbers) for layer, each in by_layer.items())
            title = text(" · ".join(filter(None, (suite, figures.words(name)))))
            charts.append(f"<figure><figcaption>{title} <small>{text(note)}</small></figcaption>{bands}</figure>\n")
    return "".join(charts)


class _scale:
    """From a value to a share of the room, 0 to 1."""

    def __init__(self, values: Sequence[float]) -> None:
        self.linear = not figures.logarithmic(values)
        self.most = max(values, default=1.0)
        self.least = min(values, default=1.0) / 2

    def __call__(self, value: float) -> float:
        if self.linear:
            return value / self.most
        return math.log(value / self.least) / math.log(self.most / self.least)


def _band(
    layer: str,
    rows: Sequence[Row],
    measure: Measure,
    scale: Callable[[float], float],
    colours: dict[str, str],
    numbers: dict[int, str],
) -> str:
    """A layer's bars, with the fastest reference as a line."""
    lines = []
    for row in rows:
        value = measure.value(row) if figures.measured(row) else None
        name, part = figures.algorithm(row), f'data-of="{numbers[id(row)]}"'
        if value is not None and value > 0:
            colour = colours[figures.plain(row.get("algorithm"))]
            fill = f'<i style="--length:{scale(value):.4f};background:{colour}"></i>'
            lines.append(f'<div class="bar" {part}>{fill}<b>{text(measure.text(value))}</b> {text(name)}</div>')
            continue
        failed = row.get("ok", True) is False
        kind, word = ("failed", "failed") if failed else ("none", "—")
        title = text(figures.reason(row) or "no figure")
        lines.append(f'<div class="bar {kind}" {part} title="{title}"><i></i><b>{word}</b> {text(name)}</div>')
    marks = [mark for row in rows if figures.measured(row) and (mark := measure.of_reference(row))]
    if marks:
        best = max(marks) if measure.more_is_better else min(marks)
        what = f"fastest reference: {measure.text(best)}"
        lines.append(f'<div class="mark" style="--at:{scale(best):.4f}" title="{text(what)}"></div>')
    return f'<div class="layer"><span>{text(layer)}</span><div class="plot">{"".join(lines)}</div></div>'


def rooflines(result: results.Result, numbers: dict[int, str]) -> str:
    """A roofline for each pass; "" where no row says what it computes and moves."""
    rows: Sequence[Row] = result["rows"]
    found = figures.points(rows)
    if not found:
        return ""
    view = _View(found, figures.ceiling(result), figures.rates(rows))
    colours = figures.series(rows)
    charts = []
    for (name,), own in figures.groups(rows, ("pass",)).items():
        points = figures.points(own)
        note = "above the roof, an algorithm saves multiplications of direct convolution"
        caption = f"<figcaption>{text(figures.words(name))} <small>{note}</small></figcaption>"
        charts.append(f"<figure>{caption}{view.draw(points, colours, numbers)}</figure>\n")
    return f'<h3>Roofline</h3><div class="charts">{"".join(charts)}</div>'


class _View:
    """The axes that a result's rooflines share: FLOP per byte and rate, both logarithmic."""

    def __init__(self, points: Sequence[figures.Point], ceiling: figures.Ceiling, rate: figures.Rates) -> None:
        self.rate = rate
        intensities = [point.intensity for point in points]
        self.low, self.high = min(*intensities, ceiling.ridge or math.inf) / 2, max(intensities) * 2
        self.roof = figures.roof(ceiling, self.low, self.high)
        rates = [point.tflops for point in points] + [rate for _, rate in self.roof]
        self.least, self.most = min(rates) / 1.6, max(rates) * 1.6

    def x(self, intensity: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(intensity / self.low) / math.log(self.high / self.low)

    def y(self, tflops: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * math.log(self.most / tflops) / math.log(self.most / self.least)

    def draw(self, points: Sequence[figures.Point], colours: dict[str, str], numbers: dict[int, str]) -> str:
        """One picture."""
        roof = " ".join(f"{self.x(intensity):.1f},{self.y(rate):.1f}" for intensity, rate in self.roof)
        parts = [*self._axes(), f'<polyline class="roof" points="{roof}"/>' if roof else ""]
        names = list(colours)
        for point in points:
            name = figures.plain(point.row.get("algorithm"))
            mark = marker(names.index(name), self.x(point.intensity), self.y(point.tflops), colours[name])
            where = f"{figures.plain(point.row.get('layer'))}, {figures.algorithm(point.row)}"
            title = f"<title>{text(where)}: {self.rate.text(point.tflops)} {self.rate.unit}</title>"
            parts.append(f'<g data-of="{numbers[id(point.row)]}">{title}{mark}</g>')
        label = f"effective {self.rate.unit} over {BYTES}"
        start = f'<svg class="roofline" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        return f"{start}{''.join(parts)}</svg>"

    def _axes(self) -> list[str]:
        parts = []
        for value in ticks(self.low, self.high):
            x = f"{self.x(value):.1f}"
            parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{figures.tick(value)}</text>')
        for value in ticks(self.least * self.rate.scale, self.most * self.rate.scale):
            y = self.y(value / self.rate.scale)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 5:.1f}" text-anchor="end">{figures.tick(value)}</text>')
        centre, middle = (LEFT + WIDTH - RIGHT) / 2, (HEIGHT - BOTTOM + TOP) / 2
        parts.append(f'<text class="axis" x="{centre}" y="{HEIGHT - 6}" text-anchor="middle">{BYTES}</text>')
        place = f'transform="translate(14 {middle}) rotate(-90)" text-anchor="middle"'
        parts.append(f'<text class="axis" {place}>effective {self.rate.unit}</text>')
        return parts


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers, with 2 and 5 times each where there is room."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high < 200 * low else (1,)
    step = 1 if len(decades) < 9 else 2
    return [
        value for power in decades[::step] for factor in factors if low <= (value := float(f"{factor}e{power}")) <= high
    ]


def marker(index: int, x: float, y: float, colour: str, size: float = 1.0) -> str:
    """A mark of the index-th algorithm: shapes differ as well as colours."""
    place = f"translate({x:.1f} {y:.1f}) scale({size:g})"
    return f'<path class="edge" d="{SHAPES[index % len(SHAPES)]}" transform="{place}" fill="{colour}"/>'
