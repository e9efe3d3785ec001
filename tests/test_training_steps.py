"""Fifty steps of training from the same weights on the same batches follow PyTorch's losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch_models

from gpucnn import functional as F
from gpucnn import models, optim, tensor

STEPS, BATCH, CLASSES = 50, 64, 10


def batches(shape: tuple[int, int, int], dtype: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Noisy pictures of ten patterns, so that there is something to learn.

    They are faint, and the networks narrow, because a network that learns fast in so few steps is chaotic: two settings
    of PyTorch itself then differ by more than the limit in float32.
    """
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((CLASSES, *shape))
    found = []
    for _ in range(STEPS):
        labels = rng.integers(0, CLASSES, BATCH)
        images = 0.2 * (patterns[labels] + 0.3 * rng.standard_normal((BATCH, *shape)))
        found.append((images.astype(dtype), labels))
    return found


def losses(model: models.Network, data: list[tuple[np.ndarray, np.ndarray]], lr: float) -> np.ndarray:
    optimizer, found = optim.SGD(model.parameters(), lr=lr, momentum=0.9), []
    for images, labels in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tensor(images)), labels)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return np.array(found)


def oracle_losses(torch: Any, model: Any, data: list[tuple[np.ndarray, np.ndarray]], lr: float) -> np.ndarray:
    optimizer, found = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), []
    for images, labels in data:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(images)), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return np.array(found)


SMALL = {"num_classes": CLASSES, "in_channels": 1, "width": 1 / 16}
NETWORKS: dict[str, tuple[Callable[[], models.Network], Callable[[Any], Any]]] = {
    "lenet5": (models.lenet5, torch_models.lenet5),
    "alexnet": (
        lambda: models.alexnet(**SMALL, image_size=64, dropout=0.0),
        lambda torch: torch_models.alexnet(torch, **SMALL),
    ),
    "vgg11": (
        lambda: models.vgg11(**SMALL, image_size=32, dropout=0.0),
        lambda torch: torch_models.vgg(torch, "vgg11", **SMALL),
    ),
}


@pytest.mark.parametrize(
    ("name", "dtype", "lr", "absolute", "relative"),
    [
        ("lenet5", np.float64, 0.01, 1e-8, 0),
        ("alexnet", np.float64, 0.01, 1e-8, 0),
        ("vgg11", np.float64, 0.01, 1e-8, 0),
        ("lenet5", np.float32, 0.01, 1e-5, 0),
        ("alexnet", np.float32, 0.001, 0, 5e-3),
        ("vgg11", np.float32, 0.001, 0, 5e-3),
    ],
)
def test_losses_follow_pytorch(torch, name, dtype, lr, absolute, relative):
    build, build_oracle = NETWORKS[name]
    model, oracle = (
        build().to(dtype),
        build_oracle(torch).to({np.float32: torch.float32, np.float64: torch.float64}[dtype]),
    )
    weights = torch_models.he_weights({key: array.shape for key, array in model.state_dict().items()}, dtype)
    model.load_state_dict(weights)
    oracle.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in weights.items()})
    data = batches(model.input_shape, dtype)
    got, want = losses(model, data, lr), oracle_losses(torch, oracle, data, lr)
    difference = np.abs(got - want)
    assert (difference <= absolute + relative * want).all(), f"{difference.max():.3g} at step {difference.argmax()}"
    assert want.min() < 0.9 * want[0]  # it learns: the weights moved far enough to matter
