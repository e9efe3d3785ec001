"""gpucnn eval."""

from __future__ import annotations

from typing import Annotated

import typer

from gpucnn import data as datasets
from gpucnn import train
from gpucnn.cli import options


def evaluate(
    checkpoint: options.Checkpoint,
    data: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help="The data (default: those it was trained on).")
    ] = None,
    batch_size: Annotated[int | None, options.count("N", "Images at a time.")] = None,
    device: options.Device = None,
    precision: options.Precision = None,
    limit: Annotated[int | None, options.setting("limit", "N", "Use the first N test images only.")] = None,
    json: options.Json = None,
) -> None:
    """Measure a trained network on the test images of a data set."""
    options.check_output(json)
    trained = train.load_model(checkpoint, device or "auto", precision)
    source = data or trained.data
    test = datasets.load(source).test
    if limit is not None:
        test = test.limit(limit)
    found = train.evaluate(
        trained.model,
        test,
        trained.normalize,
        batch_size=batch_size,
        report=train.Console(),
        precision=trained.precision,
    )
    options.write_json(
        json,
        {
            "checkpoint": str(checkpoint),
            "data": source,
            "test_accuracy": found.accuracy,
            "test_top5": found.top5,
            "loss": found.loss,
            "test_images": found.count,
        },
    )
    typer.echo(
        f"test accuracy {found.accuracy:.4f} (top-5 {found.top5:.4f}, loss {found.loss:.4f}) "
        f"on {found.count:,} images of {source}"
    )
