"""Tuning: what is measured, what is kept on disk, and when "auto" looks at it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

import gpucnn
from gpucnn import device as devices
from gpucnn import models, nn, ops
from gpucnn.bench import tune
from gpucnn.bench.policies import POLICIES
from gpucnn.cli import main
from gpucnn.ops import conv_tuning
from gpucnn.ops.cards import CARDS

FLOAT32 = np.dtype(np.float32)
SHAPE = ops.conv_shape((2, 3, 8, 8), (4, 3, 3, 3), padding=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and results of tuning in use."""
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))
    with gpucnn.tuning(True):
        yield tmp_path


class Clock:
    """A call of each algorithm takes as long as `seconds` says; the algorithm is the one that ran last."""

    def __init__(self, monkeypatch, **seconds):
        self.seconds, self.last, run = seconds, None, ops.conv2d_forward
        monkeypatch.setattr(ops, "conv2d_forward", lambda *a, **k: (setattr(self, "last", a[4]), run(*a, **k))[1])

    def mark(self):
        return self.last

    def synchronize(self):
        pass

    def elapsed(self, start, end):
        times = self.seconds[end]
        return times.pop(0) if isinstance(times, list) else times


def keep(**milliseconds):
    return conv_tuning.store("cpu", {conv_tuning.key("conv2d_forward", SHAPE, FLOAT32, None): milliseconds})


def choice(**options):
    return ops.choose("conv2d_forward", SHAPE, **options)


def test_cases_are_the_passes_of_a_training_step():
    found = tune.cases(models.lenet5(), 8)
    assert [(case.operation.removeprefix("conv2d_"), case.shape[:7]) for case in found] == [
        ("forward", (8, 1, 28, 28, 6, 5, 5)),
        ("backward_weight", (8, 1, 28, 28, 6, 5, 5)),
        ("forward", (8, 6, 14, 14, 16, 5, 5)),
        ("backward_input", (8, 6, 14, 14, 16, 5, 5)),
        ("backward_weight", (8, 6, 14, 14, 16, 5, 5)),
    ]
    assert [case.operation for case in tune.cases(models.lenet5(), 8, ("conv2d_forward",))] == ["conv2d_forward"] * 2


def test_equal_convolutions_are_one_case():
    with nn.init.skipped():
        network = models.create("vgg19", width=0.1, image_size=32)
    found = tune.cases(network, 2, ("conv2d_forward",))
    assert len(found) == len(set(found)) < 16


def test_networks_that_cannot_be_tuned():
    with pytest.raises(ValueError, match="tune: Linear has no input_shape"):
        tune.cases(nn.Linear(3, 4), 8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    network.input_shape = (3, 2, 2)
    with pytest.raises(ValueError, match="tune: the network has no convolution"):
        tune.cases(network, 8)


@pytest.mark.parametrize("operation", ops.PASSES)
def test_every_able_algorithm_is_measured(operation, device, monkeypatch):
    """On the CPU and with kernels, none of which takes no time."""
    monkeypatch.undo()  # nothing is kept here, and the usual cache has compiled kernels
    for where in ("cpu", device):
        found = tune.measure(tune.Case(operation, SHAPE), where, None, tune.timing.WallClock(), rounds=1)
        assert set(found.milliseconds) == set(ops.algorithms(operation, SHAPE, FLOAT32, where))
        assert not found.refused and all(ms > 0 for ms in found.milliseconds.values())
        assert found.fastest in found.milliseconds and found.before in found.milliseconds


def test_medians_of_turns_decide(monkeypatch):
    """direct is slow at first and once more, toeplitz is hopeless and measured once; the median counts."""
    rest = dict.fromkeys(("winograd", "winograd4", "fft"), 3e-3)
    clock = Clock(monkeypatch, direct=[2e-3, 1e-3, 9e-3, 1e-3], im2col=1.5e-3, toeplitz=[1.0], **rest)
    (found,) = tune.tune([tune.Case("conv2d_forward", SHAPE)], "cpu", clock=clock, rounds=3)
    assert found.milliseconds == {
        "direct": 1.0, "im2col": 1.5, "toeplitz": 1000.0, "fft": 3.0, "winograd": 3.0, "winograd4": 3.0,
    }  # fmt: skip
    assert found.fastest == "direct" and found.before == "im2col"
    assert choice() == "direct"
    assert choice(dtype=np.float64) == choice(workspace_limit=10**9) == "im2col"  # nothing is known of these


def test_wrong_and_failing_algorithms_are_left_out(monkeypatch):
    def wrong(x, w, b, y, shape, workspace_limit=None):
        y[...] = 1

    def failing(*arguments, workspace_limit=None):
        raise MemoryError("8 GiB do not fit")

    table = ops.ALGORITHMS["conv2d_forward"]
    monkeypatch.setitem(table, "direct", replace(table["direct"], run=wrong))
    monkeypatch.setitem(table, "fft", replace(table["fft"], run=failing))
    (found,) = tune.tune([tune.Case("conv2d_forward", SHAPE)], "cpu", rounds=1)
    assert set(found.milliseconds) == {"im2col", "toeplitz", "winograd", "winograd4"}
    assert "its result is off by" in found.refused["direct"]
    assert found.refused["fft"] == "conv2d_forward: 8 GiB do not fit"


def test_what_would_take_minutes_is_not_tried():
    large = ops.conv_shape((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    (found,) = tune.tune([tune.Case("conv2d_forward", large)], "cpu", rounds=1)
    assert set(found.refused) == {"toeplitz"} and "at most 10000000 multiply-adds" in found.refused["toeplitz"]
    assert {"direct", "im2col", "winograd4"} <= set(found.milliseconds)
    wide = ops.conv_shape((1, 4096, 4, 4), (4096, 4096, 3, 3), padding=1)  # transforms of the filters
    assert "bytes of workspace" in str(
        tune._hopeless("winograd4", tune.Case("conv2d_forward", wide), "cpu", None, FLOAT32)
    )


def test_a_limit_that_nothing_keeps():
    depthwise = ops.conv_shape((2, 8, 9, 9), (8, 1, 3, 3), groups=8)
    (found,) = tune.tune([tune.Case("conv2d_forward", depthwise)], "cpu", limit=0)
    assert not found.milliseconds and found.before == "none" and "more workspace than 0 bytes" in str(found.refused)
    assert conv_tuning.entries("cpu") == {}


def test_results_that_are_no_numbers_are_left_out(monkeypatch):
    table = ops.ALGORITHMS["conv2d_backward_weight"]

    def wrong(x, gy, gw, shape, workspace_limit=None):
        gw[...] = np.nan

    monkeypatch.setitem(table, "direct", replace(table["direct"], run=wrong))
    (found,) = tune.tune([tune.Case("conv2d_backward_weight", SHAPE)], "cpu", rounds=1)
    assert "off by nan" in found.refused["direct"]


def test_auto_takes_what_was_fastest():
    assert choice() == "im2col"
    keep(direct=0.5, im2col=1.0, absent=0.1)
    assert choice() == "direct"
    found = ops.explain("conv2d_forward", SHAPE)
    assert found.reason == "gpucnn tune measured 0.500 ms on this device, the least"
    assert {each.name: each.measured for each in found.candidates}["im2col"] == 1.0
    with gpucnn.tuning(False):
        assert choice() == "im2col"
    assert choice() == "direct"
    assert choice(device="sim") == "direct"  # by the model: one launch


def test_results_hold_for_one_number_of_threads_and_one_limit():
    keep(direct=0.5, im2col=1.0)
    threads = gpucnn.get_num_threads()
    gpucnn.set_num_threads(threads + 1)
    try:
        assert choice() == "im2col"
    finally:
        gpucnn.set_num_threads(threads)
    assert choice() == "direct"
    limit = 10**6
    conv_tuning.store("cpu", {conv_tuning.key("conv2d_forward", SHAPE, FLOAT32, limit): {"winograd": 0.2}})
    assert choice(workspace_limit=limit) == "winograd" and choice() == "direct"


def test_results_hold_for_one_precision_and_type(monkeypatch):
    """On a GPU; on the CPU there is but one precision, and results hold in all."""
    monkeypatch.setattr(devices, "has_cuda", lambda: True)
    monkeypatch.setattr(devices, "gpu", lambda device: ("NVIDIA H200", (9, 0)))
    names = ("float32", "float32_tensor", "tf32")
    keys = {name: conv_tuning.key("conv2d_forward", SHAPE, FLOAT32, None, name) for name in names}
    half = conv_tuning.key("conv2d_forward", SHAPE, "bfloat16", None, "tf32")
    assert len({*keys.values(), half}) == 4
    assert half == conv_tuning.key("conv2d_forward", SHAPE, "bfloat16", None)
    conv_tuning.store("cuda", {keys["tf32"]: {"im2col": 0.1}, keys["float32"]: {"winograd4": 0.1}})
    keep(direct=0.5)
    found = {}
    for name in names:
        with gpucnn.precision(name):
            found[name] = choice(device="cuda")
            assert choice() == "direct"
            measured = {each.name: each.measured for each in ops.explain("conv2d_forward", SHAPE, "cuda").candidates}
            assert measured["im2col"] == (0.1 if name == "tf32" else None)
    assert (
        found["float32"] == "winograd4"
        and found["tf32"] == "im2col"
        and found["float32_tensor"] not in ("im2col", "winograd4")
    )


def test_tuning_in_tf32_keeps_its_results_apart(device, monkeypatch):
    stored = {}
    monkeypatch.setattr(conv_tuning, "store", lambda where, results: stored.update(results))
    case = tune.Case("conv2d_forward", SHAPE)
    policy, clock = POLICIES["tf32"], tune.timing.WallClock()
    monkeypatch.delenv("GPUCNN_CACHE_DIR")  # the usual cache has compiled kernels
    (found,) = tune.tune([case], device, None, clock, rounds=1, policy=policy)
    assert not found.refused and set(found.milliseconds) == set(ops.algorithms("conv2d_forward", SHAPE, device=device))
    assert list(stored) == [conv_tuning.key("conv2d_forward", SHAPE, FLOAT32, None, "tf32")]
    assert gpucnn.get_precision() == "float32"


def test_results_of_one_gpu_are_not_used_on_another(monkeypatch):
    names = {"cuda:0": "NVIDIA H200", "cuda:1": "NVIDIA A100-SXM4-80GB"}
    monkeypatch.setattr(devices, "has_cuda", lambda: True)
    monkeypatch.setattr(devices, "gpu", lambda device: (names[device], (9, 0)))
    path = conv_tuning.store("cuda:0", {conv_tuning.key("conv2d_forward", SHAPE, FLOAT32, None): {"im2col": 0.1}})
    assert path.name.startswith("nvidia-h200-0-")
    assert choice(device="cuda:0") == "im2col" and choice(device="cuda:1") == "direct"
    assert ops.explain("conv2d_forward", SHAPE, "cuda:0").candidates[2].measured == 0.1
    assert ops.explain("conv2d_forward", SHAPE, "cuda:0", card=CARDS["T4"]).algorithm == "direct"
    assert ops.explain("conv2d_forward", SHAPE, "cuda:1").card is CARDS["A100-80"]


def test_results_of_another_library_are_not_used(monkeypatch):
    keep(direct=0.5)
    monkeypatch.setattr(conv_tuning, "_extension_digest", lambda: "f" * 64)
    conv_tuning._forget()
    assert choice() == "im2col"


def test_choosing_measures_and_writes_nothing(cache):
    choice()
    gpucnn.functional.conv2d(np.ones(SHAPE.x, np.float32), np.ones(SHAPE.weight, np.float32), padding=1)
    assert list(cache.iterdir()) == []


def test_results_add_up_in_one_file():
    path = keep(direct=0.5)
    other = conv_tuning.key("conv2d_backward_input", SHAPE, FLOAT32, None)
    assert conv_tuning.store("cpu", {other: {"fft": 2.0}}) == path
    content = json.loads(path.read_text())
    assert set(content["entries"]) == {other, conv_tuning.key("conv2d_forward", SHAPE, FLOAT32, None)}
    assert content["threads"] == gpucnn.get_num_threads() and content["version"] == gpucnn.__version__
    assert content["device"] and list(path.parent.iterdir()) == [path]


DAMAGED = [
    b"", b"{", b"\xff\xfe", b"[]", b"{}", b"null", b'{"entries": 3}', b'{"entries": {"a": 3}}', b'{"entries": []}',
    b'{"entries": {"a": {"direct": "fast"}}}', b'{"entries": {"a": {"direct": -1}}}', b'{"entries": {"a": {"b": NaN}}}',
    b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_files_are_ignored_with_a_warning(content):
    path = keep(direct=0.5)
    path.write_bytes(content)
    conv_tuning._forget()
    with pytest.warns(UserWarning, match="these tuning results cannot be read .* gpucnn tune measures anew"):
        assert choice() == "im2col"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ops.choose("conv2d_backward_input", SHAPE) == "im2col"  # it is said once
    with pytest.warns(UserWarning, match="cannot be read"):
        keep(direct=0.5)
    assert choice() == "direct"


def test_a_folder_in_the_place_of_the_file():
    path = conv_tuning.path_of("cpu")
    path.mkdir(parents=True)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert choice() == "im2col"


def test_the_environment_switches_results_off():
    keep(direct=0.5, im2col=1.0)
    code = "import gpucnn; s = gpucnn.ops.conv_shape((2,3,8,8), (4,3,3,3), padding=1); "
    code += "print(gpucnn.ops.choose('conv2d_forward', s))"
    for value, name in (("1", "direct"), ("0", "im2col")):
        environment = {**os.environ, "GPUCNN_TUNING": value, "GPUCNN_NUM_THREADS": str(gpucnn.get_num_threads())}
        process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert process.stdout.strip() == name, process.stderr


# The command


def test_tune_a_network(capsys, tmp_path):
    out = tmp_path / "out.json"
    arguments = ("--batch-size", "4", "--rounds", "1", "--passes", "forward", "--device", "cpu", "--json", str(out))
    assert main(["tune", "lenet5", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "4 6 14 14 16 5 5" in printed and f"kept in {conv_tuning.path_of('cpu')}" in printed
    rows = json.loads(out.read_text())
    assert [row["pass"] for row in rows] == ["conv2d_forward"] * 2
    shape = ops.conv_shape((4, 6, 14, 14), (16, 6, 5, 5))
    best = min(rows[1]["milliseconds"], key=rows[1]["milliseconds"].get)
    assert ops.choose("conv2d_forward", shape) == best

    assert main(["tune", "--list"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(": 2 convolutions\n") and f"{gpucnn.get_num_threads()} threads" in printed
    stale = conv_tuning.path_of("cpu").with_name("other.json")
    stale.write_text("{")
    main(["tune", "--list"])
    assert f"{stale}: damaged, not used here" in capsys.readouterr().out
    assert main(["tune", "--clear"]) == 0
    assert capsys.readouterr().out == "removed 2 files of tuning results\n"
    assert list(conv_tuning.stored()) == [] and main(["tune", "--list"]) == 0
    assert capsys.readouterr().out == "no tuning results\n"


def test_what_is_done_is_kept_when_interrupted(capsys, monkeypatch):
    measure, done = tune.measure, []

    def interrupted(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(True)
        return measure(*arguments)

    monkeypatch.setattr(tune, "measure", interrupted)
    assert main(["tune", "lenet5", "--batch-size", "2", "--rounds", "1", "--device", "cpu"]) == 130
    assert "interrupted: 1 of 5 are measured, and kept" in capsys.readouterr().out
    assert len(conv_tuning.entries("cpu")) == 1


WRONG = [
    (2, [], "name a MODEL, or --list, or --clear, and one of them only"),
    (2, ["lenet5", "--clear"], "one of them only"),
    (2, ["--list", "--clear"], "one of them only"),
    (1, ["lenet6"], "model 'lenet6' is unknown"),
    (2, ["lenet5", "--batch-size", "0"], "'0' is not a whole number of at least 1"),
    (2, ["lenet5", "--passes", "forward,sideways"], "'sideways' is not a pass: forward, backward_input or backward"),
    (2, ["lenet5", "--workspace-limit", "much"], "'much' is not a size such as 0, 64000000, 64MB or 64MiB"),
    (1, ["lenet5", "--device", "sim"], "times of the simulator tell nothing of a GPU's"),
    (1, ["lenet5", "--device", "cpu", "--precision", "tf32"], "--precision tf32: the CPU computes in float32"),
    (2, ["lenet5", "--precision", "fp8"], "'fp8' is not a precision: float32, float64, float32_tensor, tf32"),
    (1, ["lenet5", "--device", "abacus"], "device 'abacus' is unknown"),
    (1, ["lenet5", "--json", "/nowhere/out.json"], "is no folder"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "arguments", "text"), WRONG, ids=[" ".join(each[1]) for each in WRONG])
def test_wrong_arguments(code, arguments, text, capsys, cache):
    assert main(["tune", *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and text in printed.err and printed.err.count("\n") == 1
    assert list(cache.iterdir()) == []
