"""CPU speed beside PyTorch: each library in its own process, taking turns, with the same number of threads.

`python -m gpucnn.bench.cpu` prints, for each case, the median time of a step in both libraries and the ratio of the
images per second (above 1: gpucnn is faster). Two OpenMP runtimes in one process would falsify both.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
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
    "lenet5-train": Case("lenet5", "train", 128, 28),
    "lenet5-forward": Case("lenet5", "forward", 128, 28),
    # Each step is followed by a NumPy matrix product on all threads: two thread pools that fight would show here.
    "lenet5-train-blas": Case("lenet5", "train", 128, 28, beside_blas=True),
    "alexnet-train": Case("alexnet", "train", 8, 224),
    "alexnet-forward": Case("alexnet", "forward", 8, 224),
    "vgg16-train": Case("vgg16", "train", 8, 224),
    "vgg16-forward": Case("vgg16", "forward", 8, 224),
}


def main(
    case: Annotated[list[str] | None, typer.Option(help=f"one of {', '.join(CASES)}; may be repeated")] = None,
    rounds: Annotated[int, typer.Option(help="turns of each library; the median counts", min=1)] = 9,
    seconds: Annotated[float, typer.Option(help="length of a turn", min=0.01)] = 1.0,
    threads: Annotated[int, typer.Option(help="threads of both libraries; 0: GPUCNN_NUM_THREADS or all", min=0)] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the table to this file as well")] = None,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Time training steps beside PyTorch's CPU."""
    threads = threads or get_num_threads()
    chosen = case or ["lenet5-train", "lenet5-forward", "lenet5-train-blas"]
    for name in chosen:
        if name not in CASES:
            raise typer.BadParameter(f"--case {name}: use one of {', '.join(CASES)}")
    if worker:
        serve(worker, CASES[chosen[0]], threads, seconds)
        return
    rows = [compare(name, rounds, seconds, threads) for name in chosen]
    when = {"date": datetime.date.today().isoformat(), "commit": commit()}
    report = {"cpu": processor(), **when, "threads": threads, "rounds": rounds, "rows": rows}
    print_table(report)
    if json_file is not None:
        files.write_atomically(json_file, json.dumps(report, indent=1).encode() + b"\n")


def compare(name: str, rounds: int, seconds: float, threads: int) -> dict[str, Any]:
    """One row: both libraries' median seconds a step over `rounds` turns each, taken alternately."""
    options = ["--case", name, "--threads", str(threads), "--seconds", str(seconds)]
    command = [sys.executable, "-m", "gpucnn.bench.cpu", *options, "--worker"]
    workers = {
        library: subprocess.Popen([*command, library], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for library in ("gpucnn", "torch")
    }
    times: dict[str, list[float]] = {library: [] for library in workers}
    try:
        for _ in tqdm(range(rounds + 1), desc=name, disable=None, leave=False):
            for library, process in workers.items():
                times[library].append(take_turn(library, process))
    finally:
        for process in workers.values():
            process.kill()
            process.wait()
    ours, theirs = (statistics.median(times[library][1:]) for library in workers)  # the first turn warms up
    batch = CASES[name].batch
    return {
        "case": name,
        "batch": batch,
        "milliseconds": ours * 1e3,
        "torch_milliseconds": theirs * 1e3,
        "images_per_second": batch / ours,
        "ratio": theirs / ours,
    }


def take_turn(library: str, process: subprocess.Popen[str]) -> float:
    """Let one worker run for a turn while the other waits; returns its seconds a step."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        fix = "; install torch beside gpucnn" if library == "torch" else ""
        raise SystemExit(f"bench cpu: the {library} worker ended with exit code {process.wait()}{fix}")
    return float(answer)


def serve(library: str, case: Case, threads: int, seconds: float) -> None:
    """The worker: for each line on stdin, run steps for a turn and print the median seconds a step."""
    step = {"gpucnn": gpucnn_step, "torch": torch_step}[library](case, threads)
    matrix = np.ones((512, 512), np.float32)
    for _ in sys.stdin:
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            step()
            if case.beside_blas:
                np.matmul(matrix, matrix)
            times.append(time.perf_counter() - start)
        print(statistics.median(times), flush=True)


def inputs(case: Case) -> tuple[models.Network, np.ndarray, np.ndarray]:
    """The model, random images (N, C, H, W) and labels (N,); the same for both libraries."""
    model = models.create(case.model, image_size=case.image_size)
    generator = np.random.default_rng(0)
    images = generator.standard_normal((case.batch, *model.input_shape), dtype=np.float32)
    return model, images, generator.integers(0, model.arguments["num_classes"], case.batch)


def gpucnn_step(case: Case, threads: int) -> Callable[[], None]:
    """A function that takes one step in gpucnn."""
    set_num_threads(threads)
    model, images, labels = inputs(case)
    x = tensor(images)
    optimizer = optim.SGD(model.parameters(), lr=RATE, momentum=0.9)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    def forward() -> None:
        with no_grad():
            model.eval()(x)

    return train if case.step == "train" else forward


def torch_step(case: Case, threads: int) -> Callable[[], None]:
    """A function that takes the same step in PyTorch, with the same weights."""
    import torch

    torch.set_num_threads(threads)
    model, images, labels = inputs(case)
    twin = torch_twin(model)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(twin.parameters(), lr=RATE, momentum=0.9)

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(twin(x), y).backward()
        optimizer.step()

    def forward() -> None:
        with torch.no_grad():
            twin.eval()(x)

    return train if case.step == "train" else forward


def torch_twin(model: models.Network) -> Any:
    """The same layers with the same weights in PyTorch; features, avgpool if there is one, classifier."""
    import torch

    layers: list[nn.Module] = []
    for _, part in model.named_children():
        layers.extend(part if isinstance(part, nn.Sequential) else [part])
    if not any(isinstance(layer, nn.Flatten) for layer in layers):
        layers.insert(next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)), nn.Flatten())
    twin = torch.nn.Sequential(*map(torch_layer, layers))
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.copy_(torch.from_numpy(ours.data))
    return twin


def torch_layer(layer: nn.Module) -> Any:
    """The PyTorch module of one layer."""
    import torch

    match layer:
        case nn.Conv2d():
            options = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
            return torch.nn.Conv2d(layer.in_channels, layer.out_channels, *options)
        case nn.Linear():
            return torch.nn.Linear(layer.in_features, layer.out_features)
        case nn.MaxPool2d():
            return torch.nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding)
        case nn.AdaptiveAvgPool2d():
            return torch.nn.AdaptiveAvgPool2d(layer.output_size)
        case nn.Dropout():
            return torch.nn.Dropout(layer.p)
        case nn.ReLU():
            return torch.nn.ReLU()
        case nn.Flatten():
            return torch.nn.Flatten()
    raise ValueError(f"bench cpu: no PyTorch twin of {type(layer).__name__}")


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """The commit that this file comes from, "unknown" outside a checkout; "+" where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def print_table(report: dict[str, Any]) -> None:
    """The rows as a table, wide enough not to be cut when piped."""
    when = f"commit {report['commit']}, {report['date']}"
    table = Table(title=f"{report['cpu']}, {report['threads']} threads, median of {report['rounds']}, {when}")
    for heading in ("case", "batch", "gpucnn ms", "torch ms", "images/s", "ratio to torch"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for row in report["rows"]:
        times = f"{row['milliseconds']:.2f}", f"{row['torch_milliseconds']:.2f}"
        table.add_row(row["case"], str(row["batch"]), *times, f"{row['images_per_second']:.0f}", f"{row['ratio']:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
