"""Training in bfloat16 beside float32: the same network, seed and batches; the losses must stay within 2 %.

python -m gpucnn.bench.mixed_precision [--device sim] [--network lenet5] [--steps 300] [--json FILE]

The float32 run is the CPU's, because the simulator would take as long for it as for bfloat16; so float32 of the first
steps runs on the device as well, and its losses must be the CPU's. What 2 % mean is told by more runs on the CPU:
float32 whose first weights are one unit in the last place larger, as any other order of sums would change them; float32
with other weights and batches; and bfloat16. The rates are small: at 1e-3 that unit alone takes the float32
losses of VGG-11 of width 1/8 7 % away.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpucnn import data, models, optim
from gpucnn import device as devices
from gpucnn.bench.machine import commit, processor
from gpucnn.files import write_atomically
from gpucnn.random import manual_seed
from gpucnn.train.step import Step

WINDOW = 50  # steps whose losses are averaged
LIMIT = 0.02  # of the mean of each window but the first, against float32's
AGREED_STEPS, AGREEMENT = 20, 1e-4  # float32 of the device and of the CPU, each loss
FLOAT16_STEPS = 20


class Task(NamedTuple):
    """A network with its options, which learns the bundled digits; AdamW's rate, images of a step, and steps."""

    network: str
    options: dict[str, Any]
    rate: float
    batch: int
    steps: int


TASKS = {
    "lenet5": Task("lenet5", {}, 3e-4, 32, 300),
    "vgg11_bn": Task("vgg11_bn", {"width": 0.0625, "image_size": 32, "dropout": 0.0}, 7e-5, 16, 200),
}


def batches(size: int, side: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shuffled batches of the training images, epoch after epoch."""
    images = data.load("digits").train.resize((side, side))
    normalize = data.Normalize(*images.statistics())
    loader = data.DataLoader(images, size, shuffle=True, drop_last=True, normalize=normalize, seed=seed)
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def losses(task: Task, precision: str, device: str, steps: int, seed: int = 0, nudged: bool = False) -> np.ndarray:
    """The loss of every step.

    - precision: of gpucnn.precision; float16 is trained with a GradScaler
    - seed: of weights and batches
    - nudged: the first weights are one unit in the last place larger
    """
    manual_seed(seed)
    network = models.create(task.network, in_channels=1, num_classes=10, **task.options)
    for parameter in network.parameters() if nudged else ():
        parameter.data[...] = np.nextafter(parameter.data, np.float32(np.inf))
    network.to(device)
    optimizer = optim.AdamW(network.parameters(), lr=task.rate)
    scaler = optim.GradScaler() if precision == "float16" else None
    step, found = Step(network, optimizer, precision=precision, scaler=scaler), []
    for _, (images, labels) in zip(range(steps), batches(task.batch, network.input_shape[1], seed), strict=False):
        loss, _ = step.backward(devices.move(images, device), labels)
        found.append(loss.item())
        step.update()
    return np.array(found)


def windows(found: np.ndarray) -> np.ndarray:
    """The mean of each WINDOW steps; steps that fill none are left out."""
    whole = len(found) // WINDOW * WINDOW
    return found[:whole].reshape(-1, WINDOW).mean(1)


def runs(task: Task, device: str, steps: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, losses) of all runs of a network, in the order in which `verdicts` needs them."""
    yield "float32", losses(task, "float32", "cpu", steps)
    yield "float32, one unit away", losses(task, "float32", "cpu", steps, nudged=True)
    yield "float32, another seed", losses(task, "float32", "cpu", steps, seed=1)
    yield "bfloat16 on the CPU", losses(task, "bfloat16", "cpu", steps)
    yield f"float32 on {device}", losses(task, "float32", device, min(AGREED_STEPS, steps))
    yield f"bfloat16 on {device}", losses(task, "bfloat16", device, steps)
    yield f"float16 on {device}", losses(task, "float16", device, min(FLOAT16_STEPS, steps))


def verdicts(found: dict[str, np.ndarray], device: str) -> dict[str, float]:
    """What is held, as fractions of float32's losses: the largest differences."""
    expected = found["float32"]
    same, half, brain = (found[f"{name} on {device}"] for name in ("float32", "float16", "bfloat16"))
    return {
        "agreement": float(abs(same / expected[: len(same)] - 1).max()),
        "bfloat16": float(abs(windows(brain) / windows(expected) - 1)[1:].max(initial=0.0)),
        "bfloat16_after_the_first_window": float(abs(brain[WINDOW:].mean() / expected[WINDOW:].mean() - 1)),
        "float16": float(abs(half.mean() / expected[: len(half)].mean() - 1)),
    }


def holds(verdict: dict[str, float]) -> bool:
    limits = {name: AGREEMENT if name == "agreement" else LIMIT for name in verdict}
    return all(verdict[name] <= limit for name, limit in limits.items())


def table(found: dict[str, np.ndarray]) -> str:
    """Means of windows: float32's, and how far the others are from it."""
    expected = windows(found["float32"])
    lines = [f"{'steps to':24}" + "".join(f"{(i + 1) * WINDOW:9}" for i in range(len(expected)))]
    lines.append(f"{'float32':24}" + "".join(f"{mean:9.4f}" for mean in expected))
    for name, each in found.items():
        means = windows(each)
        if name != "float32" and len(means):
            lines.append(f"{name:24}" + "".join(f"{m / e - 1:+9.2%}" for m, e in zip(means, expected, strict=False)))
    return "\n".join(lines)


def measure(name: str, device: str, steps: int | None) -> dict[str, Any]:
    """All runs of a network, printed; what a file keeps of it."""
    task, found = TASKS[name], {}
    task = task._replace(steps=steps or task.steps)
    for each, values in runs(task, device, task.steps):
        found[each] = values
        print(f"{name}: {each}: {len(values)} steps, the last loss {values[-1]:.4f}", flush=True)
    verdict = verdicts(found, device)
    print(table(found))
    print(", ".join(f"{key} {value:.2e}" for key, value in verdict.items()), flush=True)
    return {
        "settings": task._asdict(),
        "verdicts": verdict,
        "holds": holds(verdict),
        "windows": {each: windows(values).round(6).tolist() for each, values in found.items()},
        "losses": {each: values.round(6).tolist() for each, values in found.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    """Train, print a table, keep the figures; returns 1 where a limit is passed."""
    parser = argparse.ArgumentParser(prog="mixed_precision", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="sim", help="where 16 bits are trained: sim (default), cpu, cuda")
    parser.add_argument("--network", choices=TASKS, help="one of the networks (default: each)")
    parser.add_argument("--steps", type=int, help="how many (default: the network's own number)")
    parser.add_argument("--json", type=Path, help="where the figures go; networks that are not run stay in it")
    options = parser.parse_args(arguments)
    device, good = devices.resolve(options.device), True
    for name in [options.network] if options.network else TASKS:
        figures = measure(name, device, options.steps)
        good &= figures["holds"]
        if options.json:
            kept = json.loads(options.json.read_text()) if options.json.exists() else {}
            where = {"device": device, "processor": processor(), "commit": commit(), "date": time.strftime("%Y-%m-%d")}
            kept[name] = {**where, **figures}
            write_atomically(options.json, json.dumps(kept, indent=1).encode())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
