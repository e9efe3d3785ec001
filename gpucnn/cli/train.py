"""gpucnn train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gpucnn import plot
from gpucnn.cli import options
from gpucnn.train import Console, Interrupted, Measured, Outcome, fit
from gpucnn.train.augmentation import FORMS
from gpucnn.train.config import OPTIMIZERS, SCHEDULES
from gpucnn.train.folder import PICTURES

SAMPLES = 40  # test images shown in predictions.png
INTERRUPTED = 130


# Options of the command alone; all others are settings of the run.
COMMAND = ("model", "data", "no_augment", "out", "resume", "overwrite", "capture", "json")

Data = Annotated[
    str | None, typer.Option(metavar="NAME|DIR", help="digits, shapes, or a folder: IDX, CIFAR, class folders.")
]
Epochs = Annotated[int | None, options.setting("epochs", "N", "Passes over the training images.")]
BatchSize = Annotated[int | None, options.setting("batch_size", "N", "Images a step.")]
OptimizerName = Annotated[str | None, typer.Option(metavar="NAME", help=f"{', '.join(OPTIMIZERS)}.")]
Rate = Annotated[float | None, options.setting("lr", "RATE", "The highest learning rate.")]
ScheduleName = Annotated[str | None, typer.Option(metavar="NAME", help=f"{', '.join(SCHEDULES)}.")]
WeightDecay = Annotated[float | None, options.setting("weight_decay", "FACTOR", "Weight decay (L2).")]
L1Decay = Annotated[float | None, options.setting("l1_decay", "FACTOR", "Decay by the sign of the weights (L1).")]
ClipNorm = Annotated[float | None, options.setting("clip_norm", "NORM", "The largest norm of all gradients together.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        parser=options.change, metavar="CHANGE", help=f"Change training images at random, may be repeated: {FORMS}."
    ),
]
NoChanges = Annotated[bool, typer.Option("--no-augment", help="Leave training images as they are.")]
Validation = Annotated[
    float | None, options.setting("validation", "FRACTION", "Keep a part of the training images to measure on.")
]
EarlyStop = Annotated[
    int | None, options.setting("early_stop", "N", "Stop after N epochs without a better validation accuracy.")
]
Seed = Annotated[int | None, options.setting("seed", "N", "Of all that is random (default 0).")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for all results (default runs/MODEL).")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")]
Capture = Annotated[
    bool, typer.Option("--capture", help="Record a step's launches and replay them: the same bits, less Python.")
]


def train(
    context: typer.Context,
    model: options.Model,
    data: Data = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    optimizer: OptimizerName = None,
    lr: Rate = None,
    schedule: ScheduleName = None,
    weight_decay: WeightDecay = None,
    l1_decay: L1Decay = None,
    clip_norm: ClipNorm = None,
    augment: Changes = None,
    no_augment: NoChanges = False,
    validation: Validation = None,
    early_stop: EarlyStop = None,
    device: options.Device = None,
    precision: options.Precision = None,
    limit: options.Limit = None,
    seed: Seed = None,
    variant: options.Variant = None,
    width: options.Width = None,
    image_size: options.ImageSize = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    capture: Capture = False,
    json: options.Json = None,
) -> None:
    """Train a network; what is not given follows a recipe for the network and the data."""
    folder = Path("runs", model) if out is None else out
    options.check_output(json, folder)
    settings = _settings(context.params)
    try:
        outcome = fit(
            model, data, folder, resume=resume, overwrite=overwrite, capture=capture, report=Console(), **settings
        )
    except Interrupted as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(INTERRUPTED) from None
    options.write_json(json, outcome.result)
    _print(outcome, folder)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The settings among the parameters of the command, None where one is not given."""
    settings = {name: value for name, value in given.items() if name not in COMMAND}
    settings["augment"] = list(given["augment"] or []) or None
    if given["no_augment"]:
        if settings["augment"]:
            raise ValueError(f"--no-augment and --augment {settings['augment'][0]} exclude each other; leave one out")
        settings["augment"] = []
    return settings


def _print(outcome: Outcome, folder: Path) -> None:
    result = outcome.result
    measured = f"test accuracy {result['test_accuracy']:.4f}"
    if outcome.measured is None:
        typer.echo(f"{folder} is complete: {measured} after {result['epochs']} epochs; nothing to do")
        return
    if "best" in result:
        measured += f" of the best epoch, {result['best']['epoch']},"
    typer.echo(
        f"{measured} (top-5 {result['test_top5']:.4f}, loss {result['test_loss']:.4f}) "
        f"on {result['test_images']:,} images"
    )
    typer.echo(f"trained for {result['seconds']:.1f} s, {result['images_per_second']:,.0f} images/s")
    names = ["checkpoint.safetensors", "metrics.jsonl", *_draw(outcome.measured, outcome.history, folder)]
    typer.echo(f"{folder}: {', '.join(names)}")


def _draw(measured: Measured, history: list[dict[str, Any]], folder: Path) -> list[str]:
    """Make the pictures of a run that has just ended; return their names."""
    test, found = measured.test, measured.evaluation
    filters, predictions, curves = PICTURES
    some = slice(SAMPLES)
    plot.save_filters(measured.model, folder / filters)
    plot.save_predictions(
        test.images[some],
        test.labels[some],
        found.predictions[some],
        found.probabilities[some],
        test.classes,
        folder / predictions,
    )
    if plot.save_curves(history, folder / curves):
        return [filters, predictions, curves]
    typer.echo(plot.NO_MATPLOTLIB)
    return [filters, predictions]
