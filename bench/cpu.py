"""CPU speed and memory beside PyTorch: each library in its own process, taking turns, with the same number of threads.

`python -m gpucnn.bench.cpu` prints, for each case, the median time of a step in both libraries, the ratio of the images
per second (above 1: gpucnn is faster) and the ratio of the most memory that the processes took (below 1: gpucnn takes
less); then the algorithms of convolution beside im2col. Two OpenMP runtimes in one process would falsify the times, and
two libraries in one process the memory.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from gpucnn import files, models, nn, optim
from gpucnn import functional as F
from gpucnn.bench import algorithms, machine, torch_worker
from gpucnn.tensor import no_grad, tensor
from gpucnn.threads import get_num_threads, set_num_threads

RATE = (
    1e-5  # so small that a batch seen a thousand times is not learned by heart: its gradients would be denormal, slow
)


class Case(NamedTuple):
    """What is timed: a training step or a forward pass of a model on one batch, alone or beside a NumPy GEMM."""

    model: str
    step: str
    batch: int
    image_size: int
    beside_blas: bool = False


CASES = {
    "lenet5-8-forward": Case("lenet5", "forward", 8, 28),
    "lenet5-8-train": Case("lenet5", "train", 8, 28),
    "lenet5-128-forward": Case("lenet5", "forward", 128, 28),
    "lenet5-128-train": Case("lenet5", "train", 128, 28),
    # Each step is followed by a NumPy matrix product on all threads: two thread pools that fight would show here.
    "lenet5-128-train-blas": Case("lenet5", "train", 128, 28, beside_blas=True),
    "alexnet-8-forward": Case("alexnet", "forward", 8, 224),
    "alexnet-8-train": Case("alexnet", "train", 8, 224),
    "vgg16-8-forward": Case("vgg16", "forward", 8, 224),
    "vgg16-8-train": Case("vgg16", "train", 8, 224),
}
ALL = (*CASES, *algorithms.LAYERS)
LIBRARIES = ("gpucnn", "torch")


def main(
    case: Annotated[list[str] | None, typer.Option(help=f"one of {', '.join(ALL)}; may be repeated")] = None,
    rounds: Annotated[int, typer.Option(help="turns of each library; the median counts", min=1)] = 9,
    seconds: Annotated[float, typer.Option(help="length of a turn", min=0.01)] = 1.0,
    threads: Annotated[int, typer.Option(help="threads of both libraries; 0: GPUCNN_NUM_THREADS or all", min=0)] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the tables to this file as well")] = None,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Time networks beside PyTorch's CPU, and algorithms of convolution beside im2col: all, or the named cases."""
    set_num_threads(threads or get_num_threads())
    if worker:
        own = Case(*json.loads(worker))
        torch_worker.serve(gpucnn_step(own), seconds, own.beside_blas)
        return
    chosen = case or list(ALL)
    for name in chosen:
        if name not in ALL:
            raise typer.BadParameter(f"--case {name}: use one of {', '.join(ALL)}")
    report: dict[str, Any] = {"cpu": machine.processor(), "date": datetime.date.today().isoformat()}
    report["torch"] = importlib.metadata.version("torch")
    report |= {"commit": machine.commit(), "threads": get_num_threads(), "rounds": rounds}
    try:
        report["rows"] = [compare(name, rounds, seconds) for name in chosen if name in CASES]
    except WorkerEnded as error:
        raise SystemExit(f"bench cpu: {error}") from None
    report["layers"] = [algorithms.measure(name, rounds) for name in chosen if name in algorithms.LAYERS]
    print_tables(report)
    if json_file is not None:
        files.write_atomically(json_file, json.dumps(report, indent=1).encode() + b"\n")


class WorkerEnded(RuntimeError):
    """The process of a library has ended by itself."""


def compare(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """One row: both libraries' median seconds a step over `rounds` turns each, taken alternately, and their memory."""
    others = machine.Others()
    found = turns(CASES[name], rounds, seconds, LIBRARIES, name)
    (ours, own_peak), (theirs, torch_peak) = ((statistics.median(times), peak) for times, peak in found.values())
    batch = CASES[name].batch
    return {
        "case": name,
        "batch": batch,
        "milliseconds": ours * 1e3,
        "torch_milliseconds": theirs * 1e3,
        "images_per_second": batch / ours,
        "ratio": theirs / ours,
        "peak_bytes": own_peak,
        "torch_peak_bytes": torch_peak,
        "others": others.share(),
    }


def turns(
    case: Case, rounds: int, seconds: float, libraries: tuple[str, ...] = LIBRARIES, name: str = ""
) -> dict[str, tuple[list[float], int]]:
    """Of each library: its seconds a step in each turn, and the most memory that its process took.

    The libraries take turns, one more than `rounds`: the first warms up. Raises WorkerEnded.
    """
    workers = start_workers(case, seconds, libraries)
    times: dict[str, list[float]] = {library: [] for library in workers}
    peaks: dict[str, int] = {}
    try:
        for _ in tqdm(range(rounds + 1), desc=name or case.model, disable=None, leave=False):
            for library, process in workers.items():
                seconds_a_step, peaks[library] = take_turn(library, process)
                times[library].append(seconds_a_step)
    finally:
        for process in workers.values():
            process.kill()
            process.communicate()
    return {library: (taken[1:], peaks[library]) for library, taken in times.items()}


def start_workers(case: Case, seconds: float, libraries: tuple[str, ...]) -> dict[str, subprocess.Popen[str]]:
    """The processes of a case, in sessions of their own: Ctrl-C is for this one. PyTorch's is told what to build."""
    options = ["--threads", str(get_num_threads()), "--seconds", str(seconds), "--worker", json.dumps(case)]
    commands = {
        "gpucnn": [sys.executable, "-m", "gpucnn.bench.cpu", *options],
        "torch": [sys.executable, torch_worker.__file__],
    }
    pipe = subprocess.PIPE
    workers = {
        library: subprocess.Popen(commands[library], stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        for library in libraries
    }
    if "torch" in workers:
        tell(workers["torch"], json.dumps(plan(case, seconds)))
    return workers


def tell(process: subprocess.Popen[str], line: str) -> None:
    """One line of input for a worker."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def take_turn(library: str, process: subprocess.Popen[str]) -> tuple[float, int]:
    """Let one worker run for a turn while the other waits; returns its seconds a step and its peak of memory."""
    assert process.stdout is not None
    try:
        tell(process, "go")
        seconds, peak = process.stdout.readline().split()
    except (BrokenPipeError, ValueError):
        fix = "; install torch beside gpucnn" if library == "torch" else ""
        raise WorkerEnded(f"the {library} worker ended with exit code {process.wait()}{fix}") from None
    return float(seconds), int(peak)


def gpucnn_step(case: Case) -> Callable[[], None]:
    """A function that takes one step in gpucnn."""
    model = models.create(case.model, image_size=case.image_size)
    model.train(case.step == "train")
    generator = np.random.default_rng(0)
    x = tensor(generator.standard_normal((case.batch, *model.input_shape), dtype=np.float32))
    labels = generator.integers(0, model.arguments["num_classes"], case.batch)
    optimizer = optim.SGD(model.parameters(), lr=RATE, momentum=0.9)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    def forward() -> None:
        with no_grad():
            model(x)

    return train if case.step == "train" else forward


def plan(case: Case, seconds: float) -> dict[str, Any]:
    """What PyTorch's process needs to know to take the same step."""
    model = models.create(case.model, image_size=case.image_size)
    return {
        "layers": torch_layers(model),
        "shape": (case.batch, *model.input_shape),
        "classes": model.arguments["num_classes"],
        "step": case.step,
        "rate": RATE,
        "threads": get_num_threads(),
        "seconds": seconds,
        "beside_blas": case.beside_blas,
    }


def torch_layers(model: models.Network) -> list[tuple[str, tuple[Any, ...]]]:
    """The same layers in PyTorch, as names and arguments; features, avgpool if there is one, classifier."""
    layers: list[nn.Module] = []
    for _, part in model.named_children():
        layers.extend(part if isinstance(part, nn.Sequential) else [part])
    if not any(isinstance(layer, nn.Flatten) for layer in layers):
        layers.insert(next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)), nn.Flatten())
    return [(type(layer).__name__, torch_arguments(layer)) for layer in layers]


def torch_arguments(layer: nn.Module) -> tuple[Any, ...]:
    """The arguments of the PyTorch module of one layer."""
    match layer:
        case nn.Conv2d():
            options = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
            return layer.in_channels, layer.out_channels, *options
        case nn.Linear():
            return layer.in_features, layer.out_features
        case nn.MaxPool2d():
            return layer.kernel_size, layer.stride, layer.padding
        case nn.AdaptiveAvgPool2d():
            return (layer.output_size,)
        case nn.Dropout():
            return (layer.p,)
        case nn.ReLU() | nn.Flatten():
            return ()
    raise ValueError(f"bench cpu: no PyTorch twin of {type(layer).__name__}")


def print_tables(report: dict[str, Any]) -> None:
    """The rows as tables, wide enough not to be cut when piped."""
    when = f"median of {report['rounds']}, commit {report['commit']}, {report['date']}"
    title = f"{report['cpu']}, {report['threads']} threads, {when}"
    console = Console(width=120)
    if report["rows"]:
        console.print(network_table(report["rows"], title))
    if report["layers"]:
        console.print(algorithms.table(report["layers"], f"forward convolution beside im2col, {title}"))


def network_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Networks beside PyTorch; speed and memory are ratios to its, others what other programs took of the machine."""
    table = Table(title=title)
    headings = ("batch", "gpucnn ms", "torch ms", "images/s", "speed", "gpucnn MB", "torch MB", "memory", "others")
    table.add_column("case", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        times = f"{row['milliseconds']:.2f}", f"{row['torch_milliseconds']:.2f}", f"{row['images_per_second']:.0f}"
        ours, theirs = row["peak_bytes"], row["torch_peak_bytes"]
        memory = f"{ours / 1e6:.0f}", f"{theirs / 1e6:.0f}", f"{ours / theirs:.2f}" if theirs else "unknown"
        table.add_row(row["case"], str(row["batch"]), *times, f"{row['ratio']:.2f}", *memory, f"{row['others']:.0%}")
    return table


if __name__ == "__main__":
    typer.run(main)
