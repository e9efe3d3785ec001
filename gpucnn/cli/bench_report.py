"""gpucnn bench report: all results that are kept, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpucnn.bench import pages


def report(
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="The page.")] = Path("report.html"),
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the geometric means here as Markdown.")
    ] = None,
    results: Annotated[
        Path, typer.Option("--results", metavar="DIR", help="The folder of results, one folder a device in it.")
    ] = pages.FOLDER,
) -> None:
    """All results below bench/results on one page, with tables and charts."""
    for path in pages.write_report(results, html, markdown):
        print(path)
    print(f"written: {', '.join(str(path) for path in (html, markdown) if path is not None)}")
