"""gpucnn summary."""

from __future__ import annotations

from typing import Annotated

from gpucnn import models, nn
from gpucnn.cli import options
from gpucnn.summary import print_summary, summarize


def summary(
    model: options.Model,
    variant: options.Variant = None,
    width: options.Width = None,
    image_size: options.ImageSize = None,
    num_classes: Annotated[int | None, options.count("N", "Classes.")] = None,
    in_channels: Annotated[int | None, options.count("N", "Channels of the input.")] = None,
    batch_size: Annotated[int, options.count("N", "Images a training step, for the memory it takes.")] = 1,
    json: options.Json = None,
) -> None:
    """Print a network's layers: shapes, activations, weights, multiply-adds, and the memory of a training step."""
    options.check_output(json)
    arguments = {
        "variant": variant,
        "width": width,
        "image_size": image_size,
        "num_classes": num_classes,
        "in_channels": in_channels,
    }
    given = {name: value for name, value in arguments.items() if value is not None}
    with nn.init.skipped():
        network = models.create(model, **given)
    found = summarize(network, batch_size)
    options.write_json(json, found.to_json())
    print_summary(found)
