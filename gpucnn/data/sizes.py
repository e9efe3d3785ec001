"""Functions for the loader's transform= that change the size of images: resizing and padding.

Each takes images, float32 (B, C, H, W), and a NumPy Generator, which it leaves alone, and returns float32 (B, C, h, w).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpucnn.data.checks import check_images, check_integer, check_size

MODES = ("constant", "reflect")


@dataclass(frozen=True)
class Resize:
    """Scales images, bilinear and antialiased (Pillow), as torchvision's Resize does.

    size: of the shorter side in pixels, the aspect is kept (the longer side is rounded down); or (height, width), to
        which images are stretched

    Raises TypeError or ValueError for a size that is not one or two integers of at least 1.
    """

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        size = check_size("Resize", "size", self.size)
        object.__setattr__(self, "size", size if isinstance(self.size, (tuple, list)) else size[0])

    def __call__(self, images: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        from PIL import Image

        check_images("Resize", images)
        height, width = self._target(images.shape[2:])
        if (height, width) == images.shape[2:]:
            return images
        scaled = np.empty((*images.shape[:2], height, width), np.float32)
        planes = images.reshape(-1, *images.shape[2:])
        for plane, target in zip(planes, scaled.reshape(-1, height, width), strict=True):
            target[...] = Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)
        return scaled

    def _target(self, image_size: tuple[int, ...]) -> tuple[int, int]:
        """(height, width) that images of this size get."""
        if isinstance(self.size, tuple):
            return self.size
        height, width = image_size
        shorter = min(height, width)
        return self.size * height // shorter, self.size * width // shorter


@dataclass(frozen=True)
class Pad:
    """Adds a margin around images, as torchvision's Pad does.

    padding: pixels on all four sides; or (left and right, top and bottom); or (left, top, right, bottom); each >= 0
    fill: the value of the margin where mode is "constant"
    mode: "constant", or "reflect" for the image mirrored at its border pixels, which are not repeated

    Raises TypeError or ValueError for other values; a call, ValueError where a mirrored margin is as wide as the image.
    """

    padding: int | tuple[int, ...]
    fill: float = 0.0
    mode: str = "constant"

    def __post_init__(self) -> None:
        given = self.padding if isinstance(self.padding, (tuple, list)) else (self.padding,)
        if len(given) not in (1, 2, 4):
            raise ValueError(f"Pad: padding must be one, two or four integers, not {self.padding!r}")
        sides = tuple(check_integer("Pad", "padding", side, 0) for side in given)
        if not np.isfinite(self.fill):
            raise ValueError(f"Pad: fill must be a finite number, not {self.fill!r}")
        if self.mode not in MODES:
            raise ValueError(f"Pad: mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        object.__setattr__(self, "padding", sides * (4 // len(sides)))

    def __call__(self, images: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        check_images("Pad", images)
        left, top, right, bottom = self.padding  # type: ignore[misc]  # four, since __post_init__
        margins = ((0, 0), (0, 0), (top, bottom), (left, right))
        if self.mode == "constant":
            return np.pad(images, margins, constant_values=self.fill)
        height, width = images.shape[2:]
        if max(top, bottom) >= height or max(left, right) >= width:
            raise ValueError(
                f"Pad: a margin of {self.padding} pixels (left, top, right, bottom) cannot mirror images of "
                f"({height}, {width}); it must be narrower than they are; use mode 'constant' or a smaller padding"
            )
        return np.pad(images, margins, mode="reflect")
