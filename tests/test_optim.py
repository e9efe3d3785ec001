"""Optimisers and schedules: step by step as PyTorch's in float64, worked examples, saving and continuing, errors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from check import assert_close, assert_equal, assert_same_bits

import gpucnn
from gpucnn import nn, optim, tensor

STEPS = 12
OPTIMISERS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_weight_decay": ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "dampening": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.9}),
    "momentum_all": ("SGD", {"lr": 0.05, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.02}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam_all": ("Adam", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.01}),
    "adamw_all": ("AdamW", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}),
}
optimisers = pytest.mark.parametrize(("name", "options"), OPTIMISERS.values(), ids=OPTIMISERS)
SHAPES = [(3, 4), (1,), (2, 3, 5, 5), (1001,)]


def parameters(dtype: type = np.float64) -> list[nn.Parameter]:
    rng = np.random.default_rng(0)
    return [nn.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]


def gradients(step: int, dtype: type = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(step + 1)
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


def take_steps(optimizer: optim.Optimizer, steps: range, dtype: type = np.float64) -> None:
    """Steps with a rate that changes; the second parameter has a gradient only at odd steps."""
    for step in steps:
        optimizer.zero_grad()
        optimizer.lr *= 0.97
        for position, gradient in enumerate(gradients(step, dtype)):
            if position != 1 or step % 2:
                optimizer.parameters[position].grad = tensor(gradient)
        optimizer.step()


@optimisers
def test_as_pytorch(torch, name, options):
    own = parameters()
    oracles = [torch.nn.Parameter(torch.tensor(p.data)) for p in own]
    oracle = getattr(torch.optim, name)(oracles, **options)
    optimizer = getattr(optim, name)(own, **options)
    for step in range(STEPS):
        take_steps(optimizer, range(step, step + 1))
        oracle.zero_grad()
        oracle.param_groups[0]["lr"] *= 0.97
        for position, gradient in enumerate(gradients(step)):
            if position != 1 or step % 2:
                oracles[position].grad = torch.tensor(gradient)
        oracle.step()
        for p, q in zip(own, oracles, strict=True):
            assert_close(p, q.detach(), 1e-12)


@optimisers
def test_float32_stays_close_to_float64(name, options):
    own, exact = parameters(np.float32), parameters()
    take_steps(getattr(optim, name)(own, **options), range(STEPS), np.float32)
    take_steps(getattr(optim, name)(exact, **options), range(STEPS))
    for p, q in zip(own, exact, strict=True):
        assert p.dtype == np.float32
        assert_close(p, q, 1e-4 * options["lr"] * STEPS + 1e-6)


def single(name: str, **options: object) -> list[float]:
    """The values of one weight that starts at 1 with the gradients 1, 2, −1."""
    weight = nn.Parameter(np.array([1.0]))
    optimizer, values = getattr(optim, name)([weight], **options), []
    for gradient in (1.0, 2.0, -1.0):
        weight.grad = tensor([gradient], np.float64)
        optimizer.step()
        values.append(weight.data[0])
    return values


def test_sgd_by_hand():
    assert_close(single("SGD", lr=0.1), [0.9, 0.7, 0.8], 1e-15)
    assert_close(single("SGD", lr=0.1, momentum=0.5), [0.9, 0.65, 0.625], 1e-15)  # v = 1, 2.5, 0.25
    assert_close(single("SGD", lr=0.1, momentum=0.5, nesterov=True), [0.85, 0.525, 0.6125], 1e-15)
    assert_close(single("SGD", lr=0.1, momentum=0.5, dampening=0.5), [0.9, 0.75, 0.725], 1e-15)  # v = 1, 1.5, 0.25
    assert_close(single("SGD", lr=0.1, weight_decay=1.0), [0.8, 0.52, 0.568], 1e-15)


def test_adam_by_hand():
    """The first step of Adam is lr in the direction of the gradient's sign; AdamW shrinks the weight before."""
    assert_close(single("Adam", lr=0.1)[0], 0.9, 1e-8)
    assert_close(single("AdamW", lr=0.1, weight_decay=0.5)[0], 1 * (1 - 0.05) - 0.1, 1e-8)


def test_running_mean_of_gradients():
    """dampening = momentum = 1 − α: g ← (1 − α)·g + α·gradient, the lecture's form."""
    weight, mean = nn.Parameter(np.zeros(1)), 0.0
    optimizer = optim.SGD([weight], lr=1.0, momentum=0.75, dampening=0.75)
    for step, gradient in enumerate((4.0, 8.0, -4.0)):
        mean = gradient if step == 0 else 0.75 * mean + 0.25 * gradient
        before = weight.data.copy()
        weight.grad = tensor([gradient], np.float64)
        optimizer.step()
        assert_equal(before - weight.data, [mean])


@optimisers
def test_state_continues_bit_for_bit(name, options):
    straight = parameters(np.float32)
    take_steps(getattr(optim, name)(straight, **options), range(STEPS), np.float32)
    halfway = parameters(np.float32)
    first = getattr(optim, name)(halfway, **options)
    take_steps(first, range(5), np.float32)
    state = first.state_dict()
    saved = {**state, "state": [{k: v.copy() for k, v in entry.items()} for entry in state["state"]]}
    second = getattr(optim, name)(halfway, **{**options, "lr": 123.0})
    second.load_state_dict(saved)
    take_steps(second, range(5, STEPS), np.float32)
    for p, q in zip(straight, halfway, strict=True):
        assert_same_bits(p, q)
    for entry, mine in zip(saved["state"], second.state_dict()["state"], strict=True):
        assert not any(np.shares_memory(entry[name], mine[name]) for name in entry)


def test_state_dict_holds_what_json_and_arrays_can():
    optimizer = optim.Adam(parameters(), lr=0.5)
    take_steps(optimizer, range(3))
    state = optimizer.state_dict()
    assert json.loads(json.dumps([state["lr"], state["steps"]])) == [0.5 * 0.97**3, [3, 1, 3, 3]]
    assert [sorted(entry) for entry in state["state"]] == [["first_moment", "second_moment"]] * 4


def test_parameters_without_gradient_stay():
    own = parameters()
    before = [p.data.copy() for p in own]
    optim.Adam(own, weight_decay=0.5).step()
    for p, q in zip(own, before, strict=True):
        assert_same_bits(p, q)


def test_parameters_change_in_place():
    weight = nn.Parameter(np.ones(3))
    array = weight.data
    weight.grad = tensor(np.ones(3))
    optim.SGD([weight], lr=0.5).step()
    assert weight.data is array
    assert_equal(array, [0.5, 0.5, 0.5])


def test_gradient_may_be_a_view():
    weight = nn.Parameter(np.zeros((2, 3)))
    weight.grad = gpucnn.Tensor(np.arange(6.0).reshape(3, 2).T)
    optim.SGD([weight], lr=1.0).step()
    assert_equal(-weight.data, [[0, 2, 4], [1, 3, 5]])


def test_an_image_can_be_optimised():
    image = tensor(np.ones((3, 4)).T, requires_grad=True)
    optimizer = optim.SGD([image], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        ((image - 3) ** 2).sum().backward()
        optimizer.step()
    assert_close(image, np.full((4, 3), 3.0), 1e-12)


MOMENTS = ["first_moment", "second_moment"]


def one() -> list[nn.Parameter]:
    return [nn.Parameter(np.ones(1))]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optim.SGD([]), "SGD: there are no parameters to optimise"),
        (lambda: optim.SGD(one(), lr=-1), "SGD: lr is -1; it must be at least 0"),
        (lambda: optim.SGD(one(), lr=math.nan), "SGD: lr is nan; it must be at least 0"),
        (lambda: optim.SGD(one(), momentum=-0.1), "SGD: momentum is -0.1; it must be at least 0"),
        (lambda: optim.SGD(one(), weight_decay=-1), "SGD: weight_decay is -1; it must be at least 0"),
        (lambda: optim.SGD(one(), nesterov=True), "SGD: nesterov is True; it must be used with momentum > 0"),
        (lambda: optim.SGD(one(), momentum=0.9, dampening=0.1, nesterov=True), "SGD: nesterov is True"),
        (lambda: optim.Adam(one(), betas=(0.9, 1.0)), r"Adam: betas is \(0.9, 1.0\); it must be two numbers"),
        (lambda: optim.Adam(one(), betas=(0.9,)), r"Adam: betas is \(0.9,\); it must be two numbers"),
        (lambda: optim.AdamW(one(), eps=-1), "AdamW: eps is -1; it must be at least 0"),
        (lambda: optim.SGD([gpucnn.Tensor(np.ones((2, 3)).T)]), "SGD: parameter 0 is not contiguous"),
        (lambda: optim.SGD([tensor([1, 2])]), "SGD: parameter 0 is int64; it must be float32 or float64"),
    ],
)
def test_errors(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"lr": 1, "steps": [1, 1], "state": [{}, {}]}, "the state has 2 parameters but the optimiser has 1"),
        (
            {"lr": 1, "steps": [1], "state": [dict.fromkeys(MOMENTS, np.zeros(2))]},
            r"_moment of parameter 0 is \(2,\), not \(1,\)",
        ),
        (
            {"lr": 1, "steps": [1], "state": [{"momentum_buffer": np.zeros(1)}]},
            "has the state momentum_buffer but Adam needs first_moment, second",
        ),
    ],
)
def test_states_that_do_not_fit(state, message):
    optimizer = optim.Adam(one(), lr=0.25)
    with pytest.raises(ValueError, match="load_state_dict: .*" + message):
        optimizer.load_state_dict(state)
    assert (optimizer.lr, optimizer.steps, optimizer.state) == (0.25, [0], [{}])
