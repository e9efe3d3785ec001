"""Networks: constructors that read like their papers' tables, and the list of them by name."""

import inspect
from typing import Any

from gpucnn.models.alexnet import alexnet as alexnet
from gpucnn.models.lenet import lenet5 as lenet5
from gpucnn.models.network import Network as Network
from gpucnn.models.vgg import vgg11 as vgg11
from gpucnn.models.vgg import vgg11_bn as vgg11_bn
from gpucnn.models.vgg import vgg13 as vgg13
from gpucnn.models.vgg import vgg13_bn as vgg13_bn
from gpucnn.models.vgg import vgg16 as vgg16
from gpucnn.models.vgg import vgg16_bn as vgg16_bn
from gpucnn.models.vgg import vgg19 as vgg19
from gpucnn.models.vgg import vgg19_bn as vgg19_bn

_CONSTRUCTORS = {
    constructor.__name__: constructor
    for constructor in (
        lenet5,
        alexnet,
        vgg11,
        vgg11_bn,
        vgg13,
        vgg13_bn,
        vgg16,
        vgg16_bn,
        vgg19,
        vgg19_bn,
    )  # fmt: skip
}


def names() -> list[str]:
    """The names that `create` knows."""
    return list(_CONSTRUCTORS)


def create(name: str, **arguments: Any) -> Network:
    """The network `name` with its constructor's keyword arguments.

    Raises ValueError for an unknown name, an argument the network does not take, or a value out of range.
    """
    if name not in _CONSTRUCTORS:
        raise ValueError(f"model {name!r} is unknown; use one of {', '.join(_CONSTRUCTORS)}")
    known = inspect.signature(_CONSTRUCTORS[name]).parameters
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"{name} has no argument {argument!r}; it takes {', '.join(known)}")
    return _CONSTRUCTORS[name](**arguments)
