"""Good settings for each network, with reasons."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

from gpucnn import models
from gpucnn.data import Dataset
from gpucnn.train.config import OPTIMIZERS, WITHOUT_WARMUP, TrainConfig, check_choice

SMALL_IMAGE = 64  # pixels; images up to here are not blown up to the published input size
SMALL_SET = 10_000  # training images; more epochs are affordable below, and needed
EPOCHS_SMALL, EPOCHS_LARGE = 40, 10
SHIFT = 2 / 28  # share of the image's side: 2 pixels of a digit's 28
MOMENTUM = 0.9
WEIGHT_DECAY = {"sgd": 1e-3, "adamw": 1e-2}  # others 0
# Where a network has none of its own. AlexNet and VGG learn more slowly with these than with AdamW; with Adadelta they
# need many more epochs than the recipe's.
ADAPTIVE_RATES = {"rmsprop": 3e-4, "adagrad": 3e-3, "adadelta": 1.0}
LENET_RATES = {"rmsprop": 2e-3, "adagrad": 1e-2}
WARMUP = 1.0  # epochs; deep networks without batch norm do not start at the full rate


class Recipe(NamedTuple):
    """What suits a family of networks; image_size and width are for small images."""

    optimizer: str
    lr: dict[str, float]  # by optimiser
    batch_size: int
    image_size: int
    width: float


# Deep networks on a few thousand images: AdamW reaches in 5 epochs what SGD needs 20 for. LeNet-5 ends better with SGD.
# AlexNet's and VGG's image sizes are about the smallest that leave an output; widths let two cores train in minutes.
# The paper's AlexNet starts from weights of 0.01, whose signals nearly vanish: at higher rates it stays at chance.
RECIPES = {
    "lenet5": Recipe("sgd", {"sgd": 0.02, "adam": 2e-3, "adamw": 2e-3, **LENET_RATES}, 32, 28, 1.0),
    "lenet5 paper": Recipe("sgd", {"sgd": 0.1, "adam": 2e-3, "adamw": 2e-3, **LENET_RATES}, 64, 28, 1.0),
    "alexnet": Recipe("adamw", {"sgd": 0.02, "adam": 1e-3, "adamw": 1e-3}, 64, 64, 0.25),
    "alexnet paper": Recipe("adamw", {"sgd": 0.01, "adam": 3e-4, "adamw": 3e-4}, 64, 67, 0.25),
    "vgg": Recipe("adamw", {"sgd": 0.02, "adam": 5e-4, "adamw": 5e-4}, 64, 32, 0.125),
    "vgg_bn": Recipe("adamw", {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3}, 64, 32, 0.125),
}


def recipe(model: str, dataset: Dataset, data: str | None = None, **settings: Any) -> TrainConfig:
    """The settings with which `model` is trained on `dataset` unless `settings` say otherwise.

    - data: what `data.load` takes to find the set again; its name by default
    - settings: fields of TrainConfig; all others are arguments of the model, such as width=0.5. None means not given
    Raises ValueError for an unknown model, setting or value.
    """
    check_choice("model", model, models.names())
    given = {name: value for name, value in settings.items() if value is not None}
    own = {field.name for field in fields(TrainConfig)} - {"model", "data", "arguments"}
    arguments = {name: value for name, value in given.items() if name not in own}
    chosen = RECIPES[family(model, given.get("variant"))]
    optimizer = given.get("optimizer", chosen.optimizer)
    check_choice("optimizer", optimizer, OPTIMIZERS)
    arguments = _arguments(chosen, dataset, arguments)
    defaults: dict[str, Any] = {
        "epochs": EPOCHS_SMALL if len(dataset) < SMALL_SET else EPOCHS_LARGE,
        "batch_size": chosen.batch_size,
        "optimizer": optimizer,
        "lr": {**ADAPTIVE_RATES, **chosen.lr}[optimizer],
        "momentum": MOMENTUM if optimizer == "sgd" else 0.0,
        "weight_decay": WEIGHT_DECAY.get(optimizer, 0.0),
        "schedule": "cosine",
        "warmup": 0.0 if given.get("schedule") in WITHOUT_WARMUP else WARMUP,
        "augment": [f"shift:{round(SHIFT * arguments.get('image_size', dataset.image_size[0]))}"],
    }
    given = {name: value for name, value in given.items() if name in own}
    return TrainConfig(model=model, arguments=arguments, data=data or dataset.name, **{**defaults, **given})


def family(model: str, variant: str | None = None) -> str:
    """The name under which RECIPES has the network: "vgg_bn" for "vgg16_bn", "lenet5 paper" for that variant."""
    if model.startswith("vgg"):
        return "vgg_bn" if model.endswith("_bn") else "vgg"
    return f"{model} paper" if variant == "paper" else model


def _arguments(chosen: Recipe, dataset: Dataset, given: dict[str, Any]) -> dict[str, Any]:
    """The model's arguments: channels and classes of the data, and sizes that suit small images."""
    arguments: dict[str, Any] = {"num_classes": len(dataset.classes), "in_channels": dataset.channels}
    if max(dataset.image_size) <= SMALL_IMAGE:
        arguments |= {"image_size": chosen.image_size, "width": chosen.width}
    return {**arguments, **given}
