"""A benchmark's rows as tables for a terminal: as many columns as it has room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpucnn.bench import figures, results
from gpucnn.bench.figures import Column, Row

OUTER = ("suite", "pass", "dtype", "precision", "layout")  # the rows that share these are one table
LEFT_OUT_FIRST = ("peak_bytes", "gb_per_s", "p20", "workspace_bytes", "percent_of_peak", "max_error", "reference")
BETWEEN = 2  # letters between columns, one of them before the first and one behind the last
LAYER_WIDTH = 32  # longer names are folded
HIDDEN = ("shape",)  # too wide; in the page and the file


def print_table(result: results.Result, console: Console) -> None:
    """Print settings, a table for each suite and pass, why rows have no result, and the geometric means.

    A layer's fastest row is bold. Columns that a narrow terminal has no room for are left out, and named.
    """
    for line in results.header(result):
        console.print(Text(figures.plain(line)), soft_wrap=True)
    rows: Sequence[Row] = result["rows"]
    if not rows:
        console.print(Text("no rows"))
        return
    columns = figures.columns(rows)
    for labels, group in figures.groups(rows, OUTER).items():
        console.print()
        print_group(
            " · ".join(filter(None, (labels[0], figures.words(labels[1]), *labels[2:]))), group, columns, console
        )
    if any("sectors_per_request" in figures.counters(row) for row in rows):
        console.print(Text("sectors and wavefronts: of a warp's request to global and to shared memory", "dim"))
    print_means(result, console)


def print_group(title: str, rows: Sequence[Row], columns: Sequence[Column], console: Console) -> None:
    """One table and what it cannot hold: reasons, columns left out."""
    able = [row for row in rows if figures.measured(row)]
    inner = [column for column in columns if column.key not in (*OUTER, *HIDDEN) and any(map(column.text, able))]
    shown, left_out = fitting(able, inner, console.width)
    if able:
        console.print(table(title, able, shown))
    else:
        console.print(Text(title, "italic"))
    if left_out:
        names = ", ".join(column.heading for column in left_out)
        console.print(Text(f"no room for: {names}", "dim"))
    for line in reasons(rows):
        console.print(Text(line))


def fitting(rows: Sequence[Row], columns: Sequence[Column], room: int) -> tuple[list[Column], list[Column]]:
    """(columns that `room` letters hold, columns left out)."""
    widths = {column.key: width_of(column, rows) for column in columns}
    shown, left_out = list(columns), []
    counted = [column.key for column in reversed(columns) if column.key.startswith("counter ")]
    for key in (*LEFT_OUT_FIRST, *counted[:-1]):
        if sum(widths[column.key] + BETWEEN for column in shown) <= room:
            break
        left_out += [column for column in shown if column.key == key]
        shown = [column for column in shown if column.key != key]
    return shown, left_out


def width_of(column: Column, rows: Sequence[Row]) -> int:
    """Letters that a column takes."""
    widest = max(cell_len(text) for text in (column.heading, *map(column.text, rows)))
    return min(widest, LAYER_WIDTH) if column.key == "layer" else widest


def table(title: str, rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    """Rows and columns as rich's table; a layer is named once, its fastest row is bold."""
    found = _empty(title, columns, "layer")
    fastest = {number for group in figures.groups(rows, ("layer",)).values() for number in figures.fastest(group)}
    before = None
    for row in rows:
        layer = figures.plain(row.get("layer"))
        style = "bold" if id(row) in fastest else ""
        cells = [column.text(row) for column in columns]
        if columns and columns[0].key == "layer" and layer == before:
            cells[0] = ""
        found.add_row(*(Text(cell, style) for cell in cells))
        before = layer
    return found


def _empty(title: str, columns: Sequence[Column], folded: str) -> Table:
    """A table with headings only; long names in the column `folded` take several lines."""
    found = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "left" if column.value is None else "right"
        limit: dict[str, Any] = {"max_width": LAYER_WIDTH} if column.key == folded else {"no_wrap": True}
        found.add_column(Text(column.heading), justify=justify, overflow="fold", **limit)
    return found


def reasons(rows: Sequence[Row]) -> list[str]:
    """A line for each reason that rows have no result, naming the algorithm and the layers; failures first."""
    found: dict[tuple[bool, str, str], list[str]] = {}
    for row in rows:
        if why := figures.reason(row):
            refused = row.get("ok", True) is not False
            layers = found.setdefault((refused, figures.plain(row.get("algorithm")), why), [])
            layers.append(figures.plain(row.get("layer")))
    lines = []
    for (refused, algorithm, why), layers in sorted(found.items(), key=lambda item: item[0][0]):
        lines.append(f"{algorithm} {'not measured' if refused else 'FAILED'} on {', '.join(layers)}: {why}")
    return lines


def print_means(result: results.Result, console: Console) -> None:
    """The geometric means over each suite's layers, where there are any."""
    means = [mean for mean in figures.means(result) if mean["ratio"] is not None or mean["tflops"] is not None]
    if not means:
        return
    columns = figures.mean_columns(means)
    found = _empty("geometric means", columns, "algorithm")
    before: list[str] = []
    for mean in means:
        texts = [column.text(mean) for column in columns]
        names = [mean["suite"], mean["pass_"]]
        style = "bold" if mean["algorithm"] == "best" else ""
        shown = [
            "" if names == before and column.key in ("suite", "pass") else cell
            for column, cell in zip(columns, texts, strict=True)
        ]
        found.add_row(*(Text(cell, style) for cell in shown))
        before = names
    console.print()
    console.print(found)
    if any(mean["ratio"] is not None for mean in means):
        console.print(Text("ratio: fastest reference of the same precision ÷ ours; above 1, gpucnn is faster", "dim"))
