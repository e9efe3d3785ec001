"""Module: names, state, hooks, modes, conversion, printing; every layer is one call of its function."""

from __future__ import annotations

import numpy as np
import pytest
from check import assert_equal, assert_same_bits

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, tensor


class Net(nn.Module):
    """A block used twice, a nested Sequential, and buffers."""

    def __init__(self) -> None:
        self.first = nn.Conv2d(1, 2, 3)
        self.block = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
        self.again = self.block
        self.scale = nn.Parameter(np.array([2.0], np.float32))
        self.register_buffer("seen", np.zeros(3, np.int64))
        self.note = "not a module"

    def forward(self, x):
        return self.again(self.block(self.first(x))) * self.scale


NAMES = ["scale", "first.weight", "first.bias", "block.0.weight", "block.0.bias"]
BUFFERS = ["seen", "block.0.running_mean", "block.0.running_var", "block.0.num_batches_tracked"]
AGAIN = [name.replace("block", "again") for name in NAMES + BUFFERS if name.startswith("block")]


def test_names_of_parameters():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert [id(p) for p in net.parameters()] == [id(p) for _, p in net.named_parameters()]
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in net.parameters())


def test_names_of_buffers():
    assert [name for name, _ in Net().named_buffers()][:4] == BUFFERS


def test_names_of_modules():
    assert [name for name, _ in Net().named_modules()] == ["", "first", "block", "block.0", "block.1"]
    assert [name for name, _ in Net().named_children()] == ["first", "block", "again"]


def test_state_dict_names_shared_modules_twice():
    state = Net().state_dict()
    assert sorted(state) == sorted(NAMES + BUFFERS + AGAIN)
    assert all(type(array) is np.ndarray for array in state.values())
    assert state["block.0.weight"] is state["again.0.weight"]


def test_state_dict_is_live():
    net = Net()
    net.state_dict()["scale"][:] = 7
    assert net.scale.data[0] == 7
    net.train()(np.ones((2, 1, 5, 5), np.float32))
    assert net.state_dict()["block.0.num_batches_tracked"] == 2  # the block runs twice


def test_load_state_dict_makes_networks_equal():
    gpucnn.manual_seed(1)
    first = Net()
    first(np.random.default_rng(0).random((4, 1, 6, 6), np.float32))  # moves the running statistics
    second = Net()
    second.load_state_dict(first.state_dict())
    x = np.ones((1, 1, 5, 5), np.float32)
    assert_same_bits(second.eval()(x), first.eval()(x))
    assert not np.shares_memory(second.scale.data, first.scale.data)


def test_load_state_dict_takes_tensors_and_other_floats():
    net = Net()
    net.load_state_dict({"scale": tensor([3.5], np.float64)}, strict=False)
    assert net.scale.dtype == np.float32
    assert_equal(net.scale, [3.5])


def altered(**changes: object) -> dict[str, object]:
    state = {name: array + 1 for name, array in Net().state_dict().items()}
    state.update(changes)
    return {name: array for name, array in state.items() if array is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (altered(scale=None), "names do not fit Net: missing scale; strict=False takes what fits"),
        (altered(extra=np.zeros(1)), "names do not fit Net: unknown extra; strict=False"),
        (altered(scale=None, extra=np.zeros(1)), "missing scale; unknown extra"),
        ({}, r"missing .*, .*, .*, .*, .* and \d+ more"),
        (altered(scale=np.zeros(2)), r"scale has shape \(2,\) but Net needs \(1,\)"),
        (altered(seen=np.zeros(3)), "seen is float64 but Net needs int64"),
        (altered(scale=np.zeros(1, complex)), "scale is complex128 but Net needs float32"),
    ],
)
def test_load_state_dict_changes_nothing_if_anything_is_wrong(state, message):
    net = Net()
    before = {name: array.copy() for name, array in net.state_dict().items()}
    with pytest.raises(ValueError, match="load_state_dict: .*" + message):
        net.load_state_dict(state)
    for name, array in net.state_dict().items():
        assert_same_bits(array, before[name])


def test_load_state_dict_not_strict():
    net = Net()
    net.load_state_dict({"scale": np.array([5.0]), "extra": np.zeros(1)}, strict=False)
    assert net.scale.data[0] == 5
    with pytest.raises(ValueError, match="shape"):
        net.load_state_dict({"scale": np.zeros((1, 1))}, strict=False)


def test_forward_hooks():
    net, calls = Net(), []
    handle = net.first.register_forward_hook(lambda module, inputs, output: calls.append((module, inputs, output)))
    other = net.first.register_forward_hook(lambda *arguments: calls.append("second"))
    x = tensor(np.ones((1, 1, 5, 5), np.float32))
    net(x)
    (module, inputs, output), second = calls
    assert module is net.first and inputs == (x,) and output.shape == (1, 2, 3, 3) and second == "second"
    handle.remove()
    handle.remove()
    other.remove()
    net(x)
    assert len(calls) == 2


def test_hooks_may_remove_themselves():
    net, calls = nn.ReLU(), []
    handles = [net.register_forward_hook(lambda *_: (calls.append(1), handles[0].remove()))]
    net(np.ones(2))
    net(np.ones(2))
    assert calls == [1]


def test_hooks_are_no_state():
    net = nn.Linear(2, 2)
    net.register_forward_hook(lambda *_: None)
    assert list(net.state_dict()) == ["weight", "bias"]
    assert repr(net) == "Linear(2, 2)"


def test_train_and_eval_reach_every_module():
    net = Net()
    assert all(module.training for module in net.modules())
    assert net.eval() is net
    assert not any(module.training for module in net.modules())
    net.train()
    assert net.block[0].training
    net.train(False)
    assert not net.block[0].training


def test_requires_grad_freezes():
    net = Net()
    assert net.requires_grad_(False) is net
    assert not net(tensor(np.ones((1, 1, 4, 4), np.float32))).requires_grad
    net.scale.requires_grad = True
    net(np.ones((1, 1, 4, 4), np.float32)).sum().backward()
    assert net.scale.grad is not None and net.first.weight.grad is None


def test_zero_grad():
    net = Net()
    net(np.ones((2, 1, 4, 4), np.float32)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_to_dtype():
    net = Net()
    parameter = net.scale
    net(np.ones((2, 1, 4, 4), np.float32)).sum().backward()
    assert net.to(np.float64) is net
    assert net.scale is parameter  # optimisers hold on to it
    assert all(p.dtype == p.grad.dtype == np.float64 for p in net.parameters())
    assert net.block[0].running_mean.dtype == np.float64
    assert net.seen.dtype == net.block[0].num_batches_tracked.dtype == np.int64
    y = net(np.ones((2, 1, 4, 4)))
    assert y.dtype == np.float64
    y.sum().backward()
    assert_equal(net.state_dict()["block.0.running_mean"], net.block[0].running_mean)


def test_to_device():
    net = Net()
    weight = net.first.weight.data
    assert net.to("auto") is net and net.to("cpu") is net
    assert net.first.weight.data is weight
    with pytest.raises(ValueError, match="device 'cuda': .* use 'cpu', 'sim' or 'auto'"):
        net.to("cuda")


def test_sequential():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU())
    assert len(net) == 3 and isinstance(net[1], nn.Linear) and net[-1] is list(net)[2]
    assert [name for name, _ in net.named_parameters()] == ["1.weight", "1.bias"]
    x = np.ones((2, 2, 2), np.float32)
    assert_same_bits(net(x), F.relu(F.linear(x.reshape(2, 4), net[1].weight, net[1].bias)))
    assert nn.Sequential()(x) is x


def test_sequential_slice_shares_its_modules():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    features = net[:2]
    assert isinstance(features, nn.Sequential) and len(features) == 2 and features[0] is net[0]


def test_two_networks_of_one_seed_are_equal():
    nets = []
    for _ in range(2):
        gpucnn.manual_seed(3)
        nets.append(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(5, 4)))
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert_same_bits(a, b)
    gpucnn.manual_seed(4)
    assert (nn.Conv2d(2, 3, 3).weight.data != nets[0][0].weight.data).any()


@pytest.mark.parametrize(("layer", "fan_in"), [(nn.Conv2d(8, 64, 3, groups=2), 36), (nn.Linear(50, 400), 50)])
def test_initial_weights_are_uniform_within_the_fan_in(layer, fan_in):
    bound = fan_in**-0.5
    for parameter in layer.parameters():
        values = parameter.data
        assert values.dtype == np.float32
        assert np.abs(values).max() <= bound * (1 + 1e-6)
        assert abs(values.mean()) < 5 * bound / np.sqrt(3 * values.size)
        assert abs(values.std() - bound / np.sqrt(3)) < 0.2 * bound


def test_module_without_forward():
    with pytest.raises(NotImplementedError, match="Empty does not define forward"):
        type("Empty", (nn.Module,), {})()(1)
