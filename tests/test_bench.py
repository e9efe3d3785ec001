"""The benchmarks time what they say: the same layers in both libraries, and the layers of the networks they name."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from gpucnn import models, nn, ops
from gpucnn.bench import algorithms, cpu, machine, torch_worker


@pytest.mark.parametrize("name", ["lenet5-128-train", "alexnet-8-forward"])
def test_pytorch_gets_the_same_layers(torch, name):
    case = cpu.CASES[name]
    model = models.create(case.model, image_size=case.image_size)
    layers = json.loads(json.dumps(cpu.torch_layers(model)))
    twin = torch.nn.Sequential(*(getattr(torch.nn, layer)(*arguments) for layer, arguments in layers)).eval()
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.copy_(torch.from_numpy(ours.data))
        images = np.random.default_rng(0).standard_normal((2, *model.input_shape), dtype=np.float32)
        want = twin(torch.from_numpy(images)).numpy()
    model.eval()
    np.testing.assert_allclose(model(cpu.tensor(images)).numpy(), want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("step", ["train", "forward"])
def test_steps_of_both_libraries(torch, step):
    case = cpu.Case("lenet5", step, 2, 28)
    cpu.gpucnn_step(case)()
    torch_worker.make_step({**cpu.plan(case, 0.1), "threads": 1})()


def test_layers_are_those_of_vgg16():
    convolutions = [module for module in models.vgg16().modules() if isinstance(module, nn.Conv2d)]
    named = [layer for name, layer in algorithms.LAYERS.items() if name.startswith("vgg16")]
    listed = [layer.weight[:2] for layer in named for _ in range(layer.repeats)]
    assert listed == [(module.out_channels, module.in_channels) for module in convolutions]


def test_a_row_of_algorithms(monkeypatch):
    layer = algorithms.Layer((2, 3, 8, 8), (4, 3, 3, 3), 1, 1, ("winograd",))
    monkeypatch.setitem(algorithms.LAYERS, "small", layer)
    row = algorithms.measure("small", rounds=1)
    assert set(row["milliseconds"]) == {"im2col", "winograd"} and row["auto"] == "im2col"
    assert algorithms.table([row], "title").row_count == 1


def test_memory_is_measured():
    grown = np.ones(64 * 2**20, np.uint8)
    assert torch_worker.peak_bytes() == 0 or torch_worker.peak_bytes() > grown.nbytes


def test_what_auto_chooses_is_timed():
    for layer in algorithms.LAYERS.values():
        shape = ops.conv_shape(layer.x, layer.weight, padding=layer.padding)
        assert ops.choose("conv2d_forward", shape) in ("im2col", *layer.algorithms)


def test_own_work_is_not_that_of_others(monkeypatch):
    others = machine.Others()
    assert 0 <= others.share() <= 1
    others.start = (100.0, 5.0, 2.0)
    monkeypatch.setattr(others, "_seconds", lambda: (110.0, 17.0, 6.0))  # 12 s of work in 10 s, 4 of them our own
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert others.share() == 0.4
