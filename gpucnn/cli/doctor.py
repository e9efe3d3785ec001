"""gpucnn doctor."""

from __future__ import annotations

import typer

from gpucnn.cli import options
from gpucnn.doctor import checks, exit_code, print_report, to_json


def doctor(json: options.Json = None) -> None:
    """Look at this machine and installation; name each problem with its fix. Exit code 1 if there is one."""
    options.check_output(json)
    found = checks()
    options.write_json(json, to_json(found))
    print_report(found)
    raise typer.Exit(exit_code(found))
