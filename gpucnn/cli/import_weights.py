"""gpucnn import-weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpucnn import weights
from gpucnn.cli import options


def import_weights(
    model: options.Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A state dict: .npz, .safetensors or .pth.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the checkpoint.")],
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class names, one a line (default 0, 1, …).")
    ] = None,
    variant: options.Variant = None,
    width: options.Width = None,
    image_size: options.ImageSize = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
) -> None:
    """Make a checkpoint of weights trained elsewhere, such as torchvision's, for eval and predict."""
    arguments = {"variant": variant, "width": width, "image_size": image_size}
    path = weights.import_weights(model, file, out, classes=classes, overwrite=overwrite, **arguments)
    typer.echo(f"{path}: {model} with the weights of {file}; use it with gpucnn predict {path} IMAGE…")
