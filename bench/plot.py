"""A benchmark as a picture: bars by layer and algorithm, and a roofline with the ceilings measured in the same run."""

from __future__ import annotations

import importlib.util
import io
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpucnn.bench import figures, results
from gpucnn.bench.figures import Row
from gpucnn.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NO_MATPLOTLIB = "--plot needs matplotlib: pip install 'gpucnn[viz]', or use --html, which needs nothing"

BAR, GAP = 0.115, 0.16  # inches: height of a bar, space between layers
LABELS, PANEL, ROOFLINE = 1.9, 4.6, 3.6  # inches: room for names, width of a panel, height of a roofline
DPI = 120
LARGEST = 30_000  # pixels
NAME_LENGTH = 30
MARKERS = "osD^vPX*"  # of the algorithms on the roofline, beside their colours
INK, FAINT = "#222222", "#777777"


def plot(result: results.Result, path: str | os.PathLike[str]) -> None:
    """Draw a result as a PNG: a row of panels for each suite, a column for each pass, and rooflines below.

    Bars are linear unless a fifth of them would be too short to see. Raises ValueError where matplotlib is missing
    (NO_MATPLOTLIB names the fix) and WriteError for a path that cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(NO_MATPLOTLIB)
    from matplotlib import rc_context

    stream = io.BytesIO()
    style: Any = {
        "text.parse_math": False,
        "font.size": 8,
        "axes.titlesize": 9,
        "text.color": INK,
        "axes.edgecolor": FAINT,
    }
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may be in any script
        figure = draw(result)
        figure.savefig(stream, format="png", dpi=min(DPI, LARGEST / figure.get_figheight()))
    write_atomically(path, stream.getvalue())


def draw(result: results.Result) -> Figure:
    """The whole picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: Sequence[Row] = result["rows"]
    passes = list(dict.fromkeys(figures.plain(row["pass"]) for row in rows)) or [""]
    suites = [_Suite(suite, group) for (suite,), group in figures.groups(rows, ("suite",)).items()]
    colours = figures.series(rows)
    heights = [suite.height(len(colours)) for suite in suites]
    if with_roofline := bool(figures.points(rows)):
        heights.append(ROOFLINE)
    header = _Header(result, max(8.0, LABELS + PANEL * len(passes)), colours)
    size = header.width, header.height + sum(heights) + 0.9 * max(1, len(heights))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - header.height / size[1]), hspace=0.02)  # type: ignore[union-attr, call-arg]
    header.draw(figure)
    if not rows:
        return figure
    panels = figure.subplots(len(heights), len(passes), squeeze=False, height_ratios=heights)
    for line, suite in zip(panels, suites, strict=False):
        suite.draw(line, passes, colours, figures.ceiling(result))
    if with_roofline:
        for axes, name in zip(panels[-1], passes, strict=True):
            _roofline(axes, [row for row in rows if figures.plain(row["pass"]) == name], name, colours, result)
    return figure


class _Header:
    """What was measured, on what, how; and the colours. Sizes in inches."""

    def __init__(self, result: results.Result, width: float, colours: dict[str, str]) -> None:
        lines = [figures.plain(line) for line in results.header(result)]
        self.width = width
        self.title = _shortened(lines[0], int(width * 10))
        self.settings = _folded(" · ".join(lines[1:]), int(width * 15.5), 4)
        self.handles = _handles(result, colours)
        self.columns = max(1, min(len(self.handles), int(width / 1.35)))
        self.legend_top = 0.42 + 0.14 * len(self.settings)
        self.height = self.legend_top + 0.2 + 0.19 * -(-len(self.handles) // self.columns)

    def draw(self, figure: Figure) -> None:
        left, one = 0.12 / self.width, 1 / figure.get_figheight()
        figure.text(left, 1 - 0.12 * one, self.title, fontsize=11, weight="bold", va="top")
        figure.text(left, 1 - 0.38 * one, "\n".join(self.settings), color=FAINT, va="top")
        if not self.handles:
            figure.text(left, 0.3, "no rows", fontsize=11)
            return
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (left, 1 - self.legend_top * one)}
        figure.legend(handles=self.handles, ncols=self.columns, frameon=False, borderpad=0.1, borderaxespad=0, **place)


def _handles(result: results.Result, colours: dict[str, str]) -> list[Any]:
    """The legend: what there is in the picture."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows: Sequence[Row] = result["rows"]
    handles: list[Any] = [Patch(facecolor=colour, label=_shortened(name, 24)) for name, colour in colours.items()]
    if any(figures.reference(row) for row in rows):
        handles.append(Line2D([], [], color=INK, linewidth=1.6, label="fastest reference"))
    if figures.ceiling(result).tflops and any(figures.number(row.get("tflops")) for row in rows):
        handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=0.9, label="measured ceiling"))
    for style in (FAILED, REFUSED):
        if any(_why(row) is style for row in rows):
            handles.append(Line2D([], [], **style))
    return handles


FAILED: dict[str, Any] = {"label": "failed", "marker": "x", "color": "#b00020", "linestyle": "", "markersize": 4.5}
REFUSED: dict[str, Any] = {"label": "not measured", "marker": ".", "color": FAINT, "linestyle": "", "markersize": 4}


def _why(row: Row) -> dict[str, Any] | None:
    """How a row without a result is marked."""
    return None if figures.measured(row) else FAILED if row.get("ok", True) is False else REFUSED


def _folded(text: str, width: int, most: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, max_lines=most, placeholder=" …")


def _shortened(name: str, length: int = NAME_LENGTH) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


class _Suite:
    """A suite's bars: the passes side by side, with the same layers and axis."""

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        self.name, self.rows, self.label = name, rows, figures.layers(rows)
        self.layers = list(dict.fromkeys(self.label.values()))
        self.measure = figures.measure(rows)
        self.lengths = figures.lengths(rows, self.measure)
        self.logarithmic = figures.logarithmic(self.lengths)

    def height(self, algorithms: int) -> float:
        """Of its panels, in inches."""
        return len(self.layers) * (max(1, algorithms) * BAR + GAP)

    def draw(
        self, panels: Sequence[Axes], passes: Sequence[str], colours: dict[str, str], ceiling: figures.Ceiling
    ) -> None:
        roof = self._roof(ceiling)
        for axes, name in zip(panels, passes, strict=True):
            self._bars(axes, [row for row in self.rows if figures.plain(row["pass"]) == name], colours)
            if self.logarithmic:
                axes.set_xscale("log")
            if roof is not None:
                axes.axvline(roof, color=INK, linestyle="--", linewidth=0.9)
            title = " · ".join(filter(None, (self.name, figures.words(name))))
            axes.set_title(_shortened(title, 50), loc="left", weight="bold")
            more = "more" if self.measure.more_is_better else "less"
            axes.set_xlabel(f"{self.measure.label}{', logarithmic' * self.logarithmic} ({more} is better)", color=FAINT)
            _plain_axis(axes, labeltop=self.height(len(colours)) > TALL)
        limits = [axes.get_xlim() for axes in panels]
        left, right = min(low for low, _ in limits), max(high for _, high in limits)
        for axes in panels:
            axes.set_xlim(left if self.logarithmic else 0, right)
        for axes in panels[1:]:
            axes.tick_params(labelleft=False)

    def _roof(self, ceiling: figures.Ceiling) -> float | None:
        """The ceiling of arithmetic where bars come near it; one far off would only squeeze them."""
        if not ceiling.tflops or not self.measure.label.endswith("FLOP/s"):
            return None
        roof = ceiling.tflops * figures.rates(self.rows).scale
        return roof if self.logarithmic or roof < NEAR * max(self.lengths, default=0.0) else None

    def _bars(self, axes: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
        """One panel: a band for each layer, in it a bar for each algorithm and the fastest reference as a line."""
        step = 1 / (len(colours) + GAP / BAR) if colours else 1.0
        offsets = {name: step * (index - (len(colours) - 1) / 2) for index, name in enumerate(colours)}
        for row in rows:
            name = figures.plain(row.get("algorithm"))
            place = self.layers.index(self.label[id(row)]) + offsets[name]
            if style := _why(row):
                axes.plot(0.008, place, transform=axes.get_yaxis_transform(), zorder=4, **style)
            elif value := self.measure.value(row):
                axes.barh(place, value, height=step * 0.92, color=colours[name], zorder=2)
        for position, layer in enumerate(self.layers):
            own = [row for row in rows if self.label[id(row)] == layer and figures.measured(row)]
            if marks := [mark for row in own if (mark := self.measure.of_reference(row))]:
                mark = max(marks) if self.measure.more_is_better else min(marks)
                axes.vlines(mark, position - 0.46, position + 0.46, color=INK, linewidth=1.6, zorder=3)
            if position % 2:
                axes.axhspan(position - 0.5, position + 0.5, color="#f2f2f2", zorder=0)
        axes.set_yticks(range(len(self.layers)), [_shortened(layer) for layer in self.layers])
        axes.set_ylim(len(self.layers) - 0.5, -0.5)


NEAR = 2.0
TALL = 8.0  # inches: panels whose axis is also written on top


def _plain_axis(axes: Axes, labeltop: bool) -> None:
    """Numbers in full, lines behind the bars, no box."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: figures.tick(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=1)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=INK, labeltop=labeltop)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _roofline(axes: Axes, rows: Sequence[Row], name: str, colours: dict[str, str], result: results.Result) -> None:
    """Rate over FLOP per byte, both as if computed directly and moved once: above a roof, an algorithm saves work."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    found, rate = figures.points(result["rows"]), figures.rates(result["rows"])
    scale = rate.scale
    for point in figures.points(rows):
        algorithm = figures.plain(point.row.get("algorithm"))
        shape = MARKERS[list(colours).index(algorithm) % len(MARKERS)]
        axes.plot(
            point.intensity, point.tflops * scale, shape, color=colours[algorithm], markersize=4, alpha=0.85, zorder=3
        )
    low, high = (pick(point.intensity for point in found) for pick in (min, max))
    low, high = min(low, figures.ceiling(result).ridge or low) / 2, high * 2
    roof = figures.roof(figures.ceiling(result), low, high)
    if roof:
        axes.plot([x for x, _ in roof], [y * scale for _, y in roof], "--", color=INK, linewidth=0.9, zorder=2)
    rates = [point.tflops * scale for point in found] + [y * scale for _, y in roof]
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(min(rates) / 1.6, max(rates) * 1.6))
    axes.set_title(f"roofline · {figures.words(name)}", loc="left", weight="bold")
    axes.set_xlabel("FLOP per byte of inputs and outputs", color=FAINT)
    axes.set_ylabel(f"effective {rate.unit}", color=FAINT)
    for axis, (least, most) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if most < 200 * least else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: figures.tick(value)))
        axis.set_minor_locator(NullLocator())
    axes.grid(color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
