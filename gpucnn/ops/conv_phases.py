"""The phases of a strided convolution's gradient by its input: convolutions of stride 1 that no zero is multiplied in.

Pixel h of x takes gy[p] for each tap r with p·stride + r·dilation = h + padding. All pixels h = a + stride·i of phase a
have the same taps, those with (a + padding − r·dilation) mod stride = 0; p grows by 1 with i and falls by
dilation / gcd(dilation, stride) from tap to tap of the phase. Both axes are on their own.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from gpucnn.launch.division import divisor
from gpucnn.ops.shapes import ConvShape

MAX_STRIDE = 4
MAX_PHASES = 16  # of kernels/conv2d_phases_hopper.cuh


class _Part(NamedTuple):
    """A phase of an axis: its first pixel, how many taps, the last one's place in the filter, and gy's p for it."""

    pixel: int
    taps: int
    last: int
    place: int


class _Axis(NamedTuple):
    """All phases of an axis, and from tap to tap of each: steps in the filter and in gy."""

    parts: tuple[_Part, ...]
    tap_step: int
    place_step: int

    @property
    def first(self) -> int:
        return min((part.place for part in self.parts if part.taps), default=0)

    @property
    def reach(self) -> int:
        ends = (part.place + (part.taps - 1) * self.place_step for part in self.parts if part.taps)
        return max(ends, default=self.first) - self.first


def _axis(size: int, taps: int, stride: int, padding: int, dilation: int) -> _Axis:
    common = gcd(stride, dilation)
    step, parts = stride // common, []
    for pixel in range(min(stride, size)):
        meets = [r for r in range(taps) if (pixel + padding - r * dilation) % stride == 0]
        last = meets[-1] if meets else 0
        parts.append(_Part(pixel, len(meets), last, (pixel + padding - last * dilation) // stride))
    return _Axis(tuple(parts), step, dilation // common)


class Phases(NamedTuple):
    """The phases of a shape, the one of the most taps first.

    - each: (part of h, part of w) of every phase; size: pixels (h, w) of the largest
    - first: the place in gy of pixel (0, 0) of all phases, from where on their own begin at offsets; reach: the largest
      offset of a tap
    """

    each: tuple[tuple[_Part, _Part], ...]
    size: tuple[int, int]
    first: tuple[int, int]
    reach: tuple[int, int]
    h: _Axis
    w: _Axis

    @property
    def taps(self) -> int:
        """Of all phases together: those of the filter, where each phase has pixels."""
        return sum(h.taps * w.taps for h, w in self.each)

    def walk(self, shape: ConvShape) -> tuple[object, ...]:
        """The struct PhaseWalk of kernels/conv2d_phases_hopper.cuh, after its channels."""
        records = [
            (h.pixel, w.pixel, h.taps, w.taps, h.last, w.last, self._offset(0, h), self._offset(1, w))
            for h, w in self.each
        ]
        unused = (0,) * (MAX_PHASES - len(records))
        arrays = (column + unused for column in zip(*records, strict=True))
        steps = self.h.tap_step, self.w.tap_step, self.h.place_step, self.w.place_step
        divisors = divisor(self.size[0] * self.size[1]), divisor(self.size[1])
        return *self.first, *shape.stride, shape.H, shape.W, *steps, *divisors, *arrays

    def _offset(self, axis: int, part: _Part) -> int:
        return part.place - self.first[axis] if part.taps else 0


def phases(shape: ConvShape) -> Phases:
    """Those of a convolution whose gradient by its input is asked for."""
    h, w = (
        _axis(*axis)
        for axis in zip(
            (shape.H, shape.W), (shape.R, shape.S), shape.stride, shape.padding, shape.dilation, strict=True
        )
    )
    each = sorted(((a, b) for a in h.parts for b in w.parts), key=lambda pair: -pair[0].taps * pair[1].taps)
    size = -(-shape.H // shape.stride[0]), -(-shape.W // shape.stride[1])
    first = h.first, w.first
    return Phases(tuple(each), size, first, (h.reach, w.reach), h, w)
