"""Networks beside PyTorch: images a second, trained and evaluated; and what a launch costs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import launch, models, optim
from gpucnn.bench import launches, layers, peer, timing
from gpucnn.bench.report import Report, main
from gpucnn.random import manual_seed
from gpucnn.tensor import Tensor, no_grad
from gpucnn.train import CapturedStep, Step

RATE = 1e-5  # so small that a batch seen often is not learned by heart: its gradients would be denormal, slow
LOGITS_LIMIT = 1e-4  # of the largest logit: sixteen layers of float32, each in another order


def cases(report: Report) -> None:
    """Launches first; then each network in both libraries, with TF32 off and on in PyTorch."""
    launches.cases(report)
    for step in layers.steps(report.quick):
        for mode in ("inference", "training"):
            labels = {"network": step.model, "batch": step.batch, "mode": mode}
            if report.torch is not None:
                torch_rows(report, step, labels)
            report.add(partial(ours_row, report, step, labels), library="gpucnn", **labels)
            if step.model == "lenet5":
                report.add(partial(plan_row, report, step, labels), library="gpucnn plan", **labels)
            peer.free_memory(report.device)


def inputs(step: layers.Step, device: str) -> tuple[models.Network, Any, Any]:
    """The network, images (N, C, H, W) and labels (N,) on a device; the same at every call."""
    manual_seed(0)
    model = models.create(step.model, image_size=step.image_size, width=step.width)
    labels = np.random.default_rng(1).integers(0, model.arguments["num_classes"], step.batch)
    images = peer.random((step.batch, *model.input_shape), 0, device)
    model.to(device)
    return model, images, devices.move(labels, device)


def ours(step: layers.Step, device: str, training: bool) -> Callable[[], Any]:
    """A function that takes one step in gpucnn and returns the logits, or the loss."""
    model, images, labels = inputs(step, device)
    x = Tensor(images)
    if not training:
        model.eval()

        def evaluate() -> Any:
            with no_grad():
                return model(x).data

        return evaluate
    optimizer = optim.SGD(model.parameters(), lr=RATE, momentum=0.9)

    def train() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.data

    return train


def theirs(step: layers.Step, device: str, training: bool, channels_last: bool) -> Callable[[], Any]:
    """The same step in PyTorch, from the same weights."""
    module = peer.torch(device)
    model, images, labels = inputs(step, device)
    twin, x, y = peer.twin(model, device), peer.to_torch(images), peer.to_torch(labels)
    if channels_last:
        twin, x = twin.to(memory_format=module.channels_last), x.contiguous(memory_format=module.channels_last)
    if not training:
        twin.eval()

        def evaluate() -> Any:
            with module.no_grad():
                return twin(x)

        return evaluate
    optimizer = module.optim.SGD(twin.parameters(), lr=RATE, momentum=0.9)

    def train() -> Any:
        optimizer.zero_grad()
        loss = module.nn.functional.cross_entropy(twin(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train


def torch_rows(report: Report, step: layers.Step, labels: dict[str, Any]) -> None:
    """PyTorch in both layouts, with TF32 off and on."""

    def measure(channels_last: bool, tf32: bool) -> dict[str, Any]:
        with peer.tf32(report.torch, tf32):
            return columns(theirs(step, report.device, labels["mode"] == "training", channels_last), report, step)

    for layout in ("nchw", "channels_last"):
        for tf32 in peer.settings(report.device):
            run = partial(measure, layout == "channels_last", tf32)
            report.add(run, library="torch", layout=layout, tf32=tf32, **labels)


def ours_row(report: Report, step: layers.Step, labels: dict[str, Any]) -> dict[str, Any]:
    """gpucnn: logits, or the first loss of a network without dropout, beside PyTorch's or the CPU's, and the time."""
    training = labels["mode"] == "training"
    run = ours(step, report.device, training)
    result = {}
    if not training or step.model == "lenet5":  # dropout differs between the libraries
        result = check(run(), reference(report.device, step, training))
    result = {**result, **columns(run, report, step)}
    other = report.find(library="torch", layout="nchw", tf32=False, **labels)
    return {**result, "ratio": other["ms"] / result["ms"]} if other and other["ok"] else result


def reference(device: str, step: layers.Step, training: bool) -> np.ndarray:
    """PyTorch's result without TF32 on a GPU, else the CPU's."""
    if not device.startswith("cuda"):
        return devices.to_numpy(ours(step, "cpu", training)())
    if peer.torch(device) is None:
        raise ValueError("there is no PyTorch with CUDA to check large results against")
    with peer.tf32(peer.torch(device), False):
        return theirs(step, device, training, False)().cpu().numpy()


def check(got: Any, want: np.ndarray) -> dict[str, Any]:
    error = float(abs(devices.to_numpy(got) - want).max() / abs(want).max())
    if error <= LOGITS_LIMIT:
        return {"error": error}
    return {"ok": False, "error": repr(error), "reason": f"error {error:.3g}, limit {LOGITS_LIMIT:g} of the largest"}


def plan_row(report: Report, step: layers.Step, labels: dict[str, Any]) -> dict[str, Any]:
    """The launches of an evaluation or a step, recorded and replayed, by graph on a GPU; the same logits or loss."""
    engine = launches.engine("native" if report.device.startswith("cuda") else "sim")
    if labels["mode"] == "training":
        with engine:
            return captured_row(report, step)
    run = ours(step, report.device, False)
    with engine:
        run()
        with launch.recording() as plan:
            logits = run()
        want = devices.to_numpy(logits).copy()
        if not plan.launches:
            return {"skipped": "nothing in it is a launch"}
        if report.device.startswith("cuda"):
            plan.capture()
        logits[...] = np.nan
        result = columns(plan.replay, report, step)
    return {**check(logits, want), **result, "launches": len(plan)}


def captured_row(report: Report, step: layers.Step) -> dict[str, Any]:
    """A CapturedStep's time, and its third loss, the first of a replay, beside that of an ordinary step."""
    losses = []
    for kind in (Step, CapturedStep):
        model, images, labels = inputs(step, report.device)
        stepper = kind(model, optim.SGD(model.parameters(), lr=RATE, momentum=0.9))
        run = partial(take_step, stepper, images, labels)
        losses.append([devices.to_numpy(run()).copy() for _ in range(3)][-1])
    assert isinstance(stepper, CapturedStep)
    return {**check(losses[1], losses[0]), **columns(run, report, step), "launches": stepper.launches}


def take_step(stepper: Step, images: Any, labels: Any) -> Any:
    """One training step; its loss."""
    loss, _ = stepper.backward(images, labels)
    stepper.update()
    return loss.data


def columns(run: Callable[[], Any], report: Report, step: layers.Step) -> dict[str, Any]:
    """Times, and images a second."""
    found = timing.measure(run, timing.clock_of(report.device), report.seconds(2.0), None, 3)
    return {**found.milliseconds(), "images_per_second": step.batch / found.median}


if __name__ == "__main__":
    sys.exit(main("net", cases))
