"""Networks with two towers or two heads on the digits, trained to a stated accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import data, nn, optim
from gpucnn import functional as F

Labelled = tuple[np.ndarray, np.ndarray]


class TwoHeads(nn.Module):
    """One trunk; one head tells the digit, the other whether it is odd and whether it is above 4."""

    def __init__(self) -> None:
        self.trunk = nn.Sequential(trunk(), nn.ELU())
        self.digit, self.questions = nn.Linear(32, 10), nn.Linear(32, 2)

    def forward(self, x: Any) -> tuple[Any, Any]:
        features = self.trunk(x)
        return self.digit(features), self.questions(features)


def trunk(features: int = 32) -> nn.Sequential:
    """Images (N,1,28,28) → (N, features)."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.LeakyReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.LeakyReLU(),
        nn.L2Pool2d(2),
        nn.Flatten(),
        nn.Linear(256, features),
    )


@pytest.fixture(scope="module")
def digits() -> tuple[Labelled, Labelled]:
    train, test = data.load("digits")
    return scaled(train), scaled(test)


def scaled(digits: data.Dataset) -> Labelled:
    return digits.images.astype(np.float32) / 127.5 - 1, digits.labels


def batches(count: int, size: int, epochs: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        yield from np.array_split(rng.permutation(count), count // size)


def step(optimizer: optim.Optimizer, loss: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def embed(model: nn.Module, images: np.ndarray) -> np.ndarray:
    with gpucnn.no_grad():
        return model(gpucnn.tensor(images)).numpy()


def test_siamese_network(digits):
    """Two towers with the same weights learn only from "same digit" or "not".

    Then the nearest class mean in their 8 dimensions names at least 93 % of the test digits, and half the
    margin tells 91 % of balanced pairs apart.
    """
    (images, labels), (test_images, test_labels) = digits
    model = trunk(8)
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    for batch in batches(len(images), 64, 4):
        outputs = model(gpucnn.tensor(images[batch]))
        a, b = pairs(labels[batch])
        step(optimizer, F.contrastive_loss(outputs[a], outputs[b], labels[batch][a] == labels[batch][b], margin=2.0))

    means = np.stack([embed(model, images[labels == digit]).mean(axis=0) for digit in range(10)])
    codes = embed(model, test_images)
    nearest = np.linalg.norm(codes[:, None] - means, axis=2).argmin(axis=1)
    a, b = pairs(test_labels)
    told = (np.linalg.norm(codes[a] - codes[b], axis=1) < 1) == (test_labels[a] == test_labels[b])
    assert (nearest == test_labels).mean() >= 0.93
    assert told.mean() >= 0.91


def pairs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of the same digit, and as many of different ones."""
    a, b = np.triu_indices(len(labels), 1)
    same = labels[a] == labels[b]
    rng = np.random.default_rng(len(labels))
    others = rng.choice(np.flatnonzero(~same), same.sum(), replace=False)
    chosen = np.concatenate([np.flatnonzero(same), others])
    return a[chosen], b[chosen]


def questions(labels: np.ndarray) -> np.ndarray:
    return np.stack([labels % 2, labels > 4], axis=1).astype(np.float32)


def test_two_heads(digits):
    """Both heads learn at once, from the sum of their losses: 93 % of the digits, 92 % of the answers."""
    (images, labels), (test_images, test_labels) = digits
    model = TwoHeads()
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    for batch in batches(len(images), 64, 3):
        scores, answers = model(gpucnn.tensor(images[batch]))
        wanted = questions(labels[batch])
        step(optimizer, F.cross_entropy(scores, labels[batch]) + F.binary_cross_entropy_with_logits(answers, wanted))

    with gpucnn.no_grad():
        scores, answers = (output.numpy() for output in model(gpucnn.tensor(test_images)))
    assert (scores.argmax(axis=1) == test_labels).mean() >= 0.93
    assert ((answers > 0) == questions(test_labels)).mean() >= 0.92
