"""Training on a device: the CPU's losses, stopping and resuming, files that any device reads, and a GPU that fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gpucnn
from gpucnn import checkpoint, data, models, nn, optim, train
from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn.cli.app import main
from gpucnn.data import DataLoader, Normalize
from gpucnn.launch import jit, simulator
from gpucnn.launch import launch as run_kernel
from tests.check import assert_close, assert_same_bits

SMALL = {"epochs": 2, "limit": 24, "batch_size": 8, "overwrite": True}


def losses(device: str, steps: int) -> list[float]:
    gpucnn.manual_seed(0)
    digits = data.load("digits").train
    model = models.lenet5().to(device)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loader = DataLoader(digits, 16, shuffle=True, normalize=Normalize(*digits.statistics()), workers=0)
    found = []
    for _, batch in zip(range(steps), devices.uploaded(loader.epoch(0), devices.resolve(device)), strict=False):
        images, labels = batch
        optimizer.zero_grad()
        loss = F.cross_entropy(model(gpucnn.Tensor(images)), labels)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_twenty_steps_as_on_the_cpu(device):
    assert_close(losses(device, 20), losses("cpu", 20), 1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "lr"),
    [
        ("lenet5", {"variant": "paper"}, "Adagrad", 1e-3),
        ("alexnet", {"width": 1 / 16, "image_size": 64, "num_classes": 10}, "AdamW", 1e-3),
        ("vgg11_bn", {"width": 1 / 16, "image_size": 32, "num_classes": 10}, "SGD", 0.01),
    ],
)
def test_steps_of_every_kind_of_network(device, name, arguments, kind, lr):
    """Local response and batch normalisation, dropout (with the CPU's masks), tables of connections."""
    found = []
    for where in ("cpu", device):
        gpucnn.manual_seed(0)
        model = models.create(name, **arguments).to(where)
        optimizer = getattr(optim, kind)(model.parameters(), lr=lr)
        images = np.random.default_rng(0).standard_normal((2, *model.input_shape)).astype(np.float32)
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(gpucnn.tensor(images, device=where)), [1, 7])
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert_close(found[2:], found[:2], 1e-5)


@pytest.fixture(scope="module")
def run(device: str, tmp_path_factory: pytest.TempPathFactory) -> train.Outcome:
    return train.fit("lenet5", out=tmp_path_factory.mktemp("run"), device=device, **SMALL)


def weights(path: Any) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in checkpoint.load(path).tensors.items()}


def test_a_run_and_its_files(run, device, capsys, tmp_path):
    path = Path(run.result["checkpoint"])
    assert run.result["device"] == device and run.config.device == device
    assert {str(array.dtype) for array in weights(path).values()} == {"float32"}
    assert any(name.startswith("optimizer/") for name in weights(path))
    test = data.load("digits").test.limit(24)
    found = {}
    for where in ("cpu", device):
        trained = train.load_model(path, where)
        assert trained.model.device.startswith(where)
        found[where] = train.evaluate(trained.model, test, trained.normalize)
    assert_close(found[device].loss, found["cpu"].loss, 1e-5)
    assert_close(found[device].loss, run.result["test_loss"], 1e-6)
    picture = tmp_path / "digit.png"
    Image.fromarray(test.images[0, 0]).save(picture)
    for command in (["eval", str(path), "--limit", "8"], ["predict", str(path), str(picture)]):
        answers = []
        for where in ("cpu", device):
            target = tmp_path / f"{where}.json"
            assert main([*command, "--device", where, "--json", str(target)]) == 0
            answers.append(numbers(json.loads(target.read_text())))
        assert_close(answers[1], answers[0], 1e-5)
    capsys.readouterr()


def numbers(value: Any) -> list[float]:
    """The numbers in a JSON value, in order; lists of classes are sorted by their probabilities in it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, float) else []


def test_stopped_and_resumed_has_the_same_bits(run, device, tmp_path, monkeypatch):
    """Stopped after the fourth step, in the middle of the second epoch, and continued without naming the device."""
    steps = iter(range(100))
    monkeypatch.setattr(train.run._Run, "_after_step", stop_when(lambda: next(steps) == 5), raising=True)
    with pytest.raises(train.Interrupted):
        train.fit("lenet5", out=tmp_path, device=device, **SMALL)
    monkeypatch.undo()
    settings = {name: value for name, value in SMALL.items() if name != "overwrite"}
    resumed = train.fit("lenet5", out=tmp_path, resume=True, **settings)
    assert resumed.config.device == device
    straight, continued = weights(run.result["checkpoint"]), weights(resumed.result["checkpoint"])
    assert straight.keys() == continued.keys()
    for name, array in straight.items():
        assert_same_bits(continued[name], array)


def stop_when(reached: Callable[[], bool]) -> Callable[[Any], None]:
    after_step = train.run._Run._after_step

    def stop(self: Any) -> None:
        self.interrupted = reached
        after_step(self)

    return stop


def test_modules_move_with_their_state(device):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = {name: array.copy() for name, array in model.state_dict().items()}
    assert model.device == "cpu"
    model.to(device)
    assert {devices.of(array) for array in model.state_dict().values()} == {model.device}
    assert model.device.startswith(device)
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(device)
    other.load_state_dict(before)
    for name, array in other.state_dict().items():
        assert_same_bits(devices.to_numpy(array), before[name])
    model.to("cpu")
    assert {type(array) for array in model.state_dict().values()} == {np.ndarray}
    assert repr(gpucnn.tensor([1.0, 2.0], device=device)) == "tensor([1., 2.], dtype=float32)"


def test_batches_on_the_device_in_their_order(device):
    batches = [(np.full((2, 3), i, np.float32), np.arange(i, i + 2)) for i in range(5)]
    found = list(devices.uploaded(iter(batches), devices.resolve(device)))
    assert len(found) == 5
    for got, want in zip(found, batches, strict=True):
        for array, source in zip(got, want, strict=True):
            assert devices.of(array).startswith(device)
            assert_same_bits(devices.to_numpy(array), source)


def test_a_lost_device_leaves_the_last_checkpoint(device, tmp_path, monkeypatch, capsys):
    """After the loss nothing is read from the device's memory, and the file stays as it was."""
    if device != "sim":
        pytest.skip("a real GPU would have to be broken")
    saved: list[bytes] = []
    lost = {"launches": 0}
    save, to_numpy, run_on_simulator = train.folder.RunFolder.save, devices.to_numpy, simulator.run

    def failing(*arguments: Any) -> None:
        lost["launches"] += 1
        if lost["launches"] > 150:
            raise gpucnn.DeviceLost("adam_update: an illegal memory access")
        run_on_simulator(*arguments)

    def saving(self: Any, *arguments: Any) -> None:
        save(self, *arguments)
        saved.append(self.checkpoint.read_bytes())

    def reading(array: Any) -> np.ndarray:
        assert lost["launches"] <= 150, "the memory of a lost device was read"
        return to_numpy(array)

    monkeypatch.setattr(simulator, "run", failing)
    monkeypatch.setattr(devices, "to_numpy", reading)
    monkeypatch.setattr(train.folder.RunFolder, "save", saving)
    with pytest.raises(gpucnn.DeviceLost, match="illegal memory access; .*checkpoint.safetensors keeps the last good"):
        train.fit("lenet5", out=tmp_path, device=device, save_every=0.0, **SMALL)
    assert len(saved) > 2
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == saved[-1]
    lost["launches"] = 0
    assert main(["train", "lenet5", "--device", "sim", "--limit", "24", "--out", str(tmp_path / "b")]) == 1
    assert "error: adam_update: an illegal memory access" in capsys.readouterr().err


# CuPy's behaviour when a GPU fails, without a GPU.


class CudaError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"CUDA error {status}")
        self.status = status


class OutOfMemory(MemoryError):
    pass


class FakeArray:
    """As much of cupy.ndarray as allocation and copies look at."""

    __cuda_array_interface__: dict[str, Any] = {}

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.values = np.zeros(shape, dtype)
        self.shape, self.dtype, self.nbytes = self.values.shape, self.values.dtype, self.values.nbytes
        self.data = SimpleNamespace(ptr=id(self))
        self.device, self.flags = SimpleNamespace(id=0), self.values.flags

    def set(self, source: np.ndarray, stream: Any) -> None:
        self.values[...] = source
        stream.log.append("copy")


FakeArray.__module__ = "cupy"


class FakeCupy:
    """Fails as often as it is told to, and notes what is done in which order."""

    def __init__(self) -> None:
        self.ndarray = FakeArray
        self.log: list[str] = []
        self.failures: Iterator[Exception | None] = iter(())
        stream = SimpleNamespace(
            record=lambda: SimpleNamespace(synchronize=lambda: self.log.append("copied")),
            wait_event=lambda event: self.log.append("compute waits"),
            synchronize=lambda: self.log.append("synchronize"),
        )
        copies = SimpleNamespace(
            log=self.log,
            record=stream.record,
            wait_event=lambda event: self.log.append("copies wait"),
            synchronize=lambda: self.log.append("all copied"),
        )
        self.cuda = SimpleNamespace(
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemory),
            driver=SimpleNamespace(CUDADriverError=CudaError),
            runtime=SimpleNamespace(CUDARuntimeError=CudaError, getDevice=lambda: 0),
            get_current_stream=lambda: stream,
            Stream=lambda non_blocking: copies,
            alloc_pinned_memory=bytearray,
        )

    def fail(self) -> None:
        error = next(self.failures, None)
        if error is not None:
            raise error

    def empty(self, shape: Any, dtype: Any) -> FakeArray:
        self.fail()
        return FakeArray(shape, dtype)

    def asnumpy(self, array: FakeArray) -> np.ndarray:
        self.fail()
        return array.values

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(
            free_all_blocks=lambda: self.log.append("free"),
            used_bytes=lambda: 3 << 20,
            total_bytes=lambda: 8 << 20,
        )


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    module = FakeCupy()
    monkeypatch.setattr(devices, "cupy", lambda: module)
    return module


def test_memory_is_freed_and_asked_for_again(cupy):
    cupy.failures = iter([OutOfMemory("no")])
    assert devices.empty((2, 3), np.float32, like=FakeArray(1, np.float32)).shape == (2, 3)
    assert cupy.log == ["free"]


def test_memory_that_is_not_there_is_told_with_what_holds_it(cupy):
    held = [FakeArray((4, 256, 256), np.float32) for _ in range(3)]
    held.append(FakeArray((1024,), np.float32))
    cupy.failures = iter([OutOfMemory("no"), OutOfMemory("out of 8 GiB")])
    with pytest.raises(
        MemoryError, match=r"an array of shape \(7, 7\), float32 does not fit .*\(out of 8 GiB\)"
    ) as error:
        devices.empty((7, 7), np.float32, like=held[0])
    lines = str(error.value).splitlines()[1:]
    assert re.fullmatch(r" +3.0 MiB  3 × float32 \(4, 256, 256\)", lines[0])
    assert lines[-1].strip() == "3.0 MiB  of 8.0 MiB in use"
    assert error.value.__context__ is None, "the exception holds what the failed attempts held"
    assert cupy.log == ["free"]


@pytest.mark.parametrize("status", sorted(devices.STICKY_ERRORS))
def test_errors_that_end_the_use_of_a_gpu(cupy, status):
    cupy.failures = iter([CudaError(status)])
    with pytest.raises(
        gpucnn.DeviceLost, match=f"a copy from the GPU: CUDA error {status}; this process cannot use the"
    ):
        devices.to_numpy(FakeArray((2,), np.float32))


def test_other_errors_do_not(cupy):
    cupy.failures = iter([CudaError(1)])
    with pytest.raises(RuntimeError, match="a copy from the GPU: CUDA error 1$") as error:
        devices.to_numpy(FakeArray((2,), np.float32))
    assert not isinstance(error.value, gpucnn.DeviceLost)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("native: cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS (700)", gpucnn.DeviceLost),
        ("native: cuLaunchKernel: CUDA_ERROR_INVALID_VALUE (1)", RuntimeError),
        ("something else (700)", RuntimeError),
    ],
)
def test_errors_of_the_extension_and_others(cupy, text, kind):
    with pytest.raises(RuntimeError, match=re.escape(text)) as error, devices.cuda_errors("a launch"):
        raise RuntimeError(text)
    assert type(error.value) is kind


@pytest.mark.parametrize(("status", "kind"), [(700, gpucnn.DeviceLost), (9, RuntimeError)])
def test_launches_that_fail(cupy, monkeypatch, status, kind):
    def kernel(*arguments: Any, **options: Any) -> None:
        raise CudaError(status)

    monkeypatch.setattr(jit, "function", lambda *_: kernel)
    x = FakeArray((2,), np.float32)
    with pytest.raises(kind, match=f"relu_forward: grid .*CUDA error {status}"):
        run_kernel("relu_forward", 1, x, x, 2)


def test_copies_overlap_the_computation(cupy):
    """The second batch is under way before the first is handed out, and no copy outlives the iterator."""
    batches = [(np.full((2,), i, np.float32), np.arange(2) + i) for i in range(3)]
    for position, (images, labels) in enumerate(devices.uploaded(iter(batches), "cuda")):
        assert_same_bits(images.values, batches[position][0])
        assert_same_bits(labels.values, batches[position][1])
        cupy.log.append(f"compute {position}")
    start, finish = ["copies wait", "copy", "copy"], ["copied", "compute waits"]
    want = [*start, *start, *finish, "compute 0", *start, *finish, "compute 1", *finish, "compute 2", "all copied"]
    assert cupy.log == want


def test_an_iterator_that_is_closed_waits_for_its_copies(cupy):
    batches = devices.uploaded(iter([(np.zeros(2, np.float32),)] * 3), "cuda")
    next(batches)
    batches.close()
    assert cupy.log[-1] == "all copied"
