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


def test_warmup_then_decay_by_hand():
    optimizer = sgd()
    schedule = optim.WarmupSchedule(optimizer, 1, optim.StepSchedule(optimizer, 2, 0.5))
    assert_close(rates(schedule, 6), [0.2, 0.4, 0.4, 0.2, 0.2, 0.1], 1e-15)


ORACLES = {
    "step": lambda t, o: t.StepLR(o, 3, gamma=0.5),
    "cosine": lambda t, o: t.CosineAnnealingLR(o, 10, eta_min=0.04),
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
        for _ in range(11):
            want.append(oracle.param_groups[0]["lr"])
            oracle.step()
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
