"""Random changes to training images, named by short texts that a command line and a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gpucnn import data
from gpucnn.data import Augment, Compose
from gpucnn.train.rules import NOT_NEGATIVE, Rule


class Change(NamedTuple):
    """A kind of change: made from one number that follows the rule, or from `default` where the text has none."""

    make: Callable[[Any], Any]
    rule: Rule
    default: float | None = None


PIXELS = Rule(int, "a whole number of pixels of at least 0", lambda value: value >= 0)
MOVES = {  # of whole images, in one pass over the pixels
    "shift": Change(data.Shift, PIXELS),
    "crop": Change(data.Crop, PIXELS),
    "flip": Change(data.Flip, Rule(float, "a probability from 0 to 1", lambda value: 0 <= value <= 1), 0.5),
}
DISTORTIONS = {  # of pixels, after all moves
    "rotate": Change(data.Rotate, Rule(float, "an angle from 0 to 180 degrees", lambda value: 0 <= value <= 180)),
    "brightness": Change(data.Brightness, NOT_NEGATIVE),
    "contrast": Change(data.Contrast, NOT_NEGATIVE),
    "saturation": Change(data.Saturation, NOT_NEGATIVE),
    "sharpness": Change(data.Sharpness, NOT_NEGATIVE),
}
FORMS = (
    "shift:PIXELS, crop:PIXELS, flip[:PROBABILITY], rotate:DEGREES, {brightness,contrast,saturation,sharpness}:AMOUNT"
)


def parse(text: str) -> Any:
    """The step or transform that `text`, such as "flip" or "crop:4", names; ValueError naming text and rule if none."""
    name, colon, number = text.partition(":")
    change = {**MOVES, **DISTORTIONS}.get(name)
    if change is None:
        raise ValueError(f"{text!r} is no change of images; use {FORMS}")
    if not colon and change.default is not None:
        return change.make(change.default)
    if not colon:
        raise ValueError(f"{text!r} lacks its number, {change.rule.words}; use {name}:NUMBER")
    try:
        return change.make(change.rule.parse(number))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def build(texts: Sequence[str]) -> tuple[Augment, Compose | None]:
    """What a DataLoader takes as augment and transform for these changes; moves come first, each part in its order."""
    moves, distortions = (
        [parse(text) for text in texts if text.partition(":")[0] in kind] for kind in (MOVES, DISTORTIONS)
    )
    return Augment(*moves), Compose(*distortions) if distortions else None
