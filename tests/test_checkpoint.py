"""Checkpoints: networks and training come back bit for bit, from the file alone; what does not fit is refused."""

from __future__ import annotations

import copy
import hashlib
import math
import platform
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor, checkpoint, models, optim
from gpucnn import functional as F
from gpucnn.checkpoint import CheckpointError
from gpucnn.nn import init
from gpucnn.random import default_generator

NETWORKS: dict[str, dict[str, Any]] = {
    "lenet5": {"width": 0.5, "in_channels": 2},
    "lenet5 paper": {"variant": "paper"},
    "alexnet": {"width": 0.05, "image_size": 63},
    "alexnet paper": {"width": 0.05, "image_size": 67, "variant": "paper", "dropout": 0.25},
    **{name: {"width": 0.03, "image_size": 32} for name in models.names() if name.startswith("vgg")},
}
OPTIMIZERS = {
    "plain": lambda parameters: optim.SGD(parameters, 0.01),
    "momentum": lambda parameters: optim.SGD(parameters, 0.01, 0.9, weight_decay=1e-3),
    "adam": lambda parameters: optim.Adam(parameters, 0.002),
    "adamw": lambda parameters: optim.AdamW(parameters, 0.002),
    "rmsprop": lambda parameters: optim.RMSprop(parameters, 0.002, momentum=0.9, centered=True),
    "adagrad": lambda parameters: optim.Adagrad(parameters, lr_decay=0.1, l1_decay=1e-4),
    "groups": lambda parameters: optim.Adadelta(
        [{"params": next(parameters), "lr": 0.0}, {"params": next(parameters), "lr": 0.1}, {"params": parameters}]
    ),
}


def network(which: str = "lenet5", classes: int = 3) -> models.Network:
    return models.create(which.split()[0], **{"num_classes": classes, **NETWORKS[which]})


def extra(model: models.Network) -> dict[str, Any]:
    """What a run adds to the state."""
    channels = model.input_shape[0]
    return {
        "classes": [f"class {number}" for number in range(model.arguments["num_classes"])],
        "normalization": {"mean": [0.5] * channels, "std": [0.25] * channels},
        "data": "made",
    }


def stored(path: Path, model: models.Network, optimizer: optim.Optimizer | None = None) -> checkpoint.Checkpoint:
    """The checkpoint of these after a way through the file."""
    optimizer = optimizer or optim.SGD(model.parameters())
    checkpoint.save(path, *checkpoint.pack(model, optimizer, extra(model)))
    return checkpoint.load(path)


def step(model: models.Network, optimizer: optim.Optimizer, seed: int) -> None:
    """One training step on random images; with dropout, and batch norm's statistics, where the network has them."""
    rng = np.random.default_rng(seed)
    optimizer.zero_grad()
    images = rng.standard_normal((4, *model.input_shape), np.float32)
    labels = rng.integers(0, model.arguments["num_classes"], 4)
    F.cross_entropy(model(Tensor(images)), labels).backward()
    optimizer.step()


def bits(state: dict[str, np.ndarray]) -> dict[str, tuple[Any, ...]]:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in state.items()}


def optimizer_bits(optimizer: optim.Optimizer) -> tuple[Any, ...]:
    return optimizer.lr, optimizer.rates, optimizer.steps, [bits(entry) for entry in optimizer.state]


# Networks from the file alone


@pytest.mark.parametrize("which", NETWORKS)
def test_networks_come_back(which: str, tmp_path: Path) -> None:
    model = network(which)
    found = stored(tmp_path / "file", model)
    before = default_generator.get_state()
    again = checkpoint.build_model(found)
    assert default_generator.get_state() == before
    assert (type(again), again.name, again.arguments) == (type(model), model.name, model.arguments)
    assert bits(again.state_dict()) == bits(model.state_dict())
    assert repr(again) == repr(model)
    images = np.random.default_rng(0).standard_normal((2, *model.input_shape), np.float32)
    assert (again.eval()(Tensor(images)).data == model.eval()(Tensor(images)).data).all()


def test_networks_in_double_precision_come_back(tmp_path: Path) -> None:
    model = network("vgg11_bn").to(np.float64)
    for parameter in model.parameters():
        parameter.data += 1e-12
    again = checkpoint.build_model(stored(tmp_path / "file", model))
    assert bits(again.state_dict()) == bits(model.state_dict())


def test_a_network_is_built_in_a_new_process(tmp_path: Path) -> None:
    model = network("vgg11_bn")
    optimizer = optim.SGD(model.parameters(), 0.01, 0.9)
    step(model, optimizer, 0)
    stored(tmp_path / "file", model, optimizer)
    program = (
        "import sys, hashlib; from gpucnn import checkpoint\n"
        "model = checkpoint.build_model(checkpoint.load(sys.argv[1]))\n"
        "print(hashlib.sha256(b''.join(array.tobytes() for array in model.state_dict().values())).hexdigest())\n"
    )
    found = subprocess.check_output([sys.executable, "-c", program, tmp_path / "file"], text=True, timeout=60)
    wanted = hashlib.sha256(b"".join(array.tobytes() for array in model.state_dict().values())).hexdigest()
    assert found.strip() == wanted


# Training goes on


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("which", ["lenet5", "alexnet", "vgg11_bn"])
def test_training_goes_on_bit_for_bit(which: str, kind: str, tmp_path: Path) -> None:
    model = network(which)
    optimizer = OPTIMIZERS[kind](model.parameters())
    step(model, optimizer, 0)
    optimizer.lr *= 0.5
    found = stored(tmp_path / "file", model, optimizer)
    state = default_generator.get_state()
    step(model, optimizer, 1)

    gpucnn.manual_seed(99)
    again = network(which)
    other = OPTIMIZERS[kind](again.parameters())
    metadata = checkpoint.unpack(found, again, other)
    assert default_generator.get_state() == state
    assert metadata["data"] == "made"
    step(again, other, 1)
    assert bits(again.state_dict()) == bits(model.state_dict())
    assert optimizer_bits(other) == optimizer_bits(optimizer)


def test_saving_changes_nothing_and_what_is_loaded_is_apart(tmp_path: Path) -> None:
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    step(model, optimizer, 0)
    before = bits(model.state_dict()), optimizer_bits(optimizer), default_generator.get_state()
    found = stored(tmp_path / "file", model, optimizer)
    again = network()
    checkpoint.unpack(found, again, OPTIMIZERS["adam"](again.parameters()))
    for array in found.tensors.values():
        array[...] = 0
    default_generator.set_state(before[2])
    assert (bits(model.state_dict()), optimizer_bits(optimizer), default_generator.get_state()) == before
    assert bits(again.state_dict()) == before[0]


def test_a_step_that_was_not_made_is_none(tmp_path: Path) -> None:
    """Before the first step optimisers keep no arrays."""
    model = network()
    found = stored(tmp_path / "file", model, OPTIMIZERS["momentum"](model.parameters()))
    assert checkpoint.select(found, "optimizer/") == {}
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    checkpoint.unpack(found, model, optimizer)
    assert optimizer.state == [{}] * len(optimizer.parameters)


def test_what_a_checkpoint_tells(tmp_path: Path) -> None:
    model = network()
    metadata = stored(tmp_path / "file", model, OPTIMIZERS["adam"](model.parameters())).metadata
    assert metadata["model"] == {"name": "lenet5", "arguments": model.arguments}
    assert metadata["input_shape"] == [2, 28, 28]
    assert metadata["classes"] == ["class 0", "class 1", "class 2"]
    assert metadata["normalization"] == {"mean": [0.5, 0.5], "std": [0.25, 0.25]}
    assert (metadata["optimizer"]["name"], metadata["optimizer"]["lr"]) == ("Adam", 0.002)


def test_environment_tells_what_the_bits_depend_on() -> None:
    found = checkpoint.environment()
    assert (found["gpucnn"], found["numpy"]) == (gpucnn.__version__, np.__version__)
    assert (found["python"], found["machine"]) == (platform.python_version(), platform.machine())
    assert found["threads"] == gpucnn.get_num_threads()
    assert isinstance(found["processor"], str) and isinstance(found["safetensors"], str)


# What does not fit


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"classes": None}, r"pack: metadata\['classes'\] is of type NoneType, not list"),
        ({"classes": [1, 2, 3]}, r"pack: metadata\['classes'\]\[0\] is of type int, not str"),
        ({"normalization": {"mean": [0.5, 0.5]}}, r"metadata\['normalization'\] lacks 'std'"),
        ({"normalization": {"mean": [0.5, True], "std": [1, 1]}}, "is of type bool, not float"),
        ({"data": Path("digits")}, r"metadata\['data'\] is of type PosixPath, not str"),
    ],
)
def test_pack_refuses(change: dict[str, Any], text: str) -> None:
    model = network()
    with pytest.raises(CheckpointError, match=text):
        checkpoint.pack(model, optim.SGD(model.parameters()), {**extra(model), **change})


def test_unpack_refuses_another_network_or_optimiser(tmp_path: Path) -> None:
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    step(model, optimizer, 0)
    found = stored(tmp_path / "file", model, optimizer)
    for other, kind, text in (
        (network(classes=4), "momentum", r"classifier.5.bias has shape \(3,\) but LeNet5 needs \(4,\)"),
        (network("alexnet"), "momentum", "names do not fit AlexNet"),
        (network(), "adam", "the run used SGD, not Adam; continue with the same optimiser or start afresh"),
    ):
        before = bits(other.state_dict())
        with pytest.raises(CheckpointError, match=text) as caught:
            checkpoint.unpack(found, other, OPTIMIZERS[kind](other.parameters()))
        assert str(caught.value).startswith(f"{tmp_path / 'file'}: ")
        assert bits(other.state_dict()) == before


Change = tuple[tuple[str, ...], Any]
UNRESUMABLE: list[tuple[Change, str]] = [
    ((("optimizer",), []), r"metadata\['optimizer'\] is of type list, not dict"),
    ((("optimizer", "steps"), [0] * 11), "the state has 11 parameters but the optimiser has 10"),
    ((("optimizer", "steps"), [1.5] * 10), "is of type float, not int"),
    ((("optimizer", "steps"), [-1] * 10), "a parameter has made -1 steps"),
    ((("optimizer", "steps"), []), "tensor 'optimizer/[0-9]/momentum_buffer' is of no parameter"),
    ((("optimizer", "lr"), "fast"), r"\['lr'\] is of type str, not float"),
    ((("random",), {}), r"metadata\['random'\] lacks 'seed'"),
    ((("random", "seed"), -1), "seed is -1"),
    ((("random", "offset"), 2**64), "offset 18446744073709551616"),
    ((("random", "host"), {}), "its state does not fit"),
    ((("random", "host", "bit_generator"), "MT19937"), "its state does not fit"),
    ((("random", "host", "state"), {"state": "a", "inc": []}), "its state does not fit"),
    ((("random", "host", "state", "state"), 2**200), "its state does not fit"),
    ((("random", "host", "state", "inc"), -1), "its state does not fit"),
    ((("random", "host", "uinteger"), 2**70), "its state does not fit"),
    ((("random", "host", "has_uint32"), None), "its state does not fit"),
]


def changed(found: checkpoint.Checkpoint, change: Change) -> checkpoint.Checkpoint:
    """The checkpoint with one entry of its metadata replaced."""
    metadata = copy.deepcopy(found.metadata)
    *parents, last = change[0]
    entry = metadata
    for name in parents:
        entry = entry[name]
    entry[last] = change[1]
    return checkpoint.Checkpoint(found.path, found.tensors, metadata)


@pytest.mark.parametrize(("change", "text"), UNRESUMABLE)
def test_unpack_refuses_a_damaged_state(change: Change, text: str, tmp_path: Path) -> None:
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    step(model, optimizer, 0)
    found = changed(stored(tmp_path / "file", model, optimizer), change)
    before = default_generator.get_state()
    with pytest.raises(CheckpointError, match=text) as caught:
        checkpoint.unpack(found, model, optimizer)
    assert str(caught.value).startswith(f"{tmp_path / 'file'}: ")
    assert default_generator.get_state() == before


HOSTILE: list[tuple[Change, str]] = [
    ((("model",), "lenet5"), r"metadata\['model'\] is of type str, not dict"),
    ((("model", "name"), "os.system"), "model 'os.system' is unknown; use one of lenet5, alexnet"),
    ((("model", "name"), "names"), "model 'names' is unknown"),
    ((("model", "name"), 3), r"\['name'\] is of type int, not str"),
    ((("model", "name"), "vgg11"), "vgg11 has no argument 'variant'"),
    ((("model", "arguments"), []), r"\['arguments'\] is of type list, not dict"),
    ((("model", "arguments"), {"__class__": 1}), "lenet5 has no argument '__class__'"),
    ((("model", "arguments", "self"), 1), "lenet5 has no argument 'self'"),
    ((("model", "arguments", "num_classes"), 10**9), r"shape \(1000000000, 42\) come to more than the 31024 values"),
    ((("model", "arguments", "num_classes"), 10**400), "num_classes is 1000000000000000000000000000000000000000; it"),
    ((("model", "arguments", "num_classes"), 0), "num_classes is 0; it must be a positive integer"),
    ((("model", "arguments", "num_classes"), 3.0), "num_classes is 3.0"),
    ((("model", "arguments", "num_classes"), True), "num_classes is True"),
    ((("model", "arguments", "num_classes"), "3"), "num_classes is '3'"),
    ((("model", "arguments", "num_classes"), None), "num_classes is None; it must be a text or a number"),
    ((("model", "arguments", "num_classes"), [3]), r"num_classes is \[3\]; it must be a text or a number"),
    ((("model", "arguments", "in_channels"), 2**31), r"weights of shape \(3, 2147483648, 5, 5\) come to more than"),
    ((("model", "arguments", "image_size"), 2**31), "come to more than the"),
    ((("model", "arguments", "width"), 16), "come to more than the"),
    ((("model", "arguments", "width"), 1e300), "width is 1e\\+300; it must be a text or a number of at most 2147"),
    ((("model", "arguments", "width"), math.nan), "width is nan"),
    ((("model", "arguments", "width"), -1), "width is -1"),
    ((("model", "arguments", "width"), 0.6), "names do not fit|has shape|come to more than"),
    ((("model", "arguments", "variant"), "secret"), "variant is 'secret'"),
    ((("model", "arguments", "variant"), 5), "variant is 5"),
    ((("model", "arguments", "variant"), "paper"), "use width=1"),
    ((("input_shape",), [2, 28, 29]), r"its input_shape is \(2, 28, 29\), the network's \(2, 28, 28\)"),
    ((("classes",), ["a", "b"]), "its number of classes is 2, the network's 3"),
    ((("normalization", "mean"), [0.5]), "its number of means is 1, the network's 2"),
    ((("normalization", "std"), [0.5] * 3), "its number of standard deviations is 3, the network's 2"),
    ((("normalization", "std"), [1, 0]), "a standard deviation is not above 0"),
    ((("normalization", "std"), [1, "b"]), "is of type str, not float"),
]


@pytest.mark.parametrize(("change", "text"), HOSTILE)
def test_build_model_refuses_before_memory_is_taken(change: Change, text: str, tmp_path: Path) -> None:
    found = changed(stored(tmp_path / "file", network()), change)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=text) as caught:
            checkpoint.build_model(found)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{tmp_path / 'file'}: ")


@pytest.mark.parametrize("which", NETWORKS)
def test_no_network_is_built_larger_than_its_file(which: str, tmp_path: Path) -> None:
    found = stored(tmp_path / "file", network(which))
    for arguments in ({"num_classes": 10**9, "width": 16}, {"num_classes": 10**9}):
        hostile = {**found.metadata["model"]["arguments"], **arguments}
        if hostile.get("variant") == "paper" and which.startswith("lenet5"):
            hostile["width"] = 1.0
        with pytest.raises(CheckpointError, match="come to more than the [0-9]+ values allowed here"):
            checkpoint.build_model(changed(found, (("model", "arguments"), hostile)))


def test_images_too_large_to_be_read_are_refused(tmp_path: Path) -> None:
    """AlexNet's and VGG's weights do not tell the size of the images."""
    found = stored(tmp_path / "file", network("alexnet"))
    hostile = changed(found, (("model", "arguments", "image_size"), 10**6))
    with pytest.raises(CheckpointError, match=r"images of shape \(3, 1000000, 1000000\); at most 67108864 values are"):
        checkpoint.build_model(hostile)
    with init.skipped():
        model = models.create("alexnet", width=0.05, image_size=10**6)
    with pytest.raises(CheckpointError, match="pack: the network takes images of shape"):
        checkpoint.pack(model, optim.SGD(model.parameters()), {**extra(model)})


@pytest.mark.parametrize(
    ("name", "array", "text"),
    [
        ("model/classifier.1.bias", None, "missing classifier.1.bias"),
        ("model/more", np.ones(2), "unknown more"),
        ("model/classifier.1.bias", np.ones(61, np.float32), r"classifier.1.bias has shape \(61,\) but LeNet5 needs"),
        ("model/classifier.1.bias", np.ones((60, 1), np.float32), r"classifier.1.bias has shape \(60, 1\)"),
    ],
)
def test_build_model_wants_exactly_its_weights(name: str, array: Any, text: str, tmp_path: Path) -> None:
    found = stored(tmp_path / "file", network())
    tensors = {**found.tensors, name: array}
    if array is None:
        del tensors[name]
    with pytest.raises(CheckpointError, match=text):
        checkpoint.build_model(checkpoint.Checkpoint(found.path, tensors, found.metadata))


def test_state_is_not_needed_for_use_only(tmp_path: Path) -> None:
    """As in best.safetensors: the weights without the optimiser's arrays."""
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    step(model, optimizer, 0)
    tensors, metadata = checkpoint.pack(model, optimizer, extra(model))
    weights = {name: array for name, array in tensors.items() if name.startswith("model/")}
    checkpoint.save(tmp_path / "best", weights, metadata)
    assert bits(checkpoint.build_model(checkpoint.load(tmp_path / "best")).state_dict()) == bits(model.state_dict())


# The allowance of skipped initialisation


def test_the_allowance_counts_all_values() -> None:
    with init.skipped(limit=10), pytest.raises(ValueError, match=r"shape \(3,\) come to more than the 10 values"):
        assert not init.uniform((2, 4), 1.0).any()
        init.normal((3,), 1.0)


def test_an_inner_context_keeps_the_outer_allowance() -> None:
    with init.skipped(limit=10):
        with init.skipped():
            init.uniform((8,), 1.0)
        with pytest.raises(ValueError, match="the 10 values"):
            init.uniform((3,), 1.0)
    assert init.uniform((11,), 1.0).any()
