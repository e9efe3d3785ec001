"""Options that several commands share: parsed, checked, and described once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gpucnn import device as devices
from gpucnn import files, ops
from gpucnn.precision import ALL_PRECISIONS
from gpucnn.train import augmentation
from gpucnn.train.config import RULES
from gpucnn.train.rules import COUNT, Rule

PASS_HELP = "forward, backward_input or backward_weight."
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?)(i?)B?", re.IGNORECASE)
DTYPES = ("float32", "float64", "bfloat16", "float16")
WIDTH = Rule(float, "a number above 0 and at most 16", lambda value: 0 < value <= 16)


def number(rule: Rule) -> Callable[[str], Any]:
    """A parser of numbers that `rule` accepts; others raise BadParameter naming the value and the rule."""

    def parse(text: str) -> Any:
        try:
            return rule.parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def change(text: str) -> str:
    """A change of training images, as it stands; BadParameter naming text and rule for what is none."""
    try:
        augmentation.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def convolution_pass(text: str) -> str:
    """The operation that a pass of a convolution is, with or without "conv2d_" before it."""
    name = text if text.startswith("conv2d_") else f"conv2d_{text}"
    if name not in ops.PASSES:
        raise typer.BadParameter(f"{text!r} is not a pass: {PASS_HELP}")
    return name


def device_kind(text: str) -> str:
    """A device as kernels know it, which need not be there; "auto" is the one that is."""
    if text not in ("auto", *devices.DEVICES):
        raise typer.BadParameter(f"{text!r} is not a device: auto, {', '.join(devices.DEVICES)}")
    return devices.resolve("auto") if text == "auto" else text


def precision_name(text: str) -> str:
    """A precision of float32, or a 16-bit dtype; BadParameter naming them all for another one."""
    if text not in ALL_PRECISIONS:
        raise typer.BadParameter(f"{text!r} is not a precision: {', '.join(ALL_PRECISIONS)}")
    return text


def dtype_name(text: str) -> str:
    """One of DTYPES; BadParameter naming them all for another one."""
    if text not in DTYPES:
        raise typer.BadParameter(f"{text!r} is not a dtype: {', '.join(DTYPES)}")
    return text


def size_in_bytes(text: str) -> int:
    """Bytes, from 64000000, 64MB (of 1000) or 64MiB (of 1024)."""
    found = SIZE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a size such as 0, 64000000, 64MB or 64MiB")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMG".index(unit.upper() or " "))


def setting(name: str, metavar: str, help: str) -> Any:
    """The option for the number `name` of TrainConfig."""
    return typer.Option(parser=number(RULES[name]), metavar=metavar, help=help)


def count(metavar: str, help: str) -> Any:
    """An option that takes a whole number of at least 1."""
    return typer.Option(parser=number(COUNT), metavar=metavar, help=help)


Model = Annotated[str, typer.Argument(metavar="MODEL", help="lenet5, alexnet, vgg11 … vgg19, vgg11_bn … vgg19_bn.")]
Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint that train wrote.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here as JSON.")]
Variant = Annotated[str | None, typer.Option(metavar="NAME", help="'paper' for the network as first published.")]
Width = Annotated[
    float | None, typer.Option(parser=number(WIDTH), metavar="FACTOR", help="Factor on all channel counts.")
]
ImageSize = Annotated[int | None, count("PIXELS", "Side of the network's input.")]
Limit = Annotated[int | None, setting("limit", "N", "Use the first N training and N test images only.")]
WorkspaceLimit = Annotated[
    int | None,
    typer.Option(parser=size_in_bytes, metavar="BYTES", help="Memory beside the arrays: 0, 64000000, 64MB or 64MiB."),
]
PrecisionName = Annotated[
    str,
    typer.Option(
        parser=precision_name, metavar="NAME", help=f"Of products, or a 16-bit dtype: {', '.join(ALL_PRECISIONS)}."
    ),
]
DtypeName = Annotated[
    str, typer.Option(parser=dtype_name, metavar="NAME", help=f"Of images and filters: {', '.join(DTYPES)}.")
]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu, sim (the kernels, simulated) or cuda.")]
Precision = Annotated[str | None, typer.Option(metavar="NAME", help=f"{', '.join(ALL_PRECISIONS)}.")]


def check_output(path: Path | None, folder: Path | None = None) -> None:
    """Raise OSError unless a file can be written at `path`; `folder` is one that will be there by then."""
    if path is None:
        return
    parent = path.absolute().parent
    if path.is_dir():
        raise IsADirectoryError(f"--json {path} is a folder; name a file in it")
    if folder is not None and parent == folder.absolute():
        return
    if not parent.is_dir():
        raise NotADirectoryError(f"--json {path}: {parent} is no folder; make it first")
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise PermissionError(f"--json {path}: no permission to write there; name another file")


def write_json(path: Path | None, value: Any) -> None:
    """`value` as JSON in the file, if one was asked for."""
    if path is not None:
        files.write_atomically(path, json.dumps(value, indent=2).encode() + b"\n")
