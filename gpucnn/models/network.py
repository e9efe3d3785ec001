"""Network: what every model of this package knows about itself."""

from __future__ import annotations

from typing import Any

from gpucnn.nn import Module


class Network(Module):
    """A Module that can be built again from its name and arguments.

    - name: the constructor's name in `gpucnn.models`; arguments: its keyword arguments, as JSON can hold them
    - input_shape: (channels, height, width) of one image
    """

    def __init__(self, name: str, **arguments: Any) -> None:
        check_arguments(name, **arguments)
        self.name, self.arguments = name, arguments
        size = arguments["image_size"]
        self.input_shape = (arguments["in_channels"], size, size)


def check_arguments(
    name: str, num_classes: int, in_channels: int, image_size: int, width: float, **others: Any
) -> None:
    """Raise ValueError for an argument that no network can have."""
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels), ("image_size", image_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: {argument} is {value!r}; it must be a positive integer")
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width <= 16:
        raise ValueError(f"{name}: width is {width!r}; it must be above 0 and at most 16 (1: as published)")
    dropout = others.get("dropout", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"{name}: dropout is {dropout!r}; it must be at least 0 and below 1")


def require_size(name: str, image_size: int, smallest: int) -> None:
    """Raise ValueError for images so small that nothing is left after the last pooling."""
    if image_size < smallest:
        raise ValueError(
            f"{name}: image_size is {image_size}; it must be at least {smallest}, or no pixel would be left"
        )


def require_variant(name: str, variant: str, variants: tuple[str, ...]) -> None:
    """Raise ValueError for a variant that the network does not have."""
    if variant not in variants:
        raise ValueError(f"{name}: variant is {variant!r}; it must be one of {', '.join(map(repr, variants))}")


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """channels · width, rounded to a multiple of `multiple`, at least that."""
    return max(multiple, round(channels * width / multiple) * multiple)
