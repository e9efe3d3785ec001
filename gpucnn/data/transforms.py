"""Changes to whole batches: shifts, crops and mirrors drawn per image, and normalisation.

An Augment only draws numbers; the loader then gathers, moves, mirrors and normalises a batch in one pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from gpucnn.data.checks import check_integer, check_size


class Plan(NamedTuple):
    """From where each image of a batch of B is read: out[:, i, j] = image[:, i + offset[0], j' + offset[1]].

    j' is width - 1 - j in a mirrored image and j in others; pixels outside the image are Augment.fill.

    offsets: int64 (B, 2), pixels down and to the right
    flips: uint8 (B,), 1 = mirrored
    size: (height, width) of the output in pixels
    """

    offsets: np.ndarray
    flips: np.ndarray
    size: tuple[int, int]


class Step(Protocol):
    """One random change: draw() gives the plan with this change added, by numbers from the generator."""

    def draw(self, plan: Plan, generator: np.random.Generator) -> Plan: ...


@dataclass(frozen=True)
class Shift:
    """Moves each image up or down and left or right by whole pixels, every offset equally likely.

    pixels: the largest offset, an integer >= 0; TypeError or ValueError otherwise
    """

    pixels: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", check_integer("Shift", "pixels", self.pixels, 0))

    def draw(self, plan: Plan, generator: np.random.Generator) -> Plan:
        """The plan with an offset in [-pixels, pixels] added along each axis."""
        offsets = generator.integers(-self.pixels, self.pixels, plan.offsets.shape, endpoint=True)
        return plan._replace(offsets=plan.offsets + offsets)


@dataclass(frozen=True)
class Crop:
    """Cuts a window out of each image with a margin around it, every position equally likely.

    padding: the margin on each of the four sides in pixels (of Augment.fill), an integer >= 0
    size: the window, a side or (height, width) in pixels; None keeps the size of the image

    Raises TypeError or ValueError for other values; draw() raises ValueError for a window that does not fit.
    """

    padding: int = 0
    size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", check_integer("Crop", "padding", self.padding, 0))
        if self.size is not None:
            object.__setattr__(self, "size", check_size("Crop", "size", self.size))

    def draw(self, plan: Plan, generator: np.random.Generator) -> Plan:
        """The plan with the window's size, and its position added to the offsets."""
        window = plan.size if self.size is None else check_size("Crop", "size", self.size)
        last = np.subtract(plan.size, window) + self.padding
        if last.min() < -self.padding:
            raise ValueError(
                f"Crop: a window of {window} pixels does not fit images of {plan.size} with a padding of "
                f"{self.padding}; enlarge the padding or the images"
            )
        offsets = generator.integers(-self.padding, last, plan.offsets.shape, endpoint=True)
        return plan._replace(offsets=plan.offsets + offsets, size=window)


@dataclass(frozen=True)
class Flip:
    """Mirrors each image left to right with this probability, a number in [0, 1]; ValueError otherwise."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"Flip: probability must lie in [0, 1], not {self.probability!r}")

    def draw(self, plan: Plan, generator: np.random.Generator) -> Plan:
        """The plan with the chosen images turned round (twice mirrored is not mirrored)."""
        return plan._replace(flips=plan.flips ^ (generator.random(len(plan.flips)) < self.probability))


class Augment:
    """Random changes to training images: Augment(Shift(2), Flip(0.5)). Offsets add up; the mirror comes last.

    steps: Shift, Crop, Flip or anything else with their draw(plan, generator); none leaves images as they are
    fill: the pixel value outside an image, 0 to 255 (before normalisation)

    Raises TypeError for a step without draw(), TypeError or ValueError for a fill that is no pixel value.
    """

    def __init__(self, *steps: Step, fill: int = 0) -> None:
        for step in steps:
            if not callable(getattr(step, "draw", None)):
                raise TypeError(f"Augment: {step!r} is not a step such as Shift(2), Crop(4) or Flip(0.5)")
        self.steps = steps
        self.fill = check_integer("Augment", "fill", fill, 0)
        if self.fill > 255:
            raise ValueError(f"Augment: fill must be a pixel value from 0 to 255, not {self.fill}")

    def __repr__(self) -> str:
        return f"Augment({', '.join([*map(repr, self.steps), f'fill={self.fill}'])})"

    def draw(self, count: int, size: tuple[int, int], generator: np.random.Generator) -> Plan:
        """The Plan of a batch of count images of size (height, width), with numbers from the generator."""
        plan = Plan(np.zeros((count, 2), np.int64), np.zeros(count, np.uint8), size)
        for step in self.steps:
            plan = step.draw(plan, generator)
        return plan


@dataclass(frozen=True)
class Normalize:
    """(x - mean) / std per channel, for pixels scaled to [0, 1]: Normalize(*dataset.statistics()).

    mean, std: one number per channel each; kept as tuples of floats

    Raises ValueError for different lengths, numbers that are not finite, or a std that is not above 0.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        mean, std = tuple(map(float, self.mean)), tuple(map(float, self.std))
        if len(mean) != len(std) or not mean:
            raise ValueError(f"Normalize: mean and std must have a number per channel, not {mean} and {std}")
        if not np.isfinite([mean, std]).all() or min(std) <= 0:
            raise ValueError(
                f"Normalize: mean must be finite and std above 0, not {mean} and {std}; "
                "a std of 0 comes from a channel whose pixels are all equal"
            )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """(scale, shift), float64 (C,) each, with x · scale + shift = (x - mean) / std."""
        std = np.array(self.std)
        return 1 / std, -np.array(self.mean) / std

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """images, float32 (N, C, H, W) in [0, 1], normalised: a new array; ValueError for another shape."""
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            shape = f"(N, {len(self.mean)}, H, W)"
            raise ValueError(f"Normalize: images must have the shape {shape}, not {images.shape}")
        scale, shift = (values.astype(np.float32)[:, None, None] for values in self.coefficients())
        return images * scale + shift
