"""Learning-rate schedules: by hand and as PyTorch's, saved and continued, errors."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from check import assert_close

from gpucnn import nn, optim


def sgd(lr: float = 0.4) -> optim.SGD:
    return optim.SGD([nn.Parameter(np.ones(1))], lr=lr)


def rates(schedule: optim.Schedule, steps: int) -> list[float]:
    """The rate before each of `steps` optimiser steps."""
    found = []
    for _ in range(steps):
        found.append(schedule.optimizer.lr)
        schedule.step()
    return found


SCHEDULES = {
    "constant": lambda optimizer: optim.ConstantSchedule(optimizer),
    "step": lambda optimizer: optim.StepSchedule(optimizer, 3, gamma=0.5),
    "cosine": lambda optimizer: optim.CosineSchedule(optimizer, 10, minimum=0.1),
    "multi_step": lambda optimizer: optim.MultiStepSchedule(optimizer, [7, 2, 3], gamma=0.5),
    "polynomial": lambda optimizer: optim.PolynomialSchedule(optimizer, 8, power=2.0),
    "linear": lambda optimizer: optim.PolynomialSchedule(optimizer, 8),
    "one_cycle": lambda optimizer: optim.OneCycleSchedule(optimizer, 11),
    "one_cycle_all": lambda optimizer: optim.OneCycleSchedule(optimizer, 11, 0.5, div_factor=4, final_div_factor=10),
    "one_cycle_down": lambda optimizer: optim.OneCycleSchedule(optimizer, 11, pct_start=0),
    "warmup": lambda optimizer: optim.WarmupSchedule(optimizer, 4),
    "warmup_step": lambda optimizer: optim.WarmupSchedule(optimizer, 2, optim.StepSchedule(optimizer, 3)),
    "warmup_cosine": lambda optimizer: optim.WarmupSchedule(optimizer, 3, optim.CosineSchedule(optimizer, 9)),
}
schedules = pytest.mark.parametrize("build", SCHEDULES.values(), ids=SCHEDULES)


def test_by_hand():
    assert_close(rates(optim.StepSchedule(sgd(), 2, 0.5), 5), [0.4, 0.4, 0.2, 0.2, 0.1], 1e-15)
    assert_close(
        rates(optim.CosineSchedule(sgd(), 4), 6), [0.4, 0.2 + 0.2 * 0.5**0.5, 0.2, 0.2 - 0.2 * 0.5**0.5, 0, 0], 1e-15
    )
    assert_close(rates(optim.CosineSchedule(sgd(), 2, minimum=0.5), 4), [0.4, 0.3, 0.2, 0.2], 1e-15)
    assert_close(rates(optim.WarmupSchedule(sgd(), 3), 5), [0.1, 0.2, 0.3, 0.4, 0.4], 1e-15)
    assert_close(rates(optim.ConstantSchedule(sgd()), 2), [0.4, 0.4], 0)


def test_more_by_hand():
    assert_close(rates(optim.MultiStepSchedule(sgd(), [1, 3], 0.5), 5), [0.4, 0.2, 0.2, 0.1, 0.1], 1e-15)
    assert_close(rates(optim.MultiStepSchedule(sgd(), []), 2), [0.4, 0.4], 0)
    assert_close(rates(optim.PolynomialSchedule(sgd(), 4), 6), [0.4, 0.3, 0.2, 0.1, 0, 0], 1e-15)
    assert_close(rates(optim.PolynomialSchedule(sgd(), 2, power=2), 4), [0.4, 0.1, 0, 0], 1e-15)
    one_cycle = optim.OneCycleSchedule(sgd(), 6, pct_start=0.5, div_factor=4, final_div_factor=2)
    assert_close(rates(one_cycle, 8)[::2], [0.1, 0.4, 0.4 - 0.35 * 0.75, 0.05], 1e-15)  # half cosines
    assert_close(rates(optim.OneCycleSchedule(sgd(), 1, div_factor=2, final_div_factor=2), 2), [0.1, 0.1], 1e-15)


@schedules
def test_groups_follow_in_proportion(build):
    groups = [{"params": [nn.Parameter(np.ones(1))], "lr": rate} for rate in (0.4, 0.04, 0.0)]
    schedule = build(optim.SGD(groups, lr=0.4))
    for rate in rates(build(sgd()), 12):
        assert_close(schedule.optimizer.rates, [rate, rate / 10, 0], 1e-15)
        schedule.step()


def test_plateau_reduces_all_groups():
    groups = [{"params": [nn.Parameter(np.ones(1))], "lr": rate} for rate in (1.0, 0.5)]
    schedule = optim.PlateauSchedule(optim.SGD(groups, lr=1.0), factor=0.1, patience=0)
    schedule.step(1.0)
    schedule.step(1.0)
    assert_close(schedule.optimizer.rates, [0.1, 0.05], 1e-15)


def test_warmup_then_decay_by_hand():
    optimizer = sgd()
    schedule = optim.WarmupSchedule(optimizer, 1, optim.StepSchedule(optimizer, 2, 0.5))
    assert_close(rates(schedule, 6), [0.2, 0.4, 0.4, 0.2, 0.2, 0.1], 1e-15)


ORACLES = {
    "step": lambda t, o: t.StepLR(o, 3, gamma=0.5),
    "cosine": lambda t, o: t.CosineAnnealingLR(o, 10, eta_min=0.04),
    "multi_step": lambda t, o: t.MultiStepLR(o, [2, 3, 7], gamma=0.5),
    "polynomial": lambda t, o: t.PolynomialLR(o, 8, power=2.0),
    "linear": lambda t, o: t.PolynomialLR(o, 8),
    "one_cycle": lambda t, o: t.OneCycleLR(o, 0.4, 11, cycle_momentum=False),
    "one_cycle_all": lambda t, o: t.OneCycleLR(
        o, 0.4, 11, pct_start=0.5, div_factor=4, final_div_factor=10, cycle_momentum=False
    ),
    "one_cycle_down": lambda t, o: t.OneCycleLR(o, 0.4, 11, pct_start=0.0, cycle_momentum=False),
    "warmup": lambda t, o: t.LinearLR(o, 1 / 5, total_iters=4),
    "warmup_step": lambda t, o: t.SequentialLR(o, [t.LinearLR(o, 1 / 3, total_iters=2), t.StepLR(o, 3)], [2]),
    "warmup_cosine": lambda t, o: t.SequentialLR(
        o, [t.LinearLR(o, 1 / 4, total_iters=3), t.CosineAnnealingLR(o, 9)], [3]
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_as_pytorch(torch, name):
    oracle = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step")  # SequentialLR's own
        oracle_schedule, want = ORACLES[name](torch.optim.lr_scheduler, oracle), []
        for step in range(11):
            want.append(oracle.param_groups[0]["lr"])
            oracle.step()
            if step < 10:  # OneCycleLR refuses more steps than it was made for
                oracle_schedule.step()
    assert_close(rates(SCHEDULES[name](sgd()), 11), want, 1e-12)


@schedules
def test_continued_from_its_state(build):
    want = rates(build(sgd()), 12)
    first = build(sgd())
    rates(first, 5)
    state = json.loads(json.dumps(first.state_dict()))
    second = build(sgd(9.0))
    second.load_state_dict(state)
    assert rates(second, 7) == want[5:]


VALUES = [1.0, 0.9, 0.95, 0.91, 0.92, 0.5, 0.49999, 0.6, 0.7, math.nan, 0.3, 0.3, 0.3, 0.3]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("patience", [0, 1, 2])
def test_plateau_as_pytorch(torch, mode, patience):
    oracle = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.4)
    oracle_schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(oracle, mode, 0.5, patience, min_lr=0.01)
    optimizer = sgd()
    schedule = optim.PlateauSchedule(optimizer, 0.5, patience, mode, minimum_lr=0.01)
    for value in VALUES:
        schedule.step(value)
        oracle_schedule.step(value)
        assert_close(optimizer.lr, oracle.param_groups[0]["lr"], 1e-15)


def test_plateau_by_hand_and_continued():
    optimizer = sgd(1.0)
    schedule = optim.PlateauSchedule(optimizer, factor=0.1, patience=1)
    for value, rate in ((5.0, 1.0), (4.0, 1.0), (4.0, 1.0)):
        schedule.step(value)
        assert optimizer.lr == rate
    state = json.loads(json.dumps(schedule.state_dict()))
    other = sgd(7.0)
    schedule = optim.PlateauSchedule(other, factor=0.1, patience=1)
    schedule.load_state_dict(state)
    schedule.step(4.5)
    assert_close(other.lr, 0.1, 1e-15)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optim.StepSchedule(sgd(), 0), "StepSchedule: step_size is 0; it must be at least 1"),
        (lambda: optim.CosineSchedule(sgd(), 0), "CosineSchedule: total is 0; it must be at least 1 step"),
        (
            lambda: optim.MultiStepSchedule(sgd(), [5, 0]),
            r"MultiStepSchedule: milestones are \[0, 5\]; each must be at least 1 step",
        ),
        (lambda: optim.PolynomialSchedule(sgd(), 0), "PolynomialSchedule: total is 0; it must be at least 1 step"),
        (lambda: optim.PolynomialSchedule(sgd(), 1, 0), "PolynomialSchedule: power is 0; it must be above 0"),
        (lambda: optim.OneCycleSchedule(sgd(), 0), "OneCycleSchedule: total is 0; it must be at least 1 step"),
        (lambda: optim.OneCycleSchedule(sgd(), 9, 1.0), "pct_start is 1.0; it must be at least 0 and below 1"),
        (lambda: optim.OneCycleSchedule(sgd(), 9, 0.3, 0.5), "div_factor is 0.5; it must be at least 1"),
        (lambda: optim.OneCycleSchedule(sgd(), 9, final_div_factor=0), "final_div_factor is 0; it must be at least 1"),
        (lambda: optim.WarmupSchedule(sgd(), -1), "WarmupSchedule: warmup is -1; it must be at least 0 steps"),
        (
            lambda: optim.PlateauSchedule(sgd(), factor=1.0),
            "PlateauSchedule: factor is 1.0; it must be above 0 and below 1",
        ),
        (
            lambda: optim.PlateauSchedule(sgd(), mode="best"),
            "PlateauSchedule: mode is 'best'; it must be 'min' or 'max'",
        ),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
