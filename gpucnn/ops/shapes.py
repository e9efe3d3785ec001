"""Shapes as plain integers: what a convolution or a pooling reads and writes, checked once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucnn import device as devices
from gpucnn.dtypes import FLOATS, is_half

Pair = int | tuple[int, int]
Extent = int | tuple[int, ...]
_FORMS = {1: "an integer", 2: "an integer or a pair of integers", 3: "an integer or three integers"}


def integers(operation: str, name: str, value: Any, count: int, minimum: int) -> tuple[int, ...]:
    """`value` as `count` integers, one an axis; an integer stands for all. Raises ValueError as `pair` does."""
    values = (value,) * count if isinstance(value, (int, np.integer)) else tuple(value) if _is_sequence(value) else ()
    if len(values) != count or not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{operation}: {name} is {value!r}; it must be {_FORMS[count]}")
    if min(values) < minimum:
        raise ValueError(f"{operation}: {name} is {value!r}; it must be at least {minimum}")
    return tuple(map(int, values))


def pair(operation: str, name: str, value: Any, minimum: int) -> tuple[int, int]:
    """`value` as (height, width); an integer stands for both. Raises ValueError below `minimum` or for another form."""
    height, width = integers(operation, name, value, 2, minimum)
    return height, width


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def require_float(operation: str, *, halves: bool = False, **arrays: Any) -> None:
    """Raise TypeError unless all given arrays (None is passed over) have one floating-point dtype and one device.

    Kernels compute in float32; the CPU in float32 and float64.
    - halves: whether 16-bit dtypes are taken, too
    """
    given = [(name, array) for name, array in arrays.items() if array is not None]
    first_name, first = given[0] if given else ("", np.empty(0))
    for name, array in arrays.items():
        if array is None:
            continue
        if not devices.is_array(array):
            raise TypeError(f"{operation}: {name} is {type(array).__name__}; it must be a Tensor or an array")
        taken = halves and is_half(array)
        if not taken and devices.runs_kernels(array) and array.dtype != np.float32:
            raise TypeError(
                f"{operation}: {name} is {array.dtype} on {devices.of(array)}, where kernels take float32: "
                f"{name}.astype('float32'), or compute on the CPU"
            )
        if not taken and array.dtype not in FLOATS:
            raise TypeError(
                f"{operation}: {name} is {array.dtype}; it must be float32 or float64: {name}.astype('float32')"
            )
        if array.dtype != first.dtype:
            raise TypeError(
                f"{operation}: {name} is {array.dtype} but {first_name} is {first.dtype}; convert one of them"
            )
        if devices.of(array) != devices.of(first):
            raise TypeError(
                f"{operation}: {name} is on {devices.of(array)} but {first_name} is on {devices.of(first)}; move one "
                "of them with .to(device)"
            )


def shape_of(operation: str, name: str, value: Any) -> tuple[int, ...]:
    """The shape of a Tensor or an array; raises TypeError for anything else."""
    if not hasattr(value, "shape"):
        raise TypeError(f"{operation}: {name} is {type(value).__name__}; it must be a Tensor or an array")
    return tuple(value.shape)


def require_ndim(operation: str, name: str, shape: tuple[int, ...], ndim: int, layout: str) -> None:
    """Raise ValueError unless `shape` has `ndim` dimensions, `layout` in words."""
    if len(shape) == ndim:
        return
    hint = f"; a single example needs a batch dimension: {name}[None]" if name == "x" and len(shape) == ndim - 1 else ""
    raise ValueError(f"{operation}: {name} has shape {shape}; it must have {ndim} dimensions {layout}{hint}")


class ConvShape(NamedTuple):
    """Everything about a convolution that is an integer: x (N,C,H,W), weight (K,C/groups,R,S), y (N,K,P,Q)."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    P: int
    Q: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def x(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def weight(self) -> tuple[int, int, int, int]:
        return self.K, self.C // self.groups, self.R, self.S

    @property
    def y(self) -> tuple[int, int, int, int]:
        return self.N, self.K, self.P, self.Q

    @property
    def multiply_adds(self) -> int:
        """Products of a direct convolution, each added to a sum; 2 floating-point operations apiece."""
        return self.N * self.K * self.P * self.Q * (self.C // self.groups) * self.R * self.S

    @property
    def flat(self) -> tuple[int, ...]:
        """The 16 integers in the order the extension takes them."""
        return (*self[:9], *self.stride, *self.padding, *self.dilation, self.groups)


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """floor((size + 2·padding − dilation·(kernel − 1) − 1) / stride) + 1: positions of a window along one axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv_shape(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    operation: str = "conv2d",
) -> ConvShape:
    """The ConvShape of x (N,C,H,W) and weight (K,C/groups,R,S); raises ValueError naming what does not fit."""
    require_ndim(operation, "x", x, 4, "(N, C, H, W)")
    require_ndim(operation, "weight", weight, 4, "(K, C/groups, R, S)")
    (N, C, H, W), (K, _, R, S) = x, weight
    strides = pair(operation, "stride", stride, 1)
    paddings = pair(operation, "padding", padding, 0)
    dilations = pair(operation, "dilation", dilation, 1)
    check_channels(operation, C, weight, groups, "(N, C, H, W)")
    P, Q = output_sizes(operation, (H, W), (R, S), strides, paddings, dilations)
    return ConvShape(N, C, H, W, K, R, S, P, Q, strides, paddings, dilations, groups)


def conv1d_shape(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    stride: Extent = 1,
    padding: Extent = 0,
    dilation: Extent = 1,
    groups: int = 1,
) -> ConvShape:
    """The ConvShape of x (N,C,L) and weight (K,C/groups,S) as images of height 1; raises as conv_shape does."""
    require_ndim("conv1d", "x", x, 3, "(N, C, L)")
    require_ndim("conv1d", "weight", weight, 3, "(K, C/groups, S)")
    (N, C, W), (K, _, S) = x, weight
    (step,) = integers("conv1d", "stride", stride, 1, 1)
    (border,) = integers("conv1d", "padding", padding, 1, 0)
    (gap,) = integers("conv1d", "dilation", dilation, 1, 1)
    check_channels("conv1d", C, weight, groups, "(N, C, L)")
    (Q,) = output_sizes("conv1d", (W,), (S,), (step,), (border,), (gap,))
    return ConvShape(N, C, 1, W, K, 1, S, 1, Q, (1, step), (0, border), (1, gap), groups)


def output_sizes(
    operation: str,
    sizes: tuple[int, ...],
    kernels: tuple[int, ...],
    strides: tuple[int, ...],
    paddings: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[int, ...]:
    """output_size along each axis; raises ValueError if nothing would come out."""
    outputs = tuple(output_size(*axis) for axis in zip(sizes, kernels, strides, paddings, dilations, strict=True))
    if min(outputs) < 1 or min(kernels) < 1:
        reach = "x".join(str(d * (k - 1) + 1) for d, k in zip(dilations, kernels, strict=True))
        raise ValueError(
            f"{operation}: the output would be empty: the kernel reaches over {reach} pixels but x has only "
            f"{'x'.join(map(str, sizes))} plus padding {paddings}; use a smaller kernel or dilation, more padding, "
            f"or a larger image"
        )
    return outputs


def check_channels(operation: str, C: int, weight: tuple[int, ...], groups: int, layout: str) -> None:
    """Raise ValueError unless x's C channels and weight (K, C/groups, …) fit together; `layout` is x's, in words."""
    K, weight_channels = weight[:2]
    require_groups(operation, groups)
    for name, channels in (("in_channels", C), ("out_channels", K)):
        if channels % groups:
            raise ValueError(f"{operation}: {name} (={channels}) must be divisible by groups (={groups})")
    if weight_channels * groups != C:
        of_groups = f" for groups={groups}" if groups > 1 else ""
        raise ValueError(
            f"{operation}: x has {C} channels but weight expects {weight_channels * groups} "
            f"(weight.shape={tuple(weight)}){of_groups}; x must be {layout}: channels come second"
        )


def require_groups(operation: str, groups: Any) -> None:
    """Raise ValueError unless `groups` is a positive integer."""
    if not isinstance(groups, (int, np.integer)) or groups < 1:
        raise ValueError(f"{operation}: groups is {groups!r}; it must be a positive integer")


class PoolShape(NamedTuple):
    """Everything about a pooling that is an integer: x (N,C,H,W), y (N,C,P,Q)."""

    N: int
    C: int
    H: int
    W: int
    P: int
    Q: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def x(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def y(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.P, self.Q

    @property
    def window(self) -> tuple[int, ...]:
        """The 8 integers in the order the extension takes them."""
        return (*self.kernel, *self.stride, *self.padding, *self.dilation)


def pool_shape(
    operation: str,
    x: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> PoolShape:
    """The PoolShape of x (N,C,H,W); stride None means the kernel's size. Raises ValueError naming what does not fit."""
    require_ndim(operation, "x", x, 4, "(N, C, H, W)")
    N, C, H, W = x
    kernels = pair(operation, "kernel_size", kernel_size, 1)
    strides = kernels if stride is None else pair(operation, "stride", stride, 1)
    paddings = pair(operation, "padding", padding, 0)
    dilations = pair(operation, "dilation", dilation, 1)
    if any(2 * p > k for p, k in zip(paddings, kernels, strict=True)):
        raise ValueError(f"{operation}: padding {paddings} must be at most half of kernel_size {kernels}")
    P, Q = (
        _pool_output_size(*extents, ceil_mode)
        for extents in zip((H, W), kernels, strides, paddings, dilations, strict=True)
    )
    if min(P, Q) < 1:
        raise ValueError(
            f"{operation}: the output would be empty: kernel_size {kernels} does not fit into x of {H}x{W} with "
            f"padding {paddings}; use a smaller kernel or a larger image"
        )
    return PoolShape(N, C, H, W, P, Q, kernels, strides, paddings, dilations)


def _pool_output_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    if not ceil_mode:
        return output_size(size, kernel, stride, padding, dilation)
    count = -(-(size + 2 * padding - dilation * (kernel - 1) - 1) // stride) + 1
    # The last window must start inside the image or its left padding, as in PyTorch.
    return count - 1 if (count - 1) * stride >= size + padding else count
