"""The networks of gpucnn.models in PyTorch, module by module as their papers and torchvision have them: oracles."""

from __future__ import annotations

from collections import OrderedDict
from types import ModuleType
from typing import Any

import numpy as np

VGG_CHANNELS = {
    "vgg11": [64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"],
    "vgg16": [64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool"],
}


def lenet5(torch: ModuleType, num_classes: int = 10) -> Any:
    nn = torch.nn
    features = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    classifier = nn.Sequential(
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )
    return nn.Sequential(OrderedDict(features=features, classifier=classifier))


def alexnet(torch: ModuleType, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> Any:
    nn = torch.nn
    c1, c2, c3, c4, fc = (round(channels * width) for channels in (64, 192, 384, 256, 4096))
    features = nn.Sequential(
        nn.Conv2d(in_channels, c1, kernel_size=11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(c1, c2, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(c2, c3, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(c3, c4, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(c4, c4, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )
    classifier = nn.Sequential(
        nn.Dropout(0.0),
        nn.Linear(c4 * 6 * 6, fc),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Linear(fc, fc),
        nn.ReLU(),
        nn.Linear(fc, num_classes),
    )
    parts = {"features": features, "avgpool": nn.AdaptiveAvgPool2d((6, 6)), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(**parts, classifier=classifier))


def vgg(torch: ModuleType, name: str, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> Any:
    nn = torch.nn
    layers, channels = [], in_channels
    for entry in VGG_CHANNELS[name]:
        if entry == "pool":
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        else:
            layers += [nn.Conv2d(channels, round(entry * width), kernel_size=3, padding=1), nn.ReLU()]
            channels = round(entry * width)
    fc = round(4096 * width)
    classifier = nn.Sequential(
        nn.Linear(channels * 7 * 7, fc),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Linear(fc, fc),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Linear(fc, num_classes),
    )
    parts = {"features": nn.Sequential(*layers), "avgpool": nn.AdaptiveAvgPool2d((7, 7)), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(**parts, classifier=classifier))


def he_weights(shapes: dict[str, tuple[int, ...]], dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Normal weights of variance 2/fan_in (He et al. 2015), which keep the size of activations, and non-zero biases."""
    rng = np.random.default_rng(1)
    weights = {}
    for name, shape in shapes.items():
        std = 0.1 if len(shape) == 1 else (2 / np.prod(shape[1:])) ** 0.5
        weights[name] = (rng.standard_normal(shape, np.float32) * np.float32(std)).astype(dtype, copy=False)
    return weights
