"""Optimiser steps by kernels: exact where the numbers allow, else as in float64; many arrays in one launch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import device as devices
from gpucnn import nn, ops, optim
from gpucnn.launch import SimulatorError, launch, max_pointers, simulator
from gpucnn.ops.reduce import sizes
from tests.check import assert_close, assert_equal, assert_same_bits
from tests.kernel_check import assert_sound, assert_two_runs_equal, on
from tests.test_optim import OPTIMISERS

SHAPES = [(3, 4), (1,), (0,), (2, 3, 5, 5), (1001,), (4099,)]
optimisers = pytest.mark.parametrize(("name", "options"), OPTIMISERS.values(), ids=OPTIMISERS)


def arrays(seed: int, shapes: Any = SHAPES) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def parameters(device: str, dtype: type = np.float32) -> list[gpucnn.Tensor]:
    return [gpucnn.tensor(array.astype(dtype), device=device, requires_grad=True) for array in arrays(0)]


def take_steps(optimizer: optim.Optimizer, count: int, first: int = 0) -> None:
    """The second parameter has a gradient only at odd steps, so that the numbers of steps differ."""
    for step in range(first, first + count):
        optimizer.lr *= 0.97
        for position, gradient in enumerate(arrays(step + 1)):
            parameter = optimizer.parameters[position]
            used = position != 1 or step % 2
            parameter.grad = gpucnn.tensor(gradient.astype(parameter.dtype), device=parameter.device) if used else None
        optimizer.step()


@pytest.mark.parametrize("l1_decay", [0.0, 0.03])
@optimisers
def test_as_in_float64_on_the_cpu(device, name, options, l1_decay):
    options = {**options, "l1_decay": l1_decay}
    there, exact = parameters(device), parameters("cpu", np.float64)
    optimizer, oracle = getattr(optim, name)(there, **options), getattr(optim, name)(exact, **options)
    for one in (optimizer, oracle):
        take_steps(one, 6)
    for got, want in zip(there, exact, strict=True):
        assert got.device.startswith(device)
        assert_close(got.numpy(), want.numpy(), 3e-6 * (1 + np.abs(want.numpy())))
    for state, wanted in zip(optimizer.state, oracle.state, strict=True):
        assert state.keys() == wanted.keys()
        for key in state:
            assert devices.of(state[key]) == there[0].device
            assert_close(devices.to_numpy(state[key]), wanted[key], 3e-6 * (1 + np.abs(wanted[key])))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_constant_gradients_have_no_variance(device, momentum):
    """The running mean of g² less the square of that of g is 0, which rounding takes below 0."""
    gradient = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    own = [gpucnn.tensor(np.zeros(300, np.float32), device=device, requires_grad=True)]
    optimizer = optim.RMSprop(own, lr=1.0, alpha=0.5, eps=1.0, momentum=momentum, centered=True)
    for _ in range(30):
        own[0].grad = gpucnn.tensor(gradient, device=device)
        optimizer.step()
    assert np.isfinite(own[0].numpy()).all()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_sgd_exactly(device, momentum, nesterov):
    """Small multiples of powers of two: no step is rounded."""
    rng = np.random.default_rng(0)
    host = [gpucnn.tensor(rng.integers(-8, 9, shape).astype(np.float32), requires_grad=True) for shape in SHAPES]
    there = [gpucnn.tensor(p.data, device=device, requires_grad=True) for p in host]
    options = {"lr": 0.5, "momentum": momentum, "nesterov": nesterov and momentum > 0, "weight_decay": 0.25}
    both = [optim.SGD(each, **options) for each in (host, there)]
    for _ in range(3):
        for p, q in zip(host, there, strict=True):
            gradient = rng.integers(-8, 9, p.shape).astype(np.float32)
            p.grad, q.grad = gpucnn.tensor(gradient), gpucnn.tensor(gradient, device=device)
        for optimizer in both:
            optimizer.step()
    for p, q in zip(host, there, strict=True):
        assert_equal(q.numpy(), p.numpy())


@optimisers
def test_the_same_bits_on_every_run(device, name, options):
    def run() -> tuple[Any, ...]:
        own = parameters(device)
        take_steps(getattr(optim, name)(own, **options), 2)
        return tuple(parameter.data for parameter in own)

    assert_two_runs_equal(run, device)


@pytest.mark.parametrize("name", ["momentum_all", "adam_all", "rmsprop", "rmsprop_all", "adagrad", "adadelta"])
def test_no_fault(device, name):
    kind, options = OPTIMISERS[name]

    def run() -> tuple[Any, ...]:
        own = [gpucnn.tensor(array, device=device, requires_grad=True) for array in arrays(0, [(300,), (5,)])]
        optimizer = getattr(optim, kind)(own, **options)
        for parameter, gradient in zip(own, arrays(1, [(300,), (5,)]), strict=True):
            parameter.grad = gpucnn.tensor(gradient, device=device)
        optimizer.step()
        return tuple(parameter.data for parameter in own)

    assert_sound(run, device)


def test_more_arrays_than_a_launch_takes(device):
    count = max_pointers() + 3
    values, gradients = on(device, *arrays(0, [(5,)] * count)), on(device, *arrays(1, [(5,)] * count))
    before = [devices.to_numpy(value).copy() for value in values]
    options = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0, "first": True}
    ops.sgd_update(values, gradients, None, lr=0.5, **options)
    for old, gradient, new in zip(before, gradients, values, strict=True):
        assert_close(devices.to_numpy(new), old - 0.5 * devices.to_numpy(gradient), 1e-6)


def test_memory_that_is_not_aligned(device):
    """A view from the second element on cannot be read four floats at a time."""
    (memory,) = on(device, np.zeros(50, np.float32))
    (gradient,) = on(device, np.arange(49, dtype=np.float32))
    options = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0, "first": True}
    ops.sgd_update([memory[1:]], [gradient], None, lr=1.0, **options)
    assert_equal(devices.to_numpy(memory), [0, *-np.arange(49)])


def test_gradients_of_other_layouts(device):
    weight = gpucnn.tensor(np.zeros((2, 3), np.float32), device=device, requires_grad=True)
    weight.grad = gpucnn.Tensor(on(device, np.arange(6, dtype=np.float32).reshape(3, 2))[0].T)
    optim.SGD([weight], lr=1.0).step()
    assert_equal(-weight.numpy(), [[0, 2, 4], [1, 3, 5]])


@optimisers
def test_states_move_with_the_parameters(device, name, options):
    """Five steps on a device: at once, or with a state that was saved on the host and loaded again."""
    straight, halfway = parameters(device), parameters(device)
    take_steps(getattr(optim, name)(straight, **options), 4)
    first = getattr(optim, name)(halfway, **options)
    take_steps(first, 2)
    state = first.state_dict()
    saved = [{key: devices.to_numpy(array).copy() for key, array in entry.items()} for entry in state["state"]]
    second = getattr(optim, name)(halfway, **{**options, "lr": 123.0})
    second.load_state_dict({**state, "state": saved})
    assert {devices.of(array) for entry in second.state for array in entry.values()} <= {halfway[0].device}
    take_steps(second, 2, first=2)
    for one, other in zip(straight, halfway, strict=True):
        assert_same_bits(one.numpy(), other.numpy())


def test_clipping_on_the_device(device):
    weights = [gpucnn.tensor(np.zeros(n, np.float32), device=device, requires_grad=True) for n in (2, 1)]
    weights[0].grad = gpucnn.tensor(np.array([3, 0], np.float32), device=device)
    weights[1].grad = gpucnn.tensor(np.array([-4], np.float32), device=device)
    assert optim.clip_grad_norm(weights, 2.5) == 5.0
    assert_close(weights[0].grad.numpy(), [1.5, 0], 1e-6)
    assert_close(weights[1].grad.numpy(), [-2.0], 1e-6)
    optim.clip_grad_value(weights, 1.75)
    assert_equal(weights[1].grad.numpy(), [-1.75])


def test_l1_decay_on_the_device(device):
    weight = nn.Parameter(on(device, np.array([2, -2, 0], np.float32))[0])
    weight.grad = gpucnn.tensor(np.ones(3, np.float32), device=device)
    optim.SGD([weight], lr=1.0, l1_decay=0.5).step()
    assert_equal(weight.numpy(), [0.5, -2.5, -1])


def test_pointers_that_do_not_fit(device):
    values = on(device, *arrays(0, [(3,)] * 2))
    (wrong,) = on(device, np.zeros(3, np.int64))
    step = (0.1, 0, 1, 0, 0, 0, 1)
    with pytest.raises(TypeError, match="sgd_update: g is int64; the kernel takes float32"):
        launch("sgd_update", (1, 2), list(values), [values[0], wrong], sizes(values), step, None, None)
    with pytest.raises(TypeError, match="sgd_update: p must be a tuple or list of at most 64 arrays"):
        launch("sgd_update", (1, 2), [values[0]] * 65, list(values), sizes(values), step, None, None)
    with pytest.raises(TypeError, match="sgd_update: p must be a tuple or list"):
        launch("sgd_update", (1, 2), [None, None], list(values), sizes(values), step, None, None)
    with pytest.raises(TypeError, match="sgd_update: g is ndarray; it must be an array on 'cuda' or 'sim'"):
        launch("sgd_update", (1, 2), list(values), arrays(1, [(3,)] * 2), sizes(values), step, None, None)


@pytest.mark.parametrize("wrong", [0, 1])
def test_the_simulator_names_the_array(device, wrong):
    """A count that is too large: the array is named past whose end something is read."""
    if device != "sim":
        pytest.skip("only the simulator tells where a read goes")
    values, gradients = on(device, *arrays(0, [(4,)] * 2)), on(device, *arrays(1, [(40,)] * 2))
    counts = [5 if position == wrong else 4 for position in range(max_pointers())]
    place = rf"out of bounds: a read of 4 bytes 0 bytes after the end of argument p\[{wrong}\]"
    with simulator.configured(mode="asan"), pytest.raises(SimulatorError, match=place):
        launch("sgd_update", (1, 2), list(values), list(gradients), tuple(counts), (0.1, 0, 1, 0, 0, 0, 1), None, None)
