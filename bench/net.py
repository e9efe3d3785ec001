"""Networks beside PyTorch: images a second and most memory, trained and evaluated; and what a launch costs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import launch, models, optim
from gpucnn.bench import counters, cpu, launches, layers, peer, references, report, timing
from gpucnn.bench.contest import Arena, Limits
from gpucnn.bench.report import Report
from gpucnn.bench.results import fastest_reference
from gpucnn.random import manual_seed
from gpucnn.tensor import Tensor, no_grad
from gpucnn.train import CapturedStep, Step

PASSES = ("train", "infer")
RATE = 1e-5  # so small that a batch seen often is not learned by heart: its gradients would be denormal, slow
LIMIT = 1e-4  # of the largest logit or gradient: sixteen layers of float32, each in another order
CHECKED_IMAGES = 2  # that the answer is checked with; float64 takes its time
BATCHES = {"cpu": 8, "sim": 2}
GPU_BATCH = 64
LONGEST_TURN = 1.0  # seconds, on the CPU


def step_of(model: str, batch: int | None, image_size: int | None, device: str) -> layers.Step:
    """The network at a batch that the device takes; raises ValueError for an unknown one."""
    if model not in models.names():
        raise ValueError(f"model {model!r} is unknown; use one of {', '.join(models.names())}")
    size = image_size or (28 if model == "lenet5" else 224)
    return layers.Step(model, batch or BATCHES.get(device.partition(":")[0], GPU_BATCH), size)


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


def answers(step: layers.Step, device: str, training: bool, dtype: str) -> list[np.ndarray]:
    """The logits; or the loss and the first layer's gradient, of a step whose dropout is the same everywhere."""
    model, images, labels = inputs(step, device)
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(dtype, copy=False)
    x = Tensor(images.astype(dtype, copy=False))
    if not training:
        model.eval()
        with no_grad():
            return [devices.to_numpy(model(x).data)]
    manual_seed(0)
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    first = next(iter(model.parameters())).grad
    assert first is not None
    return [devices.to_numpy(loss.data), devices.to_numpy(first.data)]


def checked(step: layers.Step, device: str, training: bool) -> dict[str, Any]:
    """The largest error of the answers for a few images, of the largest value in float64 on the CPU."""
    few = layers.Step(step.model, min(step.batch, CHECKED_IMAGES), step.image_size, step.width)
    pairs = zip(answers(few, device, training, "float32"), answers(few, "cpu", training, "float64"), strict=True)
    errors = [float(abs(got - want).max() / abs(want).max()) for got, want in pairs]
    worst = max(error if error == error else float("inf") for error in errors)
    if worst <= LIMIT:
        return {"max_error": worst}
    return {"ok": False, "max_error": worst, "reason": f"wrong: error {worst:.3g} of the largest, limit {LIMIT:g}"}


def labels_of(step: layers.Step, pass_: str, algorithm: str = "auto") -> dict[str, Any]:
    """What a row is known by."""
    return {"suite": "net", "layer": step.model, "pass": pass_, "algorithm": algorithm, "batch": step.batch}


def measure(
    arena: Arena,
    steps: list[layers.Step],
    passes: tuple[str, ...] = PASSES,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> None:
    """A row for each network, trained or evaluated; on a GPU one more of the recorded launches."""
    kinds = {"cpu": cpu_row, "sim": simulated_row}
    for step, pass_ in progress([(step, pass_) for step in steps for pass_ in passes]):
        row = kinds.get(arena.device, gpu_row)
        arena.report.add(partial(row, arena, step, pass_), **labels_of(step, pass_))
        if step.model == "lenet5" and arena.device != "cpu":
            recorded = {"infer": plan_row, "train": captured_row}[pass_]
            arena.report.add(partial(recorded, arena, step), **labels_of(step, pass_, "plan"))
        peer.free_memory(arena.device)


def described(step: layers.Step) -> dict[str, Any]:
    """What a row holds besides figures."""
    return {"shape": f"batch {step.batch}, {step.image_size}x{step.image_size}"}


def cpu_row(arena: Arena, step: layers.Step, pass_: str) -> dict[str, Any]:
    """Each library in a process of its own, taking turns."""
    found = {**described(step), **checked(step, "cpu", pass_ == "train")}
    case = cpu.Case(step.model, {"train": "train", "infer": "forward"}[pass_], step.batch, step.image_size)
    library = arena.worker.library if arena.worker is not None else None
    if library == "onnxruntime":
        raise ValueError("--reference onnxruntime: networks are compared with torch, or none")
    seconds = min(LONGEST_TURN, arena.limits.max_seconds / arena.limits.repeat)
    others = cpu.turns(case, arena.limits.repeat, seconds, ("gpucnn", *([library] if library else [])))
    timings = {name: timing.summarize(times) for name, (times, _) in others.items()}
    peaks = {name: peak for name, (_, peak) in others.items()}
    beside: dict[str, float | None] = {name: found.median * 1e3 for name, found in timings.items() if name != "gpucnn"}
    rows = {**found, **rates(timings["gpucnn"], step, beside), "peak_bytes": peaks.pop("gpucnn")}
    return {**rows, "reference_peak_bytes": peaks}


def rates(found: timing.Timing, step: layers.Step, beside: dict[str, float | None]) -> dict[str, Any]:
    """Times, images a second, references and the ratio to the fastest."""
    fastest = fastest_reference(beside, "fp32")
    ratio = fastest / (found.median * 1e3) if fastest else None
    return {
        **found.milliseconds(),
        "images_per_second": step.batch / found.median,
        "references": beside,
        "ratio": ratio,
    }


def simulated_row(arena: Arena, step: layers.Step, pass_: str) -> dict[str, Any]:
    """Counters of one step."""
    run = ours(step, "sim", pass_ == "train")
    model, images, _ = inputs(step, "cpu")
    ideal = images.nbytes + sum(parameter.data.nbytes for parameter in model.parameters())
    _, counted = counters.count(run, ideal)
    return {**described(step), **checked(step, "sim", pass_ == "train"), "counters": counted}


def gpu_row(arena: Arena, step: layers.Step, pass_: str) -> dict[str, Any]:
    """By events, beside PyTorch in both layouts, with TF32 off and on."""
    training, device = pass_ == "train", arena.device
    found = {**described(step), **checked(step, device, training)}
    beside: dict[str, float | None] = {}
    reference_peaks: dict[str, int] = {}
    module = arena.report.torch
    for layout in ("nchw", "nhwc") if module is not None else ():
        for tf32 in (False, True):
            name = references.reference_name("conv", layout, tf32)
            with peer.tf32(module, tf32):
                module.cuda.reset_peak_memory_stats()
                run = theirs(step, device, training, layout == "nhwc")
                beside[name] = timed(arena, run).median * 1e3
                reference_peaks[name] = module.cuda.max_memory_allocated()
            del run
            peer.free_memory(device)
    peer.free_memory(device)
    own = timed(arena, ours(step, device, training))
    peak = devices.cupy().get_default_memory_pool().total_bytes()
    return {**found, **rates(own, step, beside), "peak_bytes": peak, "reference_peak_bytes": reference_peaks}


def timed(arena: Arena, run: Callable[[], Any]) -> timing.Timing:
    """A step is long: its caches are its own."""
    return timing.measure(run, arena.clock, arena.report.seconds(2.0), None, 3)


def plan_row(arena: Arena, step: layers.Step) -> dict[str, Any]:
    """The launches of one evaluation recorded and replayed, by graph on a GPU; it must give the same logits."""
    device = arena.device
    run = ours(step, device, False)
    with launches.engine("native" if device.startswith("cuda") else "sim"):
        run()
        with launch.recording() as plan:
            logits = run()
        want = devices.to_numpy(logits).copy()
        if device.startswith("cuda"):
            plan.capture()
        logits[...] = np.nan
        if device == "sim":
            _, counted = counters.count(plan.replay, want.nbytes)
            result: dict[str, Any] = {"counters": counted}
        else:
            result = rates(timed(arena, plan.replay), step, {})
    error = float(abs(devices.to_numpy(logits) - want).max() / abs(want).max())
    if not error <= LIMIT:
        return {"ok": False, "reason": f"the replay gives other logits: {error:.3g}", "max_error": error}
    return {**described(step), **result, "max_error": error, "launches": len(plan)}


def captured_row(arena: Arena, step: layers.Step) -> dict[str, Any]:
    """A CapturedStep: its third loss, the first of a replay, must be that of an ordinary step."""
    losses = []
    with launches.engine("native" if arena.device.startswith("cuda") else "sim"):
        for kind in (Step, CapturedStep):
            model, images, labels = inputs(step, arena.device)
            stepper = kind(model, optim.SGD(model.parameters(), lr=RATE, momentum=0.9))
            run = partial(take_step, stepper, images, labels)
            losses.append([devices.to_numpy(run()).copy() for _ in range(3)][-1])
        assert isinstance(stepper, CapturedStep)
        if arena.device == "sim":
            _, counted = counters.count(run, images.nbytes)
            result: dict[str, Any] = {"counters": counted}
        else:
            result = rates(timed(arena, run), step, {})
    error = float(abs(losses[1] - losses[0]).max() / abs(losses[0]).max())
    if not error <= LIMIT:
        return {"ok": False, "reason": f"the replay gives another loss: {error:.3g}", "max_error": error}
    return {**described(step), **result, "max_error": error, "launches": stepper.launches}


def take_step(stepper: Step, images: Any, labels: Any) -> Any:
    """One training step; its loss."""
    loss, _ = stepper.backward(images, labels)
    stepper.update()
    return loss.data


def cases(found: Report) -> None:
    """The GPU suite's part: launches first."""
    launches.cases(found)
    measure(Arena(found, Limits()), list(layers.steps(found.quick)), ("infer", "train"))


if __name__ == "__main__":
    sys.exit(report.main("net", cases))
