"""The variants that follow the papers to the letter: LeNet-5's trained sub-sampling and table, AlexNet's groups."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from check import assert_close, assert_equal, check_gradients

from gpucnn import models, nn, tensor
from gpucnn.models import lenet


@pytest.fixture
def paper() -> models.Network:
    model = models.lenet5(variant="paper").to(np.float64)
    for position, (_, parameter) in enumerate(model.named_parameters()):
        parameter.data += 0.1 * np.random.default_rng(position).standard_normal(parameter.shape)
    return model


def count(module: nn.Module) -> int:
    return sum(parameter.size for parameter in module.parameters())


def test_parameters_layer_by_layer(paper):
    """The paper's §II.B: 60,000 trained parameters before the output layer."""
    counts = {name: count(layer) for name, layer in paper.named_children() if count(layer)}
    assert counts == {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164, "output": 850}
    assert sum(counts.values()) - counts["output"] == 60_000


def test_table_of_connections():
    """Table I: six maps see three neighbours, six see four, three see four with a gap, one sees all: 60 in all."""
    table = lenet.C3_CONNECTIONS
    assert [len(row) for row in table] == [3] * 6 + [4] * 9 + [6]
    assert sum(map(len, table)) == 60
    neighbours = [sorted((first + i) % 6 for i in range(length)) for length in (3, 4) for first in range(6)]
    assert [list(row) for row in table[:12]] == neighbours
    gaps = [sorted((first + i) % 6 for i in (0, 1, 3, 4)) for first in range(3)]
    assert [list(row) for row in table[12:15]] == gaps
    seen_by = [sum(c in row for row in table) for c in range(6)]
    assert seen_by == [10] * 6  # every map of S2 feeds ten maps of C3


def test_connected_maps_against_an_explicit_loop(paper):
    x = np.random.default_rng(1).standard_normal((2, 6, 14, 14))
    kernels = iter(paper.c3.weight.data.reshape(-1, 5, 5))
    want = np.zeros((2, 16, 10, 10))
    for k, row in enumerate(lenet.C3_CONNECTIONS):
        want[:, k] = paper.c3.bias.data[k]
        for c in row:
            want[:, k] += reference.conv2d(x[:, [c]], next(kernels)[None, None])[:, 0]
    assert next(kernels, None) is None
    assert_close(paper.c3(x), want, 1e-12)


def test_gradients_of_the_connections(paper):
    layer = lenet.TableConv2d(((0, 1), (1,), (0, 2)), 2).to(np.float64)

    def function(x, weight, bias):
        layer.weight, layer.bias = weight, bias
        return layer(x)

    rng = np.random.default_rng(2)
    check_gradients(function, [rng.standard_normal((2, 3, 4, 4)), rng.standard_normal((5, 4)), rng.standard_normal(3)])


def test_subsampling(paper):
    x = np.random.default_rng(3).standard_normal((2, 6, 8, 8))
    mean = x.reshape(2, 6, 4, 2, 4, 2).mean(axis=(3, 5))
    weight, bias = paper.s2.weight.data, paper.s2.bias.data
    assert_close(paper.s2(x), 1.7159 * np.tanh(2 / 3 * (mean * weight + bias)), 1e-13)


def test_squashing_keeps_one():
    """The paper's appendix A: f(1) = 1 and f(−1) = −1."""
    assert_close(lenet.ScaledTanh()(np.array([1.0, -1.0, 0.0])), [1, -1, 0], 1e-4)


def test_whole_network_by_definition(paper):
    x = np.random.default_rng(4).standard_normal((2, 1, 28, 28))
    squash = lenet.ScaledTanh()
    y = squash(reference.conv2d(x, paper.c1.weight.data, paper.c1.bias.data, padding=2))
    y = squash(paper.c3(paper.s2(y)))
    y = squash(reference.conv2d(paper.s4(y), paper.c5.weight.data, paper.c5.bias.data))
    assert y.shape == (2, 120, 1, 1)
    y = squash(reference.linear(y[:, :, 0, 0], paper.f6.weight.data, paper.f6.bias.data))
    want = reference.linear(y, paper.output.weight.data, paper.output.bias.data)
    assert_close(paper(x), want, 1e-12)


def test_every_parameter_learns(paper):
    paper(tensor(np.random.default_rng(5).standard_normal((3, 1, 28, 28)))).sum().backward()
    assert all((parameter.grad.data != 0).all() for parameter in paper.parameters())


def test_initial_weights_of_the_paper():
    """Uniform within 2.4/fan-in."""
    model = models.lenet5(variant="paper")
    for layer, fan_in in ((model.c1, 25), (model.c5, 400), (model.f6, 120), (model.output, 84)):
        largest = np.abs(layer.weight.data).max()
        assert 0.9 * 2.4 / fan_in < largest <= 2.4 / fan_in * (1 + 1e-6)


ALEXNET_SIZES = {
    0: (96, 55),
    3: (96, 27),
    4: (256, 27),
    7: (256, 13),
    8: (384, 13),
    10: (384, 13),
    12: (256, 13),
    14: (256, 6),
}


def test_alexnet_sizes_stage_by_stage():
    """55, 27, 27, 13, 13, 13, 13, 6 pixels, from 227; run at an eighth of the channels."""
    model, found = models.alexnet(variant="paper", width=1 / 8, num_classes=10), {}
    for position, layer in enumerate(model.features):
        layer.register_forward_hook(lambda _, inputs, output, at=position: found.update({at: output.shape[1:]}))
    assert model(np.zeros((1, 3, 227, 227), np.float32)).shape == (1, 10)
    assert {at: found[at] for at in ALEXNET_SIZES} == {
        at: (channels // 8, pixels, pixels) for at, (channels, pixels) in ALEXNET_SIZES.items()
    }


def test_alexnet_groups_and_norms():
    with nn.init.skipped():
        layers = list(models.alexnet(variant="paper").features)
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [layer.groups for layer in convolutions] == [1, 2, 1, 2, 2]
    assert [layer.weight.shape[1] for layer in convolutions] == [3, 48, 256, 192, 192]
    norms = [(at, layer) for at, layer in enumerate(layers) if isinstance(layer, nn.LocalResponseNorm)]
    assert [at for at, _ in norms] == [2, 6]
    assert all((norm.size, norm.alpha, norm.beta, norm.k) == (5, 5e-4, 0.75, 2.0) for _, norm in norms)


def test_alexnet_starts_as_the_paper_says():
    model = models.alexnet(variant="paper", image_size=67)
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer, bias in zip(layers, [0, 1, 0, 1, 1, 1, 1, 0], strict=True):
        assert_equal(layer.bias, np.full(layer.bias.shape, bias))
        assert abs(layer.weight.data.std() - 0.01) < 0.0005
