"""Shapes that tests share, each named after what it exercises."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest


class ConvCase(NamedTuple):
    """x (N,C,H,W) and weight (K,C/groups,R,S) with the options of conv2d."""

    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    @property
    def options(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def arrays(self, dtype: Any, kind: str = "normal") -> tuple[np.ndarray, ...]:
        """x, weight and bias; kind "integers" is small enough for sums of up to 10^6 terms to be exact in float32."""
        rng = np.random.default_rng(sum(self.x) + sum(self.weight))
        shapes = self.x, self.weight, self.weight[:1]
        if kind == "integers":
            return tuple(rng.integers(-4, 5, shape).astype(dtype) for shape in shapes)
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


CONV_CASES = {
    "smallest": ConvCase((1, 1, 1, 1), (1, 1, 1, 1)),
    "lenet_c1": ConvCase((2, 1, 28, 28), (6, 1, 5, 5), padding=2),
    "lenet_c3": ConvCase((2, 6, 14, 14), (16, 6, 5, 5)),
    "one_output_pixel": ConvCase((3, 16, 5, 5), (12, 16, 5, 5)),  # as LeNet's C5
    "alexnet_c1": ConvCase((1, 3, 35, 35), (8, 3, 11, 11), stride=4, padding=2),  # the last windows do not fit
    "vgg": ConvCase((2, 8, 9, 9), (16, 8, 3, 3), padding=1),
    "pointwise": ConvCase((2, 7, 5, 6), (11, 7, 1, 1)),  # 1×1: a matrix product
    "pointwise_stride2": ConvCase((1, 4, 7, 5), (3, 4, 1, 1), stride=2),  # pixels that no window reads
    "stride3_border_unused": ConvCase((1, 2, 7, 7), (2, 2, 3, 3), stride=3),
    "primes": ConvCase((3, 5, 13, 11), (7, 5, 3, 2), padding=1),  # tails in every direction, even kernel
    "tall_kernel": ConvCase((2, 3, 12, 4), (4, 3, 7, 1), stride=(2, 1), padding=(3, 0)),
    "wide_strides": ConvCase((2, 2, 9, 16), (3, 2, 2, 3), stride=(1, 3), padding=(0, 1)),
    "kernel_larger_than_image": ConvCase((1, 2, 3, 2), (3, 2, 5, 4), padding=(2, 2)),  # some taps meet only padding
    "wide_padding": ConvCase((1, 2, 4, 4), (2, 2, 3, 3), padding=3),  # output pixels of padding alone
    "dilated": ConvCase((2, 3, 11, 12), (4, 3, 3, 3), padding=2, dilation=2),
    "dilated_both": ConvCase((1, 2, 13, 9), (3, 2, 3, 2), stride=2, padding=(3, 1), dilation=(3, 2)),
    "groups": ConvCase((2, 6, 7, 6), (9, 2, 3, 3), padding=1, groups=3),
    "alexnet_groups": ConvCase((1, 8, 6, 6), (12, 4, 5, 5), padding=2, groups=2),
    "depthwise": ConvCase((2, 5, 8, 8), (5, 1, 3, 3), padding=1, groups=5),
    "depthwise_multiplier": ConvCase((2, 3, 6, 7), (6, 1, 3, 3), stride=2, padding=1, groups=3),
    "depthwise_blocks": ConvCase((1, 2, 61, 53), (4, 1, 5, 3), padding=2, dilation=(1, 2), groups=2),
    "one_dimensional": ConvCase((2, 3, 1, 17), (4, 3, 1, 3), padding=(0, 1)),
    "empty_batch": ConvCase((0, 3, 5, 5), (4, 3, 3, 3), padding=1),
    "many_channels": ConvCase((1, 37, 6, 6), (19, 37, 3, 3), padding=1),  # long sums
    "many_images": ConvCase((33, 2, 6, 5), (3, 2, 3, 3)),  # more images than threads or blocks
}


class PoolCase(NamedTuple):
    """x (N,C,H,W) and a window."""

    x: tuple[int, int, int, int]
    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    @property
    def window(self) -> tuple[Any, ...]:
        return self[1:]

    @property
    def window_without_dilation(self) -> tuple[Any, ...]:
        return (*self[1:4], self.ceil_mode)


POOL_CASES = {
    "smallest": PoolCase((1, 1, 1, 1), 1),
    "lenet_s2": PoolCase((2, 6, 28, 28), 2),
    "alexnet_overlapping": PoolCase((2, 5, 13, 13), 3, 2),
    "unused_border": PoolCase((1, 2, 7, 5), 2),
    "ceil_mode": PoolCase((2, 3, 7, 6), 2, ceil_mode=True),
    "ceil_mode_overlapping": PoolCase((1, 2, 8, 10), 3, 2, ceil_mode=True),
    "ceil_mode_padding": PoolCase((1, 2, 6, 7), 3, 2, 1, ceil_mode=True),
    "ceil_mode_window_dropped": PoolCase((1, 1, 5, 5), 2, 3, 1, ceil_mode=True),  # it would start in right padding
    "ceil_mode_larger_than_image": PoolCase((1, 2, 2, 2), 3, 2, ceil_mode=True),
    "padding": PoolCase((2, 3, 9, 8), 3, 2, 1),
    "pairs": PoolCase((2, 2, 9, 11), (2, 3), (1, 2), (1, 0)),
    "dilated": PoolCase((1, 3, 11, 10), 3, 1, 1, 2),
    "gaps_between_windows": PoolCase((1, 2, 10, 10), 2, 4),  # pixels in no window: gradient zero
    "whole_image": PoolCase((3, 4, 6, 5), (6, 5)),
    "empty_batch": PoolCase((0, 3, 6, 6), 2),
    "many_planes": PoolCase((9, 7, 5, 5), 3, 2, 1),
}


def parametrize(cases: dict[str, Any], name: str = "case") -> Any:
    """A decorator: the test runs once for each case, under the case's name."""
    return pytest.mark.parametrize(name, list(cases.values()), ids=list(cases))
