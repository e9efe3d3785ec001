"""fit: a whole training run in a folder, from checked arguments to the test accuracy; it can be stopped and resumed."""

from __future__ import annotations

import os
import shlex
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gpucnn import checkpoint, models
from gpucnn import data as datasets
from gpucnn import device as devices
from gpucnn.data import Dataset, Normalize, Splits
from gpucnn.random import manual_seed
from gpucnn.threads import get_num_threads
from gpucnn.train.config import ENDLESS, TrainConfig, check_choice, from_dict
from gpucnn.train.diagnosis import NonFiniteError
from gpucnn.train.evaluation import Evaluation, evaluate
from gpucnn.train.folder import RunFolder, unpack
from gpucnn.train.recipes import recipe
from gpucnn.train.report import Report
from gpucnn.train.signals import Interrupted, interruption
from gpucnn.train.trainer import Trainer, is_done

SAVE_EVERY = 300.0  # seconds between saves within an epoch


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a finished run gives.

    - result: the keys of `gpucnn train --json`; config: the settings; history: the lines of metrics.jsonl
    - measured: what was measured and how it came out; None where the run had been complete before
    """

    result: dict[str, Any]
    config: TrainConfig
    history: list[dict[str, Any]]
    measured: Measured | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """The network of the result (the best one where there is a validation part), the test images, and what came out."""

    model: models.Network
    test: Dataset
    evaluation: Evaluation


def fit(
    model: str,
    data: str | os.PathLike[str] | Splits | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: Report | None = None,
    save_every: float = SAVE_EVERY,
    capture: bool = False,
    **settings: Any,
) -> Outcome:
    """Train `model` on `data`, keeping everything in the folder `out`, then measure it on the test images.

    - model: a name of `models.names()`; data: what `data.load` takes, or Splits; "digits" by default
    - out: the folder, "runs/<model>" by default; made where it does not exist
    - resume: continue the run in the folder with the settings it has (those given must agree; `epochs` may be another
      number where the schedule is "constant" or "plateau"); start one where there is none
    - overwrite: replace a run in the folder; without either a folder that holds a run is refused
    - report: hears of every epoch; `train.Console()` prints. save_every: seconds between saves within an epoch
    - capture: record a step's launches and replay them, with the same bits (`CapturedStep`); not on the CPU
    - settings: see `TrainConfig`; arguments of the model, such as width=0.5, are taken too; None means not given
    The checkpoint is stored at the start, after each epoch, every save_every seconds and on SIGINT or SIGTERM. The
    same seed, machine and thread count give the same bits, however often the run was stopped and resumed.
    Raises ValueError or OSError for wrong arguments before any training, NonFiniteError (a ValueError) when the loss
    leaves the finite numbers, Interrupted (a KeyboardInterrupt) on a signal, files.WriteError on a full disk,
    DeviceLost (a RuntimeError) when a GPU fails: the checkpoint is then the last one that was stored.
    """
    check_choice("model", model, models.names())
    folder = RunFolder(os.path.join("runs", model) if out is None else out)
    folder.check(resume, overwrite)
    devices.resolve(settings.get("device") or "auto")
    settings = {name: value for name, value in settings.items() if value is not None}
    stored = folder.load() if resume else None
    config = None
    if stored is not None:
        config = continued(stored, folder, model, settings)
        if _is_complete(stored, config):
            return Outcome(stored.metadata["result"], config, stored.metadata["state"]["history"])
    splits, name = _load_data(data, config)
    if config is None:
        config = recipe(model, splits.train, name, **settings)
    run = _Run(config, splits, folder, report or Report(), save_every, capture)
    with folder.locked(), interruption() as run.interrupted, devices.errors_of(run.device, "training"):
        run.begin(stored)
        return run.to_the_end()


def continued(stored: checkpoint.Checkpoint, folder: RunFolder, model: str, settings: dict[str, Any]) -> TrainConfig:
    """The settings of the stored run with the number of epochs asked for.

    Raises ValueError naming the setting in which it differs from what is asked for.
    """
    try:
        config = from_dict(stored.metadata["config"])
        epoch, batch = stored.metadata["state"]["epoch"], stored.metadata["state"]["batch"]
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{stored.path}: it holds no run to resume ({error}); start anew") from error
    arguments = {name: value for name, value in settings.items() if name not in config.as_dict()}
    own = {name: value for name, value in settings.items() if name not in ("device", *arguments)}
    asked = replace(config, model=model, arguments={**config.arguments, **arguments}, **own)
    for name in asked.differences(config):
        if name != "epochs":
            raise ValueError(
                f"cannot resume {folder} with {name} {asked.get(name)!r}: its run has {config.get(name)!r}; "
                "leave it out, choose another --out, or replace the run with --overwrite"
            )
    if asked.epochs != config.epochs and config.schedule not in ENDLESS:
        raise ValueError(
            f"cannot resume {folder} with epochs {asked.epochs}: its {config.schedule} schedule is planned for "
            f"{config.epochs} (only {' and '.join(ENDLESS)} ones can be prolonged); leave --epochs out to end the run "
            f"as planned, or train {asked.epochs} from the start with --overwrite or another --out"
        )
    if asked.epochs < epoch + (batch > 0):
        raise ValueError(
            f"cannot resume {folder} with epochs {asked.epochs}: its run is past epoch {epoch} already; ask for more"
        )
    return asked


def _is_complete(stored: checkpoint.Checkpoint, config: TrainConfig) -> bool:
    state = stored.metadata["state"]
    return stored.metadata.get("result") is not None and is_done(config, state["epoch"], state["best"])


def _load_data(data: str | os.PathLike[str] | Splits | None, config: TrainConfig | None) -> tuple[Splits, str]:
    """The data and what to call them; of a run to be resumed where none are given."""
    if isinstance(data, Splits):
        return data, data.train.name
    source = os.fspath(data) if data is not None else config.data if config is not None else "digits"
    return datasets.load(source), source


class _Run:
    """A Trainer in its folder, with the data it needs; made before anything is written."""

    def __init__(
        self,
        config: TrainConfig,
        splits: Splits,
        folder: RunFolder,
        report: Report,
        save_every: float,
        capture: bool,
    ) -> None:
        self.config, self.folder, self.report, self.save_every = config, folder, report, save_every
        self.device = devices.resolve(config.device)
        devices.use(self.device)
        manual_seed(config.seed)
        self.model = models.create(config.model, **config.arguments)
        self.model.to(self.device)
        training, self.test = (part if config.limit is None else part.limit(config.limit) for part in splits)
        self.fingerprint = fingerprint(training)
        training, validation = training.resize(self.model.input_shape[1:]), None
        if config.validation:
            training, validation = datasets.split(training, config.validation, config.seed)
        self.normalize = Normalize(*training.statistics())
        self.trainer = Trainer(self.model, config, training, validation, self.normalize, report, capture)
        self.result: dict[str, Any] | None = None
        self.saved_at = time.monotonic()
        self.interrupted: Callable[[], bool] = lambda: False

    def begin(self, stored: checkpoint.Checkpoint | None) -> None:
        """Make the folder hold this run, or continue the one it holds."""
        if stored is None:
            self.folder.start(self.trainer, self.extra())
        else:
            self._continue(stored)
        for line in self.description():
            self.report.message(line)

    def _continue(self, stored: checkpoint.Checkpoint) -> None:
        if stored.metadata.get("fingerprint") != self.fingerprint:
            raise ValueError(
                f"cannot resume {self.folder}: its run had other training images than {self.config.data!r} holds now; "
                "give the same data, choose another --out, or replace the run with --overwrite"
            )
        unpack(stored, self.trainer)
        differences = other_machine(stored.metadata["environment"], checkpoint.environment())
        if differences:
            self.report.warning(f"{self.folder} was stored with {differences}; the last bits of its result may differ")
        if self.trainer.best is None:
            self.folder.best.unlink(missing_ok=True)  # of a run replaced by this one, or of an epoch to be run again
        self.folder.write_metrics(self.trainer.history)
        self.report.message(f"resuming {self.folder} after epoch {self.trainer.epoch}, batch {self.trainer.batch}")

    def to_the_end(self) -> Outcome:
        """Train what is left, measure, store the result."""
        while not self.trainer.done:
            try:
                improved = self.trainer.run_epoch(self._after_step)
            except (NonFiniteError, devices.DeviceLost) as error:
                raise type(error)(f"{error}; {self.folder.checkpoint} keeps the last good state") from None
            if improved:
                self.folder.save_best(self.trainer, self.extra())
            self._save()
            self.folder.write_metrics(self.trainer.history)
            self.report.epoch(self.trainer.history[-1], self.config.epochs)
        return self._finish()

    def _after_step(self) -> None:
        if self.interrupted():
            self._save()
            raise Interrupted(
                f"interrupted after epoch {self.trainer.epoch}, batch {self.trainer.batch}, and stored; continue with: "
                f"gpucnn train {self.config.model} --out {shlex.quote(str(self.folder))} --resume"
            )
        if time.monotonic() - self.saved_at >= self.save_every:
            self._save()

    def _save(self) -> None:
        self.folder.save(self.trainer, self.extra())
        self.saved_at = time.monotonic()

    def _finish(self) -> Outcome:
        """Read the test images, for the only time."""
        model, path = self.model, self.folder.checkpoint
        if self.trainer.best is not None:
            path = self.folder.best
            model = checkpoint.build_model(checkpoint.load(path))
            model.to(self.device)
        found = evaluate(
            model,
            self.test,
            self.normalize,
            report=self.report,
            title="test",
            check=self._after_step,
            precision=self.config.precision,
        )
        self.result = self._result(found, str(path))
        self._save()
        return Outcome(self.result, self.config, self.trainer.history, Measured(model, self.test, found))

    def _result(self, found: Evaluation, path: str) -> dict[str, Any]:
        history, last, best = self.trainer.history, self.trainer.history[-1], self.trainer.best
        seconds = sum(entry["seconds"] for entry in history)
        images = len(history) * len(self.trainer.loader.dataset)
        result = {
            "model": self.config.model,
            "data": self.config.data,
            "device": self.device,
            "epochs": len(history),
            "seed": self.config.seed,
            "precision": self.config.precision,
            "train_loss": last["train_loss"],
            "train_accuracy": last["train_accuracy"],
            "test_loss": found.loss,
            "test_accuracy": found.accuracy,
            "test_top5": found.top5,
            "test_images": found.count,
            "images_per_second": images / seconds,
            "seconds": seconds,
            "checkpoint": path,
            "config": self.config.as_dict(),
        }
        if best is not None:
            names = ("epoch", "validation_loss", "validation_accuracy")
            result["best"] = {name: best[name] for name in names}
        return result

    def extra(self) -> dict[str, Any]:
        """What the checkpoint says about the run beside its state."""
        return {
            "data": self.config.data,
            "classes": list(self.test.classes),
            "normalization": {"mean": list(self.normalize.mean), "std": list(self.normalize.std)},
            "fingerprint": self.fingerprint,
            "result": self.result,
        }

    def description(self) -> list[str]:
        """The run in two lines."""
        config, trainer = self.config, self.trainer
        size = "×".join(map(str, self.model.input_shape))
        parameters = sum(parameter.size for parameter in self.model.parameters())
        training = len(trainer.loader.dataset)
        validation = f" + {len(trainer.validation):,} validation" if trainer.validation is not None else ""
        width = f", width {config.arguments['width']:g}" if config.arguments.get("width", 1) != 1 else ""
        return [
            f"{config.model}: {parameters:,} parameters, {size} images{width}; on {self.device}, "
            f"{get_num_threads()} threads",
            f"{config.data}: {training:,} training{validation} and {len(self.test):,} test images of "
            f"{len(self.test.classes)} classes; {config.epochs} epochs of {len(trainer.loader)} steps, "
            f"{config.optimizer}, lr {config.lr:g} ({config.schedule})",
        ]


def other_machine(stored: dict[str, Any], here: dict[str, Any]) -> str:
    """In words, in which of the things that a result's bits depend on `stored` differs from `here`; "" if in none."""
    return ", ".join(
        f"{stored.get(name)!r:.80} as its {what} (here {here[name]!r:.80})"
        for name, what in (("threads", "number of threads"), ("processor", "processor"), ("machine", "kind of machine"))
        if stored.get(name) != here[name]
    )


def fingerprint(dataset: Dataset) -> dict[str, int]:
    """What changes when images or labels do: their number and CRC-32s."""
    return {
        "count": len(dataset),
        "images": zlib.crc32(dataset.images.data),
        "labels": zlib.crc32(dataset.labels.data),
    }
