"""gpucnn sim: the simulator's checks and counters of the library's kernels."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gpucnn import simulation
from gpucnn.cli import options
from gpucnn.launch.simulator import Counts, Profile
from gpucnn.train.rules import Rule

sim = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="Run the CUDA kernels on the CPU, and look at them."
)
SIZE = Rule(int, "an integer of at least 0", lambda value: value >= 0)
WIDTH = 120  # columns where the output is no terminal


@sim.command()
def check(
    operations: Annotated[list[str] | None, typer.Argument(help="Operations; all if none is named.")] = None,
    json: options.Json = None,
) -> None:
    """Run the kernels in the modes fast, asan and race, in several schedules, and compare with the CPU's results."""
    options.check_output(json)
    chosen = operations or list(simulation.CASES)
    for operation in chosen:
        simulation.find(operation)
    findings = []
    for finding in simulation.check(chosen):
        findings.append(finding)
        name = finding.operation + (f" ({finding.algorithm})" if finding.algorithm else "")
        print(f"{name}: {finding.fault or 'sound'}, {finding.seconds:.1f} s", flush=True)
    options.write_json(json, [asdict(finding) for finding in findings])
    faults = sum(finding.fault is not None for finding in findings)
    print(f"{len(findings) - faults} of {len(findings)} sound")
    if faults:
        raise typer.Exit(1)


@sim.command()
def profile(
    operation: Annotated[str, typer.Argument(help=f"One of {', '.join(simulation.CASES)}.")],
    sizes: Annotated[
        list[int] | None,
        typer.Argument(
            metavar="N …", parser=options.number(SIZE), help="Its sizes, in the order that the output names them."
        ),
    ] = None,
    algorithm: Annotated[str, typer.Option(help="Of a convolution.")] = "auto",
    json: options.Json = None,
) -> None:
    """Count what a GPU's memory units would do in an operation's kernels, line by line."""
    options.check_output(json)
    chosen = simulation.sizes_of(operation, sizes or [])
    has_algorithms = simulation.find(operation).algorithms is not None
    usage = simulation.profile(operation, chosen, algorithm if has_algorithms else None)
    print(operation, *(f"{name}={size}" for name, size in chosen.items()))
    for kernel, found in usage.launches:
        _print_profile(kernel, found)
    moved = sum(counts.bytes for _, found in usage.launches for counts in _global(found))
    print(f"global memory: {moved:,} bytes asked for; inputs and outputs are {usage.ideal_bytes:,}")
    options.write_json(json, {"sizes": chosen, "ideal_bytes": usage.ideal_bytes, "launches": _rows(usage.launches)})


def _global(found: Profile) -> list[Counts]:
    return [counts for counts in found.lines.values() if counts.space == "global"]


def _print_profile(kernel: str, found: Profile) -> None:
    """A table of a launch: for shared memory a unit is a pass of its banks, for global memory a sector of 32 bytes."""
    table = Table(title=f"{kernel}: {found.flops:,} flops, {found.barriers:,} barriers", title_justify="left")
    for heading in ("line", "access", "requests", "bytes", "units", "a request", "ideal", "partial"):
        table.add_column(heading, justify="left" if heading in ("line", "access") else "right")
    for (line, _), c in sorted(found.lines.items()):
        access = f"{c.space} {'write' if c.writes else 'read'}"
        numbers = f"{c.requests:,}", f"{c.bytes:,}", f"{c.units:,}", f"{c.units / c.requests:.2f}"
        table.add_row(line, access, *numbers, f"{c.least / c.requests:.2f}", f"{c.partial:,}")
    console = Console()
    Console(width=console.width if console.is_terminal else WIDTH).print(table)


def _rows(launches: list[tuple[str, Profile]]) -> list[dict[str, object]]:
    return [
        {
            "kernel": kernel,
            "flops": found.flops,
            "barriers": found.barriers,
            "lines": [{"line": line, **asdict(counts)} for (line, _), counts in sorted(found.lines.items())],
        }
        for kernel, found in launches
    ]
