"""gpucnn predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpucnn import train
from gpucnn.cli import options


def predict(
    checkpoint: options.Checkpoint,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="PNG or JPEG pictures.")],
    invert: Annotated[
        bool, typer.Option("--invert", help="Turn dark into light first: for dark digits on light paper.")
    ] = False,
    device: options.Device = None,
    precision: options.Precision = None,
    json: options.Json = None,
) -> None:
    """Say what pictures show: the five likeliest classes of each, with their probabilities."""
    options.check_output(json)
    trained = train.load_model(checkpoint, device or "auto", precision)
    predictions = train.predict(trained, images, invert=invert)
    options.write_json(json, [prediction.to_json() for prediction in predictions])
    for prediction in predictions:
        typer.echo(prediction.image)
        for label, probability in prediction.top5:
            typer.echo(f"  {probability:7.2%}  {label}")
        if prediction.note:
            typer.echo(f"warning: {prediction.image}: {prediction.note}; try --invert", err=True)
