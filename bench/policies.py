"""Precisions as benchmarks know them: the type of arrays, the arithmetic that products may use, a label for rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpucnn import dtypes
from gpucnn.precision import PRECISIONS

HALVES = {"bfloat16": "bf16", "float16": "fp16"}
SUFFIXES = ("_tf32", "_bf16", "_fp16")  # of references whose arithmetic is not that of their names' library in float32


class Policy(NamedTuple):
    """How to compute.

    - dtype: of the arrays; precision: of gpucnn.precision; label: "fp32", "fp64", "fp32_tensor", "tf32", "bf16", "fp16"
    """

    dtype: str
    precision: str
    label: str

    @property
    def suffix(self) -> str:
        """Of the names of references that compute in this."""
        return f"_{self.label}" if f"_{self.label}" in SUFFIXES else ""

    @property
    def on_tensor_cores(self) -> bool:
        return self.label not in ("fp32", "fp64")

    @property
    def arithmetic(self) -> str:
        """As gpucnn.ops.conv_cost names it."""
        return self.dtype if self.dtype in HALVES else self.precision


POLICIES = {
    "float32": Policy("float32", "float32", "fp32"),
    "float64": Policy("float64", "float32", "fp64"),
    **{name: Policy("float32", name, name.replace("float", "fp")) for name in PRECISIONS if name != "float32"},
    **{name: Policy(name, "float32", label) for name, label in HALVES.items()},
}


def named(name: str) -> Policy:
    """The policy of a name, or of a row's label; raises ValueError naming them all."""
    for known, policy in POLICIES.items():
        if name in (known, policy.label):
            return policy
    raise ValueError(f"precision {name!r}: use one of {', '.join(POLICIES)}")


def dtype_of(name: str) -> np.dtype:
    """The NumPy dtype of arrays of this name."""
    return dtypes.resolve(name)
