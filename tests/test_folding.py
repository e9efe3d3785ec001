"""Batch normalisation folded into convolutions: exact where factors are powers of two, else within rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import device as devices
from gpucnn import models, nn
from gpucnn.launch import recording
from tests.check import assert_same_bits


def set_integers(model: nn.Module, rng: np.random.Generator) -> None:
    """Integers for weights, and factors scale / √variance of 1/4 to 4 for batch normalisation."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            for parameter in module.parameters():
                parameter.data[...] = rng.integers(-2, 3, parameter.shape)
        if isinstance(module, nn.BatchNorm2d):
            module.eps, size = 0.0, module.num_features
            module.weight.data[...] = rng.choice([-2.0, -1.0, 1.0, 2.0], size)
            module.bias.data[...] = rng.integers(-4, 5, size)
            module.running_mean[...] = rng.integers(-4, 5, size)
            module.running_var[...] = rng.choice([0.25, 1.0, 4.0], size)


def set_numbers(model: nn.Module, rng: np.random.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[...] = rng.uniform(0.5, 2, module.num_features)
            module.bias.data[...] = rng.standard_normal(module.num_features)
            module.running_mean[...] = rng.standard_normal(module.num_features)
            module.running_var[...] = rng.uniform(0.1, 3, module.num_features)


def network(**options: Any) -> nn.Sequential:
    """Of channels in twos, with ReLU or without, a bias or without, and a batch normalisation on its own."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, **options), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1)), nn.Dropout(0.5),
    )  # fmt: skip


def scores(model: nn.Module, x: Any, precision: str = "float32") -> np.ndarray:
    with gpucnn.autocast("bfloat16", enabled=precision == "bfloat16"):
        return devices.to_numpy(model(gpucnn.tensor(x, device=model.device)).data).astype(np.float32)


@pytest.mark.parametrize("where", ["cpu", "kernels"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_exact(where, precision, device, rng):
    """In bfloat16 for one layer, whose results have few enough bits."""
    model = network() if precision == "float32" else network()[:3]
    set_integers(model, rng)
    model.to("cpu" if where == "cpu" else device)
    x = rng.integers(-1, 2, (2, 2, 7, 6)).astype(np.float32)
    found = nn.folded(model)
    expected = scores(model.eval(), x, precision)
    assert_same_bits(scores(found, x, precision) + 0.0, expected + 0.0)  # zeros of either sign
    assert expected.any()


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16"])
def test_within_rounding(name, rng):
    """In 16 bits both round at different places: of layers by themselves they are no more than a few units apart."""
    model = network()
    set_numbers(model, rng)
    x = rng.standard_normal((2, 2, 7, 6))
    expected = model.to("float64").eval()(gpucnn.tensor(x, "float64")).numpy()
    found = nn.folded(model.to(name))
    assert found[0].weight.dtype == model[0].weight.dtype
    assert found[0].bias.dtype == ("float64" if name == "float64" else "float32")
    values = devices.to_numpy(found(gpucnn.tensor(x, name)).data).astype(np.float64)
    unit = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-9}[name]
    assert np.abs(values - expected).max() < 30 * unit * np.abs(expected).max()


def test_what_is_left_and_what_was_not_touched(rng):
    model = network()
    set_numbers(model, rng)
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    before = {name: array.copy() for name, array in model.state_dict().items()}
    found = nn.folded(model)
    assert [name for name, _ in found.named_children()] == ["0", "3", "4", "6", "7", "8"]
    assert type(found[0]) is nn.Conv2dRelu and type(found[2]) is nn.Conv2d and type(found[3]) is nn.BatchNorm2d
    assert [type(layer) for layer in found[4]] == [nn.Conv2dRelu, nn.Conv2d]
    assert model.training and not any(module.training for module in found.modules())
    x = rng.standard_normal((2, 2, 7, 6)).astype(np.float32)
    first = scores(found, x)
    assert not seen
    for name, array in model.state_dict().items():
        assert_same_bits(array, before[name])
    assert found[4][1].weight is model[7][2].weight  # of what is not folded there is one
    model[0].weight.data[...] = 0
    model[1].running_mean[...] += 1
    assert_same_bits(scores(found, x), first)
    assert not np.array_equal(scores(nn.folded(model), x), first)


def test_layers_that_do_not_fit_stay():
    odd = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(3))  # which its forward refuses
    assert len(nn.folded(odd)) == 2
    for layers in ([nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3)], [nn.Conv1d(2, 4, 3), nn.ReLU()], [nn.ReLU()], []):
        found = nn.folded(nn.Sequential(*layers))
        assert [type(layer) for layer in found] == [type(layer) for layer in layers]


def test_modules_in_two_places(rng):
    """One convolution before two batch normalisations has two folded forms; one Sequential stays one."""
    conv, first, second = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    model = nn.Sequential(conv, first, conv, second)
    set_numbers(model, rng)
    x = rng.standard_normal((2, 2, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(scores(nn.folded(model), x), scores(model.eval(), x), rtol=1e-4, atol=1e-5)
    inner = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    found = nn.folded(nn.Sequential(inner, inner))
    assert found[0] is found[1] and len(found[0]) == 1


def test_vgg_takes_fewer_launches(device, rng):
    model = models.create("vgg11_bn", num_classes=5, image_size=32, width=1 / 16)
    set_numbers(model, rng)
    model.to(device).eval()
    x = rng.standard_normal((1, 3, 32, 32)).astype(np.float32)
    counts, results = [], []
    for each in (model, nn.folded(model)):
        with recording() as plan:
            results.append(scores(each, x))
        counts.append(len(plan))
    assert counts[1] <= counts[0] - 16  # eight layers of batch normalisation and ReLU
    np.testing.assert_allclose(results[1], results[0], rtol=1e-3, atol=1e-4 * np.abs(results[0]).max())
