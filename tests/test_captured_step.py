"""A recorded step, replayed: bit for bit the ordinary steps, with dropout, schedules and every optimiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import checkpoint, models, nn, optim, train
from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn.cli.app import main
from gpucnn.launch import launch, recording, simulator
from gpucnn.random import default_generator
from gpucnn.train import CapturedStep, Step
from tests.check import assert_equal, assert_same_bits
from tests.kernel_check import SCHEDULES, on
from tests.test_optim import OPTIMISERS
from tests.test_train_devices import stop_when

NETWORKS: dict[str, dict[str, Any]] = {
    "lenet5": {"num_classes": 10},
    "alexnet": {"num_classes": 10, "image_size": 67, "width": 1 / 16},
    "vgg11_bn": {"num_classes": 10, "image_size": 32, "width": 1 / 16},
}


def small_network() -> nn.Sequential:
    """Dropout in front and between, batch normalisation in the middle."""
    return nn.Sequential(
        nn.Dropout(0.25), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(2 * 6 * 6, 3),
    )  # fmt: skip


def batches(shape: tuple[int, ...], sizes: list[int], classes: int, device: str) -> list[tuple[Any, ...]]:
    rng = np.random.default_rng(1)
    return [
        on(device, rng.standard_normal((size, *shape), np.float32), rng.integers(0, classes, size)) for size in sizes
    ]


def bits(model: nn.Module, optimizer: optim.Optimizer) -> list[np.ndarray]:
    states = [array for state in optimizer.state for array in state.values()]
    return [devices.to_numpy(array).copy() for array in (*model.state_dict().values(), *states)]


def assert_same_training(kind: Any, make: Any, given: Any, between: Any = lambda step, number: None) -> list[int]:
    """Both kinds of step give the same losses, weights, states and counters; how many launches were recorded when."""
    found = []
    recorded = []
    for each in (Step, kind):
        gpucnn.manual_seed(3)
        model, optimizer = make()
        step, losses = each(model, optimizer), []
        for number, (images, labels) in enumerate(given):
            loss, scores = step.backward(images, labels)
            losses += [devices.to_numpy(loss.data).copy(), devices.to_numpy(scores.data).copy()]
            between(step, number)
            step.update()
            if isinstance(step, CapturedStep):
                recorded.append(step.launches)
        found.append((losses + bits(model, optimizer), optimizer.steps, default_generator.offset))
    assert found[0][1:] == found[1][1:]
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert_same_bits(one, other)
    return recorded


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(device, name):
    """With a schedule, both decays, a smaller batch in between, and gradients that are clipped at some steps."""

    def make() -> Any:
        model = models.create(name, **NETWORKS[name]).to(device).train()
        optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3, l1_decay=1e-4)
        return model, optimizer

    def between(step: Step, number: int) -> None:
        step.optimizer.lr = 0.02 / (1 + number)
        if number > 3:
            optim.clip_grad_norm(step.optimizer.parameters, 0.1)

    shape = (NETWORKS[name].get("in_channels", 1 if name == "lenet5" else 3),) + (
        (NETWORKS[name].get("image_size", 28),) * 2
    )
    recorded = assert_same_training(CapturedStep, make, batches(shape, [3, 3, 3, 2, 3, 3], 10, device), between)
    assert recorded[0] == 0 and recorded[1] > 20 and set(recorded[1:]) == {recorded[1]}


@pytest.mark.parametrize(("name", "options"), OPTIMISERS.values(), ids=OPTIMISERS)
def test_optimisers(device, name, options):
    """Every step has another rate; Adam's corrections and Adagrad's rate follow the number of the step."""

    def make() -> Any:
        model = small_network().to(device)
        return model, getattr(optim, name)(model.parameters(), **{"l1_decay": 0.01, **options})

    def between(step: Step, number: int) -> None:
        step.optimizer.lr *= 0.7

    recorded = assert_same_training(CapturedStep, make, batches((1, 8, 8), [2] * 5, 3, device), between)
    assert recorded[-1] > 10


def test_groups_have_their_own_numbers(device):
    def make() -> Any:
        model = small_network().to(device)
        weights = list(model.parameters())
        groups = [{"params": weights[:2], "lr": 0.05}, {"params": weights[2:], "weight_decay": 0.1}]
        return model, optim.SGD(groups, lr=0.1, momentum=0.5)

    assert_same_training(CapturedStep, make, batches((1, 8, 8), [2] * 4, 3, device))


def test_the_first_step_of_an_optimiser_can_be_recorded(device):
    """A plan of a whole step, without CapturedStep: momentum starts at the first step alone."""
    (images, labels), *others = batches((1, 8, 8), [2] * 4, 3, device)

    def train_by(replayed: bool) -> list[np.ndarray]:
        gpucnn.manual_seed(0)
        model = small_network().to(device)
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        step, own = Step(model, optimizer), on(device, *(devices.to_numpy(each).copy() for each in (images, labels)))

        def whole() -> None:
            step.backward(*own)
            step.update()

        with recording(strict=True) as plan:
            whole()
        for batch in others:
            for array, values in zip(own, batch, strict=True):
                array[...] = values
            if replayed:
                plan.refresh(optimizer.step)
                plan.replay()
            else:
                whole()
        return bits(model, optimizer)

    for one, other in zip(train_by(True), train_by(False), strict=True):
        assert_same_bits(one, other)


def test_replays_without_refresh_repeat_the_mask(device):
    (x,) = on(device, np.ones(64, np.float32))
    with recording() as plan:
        y = F.dropout(x)
        z = F.dropout(x)
    first, second = devices.to_numpy(y).copy(), devices.to_numpy(z).copy()
    assert default_generator.offset == 32 and (first != second).any()
    plan.replay()
    assert_equal(y, first)
    plan.refresh()
    plan.replay()
    assert default_generator.offset == 64
    gpucnn.manual_seed(0)
    for want, got in zip([F.dropout(x) for _ in range(4)][2:], (y, z), strict=True):
        assert_equal(got, devices.to_numpy(want))
    gpucnn.manual_seed(5)
    plan.refresh()
    plan.replay()
    gpucnn.manual_seed(5)
    assert_equal(y, devices.to_numpy(F.dropout(x)))


def test_what_changes_is_recorded_anew(device):
    """States that were loaded, frozen parameters; evaluation in between changes nothing."""

    def make() -> Any:
        model = small_network().to(device)
        return model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def between(step: Step, number: int) -> None:
        if number == 3:
            step.optimizer.load_state_dict(step.optimizer.state_dict())
        if number == 6:
            for parameter in list(step.model.parameters())[:2]:
                parameter.requires_grad = False
        if number == 9:
            step.model.eval()
            step.model(gpucnn.Tensor(batches((1, 8, 8), [4], 3, device)[0][0]))
            step.model.train()

    recorded = assert_same_training(CapturedStep, make, batches((1, 8, 8), [2] * 11, 3, device), between)
    assert [count > 0 for count in recorded] == [False, *[True] * 2, False, *[True] * 2, False, *[True] * 4]


def test_gradients_must_stay(device):
    model = small_network().to(device)
    step = CapturedStep(model, optim.SGD(model.parameters(), lr=0.1))
    for images, labels in batches((1, 8, 8), [2] * 2, 3, device):
        step.backward(images, labels)
        step.update()
    step.backward(images, labels)
    step.optimizer.zero_grad()
    with pytest.raises(ValueError, match="CapturedStep.update: a gradient was removed after `backward`"):
        step.update()


@pytest.mark.parametrize("mode", ["asan", "race"])
def test_sound(device, mode):
    if device != "sim":
        pytest.skip("only the simulator has modes")

    def make() -> Any:
        model = small_network().to(device)
        return model, optim.Adam(model.parameters(), lr=0.1, l1_decay=0.1)

    for schedule in SCHEDULES[1:3]:
        with simulator.configured(mode=mode, **schedule):
            assert_same_training(CapturedStep, make, batches((1, 8, 8), [2] * 3, 3, device))


def test_what_is_no_launch_is_refused(device):
    (x,) = on(device, np.ones((2, 3), np.float32))
    weight = gpucnn.tensor(np.ones((2, 3), np.float32), device=device, requires_grad=True)
    labels = on(device, np.zeros(2, np.int64))[0]

    def twice(h: gpucnn.Tensor) -> gpucnn.Tensor:
        return F.cross_entropy(F.linear(h, h), labels)

    refused = {
        "Multiply of arrays is no launch": lambda: weight * 2,
        "Index of arrays": lambda: weight[0],
        "a copy in C order of shape": lambda: F.relu(gpucnn.Tensor(x.T)),
        "a sum of gradients of shape": lambda: twice(F.relu(weight)).backward(),
    }
    for text, run in refused.items():
        with pytest.raises(ValueError, match=text), recording(strict=True):
            run()
    with recording():
        assert_equal((weight * 2).numpy(), np.full((2, 3), 2))
    if device == "sim":
        for run in (lambda: x + 1, lambda: np.where(x > 0, x, x), lambda: x.__setitem__(0, 1)):
            with pytest.raises(ValueError, match="is no launch of a kernel"), recording(strict=True):
                run()
    paper = models.lenet5(variant="paper").to(device)
    step = CapturedStep(paper, optim.SGD(paper.parameters()))
    batch = batches(paper.input_shape, [2], 10, device)[0]
    step.backward(*batch)
    step.update()
    with pytest.raises(ValueError, match="Multiply of arrays is no launch"):
        step.backward(*batch)


def test_plan_refresh_errors(device):
    weight = gpucnn.tensor(np.ones(3, np.float32), device=device, requires_grad=True)
    weight.grad = gpucnn.tensor(np.ones(3, np.float32), device=device)
    sgd, adam = optim.SGD([weight], lr=1.0), optim.Adam([weight])
    with recording() as plan:
        sgd.step()
    assert_equal(weight.numpy(), [0, 0, 0])
    with pytest.raises(ValueError, match="number 1 is another one than was recorded"):
        plan.refresh(adam.step)
    with pytest.raises(ValueError, match="0 numbers are set, but 1 recorded"):
        plan.refresh(lambda: None)
    with pytest.raises(ValueError, match="number 2 is another one"):
        plan.refresh(lambda: (sgd.step(), sgd.step())[0])
    with pytest.raises(ValueError, match="dropout goes on by itself"):
        plan.refresh(lambda: F.dropout(weight.data) and None)
    with pytest.raises(ValueError, match="Plan.refresh: another plan is being recorded"), recording():
        plan.refresh(sgd.step)
    assert_equal(weight.numpy(), [0, 0, 0])  # a refresh launches nothing
    with pytest.raises(ValueError, match="there is no kernel"):
        launch("nothing", 1)


def test_the_cpu_has_no_launches():
    model = models.lenet5()
    with pytest.raises(ValueError, match="CapturedStep: device 'cpu' launches no kernels; use 'cuda' or 'sim'"):
        CapturedStep(model, optim.SGD(model.parameters()))


def test_a_run_with_capture_has_the_same_bits(device, tmp_path, monkeypatch):
    """And is stopped within its second epoch, and resumed without."""
    options = {"epochs": 2, "limit": 20, "batch_size": 8, "clip_norm": 1.0}
    train.fit("lenet5", out=tmp_path / "plain", device=device, **options)
    steps = iter(range(100))
    monkeypatch.setattr(train.run._Run, "_after_step", stop_when(lambda: next(steps) == 6))
    with pytest.raises(train.Interrupted):
        train.fit("lenet5", out=tmp_path / "captured", device=device, capture=True, **options)
    monkeypatch.undo()
    train.fit("lenet5", out=tmp_path / "captured", resume=True, **options)
    plain, captured = (checkpoint.load(tmp_path / name / "checkpoint.safetensors") for name in ("plain", "captured"))
    assert plain.tensors.keys() == captured.tensors.keys()
    assert plain.metadata["random"] == captured.metadata["random"]
    for name, array in plain.tensors.items():
        assert_same_bits(array, captured.tensors[name])


def test_capture_on_the_command_line(device, tmp_path, capsys):
    command = [
        "train",
        "lenet5",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--limit",
        "24",
        "--batch-size",
        "8",
        "--capture",
    ]
    assert main([*command, "--device", device, "--out", str(tmp_path / "run")]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert main([*command, "--device", "cpu", "--out", str(tmp_path / "cpu")]) != 0
    assert "device 'cpu' launches no kernels" in capsys.readouterr().err
