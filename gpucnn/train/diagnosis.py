"""Where numbers stop being finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import functional as F
from gpucnn.nn import Module
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor, no_grad


class NonFiniteError(ValueError):
    """Training met a loss or weights that are infinite or not a number; the text names the layer and the fix."""


def non_finite_weights(model: Module) -> str | None:
    """The first layer with a parameter or buffer that is not finite, as "weight of features.0 (Conv2d)"."""
    modules = dict(model.named_modules())
    for name, array in model.state_dict().items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            layer, _, parameter = name.rpartition(".")
            return f"{parameter} of {layer} ({type(modules[layer]).__name__})"
    return None


def first_non_finite(model: Module, images: np.ndarray, random_state: dict[str, Any]) -> str:
    """Where the forward pass over `images` first leaves the finite numbers, in words.

    The pass is run again as it was, with `random_state` for the same dropout; the weights are looked at first.
    """
    if not np.isfinite(images).all():
        return "the images themselves are not finite"
    weights = non_finite_weights(model)
    if weights:
        return f"the {weights} is not finite"
    found: list[str] = []

    def look(module: Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not found and not np.isfinite(F.cast(output.data, "float32")).all():
            found.append(f"{names[id(module)] or 'the network'} ({type(module).__name__})")

    names = {id(module): name for name, module in model.named_modules()}
    handles = [module.register_forward_hook(look) for module in model.modules()]
    default_generator.set_state(random_state)
    try:
        with no_grad():
            model(Tensor(images))
    finally:
        for handle in handles:
            handle.remove()
    return f"the first layer whose output is not finite is {found[0]}" if found else "all layers' outputs are finite"
