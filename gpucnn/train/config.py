"""What a training run does: every choice spelt out, checked, and stored in its checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from gpucnn import device as devices
from gpucnn import models
from gpucnn.precision import ALL_PRECISIONS
from gpucnn.train import augmentation
from gpucnn.train.rules import COUNT, NOT_NEGATIVE, POSITIVE, Rule

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "adagrad", "adadelta")
SCHEDULES = ("cosine", "step", "constant", "plateau", "multi-step", "polynomial", "one-cycle")
ENDLESS = ("constant", "plateau")  # schedules that do not depend on the number of epochs
WITHOUT_WARMUP = ("plateau", "one-cycle")  # the latter rises by itself


RULES = {
    "epochs": COUNT,
    "batch_size": COUNT,
    "lr": POSITIVE,
    "momentum": Rule(float, "a number of at least 0 and below 1", lambda value: 0 <= value < 1),
    "weight_decay": NOT_NEGATIVE,
    "l1_decay": NOT_NEGATIVE,
    "clip_norm": POSITIVE,
    "warmup": Rule(float, "a finite number of epochs of at least 0", lambda value: value >= 0),
    "validation": Rule(float, "a fraction of at least 0 and below 1", lambda value: 0 <= value < 1),
    "early_stop": COUNT,
    "limit": COUNT,
    "seed": Rule(int, "a whole number from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63),
}
OPTIONAL = ("clip_norm", "early_stop", "limit")


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a run's result, as JSON can hold it; `train.recipe` fills it with good values.

    - model, arguments: what `models.create` takes; data: what `data.load` takes
    - epochs: passes over the training part; batch_size: images a step
    - optimizer: "sgd" (with momentum), "adam", "adamw", "rmsprop", "adagrad" or "adadelta"; lr: its highest rate;
      momentum: of sgd and rmsprop; weight_decay, l1_decay: as in `optim`
    - clip_norm: the largest norm of all gradients together, to which longer ones are scaled down; None for no limit
    - schedule: "cosine" (to zero at the end), "step" (a tenth after each third), "constant", "plateau" (a tenth when
      the validation loss stays), "multi-step" (a tenth after a half, and after three quarters), "polynomial" (a
      straight line to zero) or "one-cycle" (up for three tenths of the run, then down to almost zero)
    - warmup: epochs in which the rate grows, at most a fifth of the run
    - augment: random changes to training images, such as ["shift:2", "flip"]; [] for none. Moves (shift, crop, flip)
      come first, in their order, then the others (rotate, brightness, contrast, saturation, sharpness) in theirs
    - validation: share of the training images kept apart to be measured on; early_stop: stop after so many epochs
      without a better validation accuracy, or None
    - limit: the first so many training and test images, or None for all
    - seed: of initial weights, order, augmentation, validation part and dropout; device: "auto", "cpu", "sim" or "cuda"
    - precision: "float32", "float32_tensor", "tf32", or for 16-bit activations "bfloat16" or "float16", the latter with
      loss scaling (gpucnn.precision has a table)
    Raises ValueError naming the setting, its value and the rule.
    """

    model: str
    arguments: dict[str, Any]
    data: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup: float
    augment: list[str]
    l1_decay: float = 0.0
    clip_norm: float | None = None
    validation: float = 0.0
    early_stop: int | None = None
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, choices in (
            ("model", models.names()),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", ALL_PRECISIONS),
        ):
            check_choice(name, getattr(self, name), choices)
        check_augment(self.augment)
        for name, rule in RULES.items():
            value = getattr(self, name)
            if not rule.accepts(value) and not (value is None and name in OPTIONAL):
                raise ValueError(f"{name} is {value!r}; it must be {rule.words}")
        devices.resolve(self.device)
        for name, value in (("early_stop", self.early_stop), ("schedule", self.schedule == "plateau")):
            if value and not self.validation:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, which follows the validation part, but there is none; "
                    "set a validation fraction such as 0.1"
                )
        if self.warmup and self.schedule in WITHOUT_WARMUP:
            raise ValueError(f"warmup is {self.warmup}, but schedule {self.schedule!r} takes no warm-up; use 0")

    def as_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)

    def differences(self, other: TrainConfig) -> list[str]:
        """Names of the settings that differ, "arguments.width" for one of the model's."""
        mine, others = _flat(self), _flat(other)
        return [name for name in {**mine, **others} if mine.get(name) != others.get(name)]

    def get(self, name: str) -> Any:
        """The value of a setting named as `differences` does."""
        return _flat(self).get(name)


def check_augment(changes: Any) -> None:
    """Raise ValueError unless `changes` is a list of texts that `augmentation.parse` takes."""
    if not isinstance(changes, list) or not all(isinstance(change, str) for change in changes):
        raise ValueError(f"augment is {changes!r}; it must be a list such as ['shift:2', 'flip'], or [] for none")
    for change in changes:
        try:
            augmentation.parse(change)
        except ValueError as error:
            raise ValueError(f"augment: {error}") from None


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise ValueError naming them all unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} {value!r} is unknown; use one of {', '.join(choices)}")


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The inverse of `TrainConfig.as_dict`; raises ValueError for missing, unknown or wrong settings."""
    values = {"precision": "float32", **values}  # runs of old have none
    names = {field.name for field in fields(TrainConfig)}
    if values.keys() != names:
        raise ValueError(f"settings {sorted(values.keys() ^ names)} are missing or unknown")
    return TrainConfig(**values)


def _flat(config: TrainConfig) -> dict[str, Any]:
    values = config.as_dict()
    arguments = values.pop("arguments")
    return {**values, **{f"arguments.{name}": value for name, value in arguments.items()}}
