"""gpucnn sim: checks that can fail, and counters that are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpucnn import ops, simulation
from gpucnn.cli import main
from gpucnn.launch import SimulatorError


def test_every_case_runs_on_both_devices():
    """With the default sizes, by every algorithm: the same number of results, of the same shapes."""
    for operation, case in simulation.CASES.items():
        sizes = simulation.sizes_of(operation, [])
        assert sizes == case.sizes
        algorithms = simulation.algorithms_of(operation, sizes)
        assert algorithms == [None] if case.algorithms is None else len(algorithms) >= 2
        want = simulation.run(operation, sizes, None if algorithms == [None] else "auto", "cpu")
        got = simulation.run(operation, sizes, algorithms[0], "sim")
        assert [result.shape for result in got] == [result.shape for result in want]


def test_check_finds_sound_kernels():
    (finding,) = simulation.check(["relu"])
    assert (finding.operation, finding.algorithm, finding.fault) == ("relu", None, None)


def test_check_tells_wrong_results(monkeypatch):
    wrong = simulation.Case({"count": 5}, lambda sizes: {"x": (5,)}, lambda arrays, sizes: arrays["x"] + sizes["count"])
    monkeypatch.setitem(simulation.CASES, "relu", wrong)
    (finding,) = simulation.check(["relu"])
    assert finding.fault is None

    def differs(arrays: simulation.Arrays, sizes: simulation.Sizes) -> np.ndarray:
        return arrays["x"] * (2 if type(arrays["x"]) is np.ndarray else 3)

    monkeypatch.setitem(simulation.CASES, "relu", simulation.Case({"count": 5}, lambda sizes: {"x": (5,)}, differs))
    (finding,) = simulation.check(["relu"])
    assert finding.fault == "mode fast: the results are not the CPU's"


def test_check_tells_faults_and_unstable_bits(monkeypatch):
    calls = iter(range(100))

    def unstable(arrays: simulation.Arrays, sizes: simulation.Sizes) -> np.ndarray:
        return arrays["x"] + next(calls)

    def faulty(arrays: simulation.Arrays, sizes: simulation.Sizes) -> np.ndarray:
        if type(arrays["x"]) is not np.ndarray:
            raise SimulatorError("race", "kernel", "two threads", "x.cu:3")
        return arrays["x"]

    for run, text in ((unstable, "gives other bits"), (faulty, "mode fast: kernel: race: two threads at x.cu:3")):
        monkeypatch.setitem(simulation.CASES, "relu", simulation.Case({"count": 5}, lambda sizes: {"x": (5,)}, run))
        (finding,) = simulation.check(["relu"])
        assert finding.fault is not None and text in finding.fault


def test_profile_of_relu():
    usage = simulation.profile("relu", {"count": 4096}, None)
    assert [kernel for kernel, _ in usage.launches] == ["relu_forward", "relu_backward"]
    assert usage.ideal_bytes == 4 * 4096 * 4  # x, gy, y and gx
    for _, found in usage.launches:
        for counts in found.lines.values():
            assert counts.space == "global" and counts.units == counts.least and counts.partial == 0


def test_profile_counts_the_flops_of_a_convolution():
    sizes = simulation.sizes_of("conv2d_forward", [1, 16, 8, 8, 64, 3, 3, 1, 1])
    usage = simulation.profile("conv2d_forward", sizes, "implicit_gemm")
    shape = ops.conv_shape((1, 16, 8, 8), (64, 16, 3, 3), 1, 1)
    assert sum(found.flops for _, found in usage.launches) >= 2 * shape.multiply_adds


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["sim", "profile", "reluu"], 1, "operation 'reluu' is unknown; use one of matmul, "),
        (["sim", "check", "reluu"], 1, "operation 'reluu' is unknown"),
        (["sim", "profile", "relu", "1", "2"], 1, "relu: sizes are [1, 2]; they must be at most count"),
        (["sim", "profile", "conv2d_forward", "--algorithm", "magic"], 1, "algorithm 'magic' is unknown"),
        (["sim", "profile", "relu", "x"], 2, "'x' is not an integer of at least 0"),
    ],
)
def test_errors(arguments, code, message, capsys):
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1


def test_commands(tmp_path: Path, capsys):
    assert main(["sim", "profile", "relu", "2048", "--json", str(tmp_path / "profile.json")]) == 0
    text = capsys.readouterr().out
    assert "relu count=2048" in text and "global memory: 40,960 bytes asked for; inputs and outputs are 32,768" in text
    found = json.loads((tmp_path / "profile.json").read_text())
    assert found["ideal_bytes"] == 32768 and found["launches"][0]["kernel"] == "relu_forward"
    assert main(["sim", "check", "relu", "--json", str(tmp_path / "check.json")]) == 0
    assert "1 of 1 sound" in capsys.readouterr().out
    (finding,) = json.loads((tmp_path / "check.json").read_text())
    assert finding["operation"] == "relu" and finding["fault"] is None
