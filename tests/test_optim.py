"""Optimisers and schedules: step by step as PyTorch's in float64, worked examples, saving and continuing, errors."""

from __future__ import annotations

import json
import math
from typing import Any

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
    "rmsprop": ("RMSprop", {"lr": 0.01}),
    "rmsprop_momentum": ("RMSprop", {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    "rmsprop_all": (
        "RMSprop",
        {"lr": 0.01, "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.5, "centered": True},
    ),
    "adagrad": ("Adagrad", {"lr": 0.1}),
    "adagrad_all": (
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3},
    ),
    "adadelta": ("Adadelta", {"lr": 1.0}),
    "adadelta_all": ("Adadelta", {"lr": 0.5, "rho": 0.7, "eps": 1e-3, "weight_decay": 0.1}),
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


def test_adaptive_by_hand():
    """Gradients 1, 2, −1. RMSprop: v = 0.5, 2.25; Adagrad: s = 1, 5, 6; Adadelta: its first step is √(eps / v)."""
    got = single("RMSprop", lr=0.1, alpha=0.5, eps=0.0)
    assert_close(got[:2], [1 - 0.1 / 0.5**0.5, 1 - 0.1 / 0.5**0.5 - 0.2 / 1.5], 1e-15)
    got = single("Adagrad", lr=0.5, eps=0.0, lr_decay=1.0)
    assert_close(got, [0.5, 0.5 - 0.25 * 2 / 5**0.5, 0.5 - 0.25 * 2 / 5**0.5 + 0.5 / 3 / 6**0.5], 1e-15)
    got = single("Adadelta", lr=1.0, rho=0.5, eps=0.5)
    assert_close(got[0], 1 - 0.5**0.5, 1e-15)  # d = √0.5 / √(0.5 + 0.5)
    assert_close(got[1], got[0] - 2 * 0.75**0.5 / 2.75**0.5, 1e-15)  # mean of d² 0.25, of g² 2.25


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_centered_rmsprop_survives_equal_gradients(momentum):
    """The variance is then 0, and rounding may take it below."""
    weight = nn.Parameter(np.ones(64, np.float32))
    optimizer = optim.RMSprop([weight], alpha=0.1, momentum=momentum, centered=True)
    for _ in range(50):
        weight.grad = tensor(np.linspace(0.1, 3.3, 64, dtype=np.float32))
        optimizer.step()
    assert np.isfinite(weight.data).all()


# Decay towards 0


@optimisers
def test_l1_decay_is_the_gradient_of_the_sum_of_magnitudes(name, options):
    """The same steps as with l1·sign(p) added to the gradients by hand, with weight decay beside it or not."""
    own, by_hand = parameters(), parameters()
    own[0].data[0, :2] = by_hand[0].data[0, :2] = 0, -0.0
    first = getattr(optim, name)(own, **options, l1_decay=0.3)
    second = getattr(optim, name)(by_hand, **options)
    for step in range(STEPS):
        for p, q, gradient in zip(own, by_hand, gradients(step), strict=True):
            p.grad, q.grad = tensor(gradient), tensor(gradient + 0.3 * np.sign(q.data))
        first.step()
        second.step()
        for p, q in zip(own, by_hand, strict=True):
            assert_same_bits(p, q)


@pytest.mark.parametrize(("l2", "l1"), [(0.2, 0.0), (0.0, 0.3), (0.2, 0.3)])
def test_decay_as_pytorch(torch, l2, l1):
    """½λw² and λ|w|, alone and together, added to the loss whose gradient PyTorch takes."""
    own = parameters()
    oracles = [torch.nn.Parameter(torch.tensor(p.data)) for p in own]
    optimizer, oracle = optim.SGD(own, lr=0.1, weight_decay=l2, l1_decay=l1), torch.optim.SGD(oracles, lr=0.1)
    for step in range(STEPS):
        oracle.zero_grad()
        pairs = list(zip(oracles, map(torch.tensor, gradients(step)), strict=True))
        sum((q * g).sum() + l2 / 2 * (q**2).sum() + l1 * q.abs().sum() for q, g in pairs).backward()
        for p, gradient in zip(own, gradients(step), strict=True):
            p.grad = tensor(gradient)
        optimizer.step()
        oracle.step()
    for p, q in zip(own, oracles, strict=True):
        assert_close(p, q.detach(), 1e-12)


def test_l1_and_l2_together_by_hand():
    weights = nn.Parameter(np.array([2.0, -2.0, 0.0]))
    weights.grad = tensor(np.ones(3))
    gradient = weights.grad
    optim.SGD([weights], lr=0.1, weight_decay=0.5, l1_decay=3.0).step()
    assert_close(weights, [2 - 0.5, -2 + 0.3, -0.1], 1e-15)  # g = 1 + 1 + 3, 1 − 1 − 3, 1
    assert_equal(gradient, np.ones(3))


def test_l1_decay_makes_weights_that_do_nothing_zero():
    """A regression on 2 of 10 inputs: with L1 the other weights end within a step or two of 0, without they do not."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 10))
    y = x[:, 3] - 2 * x[:, 7] + rng.standard_normal(40)
    for l1_decay, zeros in ((0.0, 0), (0.5, 8)):
        weights = nn.Parameter(np.zeros(10))
        optimizer = optim.SGD([weights], lr=1e-3, l1_decay=l1_decay)
        for _ in range(5000):
            weights.grad = tensor(x.T @ (x @ weights.data - y) / 40)
            optimizer.step()
        assert np.count_nonzero(np.abs(weights.data) <= 2e-3) == zeros


# Groups of parameters

GROUP_OPTIONS = {
    "SGD": ({"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 0.1, "nesterov": True}),
    "Adam": ({"weight_decay": 0.1}, {"betas": (0.5, 0.9)}),
    "AdamW": ({}, {"weight_decay": 0.5}),
    "RMSprop": ({}, {"centered": True, "momentum": 0.5}),
    "Adagrad": ({"lr_decay": 0.1}, {"lr_decay": 0.0}),
    "Adadelta": ({}, {"rho": 0.5, "eps": 1e-3}),
}
every_optimiser = pytest.mark.parametrize("name", GROUP_OPTIONS)


def grouped(module: Any, name: str, own: list[Any]) -> Any:
    """A frozen parameter, two at a hundredth of the rate with options of their own, one at the full rate."""
    options, special = GROUP_OPTIONS[name]
    groups = [{"params": own[:1], "lr": 0}, {"params": iter(own[1:3]), "lr": 1e-3, **special}, {"params": own[3]}]
    return getattr(module, name)(groups, lr=0.1, **options)


@every_optimiser
def test_groups_as_pytorch(torch, name):
    own = parameters()
    oracles = [torch.nn.Parameter(torch.tensor(p.data)) for p in own]
    optimizer, oracle = grouped(optim, name, own), grouped(torch.optim, name, oracles)
    start = own[0].data.copy()
    for step in range(STEPS):
        take_steps(optimizer, range(step, step + 1))
        oracle.zero_grad()
        for group in oracle.param_groups:
            group["lr"] *= 0.97
        assert_close(optimizer.rates, [group["lr"] for group in oracle.param_groups], 1e-15)
        for position, gradient in enumerate(gradients(step)):
            if position != 1 or step % 2:
                oracles[position].grad = torch.tensor(gradient)
        oracle.step()
        for p, q in zip(own, oracles, strict=True):
            assert_close(p, q.detach(), 1e-12)
    assert_same_bits(own[0], start)


@every_optimiser
def test_groups_continue_bit_for_bit(name):
    straight, halfway = parameters(np.float32), parameters(np.float32)
    take_steps(grouped(optim, name, straight), range(STEPS), np.float32)
    first = grouped(optim, name, halfway)
    take_steps(first, range(5), np.float32)
    second = grouped(optim, name, halfway)
    second.groups[1].scale = 7.0
    second.load_state_dict(first.state_dict())
    assert second.rates == first.rates
    take_steps(second, range(5, STEPS), np.float32)
    for p, q in zip(straight, halfway, strict=True):
        assert_same_bits(p, q)


@every_optimiser
def test_one_group_is_the_plain_form(name):
    plain, own = parameters(np.float32), parameters(np.float32)
    take_steps(getattr(optim, name)(plain, lr=0.1), range(STEPS), np.float32)
    take_steps(getattr(optim, name)([{"params": own}], lr=0.1), range(STEPS), np.float32)
    for p, q in zip(plain, own, strict=True):
        assert_same_bits(p, q)


def test_rates_keep_their_shares():
    optimizer = optim.SGD([{"params": one(), "lr": 0.01}, {"params": one()}, {"params": one(), "lr": 0.0}], lr=0.1)
    assert_close(optimizer.rates, [0.01, 0.1, 0], 1e-17)
    optimizer.lr = 0.0
    assert optimizer.rates == [0, 0, 0]
    optimizer.lr = 0.2
    assert_close(optimizer.rates, [0.02, 0.2, 0], 1e-17)
    optimizer.groups[2].scale = 0.5  # thawed
    assert_close(optimizer.rates, [0.02, 0.2, 0.1], 1e-17)


# Clipping


def with_gradients() -> list[nn.Parameter]:
    own = parameters()
    for parameter, gradient in zip(own[:3], gradients(0), strict=False):  # the last has none
        parameter.grad = tensor(gradient)
    return own


@pytest.mark.parametrize("limit", [0.0, 0.5, 5.0, 1e6])
def test_clipping_as_pytorch(torch, limit):
    for clip, clip_oracle in (
        (optim.clip_grad_norm, torch.nn.utils.clip_grad_norm_),
        (optim.clip_grad_value, torch.nn.utils.clip_grad_value_),
    ):
        own = with_gradients()
        oracles = [torch.nn.Parameter(torch.tensor(p.data)) for p in own]
        for p, q in zip(own, oracles, strict=True):
            q.grad = None if p.grad is None else torch.tensor(p.grad.data)
        got, want = clip(iter(own), limit), clip_oracle(oracles, limit)
        assert (got is None) == (want is None)
        if want is not None:
            assert_close(got, want.item(), 1e-12)
        for p, q in zip(own, oracles, strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                assert_close(p.grad, q.grad, 1e-12)


def test_clipping_by_hand():
    weights = [nn.Parameter(np.zeros(2)), nn.Parameter(np.zeros(1))]
    weights[0].grad, weights[1].grad = tensor([3.0, 0.0]), tensor([-4.0])
    before = weights[0].grad
    assert optim.clip_grad_norm(weights, 5.1) == 5.0
    assert weights[0].grad is before
    assert optim.clip_grad_norm(weights, 2.5) == 5.0
    assert_close(weights[0].grad, [1.5, 0], 1e-6)
    assert_close(weights[1].grad, [-2.0], 1e-6)
    optim.clip_grad_value(weights, 1.75)
    assert_close(weights[0].grad, [1.5, 0], 1e-6)
    assert_equal(weights[1].grad, [-1.75])
    assert_equal(before, [3.0, 0.0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_clipping_hides_no_gradient_that_is_not_finite(value):
    weight = nn.Parameter(np.zeros(2, np.float32))
    weight.grad = tensor([value, 1.0])
    assert not math.isfinite(optim.clip_grad_norm([weight], 1.0))
    assert not np.isfinite(weight.grad.data).all()


def test_clipping_needs_no_gradients():
    assert optim.clip_grad_norm(parameters(), 1.0) == 0.0


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
        (lambda: optim.SGD(one(), l1_decay=-1), "SGD: l1_decay is -1; it must be at least 0"),
        (lambda: optim.RMSprop(one(), alpha=1.0), "RMSprop: alpha is 1.0; it must be at least 0 and below 1"),
        (lambda: optim.RMSprop(one(), eps=-1), "RMSprop: eps is -1; it must be at least 0"),
        (lambda: optim.RMSprop(one(), momentum=-1), "RMSprop: momentum is -1; it must be at least 0"),
        (lambda: optim.Adagrad(one(), lr_decay=-1), "Adagrad: lr_decay is -1; it must be at least 0"),
        (lambda: optim.Adagrad(one(), eps=math.nan), "Adagrad: eps is nan; it must be at least 0"),
        (lambda: optim.Adagrad(one(), initial_accumulator_value=-1), "Adagrad: initial_accumulator_value is -1; it"),
        (lambda: optim.Adadelta(one(), rho=-0.1), "Adadelta: rho is -0.1; it must be at least 0 and below 1"),
        (lambda: optim.Adadelta(one(), eps=0.0), "Adadelta: eps is 0.0; it must be above 0"),
        (lambda: optim.SGD([{"params": []}]), "SGD: there are no parameters to optimise"),
        (lambda: optim.SGD([{"params": one(), "lr": -1}]), "SGD: lr is -1; it must be at least 0"),
        (lambda: optim.SGD([{"params": one(), "rate": 1}]), "keys params, rate; it must have params, and may have lr,"),
        (lambda: optim.SGD([{"lr": 1}]), "SGD: a group has the keys lr; it must have params"),
        (lambda: optim.SGD([{"params": one()}, *one()]), "a group is a Parameter; give dictionaries only, or Tensors"),
        (lambda: optim.SGD([{"params": one(), "lr": 1}], lr=0), "SGD: lr is 0 and a group's 1, which is no multiple"),
        (lambda: optim.SGD(one() * 2), "SGD: a parameter stands twice; put each into one group, once"),
        (lambda: optim.SGD([np.ones(1)]), "SGD: parameter 0 is a ndarray; it must be a Tensor"),
        (lambda: optim.clip_grad_norm(one(), -1), "clip_grad_norm: max_norm is -1; it must be at least 0"),
        (lambda: optim.clip_grad_norm(one(), math.nan), "clip_grad_norm: max_norm is nan; it must be at least 0"),
        (lambda: optim.clip_grad_value(one(), -1), "clip_grad_value: clip_value is -1; it must be at least 0"),
        (lambda: optim.SGD([tensor([1, 2])]), "SGD: parameter 0 is int64; it must be float32 or float64"),
    ],
)
def test_errors(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"lr": 1, "scales": [1.0], "steps": [1, 1], "state": [{}, {}]},
            "the state has 2 parameters but the optimiser has 1",
        ),
        (
            {"lr": 1, "scales": [1.0], "steps": [1], "state": [dict.fromkeys(MOMENTS, np.zeros(2))]},
            r"_moment of parameter 0 is \(2,\), not \(1,\)",
        ),
        (
            {"lr": 1, "scales": [1.0], "steps": [1], "state": [{"momentum_buffer": np.zeros(1)}]},
            "has the state momentum_buffer but Adam needs first_moment, second",
        ),
        ({"lr": 1, "scales": [1.0, 0.1], "steps": [1], "state": [{}]}, "they must be 1 finite numbers of at least 0"),
        ({"lr": 1, "scales": [math.inf], "steps": [1], "state": [{}]}, r"scales are \[inf\]; they must be 1 finite"),
        ({"lr": 1, "scales": [-1.0], "steps": [1], "state": [{}]}, r"scales are \[-1.0\]; they must be 1 finite"),
    ],
)
def test_states_that_do_not_fit(state, message):
    optimizer = optim.Adam(one(), lr=0.25)
    with pytest.raises(ValueError, match="load_state_dict: .*" + message):
        optimizer.load_state_dict(state)
    assert (optimizer.lr, optimizer.rates, optimizer.steps, optimizer.state) == (0.25, [0.25], [0], [{}])


def test_state_of_options_that_differ():
    momentum, plain = optim.SGD(one(), momentum=0.9), optim.SGD(one())
    momentum.parameters[0].grad = tensor(np.ones(1))
    momentum.step()
    with pytest.raises(ValueError, match="parameter 0 has the state momentum_buffer but SGD needs none"):
        plain.load_state_dict(momentum.state_dict())
