"""gpucnn tune."""

from __future__ import annotations

import json as jsons
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from gpucnn import device as devices
from gpucnn import models, nn, ops
from gpucnn.bench import tune as tuning
from gpucnn.bench.policies import POLICIES
from gpucnn.cli import options
from gpucnn.ops import conv_tuning

ALL_PASSES = ",".join(ops.PASSES)
WIDTH = 140  # columns where the output is no terminal


def _precision(text: str) -> str:
    if text not in POLICIES:
        raise typer.BadParameter(f"{text!r} is not a precision: {', '.join(POLICIES)}")
    return text


def _passes(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(options.convolution_pass(part) for part in text.split(",")))


def tune(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="lenet5, alexnet, vgg11 … vgg19, vgg11_bn … vgg19_bn.")
    ] = None,
    variant: options.Variant = None,
    width: options.Width = None,
    image_size: options.ImageSize = None,
    batch_size: Annotated[int, options.count("N", "Images that the convolutions take.")] = 32,
    passes: Annotated[
        Any, typer.Option(parser=_passes, metavar="PASS,…", help="forward, backward_input and backward_weight.")
    ] = ALL_PASSES,
    device: options.Device = None,
    precision: Annotated[
        str, typer.Option(parser=_precision, metavar="NAME", help=f"Results are for it alone: {', '.join(POLICIES)}.")
    ] = "float32",
    workspace_limit: options.WorkspaceLimit = None,
    rounds: Annotated[int, options.count("N", "Turns of each algorithm, at least three.")] = tuning.ROUNDS,
    list_results: Annotated[bool, typer.Option("--list", help="List the results that there are.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all results.")] = False,
    json: options.Json = None,
) -> None:
    """Measure every algorithm on every convolution of a network, and let "auto" take the fastest from now on."""
    options.check_output(json)
    if (model is not None) + list_results + clear != 1:
        raise typer.BadParameter("name a MODEL, or --list, or --clear, and one of them only")
    if clear:
        print(f"removed {len(conv_tuning.clear())} files of tuning results")
    elif list_results:
        _list()
    else:
        arguments = {"variant": variant, "width": width, "image_size": image_size}
        given = {name: value for name, value in arguments.items() if value is not None}
        _tune(str(model), given, batch_size, passes, device or "auto", precision, workspace_limit, rounds, json)


def _tune(
    model: str,
    arguments: dict[str, Any],
    batch_size: int,
    passes: tuple[str, ...],
    device: str,
    precision: str,
    limit: int | None,
    rounds: int,
    json: Any,
) -> None:
    device, policy = devices.resolve(device), POLICIES[precision]
    if device == "sim":
        raise ValueError("device 'sim': times of the simulator tell nothing of a GPU's; use 'cpu' or 'cuda'")
    if device == "cpu" and policy.on_tensor_cores:
        raise ValueError(f"--precision {precision}: the CPU computes in float32 and float64; use --device cuda")
    if device != "cpu" and policy.dtype == "float64":
        raise ValueError("--precision float64: kernels compute in float32; use --device cpu")
    devices.use(device)
    with nn.init.skipped():
        network = models.create(model, **arguments)
    cases = tuning.cases(network, batch_size, passes)
    results: list[tuning.Result] = []
    try:
        for result in tqdm(
            tuning.tune(cases, device, limit, rounds=rounds, policy=policy), total=len(cases), disable=None
        ):
            results.append(result)
    except KeyboardInterrupt:
        print(f"interrupted: {len(results)} of {len(cases)} are measured, and kept")
        raise
    finally:
        options.write_json(json, [_row(result) for result in results])
        if results:
            _print(results)
    print(f"kept in {conv_tuning.path_of(device)}")


def _row(result: tuning.Result) -> dict[str, Any]:
    return {
        "pass": result.case.operation,
        "shape": result.case.shape._asdict(),
        "milliseconds": result.milliseconds,
        "refused": result.refused,
        "before": result.before,
    }


def _print(results: list[tuning.Result]) -> None:
    """A row for each case; "before" is what auto took without results, and how much longer that takes."""
    table = Table()
    for heading in ("pass", "N C H W K R S", "fastest", "ms", "before", "times"):
        table.add_column(heading, justify="right" if heading in ("ms", "times") else "left")
    for result in results:
        what = result.case.operation.removeprefix("conv2d_"), " ".join(map(str, result.case.shape[:7]))
        if not result.milliseconds:
            table.add_row(*what, "none", "", result.before, "; ".join(result.refused.values()))
            continue
        best = result.milliseconds[result.fastest]
        other = result.milliseconds.get(result.before)
        table.add_row(*what, result.fastest, f"{best:.3f}", result.before, f"{other / best:.2f}" if other else "failed")
    console = Console()
    Console(width=console.width if console.is_terminal else WIDTH).print(table, highlight=False)


def _list() -> None:
    """A line for each file: device, threads, version, and whether they are used here."""
    current = {conv_tuning.path_of(device) for device in ("cpu", *(["cuda"] if devices.has_cuda() else []))}
    paths = list(conv_tuning.stored())
    for path in paths:
        try:
            content = jsons.loads(path.read_bytes())
            text = f"{content['device']}, {content['threads'] or 'no'} threads, gpucnn {content['version']}"
            text += f": {len(content['entries'])} convolutions"
        except (OSError, ValueError, KeyError, TypeError):
            text = "damaged"
        print(f"{path}: {text}{'' if path in current else ', not used here'}")
    if not paths:
        print("no tuning results")
