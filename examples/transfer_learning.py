"""Transfer learning: a network that knows the digits 0 to 4 learns 5 to 9 from ten images of each.

First its convolutions stay as they are and only a new classifier is trained, on features that are computed once; then
everything is trained together, the convolutions at a tenth of the rate.

Run: python examples/transfer_learning.py
"""

from typing import Any

import numpy as np

import gpucnn
from gpucnn import data, models, nn, optim
from gpucnn import functional as F


def select(digits: data.Dataset, classes: range, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, 28, 28) from −1 to 1 of the given classes, `count` of each (None: all), and labels from 0 on."""
    places = np.concatenate([np.flatnonzero(digits.labels == label)[:count] for label in classes])
    images = digits.images[places].astype(np.float32) / 127.5 - 1
    return images, digits.labels[places] - classes.start


def train(model: nn.Module, images: np.ndarray, labels: np.ndarray, epochs: int, parameters: Any = None) -> None:
    """SGD with momentum on shuffled batches of 50; `parameters` may be groups with rates of their own."""
    optimizer = optim.SGD(model.parameters() if parameters is None else parameters, lr=0.02, momentum=0.9)
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(images)), len(images) // 50):
            loss = F.cross_entropy(model(gpucnn.tensor(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def run(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """The model's results, with nothing kept for a backward pass."""
    with gpucnn.no_grad():
        return model(gpucnn.tensor(images)).numpy()


def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose class is the model's first guess."""
    return float((run(model, images).argmax(axis=1) == labels).mean())


def main() -> None:
    gpucnn.manual_seed(0)
    digits = data.load("digits")
    known = models.lenet5(num_classes=5)
    train(known, *select(digits.train, range(5)), epochs=3)
    print(f"digits 0 to 4, all images: {accuracy(known, *select(digits.test, range(5))):.1%} right")

    (images, labels), (test, test_labels) = select(digits.train, range(5, 10), 10), select(digits.test, range(5, 10))
    features, classifier = nn.Sequential(known.features, nn.Flatten()), nn.Linear(400, 5)
    train(classifier, run(features, images), labels, epochs=60)
    network = nn.Sequential(features, classifier)
    print(f"digits 5 to 9, ten images of each, features kept: {accuracy(network, test, test_labels):.1%} right")

    groups = [{"params": features.parameters(), "lr": 0.002}, {"params": classifier.parameters()}]
    train(network, images, labels, epochs=60, parameters=groups)
    print(f"then everything, features at a tenth of the rate: {accuracy(network, test, test_labels):.1%} right")

    scratch = models.lenet5(num_classes=5)
    train(scratch, images, labels, epochs=60)
    print(f"for comparison, from random weights: {accuracy(scratch, test, test_labels):.1%} right")


if __name__ == "__main__":
    main()
