"""Named shapes that benchmarks share: suites of convolutions, matrix products, activations and networks.

`quick` ones are tiny, for trying a path on the simulator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from gpucnn.ops.shapes import ConvShape, conv_shape


@dataclass(frozen=True)
class ConvLayer:
    """A convolution, and how often the network that it comes from has it."""

    suite: str
    name: str
    shape: ConvShape
    repeats: int = 1

    def with_batch(self, batch: int) -> ConvLayer:
        """The same layer for another number of images."""
        return replace(self, shape=self.shape._replace(N=batch))


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


def square(
    suite: str, name: str, N: int, C: int, size: int, K: int, R: int, stride: int = 1, padding: int = 0
) -> ConvLayer:
    """N images of C channels, `size` by `size`, with K square filters of side R."""
    return ConvLayer(suite, name, conv_shape((N, C, size, size), (K, C, R, R), stride, padding))


def gathered(layers: Iterable[ConvLayer]) -> tuple[ConvLayer, ...]:
    """Each distinct shape once, under its first name, with the number of times that it occurs."""
    found: dict[ConvShape, ConvLayer] = {}
    for layer in layers:
        before = found.get(layer.shape)
        repeats = layer.repeats + (before.repeats if before else 0)
        found[layer.shape] = replace(before or layer, repeats=repeats)
    return tuple(found.values())


# The five layers of soumith/convnet-benchmarks.
LAYERS = (
    square("layers", "L1", 128, 3, 128, 96, 11),
    square("layers", "L2", 128, 64, 64, 128, 9),
    square("layers", "L3", 128, 128, 32, 128, 9),
    square("layers", "L4", 128, 128, 16, 128, 7),
    square("layers", "L5", 128, 384, 13, 384, 3),
)
# Krizhevsky 2014, "One weird trick".
ALEXNET = (
    square("alexnet", "conv1", 128, 3, 224, 64, 11, 4, 2),
    square("alexnet", "conv2", 128, 64, 27, 192, 5, 1, 2),
    square("alexnet", "conv3", 128, 192, 13, 384, 3, 1, 1),
    square("alexnet", "conv4", 128, 384, 13, 256, 3, 1, 1),
    square("alexnet", "conv5", 128, 256, 13, 256, 3, 1, 1),
)
# Sermanet et al. 2014, the fast model.
OVERFEAT = (
    square("overfeat", "conv1", 128, 3, 231, 96, 11, 4),
    square("overfeat", "conv2", 128, 96, 28, 256, 5),
    square("overfeat", "conv3", 128, 256, 12, 512, 3, 1, 1),
    square("overfeat", "conv4", 128, 512, 12, 1024, 3, 1, 1),
    square("overfeat", "conv5", 128, 1024, 12, 1024, 3, 1, 1),
)
# LeCun et al. 1998, as it is taught today.
LENET5 = (square("lenet5", "conv1", 128, 1, 28, 6, 5, 1, 2), square("lenet5", "conv2", 128, 6, 14, 16, 5))


def vgg(suite: str, blocks: tuple[tuple[int, ...], ...]) -> tuple[ConvLayer, ...]:
    """Simonyan & Zisserman 2015: 3×3 with padding 1, images halved after each block of the given filters."""
    layers, C, size = [], 3, 224
    for number, block in enumerate(blocks, 1):
        for position, K in enumerate(block, 1):
            layers.append(square(suite, f"conv{number}_{position}", 64, C, size, K, 3, 1, 1))
            C = K
        size //= 2
    return gathered(layers)


# Szegedy et al. 2015: in, 1×1, 3×3 reduction and 3×3, 5×5 reduction and 5×5, projection of the pool.
INCEPTIONS = {
    "3a": (28, 192, 64, 96, 128, 16, 32, 32), "3b": (28, 256, 128, 128, 192, 32, 96, 64),
    "4a": (14, 480, 192, 96, 208, 16, 48, 64), "4b": (14, 512, 160, 112, 224, 24, 64, 64),
    "4c": (14, 512, 128, 128, 256, 24, 64, 64), "4d": (14, 512, 112, 144, 288, 32, 64, 64),
    "4e": (14, 528, 256, 160, 320, 32, 128, 128),
    "5a": (7, 832, 256, 160, 320, 32, 128, 128), "5b": (7, 832, 384, 192, 384, 48, 128, 128),
}  # fmt: skip


def googlenet() -> Iterator[ConvLayer]:
    """GoogLeNet without its auxiliary classifiers."""
    yield square("googlenet", "conv1", 128, 3, 224, 64, 7, 2, 3)
    yield square("googlenet", "conv2_reduce", 128, 64, 56, 64, 1)
    yield square("googlenet", "conv2", 128, 64, 56, 192, 3, 1, 1)
    for name, (size, C, one, reduce3, three, reduce5, five, pooled) in INCEPTIONS.items():
        parts = {
            "1x1": (C, one, 1), "3x3_reduce": (C, reduce3, 1), "3x3": (reduce3, three, 3),
            "5x5_reduce": (C, reduce5, 1), "5x5": (reduce5, five, 5), "pool": (C, pooled, 1),
        }  # fmt: skip
        for part, (channels, filters, R) in parts.items():
            yield square("googlenet", f"{name}_{part}", 128, channels, size, filters, R, 1, R // 2)


def resnet50() -> Iterator[ConvLayer]:
    """He et al. 2016, with the stride of a stage in its first 3×3 convolution, as everyone trains it."""
    yield square("resnet50", "conv1", 64, 3, 224, 64, 7, 2, 3)
    C, size = 64, 56
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 2):
        for block in range(1, blocks + 1):
            stride = 2 if block == 1 and stage > 2 else 1
            name = f"conv{stage}_{block}"
            yield square("resnet50", f"{name}_reduce", 64, C, size, width, 1)
            yield square("resnet50", f"{name}_3x3", 64, width, size, width, 3, stride, 1)
            if block == 1:
                yield square("resnet50", f"{name}_shortcut", 64, C, size, 4 * width, 1, stride)
            C, size = 4 * width, size // stride
            yield square("resnet50", f"{name}_expand", 64, width, size, C, 1)


# At the batches of convnet-benchmarks, its networks; every distinct convolution once.
SUITES: dict[str, tuple[ConvLayer, ...]] = {
    "layers": LAYERS,
    "alexnet": ALEXNET,
    "overfeat": OVERFEAT,
    "vgg_a": vgg("vgg_a", ((64,), (128,), (256, 256), (512, 512), (512, 512))),
    "vgg16": vgg("vgg16", ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)),
    "googlenet": gathered(googlenet()),
    "resnet50": gathered(resnet50()),
    "lenet5": LENET5,
}
QUICK_CONVOLUTIONS = (
    square("quick", "3x3", 2, 3, 8, 4, 3, 1, 1),
    square("quick", "5x5-stride2", 2, 4, 9, 4, 5, 2, 2),
)
SHAPE_FORM = "N,C,H,W,K,R,S[,stride[,padding[,dilation[,groups]]]]"


def parse_shape(text: str) -> ConvLayer:
    """The layer of a text as in SHAPE_FORM; raises ValueError for another form or sizes that do not fit."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not 7 <= len(sizes) <= 11 or min(sizes[:7]) < 1:
        raise ValueError(f"{text!r} is not {SHAPE_FORM}, whole numbers")
    N, C, H, W, K, R, S, *geometry = sizes
    stride, padding, dilation, groups = (*geometry, *(1, 0, 1, 1)[len(geometry) :])
    if groups < 1 or C % groups:
        raise ValueError(f"{text!r}: C (={C}) must be divisible by groups (={groups})")
    shape = conv_shape((N, C, H, W), (K, C // groups, R, S), stride, padding, dilation, groups, "bench conv")
    return ConvLayer("shape", text, shape)


def shrunk(layer: ConvLayer, limit: int) -> ConvLayer:
    """The layer with one image, then a smaller one, then fewer channels, until it has at most `limit` multiply-adds.

    Kernel, stride, padding and dilation stay; images keep 8 rows and columns of outputs, and no less than 8 channels.
    """
    shape = layer.shape._replace(N=1) if layer.shape.multiply_adds > limit else layer.shape
    while shape.multiply_adds > limit:
        smaller = _smaller_image(shape) or _fewer_channels(shape)
        if smaller is None:
            break
        shape = smaller
    return replace(layer, shape=shape)


def _smaller_image(shape: ConvShape) -> ConvShape | None:
    """Half the height and width, but no less than 8 rows and columns of outputs need."""
    axes = zip((shape.H, shape.W), (shape.R, shape.S), shape.stride, shape.padding, shape.dilation, strict=True)
    H, W = (min(size, max(size // 2, d * (k - 1) + 1 + 7 * s - 2 * p)) for size, k, s, p, d in axes)
    if (H, W) == (shape.H, shape.W):
        return None
    return _resized(shape, (shape.N, shape.C, H, W), shape.K, shape.groups)


def _fewer_channels(shape: ConvShape) -> ConvShape | None:
    """Half the groups, or half the channels on both sides; None where that is too few or does not divide."""
    if shape.groups > 1:
        if shape.groups % 2:
            return None
        return _resized(shape, (shape.N, shape.C // 2, shape.H, shape.W), shape.K // 2, shape.groups // 2)
    C, K = (count // 2 if count % 2 == 0 and count >= 16 else count for count in (shape.C, shape.K))
    return None if (C, K) == (shape.C, shape.K) else _resized(shape, (shape.N, C, shape.H, shape.W), K, 1)


def _resized(shape: ConvShape, x: tuple[int, int, int, int], K: int, groups: int) -> ConvShape:
    weight = K, x[1] // groups, shape.R, shape.S
    return conv_shape(x, weight, shape.stride, shape.padding, shape.dilation, groups)


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
