"""Named shapes that benchmarks share: convolutions, matrix products, activations and networks.

`quick` ones are tiny, for trying a path on the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpucnn.ops.shapes import ConvShape, conv_shape


@dataclass(frozen=True)
class ConvLayer:
    """A convolution of N images of C channels, `size` by `size`, with K square filters of side R."""

    name: str
    N: int
    C: int
    size: int
    K: int
    R: int
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def shape(self) -> ConvShape:
        """As operations take it."""
        x = self.N, self.C, self.size, self.size
        weight = self.K, self.C // self.groups, self.R, self.R
        return conv_shape(x, weight, self.stride, self.padding, 1, self.groups)


@dataclass(frozen=True)
class Product:
    """c (M,N) = a · b; `layout` says of each operand whether it is stored transposed: NN, NT or TN."""

    name: str
    M: int
    N: int
    K: int
    layout: str


@dataclass(frozen=True)
class Step:
    """A network and the batch that is trained or evaluated at once."""

    model: str
    batch: int
    image_size: int
    width: float = 1.0


# Simonyan & Zisserman 2015: every distinct convolution of VGG-16, 3×3 with padding 1, at a batch of 64.
VGG16 = tuple(
    ConvLayer(f"vgg16-{name}", 64, C, size, K, 3, padding=1)
    for name, C, size, K in (
        ("conv1_1", 3, 224, 64),
        ("conv1_2", 64, 224, 64),
        ("conv2_1", 64, 112, 128),
        ("conv2_2", 128, 112, 128),
        ("conv3_1", 128, 56, 256),
        ("conv3_2", 256, 56, 256),
        ("conv4_1", 256, 28, 512),
        ("conv4_2", 512, 28, 512),
        ("conv5_1", 512, 14, 512),
    )
)
# Krizhevsky 2014, "One weird trick", at a batch of 128.
ALEXNET = (
    ConvLayer("alexnet-conv1", 128, 3, 224, 64, 11, stride=4, padding=2),
    ConvLayer("alexnet-conv2", 128, 64, 27, 192, 5, padding=2),
    ConvLayer("alexnet-conv3", 128, 192, 13, 384, 3, padding=1),
    ConvLayer("alexnet-conv4", 128, 384, 13, 256, 3, padding=1),
    ConvLayer("alexnet-conv5", 128, 256, 13, 256, 3, padding=1),
)
# The five layers of soumith/convnet-benchmarks, at a batch of 128.
CONVNET_BENCHMARKS = (
    ConvLayer("convnet-L1", 128, 3, 128, 96, 11),
    ConvLayer("convnet-L2", 128, 64, 64, 128, 9),
    ConvLayer("convnet-L3", 128, 128, 32, 128, 9),
    ConvLayer("convnet-L4", 128, 128, 16, 128, 7),
    ConvLayer("convnet-L5", 128, 384, 13, 384, 3),
)
QUICK_CONVOLUTIONS = (
    ConvLayer("tiny-3x3", 2, 3, 8, 4, 3, padding=1),
    ConvLayer("tiny-5x5-stride2", 2, 4, 9, 4, 5, stride=2, padding=2),
)


def convolutions(quick: bool) -> tuple[ConvLayer, ...]:
    """The layers of the convolution benchmark: short ones of each network first, so that a cut leaves some of all."""
    if quick:
        return QUICK_CONVOLUTIONS
    return tuple(sorted((*VGG16, *ALEXNET, *CONVNET_BENCHMARKS), key=lambda layer: layer.shape.multiply_adds))


def products(quick: bool) -> tuple[Product, ...]:
    """Square products in three layouts."""
    sizes = {"33": 33} if quick else {"1k": 1024, "2k": 2048, "4k": 4096, "8k": 8192}
    return tuple(Product(name, n, n, n, layout) for name, n in sizes.items() for layout in ("NN", "NT", "TN"))


def activations(quick: bool) -> tuple[int, int, int, int]:
    """(N, C, H, W) of what memory-bound operations read: the output of VGG-16's first block."""
    return (2, 4, 8, 8) if quick else (64, 64, 112, 112)


def parameters(quick: bool) -> int:
    """How many values an optimiser updates: about VGG-16's."""
    return 1000 if quick else 138_000_000


def classes(quick: bool) -> tuple[int, int]:
    """(rows, columns) of a softmax."""
    return (4, 10) if quick else (65_536, 1000)


def steps(quick: bool) -> tuple[Step, ...]:
    """Networks that are trained and evaluated."""
    if quick:
        return (Step("lenet5", 2, 28),)
    return Step("lenet5", 128, 28), Step("alexnet", 128, 224), Step("vgg16", 64, 224)
