"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition", §II.B)."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import functional as F
from gpucnn.models.network import Network, require_size, require_variant, scaled
from gpucnn.nn import Conv2d, Flatten, Linear, MaxPool2d, Module, Parameter, ReLU, Sequential, init

# Which of S2's 6 maps each of C3's 16 maps sees: the paper's table I.
C3_CONNECTIONS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip


class LeNet5(Network):
    """The network as it is taught today: ReLU, max pooling, full connections; 61,706 parameters for 10 classes."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int, width: float) -> None:
        super().__init__(
            "lenet5",
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            width=width,
            variant="modern",
        )
        require_size("lenet5", image_size, 16)
        c1, c3, c5, f6 = (scaled(channels, width) for channels in (6, 16, 120, 84))
        self.features = Sequential(
            Conv2d(in_channels, c1, 5, padding=_padding(image_size)),
            ReLU(),
            MaxPool2d(2),
            Conv2d(c1, c3, 5),
            ReLU(),
            MaxPool2d(2),
        )
        side = _side_after_c3(image_size)
        self.classifier = Sequential(
            Flatten(), Linear(c3 * side * side, c5), ReLU(), Linear(c5, f6), ReLU(), Linear(f6, num_classes)
        )

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x))


class LeNet5Paper(Network):
    """The paper's network: trained sub-sampling, scaled tanh, C3's table of connections; 60,000 before the output.

    The output layer is linear with softmax instead of the paper's fixed radial-basis codes.
    """

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__(
            "lenet5",
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            width=1.0,
            variant="paper",
        )
        require_size("lenet5", image_size, 16)
        side = _side_after_c3(image_size)
        self.c1 = Conv2d(in_channels, 6, 5, padding=_padding(image_size))
        self.s2 = Subsample(6)
        self.c3 = TableConv2d(C3_CONNECTIONS, 5)
        self.s4 = Subsample(16)
        self.c5 = Conv2d(16, 120, side)
        self.f6 = Linear(120, 84)
        self.output = Linear(84, num_classes)
        self.squash = ScaledTanh()
        for layer in (self.c1, self.c5, self.f6, self.output):
            layer.weight.data[...] = init.uniform(layer.weight.shape, 2.4 / init.fan_in(layer.weight.shape))

    def forward(self, x: Any) -> Any:
        x = self.s2(self.squash(self.c1(x)))
        x = self.s4(self.squash(self.c3(x)))
        x = F.flatten(self.squash(self.c5(x)))
        return self.output(self.squash(self.f6(x)))


class ScaledTanh(Module):
    """1.7159 · tanh(2/3 · x): ±1 are its own fixed points (the paper's appendix A)."""

    def forward(self, x: Any) -> Any:
        return F.tanh(x * (2 / 3)) * 1.7159


class Subsample(Module):
    """The paper's S layers: the mean of 2×2 pixels times a trained weight plus a trained bias a map, squashed."""

    def __init__(self, channels: int) -> None:
        self.weight = Parameter(np.ones((channels, 1, 1), np.float32))
        self.bias = Parameter(np.zeros((channels, 1, 1), np.float32))
        self.squash = ScaledTanh()

    def forward(self, x: Any) -> Any:
        return self.squash(F.avg_pool2d(x, 2) * self.weight + self.bias)


class TableConv2d(Module):
    """A convolution in which each output map sees only the input maps its row of the table names.

    weight (connections, R·S) holds one kernel a connection, so that what is not connected is no parameter.
    """

    placement: np.ndarray  # (maps out · maps in, connections): 1 where a connection's kernel belongs

    def __init__(self, connections: tuple[tuple[int, ...], ...], kernel_size: int) -> None:
        pairs = [(k, c) for k, row in enumerate(connections) for c in row]
        self.out_channels, self.in_channels = len(connections), 1 + max(c for _, c in pairs)
        self.kernel_size = kernel_size
        bounds = np.array([2.4 / (len(connections[k]) * kernel_size**2) for k, _ in pairs], np.float32)
        self.weight = Parameter(init.uniform((len(pairs), kernel_size**2), 1.0) * bounds[:, None])
        self.bias = Parameter(init.uniform((self.out_channels,), 1 / kernel_size**2))
        placement = np.zeros((self.out_channels * self.in_channels, len(pairs)), np.float32)
        placement[[k * self.in_channels + c for k, c in pairs], range(len(pairs))] = 1
        self.register_buffer("placement", placement, persistent=False)

    def forward(self, x: Any) -> Any:
        dense = F.matmul(self.placement, self.weight)
        shape = (self.out_channels, self.in_channels, self.kernel_size, self.kernel_size)
        return F.conv2d(x, F.reshape(dense, shape), self.bias)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, connections={len(self.weight)}"
        )


def _padding(image_size: int) -> int:
    """The paper's images are 32×32; MNIST's 28×28 are padded to that."""
    return 2 if image_size == 28 else 0


def _side_after_c3(image_size: int) -> int:
    return ((image_size + 2 * _padding(image_size) - 4) // 2 - 4) // 2


def lenet5(
    num_classes: int = 10, in_channels: int = 1, image_size: int = 28, width: float = 1.0, variant: str = "modern"
) -> Network:
    """LeNet-5: two convolutions and three fully connected layers for small images.

    - image_size: pixels; 28 is padded to the paper's 32; width: factor on all channel counts (modern variant)
    - variant: "modern", or "paper" (trained sub-sampling, scaled tanh, table of connections)
    Raises ValueError for an argument out of range.
    """
    require_variant("lenet5", variant, ("modern", "paper"))
    if variant == "modern":
        return LeNet5(num_classes, in_channels, image_size, width)
    if width != 1.0:
        raise ValueError(f"lenet5: width is {width} but variant 'paper' has the paper's channels; use width=1")
    return LeNet5Paper(num_classes, in_channels, image_size)
