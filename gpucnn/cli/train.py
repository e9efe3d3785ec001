"""gpucnn train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gpucnn import plot
from gpucnn.cli import options
from gpucnn.train import Console, Interrupted, Measured, Outcome, fit
from gpucnn.train.config import OPTIMIZERS, SCHEDULES
from gpucnn.train.folder import PICTURES

SAMPLES = 40  # test images shown in predictions.png
INTERRUPTED = 130


def train(
    model: options.Model,
    data: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help="digits, shapes, or a folder: IDX, CIFAR, class folders.")
    ] = None,
    epochs: Annotated[int | None, options.setting("epochs", "N", "Passes over the training images.")] = None,
    batch_size: Annotated[int | None, options.setting("batch_size", "N", "Images a step.")] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="NAME", help=f"{', '.join(OPTIMIZERS)}.")] = None,
    lr: Annotated[float | None, options.setting("lr", "RATE", "The highest learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(metavar="NAME", help=f"{', '.join(SCHEDULES)}.")] = None,
    weight_decay: Annotated[float | None, options.setting("weight_decay", "FACTOR", "Weight decay.")] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment/--no-augment", help="Move training images at random.")
    ] = None,
    validation: Annotated[
        float | None, options.setting("validation", "FRACTION", "Keep a part of the training images to measure on.")
    ] = None,
    early_stop: Annotated[
        int | None, options.setting("early_stop", "N", "Stop after N epochs without a better validation accuracy.")
    ] = None,
    device: options.Device = None,
    limit: options.Limit = None,
    seed: Annotated[int | None, options.setting("seed", "N", "Of all that is random (default 0).")] = None,
    variant: options.Variant = None,
    width: options.Width = None,
    image_size: options.ImageSize = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for all results (default runs/MODEL).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    json: options.Json = None,
) -> None:
    """Train a network; what is not given follows a recipe for the network and the data."""
    folder = Path("runs", model) if out is None else out
    options.check_output(json, folder)
    settings: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "lr": lr,
        "schedule": schedule,
        "weight_decay": weight_decay,
        "augment": augment,
        "validation": validation,
        "early_stop": early_stop,
        "device": device,
        "limit": limit,
        "seed": seed,
        "variant": variant,
        "width": width,
        "image_size": image_size,
    }
    try:
        outcome = fit(model, data, folder, resume=resume, overwrite=overwrite, report=Console(), **settings)
    except Interrupted as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(INTERRUPTED) from None
    options.write_json(json, outcome.result)
    _print(outcome, folder)


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
