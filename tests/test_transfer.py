"""Transfer learning and ensembles on the digits, to a stated accuracy: LeNet-5 that knows 0 to 4 learns 5 to 9."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from check import assert_same_bits

import gpucnn
from gpucnn import data, models, nn, optim, train
from gpucnn import functional as F

Labelled = tuple[np.ndarray, np.ndarray]


def select(digits: data.Dataset, classes: range, count: int | None = None) -> Labelled:
    """Images of the given classes, at most `count` of each, and labels from 0 on."""
    places = np.concatenate([np.flatnonzero(digits.labels == label)[:count] for label in classes])
    return digits.images[places].astype(np.float32) / 127.5 - 1, digits.labels[places] - classes.start


def fit(model: nn.Module, parameters: Any, examples: Labelled, epochs: int) -> optim.Optimizer:
    """SGD with momentum, batches of about 50, the rates down to 0 along a straight line."""
    images, labels = examples
    optimizer, rng = optim.SGD(parameters, lr=0.02, momentum=0.9), np.random.default_rng(0)
    batches = len(images) // 50
    schedule = optim.PolynomialSchedule(optimizer, epochs * batches)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(images)), batches):
            loss = F.cross_entropy(model(gpucnn.tensor(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optim.clip_grad_norm(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    return optimizer


def accuracy(model: nn.Module, examples: Labelled) -> float:
    images, labels = examples
    return float((train.average_predictions([model], images).argmax(axis=1) == labels).mean())


@pytest.fixture(scope="module")
def digits() -> data.Splits:
    return data.load("digits")


@pytest.fixture(scope="module")
def known(digits: data.Splits) -> dict[str, np.ndarray]:
    """The weights of a network that knows the digits 0 to 4."""
    gpucnn.manual_seed(0)
    model = models.lenet5(num_classes=5)
    fit(model, model.parameters(), select(digits.train, range(5)), 3)
    assert accuracy(model, select(digits.test, range(5))) >= 0.95
    return model.state_dict()


def pretrained(known: dict[str, np.ndarray]) -> models.Network:
    """The known convolutions below a new classifier."""
    model = models.lenet5(num_classes=5)
    model.load_state_dict({name: array for name, array in known.items() if name.startswith("features")}, strict=False)
    return model


def test_frozen_features(digits, known):
    """Twenty images of each new digit: 85 % with features that never change."""
    model = pretrained(known)
    model.features.requires_grad_(False)
    fit(model, model.parameters(), select(digits.train, range(5, 10), 20), 40)
    assert accuracy(model, select(digits.test, range(5, 10))) >= 0.85
    for name, array in model.features.state_dict().items():
        assert_same_bits(array, known[f"features.{name}"])


@pytest.mark.parametrize("share", [0.1, 0.01])
def test_two_rates(digits, known, share):
    """As well as with frozen features; the convolutions move, by less the smaller their rate is."""
    model = pretrained(known)
    groups = [{"params": model.features.parameters(), "lr": 0.02 * share}, {"params": model.classifier.parameters()}]
    optimizer = fit(model, groups, select(digits.train, range(5, 10), 20), 40)
    assert optimizer.rates == [0, 0]
    assert accuracy(model, select(digits.test, range(5, 10))) >= 0.85
    moved = [np.abs(array - known[f"features.{name}"]).max() for name, array in model.features.state_dict().items()]
    assert 0 < max(moved) < share


def test_ensemble_is_better_than_its_members(digits):
    """Four narrow networks, stopped early on 500 images: 80 % together, where they reach 74 % on average."""
    training, (images, labels) = select(digits.train, range(10), 50), select(digits.test, range(10))
    members = [models.lenet5(width=0.5) for _ in range(4)]
    for member in members:
        fit(member, member.parameters(), training, 15)
    alone = [accuracy(member, (images, labels)) for member in members]
    together = (train.average_predictions(members, images).argmax(axis=1) == labels).mean()
    assert together >= 0.8
    assert together >= np.mean(alone) + 0.05
