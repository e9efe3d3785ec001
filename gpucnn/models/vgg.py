"""VGG (Simonyan & Zisserman 2015, table 1: A, B, D, E), with torchvision's parameter names."""

from __future__ import annotations

from typing import Any

from gpucnn import functional as F
from gpucnn.models.network import Network, require_size, scaled
from gpucnn.nn import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
    init,
)

# Channels of the 3×3 convolutions; 0 is a 2×2 max pooling.
LAYERS = {
    "vgg11": (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    "vgg13": (64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    "vgg16": (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
    "vgg19": (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512, 0),
}


class VGG(Network):
    """3×3 convolutions with ReLU (and batch norm before it), five 2×2 max poolings, three fully connected layers."""

    def __init__(
        self, name: str, num_classes: int, in_channels: int, image_size: int, width: float, dropout: float
    ) -> None:
        super().__init__(
            name,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            width=width,
            dropout=dropout,
        )
        require_size(name, image_size, 32)
        last, fc = scaled(512, width), scaled(4096, width)
        with init.skipped():  # _initialise draws them
            self.features = Sequential(*_features(name, in_channels, width))
            self.avgpool = AdaptiveAvgPool2d((7, 7))
            self.classifier = Sequential(
                Linear(last * 7 * 7, fc),
                ReLU(),
                Dropout(dropout),
                Linear(fc, fc),
                ReLU(),
                Dropout(dropout),
                Linear(fc, num_classes),
            )
        self._initialise()

    def forward(self, x: Any) -> Any:
        return self.classifier(F.flatten(self.avgpool(self.features(x))))

    def _initialise(self) -> None:
        """torchvision's: convolutions by He et al. 2015 (fan_out), linear weights normal with std 0.01, biases 0."""
        for layer in self.modules():
            if isinstance(layer, (Conv2d, Linear)):
                weight, bias = layer.parameters()
                shape = weight.shape
                weight.data[...] = init.kaiming_normal_fan_out(shape) if len(shape) == 4 else init.normal(shape, 0.01)
                bias.data[...] = 0


def _features(name: str, in_channels: int, width: float) -> list[Module]:
    layers: list[Module] = []
    channels = in_channels
    for published in LAYERS[name.removesuffix("_bn")]:
        if published == 0:
            layers.append(MaxPool2d(2))
            continue
        out_channels = scaled(published, width)
        layers.append(Conv2d(channels, out_channels, 3, padding=1))
        if name.endswith("_bn"):
            layers.append(BatchNorm2d(out_channels))
        layers.append(ReLU())
        channels = out_channels
    return layers


def _constructor(name: str) -> Any:
    def construct(
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        width: float = 1.0,
        dropout: float = 0.5,
    ) -> Network:
        return VGG(name, num_classes, in_channels, image_size, width, dropout)

    norm = " with batch normalisation" if name.endswith("_bn") else ""
    construct.__name__ = construct.__qualname__ = name
    construct.__doc__ = f"""{name.removesuffix("_bn").upper().replace("VGG", "VGG-")}{norm}, as torchvision's {name}.

    - image_size: pixels, at least 32; width: factor on all channel counts; dropout: probability in the classifier
    Raises ValueError for an argument out of range.
    """
    return construct


vgg11, vgg13, vgg16, vgg19 = map(_constructor, ("vgg11", "vgg13", "vgg16", "vgg19"))
vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn = map(_constructor, ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"))
