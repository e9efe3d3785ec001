"""Whole networks, forward and backward, through the kernels: the results are the CPU's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import models
from tests.check import assert_relative_l2

NETWORKS: dict[str, tuple[Callable[[], models.Network], tuple[int, ...]]] = {
    "lenet5": (lambda: models.lenet5(), (3, 1, 28, 28)),
    "lenet5_paper": (lambda: models.lenet5(variant="paper"), (2, 1, 28, 28)),
    "alexnet": (lambda: models.alexnet(num_classes=7, image_size=64, width=0.125), (2, 3, 64, 64)),
    "alexnet_paper": (
        lambda: models.alexnet(num_classes=7, image_size=227, width=0.0625, variant="paper"),
        (1, 3, 227, 227),
    ),
    "vgg16": (lambda: models.vgg16(num_classes=7, image_size=32, width=0.125), (2, 3, 32, 32)),
    "vgg11_bn": (lambda: models.vgg11_bn(num_classes=7, image_size=32, width=0.125), (3, 3, 32, 32)),
}


def gradients(name: str, device: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(scores, gradients of the loss by parameter) of the network with seeded weights, images and dropout masks."""
    gpucnn.manual_seed(5)
    make, shape = NETWORKS[name]
    model = make().to(device)
    images = np.random.default_rng(1).standard_normal(shape, np.float32)
    scores = model(gpucnn.tensor(images, device=device))
    F.cross_entropy(scores, np.arange(shape[0]) % 7).backward()
    return scores.numpy(), {key: value.grad.numpy() for key, value in model.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_and_backward(name, device):
    scores, found = gradients(name, device)
    want_scores, want = gradients(name, "cpu")
    assert_relative_l2(scores, want_scores, 1e-5)
    assert found.keys() == want.keys()
    for key in want:
        # a bias before batch normalisation has no gradient but the rounding errors
        assert np.linalg.norm(found[key] - want[key]) <= 2e-5 * np.linalg.norm(want[key]) + 1e-6, key


@pytest.mark.parametrize("name", ["lenet5", "vgg16"])
def test_two_runs_are_equal(name, device):
    (one, first), (other, second) = gradients(name, device), gradients(name, device)
    assert one.tobytes() == other.tobytes()
    assert all(first[key].tobytes() == second[key].tobytes() for key in first)
