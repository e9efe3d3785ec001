"""AlexNet (Krizhevsky, Sutskever & Hinton 2012; Krizhevsky 2014, "One weird trick…", for torchvision's shape of it)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpucnn import functional as F
from gpucnn.models.network import Network, require_size, require_variant, scaled
from gpucnn.nn import (
    AdaptiveAvgPool2d,
    Conv2d,
    Dropout,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
    init,
)


class AlexNet(Network):
    """torchvision's AlexNet, with its parameter names; 61,100,840 parameters for 1,000 classes."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int, width: float, dropout: float) -> None:
        super().__init__(
            "alexnet",
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            width=width,
            dropout=dropout,
            variant="torchvision",
        )
        require_size("alexnet", image_size, 63)
        c1, c2, c3, c4, fc = (scaled(channels, width) for channels in (64, 192, 384, 256, 4096))
        self.features = Sequential(
            Conv2d(in_channels, c1, 11, stride=4, padding=2),
            ReLU(),
            MaxPool2d(3, stride=2),
            Conv2d(c1, c2, 5, padding=2),
            ReLU(),
            MaxPool2d(3, stride=2),
            Conv2d(c2, c3, 3, padding=1),
            ReLU(),
            Conv2d(c3, c4, 3, padding=1),
            ReLU(),
            Conv2d(c4, c4, 3, padding=1),
            ReLU(),
            MaxPool2d(3, stride=2),
        )
        self.avgpool = AdaptiveAvgPool2d((6, 6))
        self.classifier = Sequential(
            Dropout(dropout),
            Linear(c4 * 6 * 6, fc),
            ReLU(),
            Dropout(dropout),
            Linear(fc, fc),
            ReLU(),
            Linear(fc, num_classes),
        )

    def forward(self, x: Any) -> Any:
        return self.classifier(F.flatten(self.avgpool(self.features(x))))


class AlexNetPaper(Network):
    """The 2012 paper's AlexNet: 227×227 input, two groups, response normalisation; 60,965,224 parameters."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int, width: float, dropout: float) -> None:
        super().__init__(
            "alexnet",
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            width=width,
            dropout=dropout,
            variant="paper",
        )
        require_size("alexnet", image_size, 67)
        c1, c2, c3, c5, fc = (scaled(channels, width, 2) for channels in (96, 256, 384, 256, 4096))
        self.features = Sequential(
            Conv2d(in_channels, c1, 11, stride=4),
            ReLU(),
            _response_norm(),
            MaxPool2d(3, stride=2),
            Conv2d(c1, c2, 5, padding=2, groups=2),
            ReLU(),
            _response_norm(),
            MaxPool2d(3, stride=2),
            Conv2d(c2, c3, 3, padding=1),
            ReLU(),
            Conv2d(c3, c3, 3, padding=1, groups=2),
            ReLU(),
            Conv2d(c3, c5, 3, padding=1, groups=2),
            ReLU(),
            MaxPool2d(3, stride=2),
        )
        side = (image_size - 11) // 4 + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1  # overlapping pooling: 3×3 windows, stride 2
        self.classifier = Sequential(
            Linear(c5 * side * side, fc),
            ReLU(),
            Dropout(dropout),
            Linear(fc, fc),
            ReLU(),
            Dropout(dropout),
            Linear(fc, num_classes),
        )
        self._initialise()

    def forward(self, x: Any) -> Any:
        return self.classifier(F.flatten(self.features(x)))

    def _initialise(self) -> None:
        """The paper's §5: weights normal with std 0.01; biases 1 in conv 2, 4, 5 and hidden linear layers, else 0.

        That deviation suits the paper's channel counts; at other widths it is √(2/fan_in) (He et al. 2015).
        """
        layers = [layer for layer in self.modules() if isinstance(layer, (Conv2d, Linear))]
        ones = (1, 3, 4, 5, 6)
        for position, layer in enumerate(layers):
            weight, bias = layer.parameters()
            std = 0.01 if self.arguments["width"] == 1 else math.sqrt(2 / init.fan_in(weight.shape))
            weight.data[...] = init.normal(weight.shape, std)
            bias.data[...] = np.float32(position in ones)


def _response_norm() -> LocalResponseNorm:
    """The paper's n = 5, k = 2, α = 10⁻⁴, β = 0.75; our α is divided by n, the paper's is not."""
    return LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def alexnet(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int | None = None,
    width: float = 1.0,
    dropout: float = 0.5,
    variant: str = "torchvision",
) -> Network:
    """AlexNet: five convolutions with overlapping max pooling and three fully connected layers.

    - image_size: pixels; by default 224 (torchvision, at least 63) or 227 (paper, at least 67)
    - width: factor on all channel counts; dropout: probability in the classifier
    - variant: "torchvision" (its parameter names and shapes), or "paper" (two groups, response normalisation)
    Raises ValueError for an argument out of range.
    """
    require_variant("alexnet", variant, ("torchvision", "paper"))
    if variant == "paper":
        return AlexNetPaper(num_classes, in_channels, 227 if image_size is None else image_size, width, dropout)
    return AlexNet(num_classes, in_channels, 224 if image_size is None else image_size, width, dropout)
