"""gpucnn explain: why an algorithm is chosen."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gpucnn import dtypes, ops
from gpucnn.cli import options
from gpucnn.ops.cards import CARDS, Card, named
from gpucnn.precision import PRECISIONS
from gpucnn.precision import precision as use_precision
from gpucnn.train.rules import COUNT, Rule

explain = typer.Typer(add_completion=False, rich_markup_mode=None, help="Say which algorithm is chosen, and why.")
NOT_NEGATIVE = Rule(int, "a whole number of at least 0", lambda value: value >= 0)
WIDTH = 160  # columns where the output is no terminal
BOUNDS = {"memory": "memory", "l2": "L2 cache", None: ""}


@explain.callback()
def explaining() -> None:
    """Say which algorithm is chosen, and why."""


def _pair(rule: Rule) -> Any:
    """A parser of 2 or 2x1, height and width."""

    def parse(text: str) -> tuple[int, int]:
        parts = [options.number(rule)(part) for part in text.split("x")]
        if len(parts) > 2:
            raise typer.BadParameter(f"{text!r} is not a number or HEIGHTxWIDTH")
        return parts[0], parts[-1]

    return parse


def _gpu(text: str) -> Card:
    try:
        return named(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _size(name: str) -> Any:
    return typer.Argument(parser=options.number(COUNT), metavar=name)


def _geometry(help: str, rule: Rule = COUNT) -> Any:
    return typer.Option(parser=_pair(rule), metavar="N[xN]", help=help)


@explain.command()
def conv(
    n: Annotated[int, _size("N")],
    c: Annotated[int, _size("C")],
    h: Annotated[int, _size("H")],
    w: Annotated[int, _size("W")],
    k: Annotated[int, _size("K")],
    r: Annotated[int, _size("R")],
    s: Annotated[int, _size("S")],
    stride: Annotated[Any, _geometry("Pixels from one output to the next.")] = "1",
    padding: Annotated[Any, _geometry("Pixels of zeros around the images.", NOT_NEGATIVE)] = "0",
    dilation: Annotated[Any, _geometry("Pixels from one tap to the next.")] = "1",
    groups: Annotated[int, options.count("N", "Groups of channels.")] = 1,
    which: Annotated[
        str, typer.Option("--pass", parser=options.convolution_pass, metavar="PASS", help=options.PASS_HELP)
    ] = "conv2d_forward",
    device: Annotated[
        str, typer.Option(parser=options.device_kind, metavar="NAME", help="auto, cpu, sim or cuda; needs no GPU.")
    ] = "auto",
    gpu: Annotated[
        Any,
        typer.Option(parser=_gpu, metavar="NAME", help=f"Reckon with {', '.join(CARDS)} instead of the one there is."),
    ] = None,
    algorithm: Annotated[str, typer.Option(metavar="NAME", help="Ask for this one.")] = "auto",
    precision: options.PrecisionName = "float32",
    dtype: options.DtypeName = "float32",
    workspace_limit: options.WorkspaceLimit = None,
    json: options.Json = None,
) -> None:
    """Print which algorithm convolves images N C H W with K filters of R x S pixels, why, and what the others cost."""
    options.check_output(json)
    shape = ops.conv_shape((n, c, h, w), (k, max(1, c // groups), r, s), stride, padding, dilation, groups)
    arguments = {"workspace_limit": workspace_limit, "algorithm": algorithm, "card": gpu}
    if precision not in PRECISIONS:
        dtype, precision = precision, "float32"
    with use_precision(precision):
        found = ops.explain(which, shape, device, dtypes.resolve(dtype), **arguments)
    request = {"pass": which, "shape": shape._asdict(), "device": device, "precision": precision, "dtype": dtype}
    options.write_json(json, request | _json(found, workspace_limit))
    console = Console()
    console = Console(width=console.width if console.is_terminal else WIDTH)
    allowed = dtype if dtype != "float32" else precision
    title = f"{which} on {device}: {shape.P}x{shape.Q} outputs" + f", {allowed}" * (allowed != "float32")
    console.print(_table(found, title), highlight=False)
    console.print(f"{found.algorithm}: {found.reason}", highlight=False, markup=False)


def _table(found: ops.Explanation, title: str) -> Table:
    """A row for each candidate; its floor is what the card's nominal rates allow, of memory or of multiply-adds."""
    table = Table(title=title, title_justify="left")
    measured = any(each.measured is not None for each in found.candidates)
    headings = ["algorithm", "GFLOP", "MB moved", "workspace MB"]
    headings += [f"{found.card.name} floor µs", "bound by", "planned µs"] if found.card else []
    headings += ["measured µs"] if measured else []
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "algorithm" else "right")
    table.add_column("refused because", overflow="fold")
    for each in found.candidates:
        row = ["> " * (each.name == found.algorithm) + each.name, _number(each.flops, 1e9), _number(each.bytes, 1e6)]
        row.append("" if each.workspace_bytes is None else f"{each.workspace_bytes / 1e6:,.1f}")
        bound = BOUNDS.get(each.bound, f"{each.arithmetic} rate")
        row += [_number(each.floor, 1e-6), bound, _number(each.planned, 1e-6)] if found.card else []
        row += [_number(each.measured, 1e-3)] if measured else []
        table.add_row(*row, each.refused or "")
    return table


def _number(value: float | None, unit: float) -> str:
    if value is None:
        return ""
    return f"{value / unit:,.2f}" if value >= unit else f"{value / unit:.4f}"


def _json(found: ops.Explanation, workspace_limit: int | None) -> dict[str, Any]:
    candidates = [
        {("floor_seconds" if key == "floor" else "planned_seconds" if key == "planned" else key): value
         for key, value in each._asdict().items()}
        for each in found.candidates
    ]  # fmt: skip
    return {
        "gpu": found.card.name if found.card else None,
        "workspace_limit": workspace_limit,
        "algorithm": found.algorithm,
        "reason": found.reason,
        "candidates": candidates,
    }
