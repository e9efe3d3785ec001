"""Packed weights are kept while autocast's cast is, and never used after a change of the parameter."""

from __future__ import annotations

import gc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpucnn
from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import nn, ops, optim
from gpucnn.launch import simulator
from gpucnn.ops import conv_half, conv_hopper, packing
from gpucnn.ops.shapes import conv_shape
from gpucnn.train.step import CapturedStep, Step
from tests.check import assert_same_bits

UNITS = ("sm_80", "sm_90")  # mma.sync, and wgmma


@pytest.fixture(params=UNITS)
def architecture(request, device):
    if device != "sim":
        yield "of the GPU"
    else:
        with simulator.configured(architecture=request.param):
            yield request.param


@pytest.fixture
def packs(monkeypatch) -> list[str]:
    """The passes that weights were packed for, in order."""
    found: list[str] = []
    for module in (conv_half, conv_hopper):
        original = module.launch

        def counted(name: str, grid: Any, *arguments: Any, original: Any = original, **options: Any) -> Any:
            if "_pack_" in name:
                found.append(name)
            return original(name, grid, *arguments, **options)

        monkeypatch.setattr(module, "launch", counted)
    return found


def images(rng, device, size=(2, 32, 5, 4), dtype=np.float32):
    """Integers, channels-last, so that all kernels take them."""
    N, C, H, W = size
    values = rng.integers(-2, 3, (N, H, W, C)).astype(dtype)
    return gpucnn.Tensor(devices.move(values, device).transpose(0, 3, 1, 2), requires_grad=True)


def layer(rng, device, **options):
    made = nn.Conv2d(32, 32, 3, padding=1, **options)
    made.weight.data[...] = rng.integers(-2, 3, made.weight.shape)
    return made.to(device)


def scores(model, x):
    return devices.to_numpy(model(x).data).astype(np.float32)


def anew(model, x):
    """The scores of a context of its own, which casts and packs everything anew."""
    with gpucnn.autocast("bfloat16"):
        return scores(model, x)


def test_once_for_many_passes(architecture, device, rng, packs):
    model = layer(rng, device)
    x = images(rng, device, dtype=ml_dtypes.bfloat16)
    with gpucnn.autocast("bfloat16"):
        results = [model(x) for _ in range(3)]
        assert len(packs) == 1
        results[0].backward(results[0])
    first = x.grad.numpy()
    x.grad = None
    results[1].backward(results[1])  # outside, where the cast is still
    assert len(packs) == 2
    assert architecture not in UNITS or ["hopper" in name for name in packs] == [architecture == "sm_90"] * 2
    assert_same_bits(x.grad.numpy(), first)
    assert_same_bits(results[2].numpy(), results[0].numpy())
    expected = ops.conv2d_forward(
        devices.to_numpy(x.data).astype(np.float64), model.weight.numpy().astype(np.float64),
        model.bias.numpy().astype(np.float64), conv_shape(x.shape, model.weight.shape, 1, 1, 1, 1),
    )  # fmt: skip
    np.testing.assert_allclose(results[0].numpy().astype(np.float64), expected, rtol=2**-7, atol=0.1)


def written(model):
    model.weight.data[...] = 1
    gpucnn.parameters_changed()


def replaced(model):
    model.weight.data = model.weight.data + model.weight.data


def loaded(model):
    model.load_state_dict({name: devices.to_numpy(array) + 1 for name, array in model.state_dict().items()})


def stepped(optimizer):
    def change(model):
        for parameter in model.parameters():
            parameter.grad = gpucnn.tensor(np.ones(parameter.shape, np.float32), device=parameter.device)
        optimizer(model.parameters(), lr=1.0).step()

    return change


@pytest.mark.parametrize(
    "change",
    [written, replaced, loaded, stepped(optim.SGD), stepped(optim.AdamW), stepped(optim.RMSprop)],
    ids=["written", "replaced", "loaded", "SGD", "AdamW", "RMSprop"],
)
def test_anew_after_a_change(change, architecture, device, rng, packs):
    model, x = layer(rng, device), images(rng, device, (1, 32, 3, 3))
    with gpucnn.autocast("bfloat16"):
        before = scores(model, x)
        change(model)
        after = scores(model, x)
        assert len(packs) == 2
        again = scores(model, x)
        assert len(packs) == 2
        gradient = model(x)
        gradient.backward(gradient)
    assert not np.array_equal(before, after)
    assert_same_bits(after, again)
    assert_same_bits(after, anew(model, x))


def test_backward_uses_the_weights_of_its_forward(architecture, device, rng):
    model, x = layer(rng, device), images(rng, device, (1, 32, 3, 3))
    with gpucnn.autocast("bfloat16"):
        y = model(x)
        written(model)
        y.backward(y)
        gradient = x.grad.numpy()
        x.grad = None
        new = model(x)
        new.backward(y)
    assert not np.array_equal(gradient, x.grad.numpy())


def test_a_write_that_nobody_tells_of_counts_in_the_next_context(architecture, device, rng):
    model, x = layer(rng, device), images(rng, device, (1, 32, 3, 3))
    before = anew(model, x)
    model.weight.data[...] = 1
    assert not np.array_equal(anew(model, x), before)


@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16])
def test_arrays_are_packed_at_every_use(kind, architecture, device, rng, packs):
    x = devices.move(rng.integers(-2, 3, (1, 3, 3, 32)).astype(ml_dtypes.bfloat16), device).transpose(0, 3, 1, 2)
    weight = devices.move(rng.integers(-2, 3, (32, 32, 3, 3)).astype(kind), device)
    shape = conv_shape(x.shape, weight.shape, 1, 1, 1, 1)
    first = devices.to_numpy(ops.conv2d_forward(x, weight, None, shape))
    weight[...] = devices.move(np.zeros(weight.shape, kind), device)
    assert first.any() and not devices.to_numpy(ops.conv2d_forward(x, weight, None, shape)).any()
    assert len(packs) == 2 and not packing._stored


def test_weights_shared_by_layers(architecture, device, rng):
    """Of another stride the gradient's weights are in another order, phase by phase."""
    model = layer(rng, device)
    x = images(rng, device, (1, 32, 4, 5))
    with gpucnn.autocast("bfloat16"):
        for stride in (1, 2, 1, 2):
            x.grad = None
            y = F.conv2d(x, model.weight, None, stride, 1)
            y.backward(y)
            kept = x.grad.numpy()
            with gpucnn.autocast("bfloat16"):
                x.grad = None
                y = F.conv2d(x, model.weight, None, stride, 1)
                y.backward(y)
            assert_same_bits(kept, x.grad.numpy())


def test_as_many_forms_as_four(device, rng):
    array = devices.move(np.zeros(3, np.float32), device)
    packing.keep_packed(array)
    forms = (0, 1, 2, 3, 0, 4, 0, 4)  # the first makes way for the fifth
    made = [packing.packed(array, (form,), lambda time=time: time) for time, form in enumerate(forms)]
    assert made == [0, 1, 2, 3, 0, 5, 6, 5] and len(packing._stored[id(array)][1]) == packing.MOST


def test_freed_with_the_cast(architecture, device, rng):
    model, x = layer(rng, device), images(rng, device, (1, 32, 3, 3), ml_dtypes.bfloat16)
    gc.collect()
    before = len(packing._stored)
    with gpucnn.autocast("bfloat16"):
        y = model(x)
        for _ in range(2):
            written(model)
            model(x)
        assert len(packing._stored) == before + 2  # of y, which goes backward still, and of now
    assert len(packing._stored) == before + 1
    y.backward(y)
    del y
    gc.collect()
    assert len(packing._stored) == before


def test_another_array_with_the_same_number(device):
    array, other = (devices.move(np.zeros(3, np.float32), device) for _ in range(2))
    packing.keep_packed(array)
    packing._stored[id(other)] = packing._stored[id(array)]  # as if `array` had been freed, and its number given again
    packing.packed(array, ("form",), lambda: "array's")
    assert packing.packed(other, ("form",), lambda: "other's") == "other's"
    del packing._stored[id(other)]


def batches(rng, device, count=6):
    size = (2, 32, 4, 4)
    found = [(rng.standard_normal(size).astype(np.float32), rng.integers(0, 5, 2)) for _ in range(count)]
    return [(devices.move(one, device), devices.move(labels, device)) for one, labels in found]


def network():
    gpucnn.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(128, 5)
    )


@pytest.mark.parametrize("outer", [False, True])
def test_captured_steps_pack_in_each_replay(outer, architecture, device, rng):
    """Inside one context around all steps, too, with evaluations between them, of other batches as well."""
    given, found = batches(rng, device), []
    for kind in (Step, CapturedStep):
        model = network().to(device)
        step = kind(model, optim.SGD(model.parameters(), lr=0.5), precision=None if outer else "bfloat16")
        context, results = gpucnn.autocast("bfloat16", enabled=outer), []
        with context:
            for images_, labels in given:
                results.append(step.backward(images_, labels)[1].numpy().copy())
                results.append(scores(model, gpucnn.tensor(images_[:1])))
                step.update()
                results.append(scores(model, gpucnn.tensor(images_)))
                if outer:
                    assert_same_bits(results[-1], anew(model, gpucnn.tensor(images_)))
        found.append([*results, *(parameter.numpy().copy() for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other)
    assert not np.array_equal(found[0][2], found[0][5])
