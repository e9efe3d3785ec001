"""Trainer: a network, its optimiser, schedule and batches, and exactly how far they have come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import optim
from gpucnn.data import DataLoader, Dataset, Normalize
from gpucnn.models import Network
from gpucnn.precision import computing
from gpucnn.random import default_generator
from gpucnn.train import augmentation
from gpucnn.train.config import ENDLESS, TrainConfig
from gpucnn.train.diagnosis import NonFiniteError, first_non_finite, non_finite_weights
from gpucnn.train.evaluation import evaluate
from gpucnn.train.report import Report
from gpucnn.train.step import CapturedStep, Step

PLATEAU_PATIENCE = 5  # epochs without a better validation loss before the rate falls to a tenth
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": optim.SGD,
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "rmsprop": optim.RMSprop,
    "adagrad": optim.Adagrad,
    "adadelta": optim.Adadelta,
}
NO_SUMS = {"loss": 0.0, "correct": 0, "images": 0, "seconds": 0.0}


def nothing() -> None:
    """The default of hooks."""


class Trainer:
    """Trains `model` on `training` as `config` says, one epoch at a time; `state` and `load_state` stop and continue.

    - training, validation (or None): of the model's image size; normalize: their Normalize
    - capture: record a step's launches and replay them (`CapturedStep`); needs a device that runs kernels
    - epoch, batch, step: epochs behind it, batches of the running epoch behind it, optimiser's steps in all
    - history: one dictionary an epoch, the lines of metrics.jsonl; best: the entry of the best validation accuracy
    """

    def __init__(
        self,
        model: Network,
        config: TrainConfig,
        training: Dataset,
        validation: Dataset | None,
        normalize: Normalize,
        report: Report | None = None,
        capture: bool = False,
    ) -> None:
        self.model, self.config, self.validation, self.normalize = model, config, validation, normalize
        self.report = report or Report()
        augment, transform = augmentation.build(config.augment)
        self.loader = DataLoader(
            training,
            config.batch_size,
            shuffle=True,
            augment=augment,
            transform=transform,
            normalize=normalize,
            seed=config.seed,
        )
        self.optimizer = make_optimizer(config, model)
        self.scaler = optim.GradScaler() if config.precision == "float16" else None
        step = CapturedStep if capture else Step
        self.stepper = step(model, self.optimizer, precision=config.precision, scaler=self.scaler)
        self.schedule = make_schedule(config, self.optimizer, len(self.loader))
        self.epoch = self.batch = self.step = 0
        self.sums = dict(NO_SUMS)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None

    @property
    def done(self) -> bool:
        """Whether all epochs are over or validation has not improved for config.early_stop of them."""
        return is_done(self.config, self.epoch, self.best)

    def state(self) -> dict[str, Any]:
        """All that is not in the model, the optimiser and the random generator, as JSON can hold it."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "sums": dict(self.sums),
            "history": list(self.history),
            "best": self.best,
            "schedule": self.schedule.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, with model, optimiser and random generator restored already."""
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.sums, self.history, self.best = dict(state["sums"]), list(state["history"]), state["best"]
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])

    def run_epoch(self, after_step: Callable[[], None] = nothing) -> bool:
        """Train to the end of the running epoch, measure, and add to the history; return whether it is the best so far.

        after_step is called between steps and measurements; if it raises, the state is that after the last step.
        Raises NonFiniteError for a loss or weights that are not finite.
        """
        self.model.train()
        bar = self.report.bar(f"epoch {self.epoch + 1}/{self.config.epochs}", len(self.loader), self.batch)
        batches = self.loader.epoch(self.epoch, self.batch)
        uploaded = devices.uploaded(batches, self.model.device)
        try:
            with np.errstate(all="ignore"):  # what overflows is found in the loss
                self._run_steps(uploaded, bar, after_step)
        finally:
            bar.close()
            batches.close()
            uploaded.close()
        self.require_finite_weights()
        return self._close_epoch(after_step)

    def require_finite_weights(self) -> None:
        """Raise NonFiniteError if a weight is not a finite number."""
        weights = non_finite_weights(self.model)
        if weights:
            raise self._non_finite(f"the {weights} is not finite after step {self.step}")

    def _run_steps(self, batches: Any, bar: Any, after_step: Callable[[], None]) -> None:
        after_step()
        clock = time.perf_counter()
        for images, labels in batches:
            self._take_step(images, labels)
            self.sums["seconds"] += time.perf_counter() - clock
            bar.step(self.sums["loss"] / self.sums["images"], self.sums["correct"] / self.sums["images"])
            after_step()
            clock = time.perf_counter()

    def _take_step(self, images: Any, labels: Any) -> None:
        random_state = default_generator.get_state()
        loss, scores = self.stepper.backward(images, labels)
        value = float(loss.item())  # waits for a GPU, so that backward is launched before it
        if not math.isfinite(value):
            with computing(self.config.precision):
                layer = first_non_finite(self.model, images, random_state)
            raise self._non_finite(f"the loss is {value} at step {self.step + 1} (epoch {self.epoch + 1}): {layer}")
        if self.config.clip_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale(self.optimizer)
            optim.clip_grad_norm(self.optimizer.parameters, self.config.clip_norm)
        self.stepper.update()
        self.sums["loss"] += value * len(labels)
        self.sums["correct"] += int(np.count_nonzero(F.cast(scores.data, "float32").argmax(axis=1) == labels))
        self.sums["images"] += len(labels)
        self.sums["lr"] = self.optimizer.lr
        if isinstance(self.schedule, optim.Schedule):
            self.schedule.step()
        self.batch += 1
        self.step += 1

    def _non_finite(self, what: str) -> NonFiniteError:
        return NonFiniteError(f"{what}; use a smaller --lr than {self.config.lr:g}, such as {self.config.lr / 10:g}")

    def _close_epoch(self, after_step: Callable[[], None]) -> bool:
        """Turn the sums into an entry of the history, with the validation part measured."""
        images, seconds = self.sums["images"], self.sums["seconds"]
        entry = {
            "epoch": self.epoch + 1,
            "train_loss": self.sums["loss"] / images,
            "train_accuracy": self.sums["correct"] / images,
            "lr": self.sums["lr"],
            "images_per_second": images / seconds,
            "seconds": seconds,
        }
        if self.scaler is not None:
            entry |= {"loss_scale": self.scaler.factor, "skipped_steps": self.scaler.skipped}
        if self.validation is not None:
            entry |= self._validate(self.validation, after_step)
        improved = self.validation is not None and is_better(entry, self.best)
        if improved:
            self.best = entry
        if isinstance(self.schedule, optim.PlateauSchedule):
            self.schedule.step(entry["validation_loss"])
        self.history.append(entry)
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, dict(NO_SUMS)
        return improved

    def _validate(self, validation: Dataset, after_step: Callable[[], None]) -> dict[str, float]:
        found = evaluate(
            self.model,
            validation,
            self.normalize,
            report=self.report,
            title="validation",
            check=after_step,
            precision=self.config.precision,
        )
        if not math.isfinite(found.loss):
            raise self._non_finite(f"the validation loss is {found.loss} after step {self.step}")
        return {"validation_loss": found.loss, "validation_accuracy": found.accuracy}


def is_done(config: TrainConfig, epoch: int, best: dict[str, Any] | None) -> bool:
    """Whether a run with so many epochs behind it and this best entry is over."""
    stopped = config.early_stop is not None and best is not None and epoch - best["epoch"] >= config.early_stop
    return epoch >= config.epochs or stopped


def is_better(entry: dict[str, Any], best: dict[str, Any] | None) -> bool:
    """Whether the validation accuracy is higher, or equal with a lower loss."""
    if best is None:
        return True
    return (entry["validation_accuracy"], -entry["validation_loss"]) > (
        best["validation_accuracy"],
        -best["validation_loss"],
    )


def make_optimizer(config: TrainConfig, model: Network) -> optim.Optimizer:
    """The optimiser that `config` names, of all parameters of the model."""
    momentum = {"momentum": config.momentum} if config.optimizer in ("sgd", "rmsprop") else {}
    decay = {"weight_decay": config.weight_decay, "l1_decay": config.l1_decay}
    return OPTIMIZERS[config.optimizer](model.parameters(), lr=config.lr, **decay, **momentum)


def make_schedule(
    config: TrainConfig, optimizer: optim.Optimizer, steps: int
) -> optim.Schedule | optim.PlateauSchedule:
    """The schedule that `config` names; `steps` make an epoch."""
    if config.schedule == "plateau":
        return optim.PlateauSchedule(optimizer, factor=0.1, patience=PLATEAU_PATIENCE)
    total, warmup = config.epochs * steps, round(config.warmup * steps)
    if config.schedule == "one-cycle":
        return optim.OneCycleSchedule(optimizer, total)
    if config.schedule not in ENDLESS:
        warmup = min(warmup, total // 5)
    return optim.WarmupSchedule(optimizer, warmup, _after_warmup(config.schedule, optimizer, total - warmup))


def _after_warmup(schedule: str, optimizer: optim.Optimizer, total: int) -> optim.Schedule:
    """The schedule of that name over `total` steps."""
    if schedule == "constant":
        return optim.ConstantSchedule(optimizer)
    if schedule == "step":
        return optim.StepSchedule(optimizer, step_size=math.ceil(total / 3))
    if schedule == "multi-step":
        return optim.MultiStepSchedule(optimizer, [math.ceil(total / 2), math.ceil(total * 3 / 4)])
    if schedule == "polynomial":
        return optim.PolynomialSchedule(optimizer, total)
    return optim.CosineSchedule(optimizer, total)
