"""gpucnn explain: what it prints and writes, and one line for whatever is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gpucnn
from gpucnn import ops
from gpucnn.cli import main
from gpucnn.ops.cards import CARDS

VGG = ["64", "256", "56", "56", "256", "3", "3", "--padding", "1"]


def explained(tmp_path, *arguments):
    """The JSON of a call."""
    path = tmp_path / "out.json"
    assert main(["explain", "conv", *arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def by_name(found):
    return {each["name"]: each for each in found["candidates"]}


def test_a_table_and_the_reason(capsys):
    assert main(["explain", "conv", *VGG, "--device", "cuda", "--gpu", "H200"]) == 0
    printed = capsys.readouterr().out
    name = ops.choose("conv2d_forward", ops.conv_shape((64, 256, 56, 56), (256, 256, 3, 3), padding=1), "sim")
    assert "conv2d_forward on cuda: 56x56 outputs" in printed
    assert "H200 floor µs" in printed and f"> {name}" in printed and "toeplitz" in printed
    assert f"{name}: planned " in printed.splitlines()[-1] and "the H200" in printed.splitlines()[-1]
    assert "it does not run on the device cuda" in printed


def test_the_numbers_are_those_of_the_choice(tmp_path):
    found = explained(tmp_path, *VGG, "--device", "sim", "--gpu", "rtx4090")
    assert found["gpu"] == "RTX 4090" and found["pass"] == "conv2d_forward" and found["device"] == "sim"
    assert found["shape"]["P"] == 56 and found["shape"]["padding"] == [1, 1]
    rows = by_name(found)
    assert rows["implicit_gemm"]["flops"] == 2 * 64 * 256 * 56 * 56 * 256 * 9
    assert rows["implicit_gemm"]["floor_seconds"] == pytest.approx(
        rows["implicit_gemm"]["flops"] / 82.6e12,
        rel=2e-3,  # and its weights' order
    )
    planned = {name: row["planned_seconds"] for name, row in rows.items() if row["refused"] is None}
    assert planned[found["algorithm"]] <= min(planned.values()) * 17 / 16
    assert rows["im2col"]["workspace_bytes"] == 36 * 256 * 9 * 56 * 56 * 4 // 4 or rows["im2col"]["workspace_bytes"] > 0
    assert rows["toeplitz"]["refused"] and rows["toeplitz"]["workspace_bytes"] is None


@pytest.mark.parametrize(
    ("precision", "seconds"),
    [("float32", 236.8e9 / 67e12), ("float32_tensor", 236.8e9 / 165e12), ("tf32", 236.8e9 / 495e12)],
)
def test_rooflines_of_a_precision(precision, seconds, tmp_path, capsys):
    found = explained(tmp_path, *VGG, "--device", "cuda", "--gpu", "H200", "--precision", precision)
    row = by_name(found)["implicit_gemm"]
    assert row["floor_seconds"] == pytest.approx(seconds, rel=0.01) and row["planned_seconds"] > row["floor_seconds"]
    assert (row["arithmetic"], row["bound"], found["precision"]) == (precision, "products", precision)
    assert by_name(found)["winograd"]["arithmetic"] == "float32"
    assert f"{precision} rate" in capsys.readouterr().out
    assert gpucnn.get_precision() == "float32"


def test_rooflines_of_16_bits(tmp_path, capsys):
    half, single = (
        by_name(explained(tmp_path, "64", "3", "224", "224", "64", "3", "3", "--device", "sim", *option))
        for option in (("--precision", "bfloat16"), ("--dtype", "float32"))
    )
    assert 2 * half["implicit_gemm"]["bytes"] == single["implicit_gemm"]["bytes"]
    assert half["implicit_gemm"]["bound"] == "memory" and half["implicit_gemm"]["arithmetic"] == "bfloat16"
    assert "bfloat16" in half["winograd4"]["refused"]
    printed = capsys.readouterr().out
    assert "outputs, bfloat16" in printed and " memory " in printed


def test_on_the_cpu(tmp_path, capsys):
    found = explained(tmp_path, "4", "256", "28", "28", "256", "3", "3", "--padding", "1", "--device", "cpu")
    assert found["algorithm"] == "winograd4" and found["gpu"] is None
    assert "196 tiles repay" in found["reason"]
    rows = by_name(found)
    assert rows["im2col"]["refused"] is None and rows["im2col"]["floor_seconds"] is None
    assert rows["implicit_gemm"]["refused"] == "it does not run on the device cpu"
    assert "floor" not in capsys.readouterr().out
    assert by_name(explained(tmp_path, *VGG, "--device", "cpu", "--gpu", "t4"))["winograd"]["floor_seconds"] > 0
    assert "T4 floor µs" in capsys.readouterr().out


def test_a_limit_refuses_and_says_so(tmp_path):
    arguments = ("4", "256", "28", "28", "256", "3", "3", "--padding", "1", "--device", "cpu", "--workspace-limit")
    found = explained(tmp_path, *arguments, "30MiB")
    assert found["workspace_limit"] == 30 << 20 and found["algorithm"] == "winograd"
    assert "bytes of workspace, and the limit is 31457280" in by_name(found)["winograd4"]["refused"]
    assert explained(tmp_path, *arguments, "5MB")["workspace_limit"] == 5_000_000
    assert explained(tmp_path, *arguments, "0")["algorithm"] == "direct"


@pytest.mark.parametrize("which", ["forward", "backward_input", "conv2d_backward_weight"])
def test_passes_and_geometry(which, tmp_path):
    arguments = ("2", "8", "20", "21", "8", "3", "5", "--stride", "2x1", "--padding", "1x0", "--dilation", "2")
    found = explained(tmp_path, *arguments, "--groups", "2", "--pass", which, "--device", "sim")
    assert found["pass"] == which if which.startswith("conv2d") else found["pass"] == f"conv2d_{which}"
    shape = found["shape"]
    assert (shape["stride"], shape["padding"], shape["dilation"]) == ([2, 1], [1, 0], [2, 2])
    assert found["algorithm"] in by_name(found) and found["reason"]


def test_an_algorithm_that_is_asked_for(tmp_path):
    found = explained(tmp_path, *VGG, "--device", "cpu", "--algorithm", "im2col")
    assert (found["algorithm"], found["reason"]) == ("im2col", "it was asked for")


WRONG = [
    (2, [], "Missing argument"),
    (2, [*VGG[:6]], "Missing argument"),
    (2, ["x", *VGG[1:]], "'x' is not a whole number of at least 1"),
    (2, ["0", *VGG[1:]], "'0' is not a whole number of at least 1"),
    (2, [*VGG, "--stride", "0"], "'0' is not a whole number of at least 1"),
    (2, [*VGG, "--stride", "1x2x3"], "'1x2x3' is not a number or HEIGHTxWIDTH"),
    (2, [*VGG, "--padding", "-1"], "'-1' is not a whole number of at least 0"),
    (2, [*VGG, "--pass", "sideways"], "'sideways' is not a pass"),
    (2, [*VGG, "--device", "abacus"], "'abacus' is not a device: auto, cpu, cuda, sim"),
    (2, [*VGG, "--precision", "double"], "'double' is not a precision: float32, float32_tensor, tf32, bfloat16"),
    (2, [*VGG, "--dtype", "int8"], "'int8' is not a dtype: float32, float64, bfloat16, float16"),
    (2, [*VGG, "--gpu", "voodoo"], "GPU 'voodoo' is not in the table; it has H200"),
    (2, [*VGG, "--workspace-limit", "-1"], "'-1' is not a size"),
    (1, [*VGG, "--groups", "3"], "in_channels (=256) must be divisible by groups (=3)"),
    (1, ["1", "1", "2", "2", "1", "3", "3"], "the output would be empty"),
    (1, [*VGG, "--device", "cpu", "--algorithm", "best"], "algorithm 'best' is unknown; use 'auto' or one of direct"),
    (1, [*VGG, "--device", "cpu", "--stride", "2", "--algorithm", "fft"], "it needs stride 1, not (2, 2)"),
    (1, [*VGG, "--device", "cpu", "--algorithm", "im2col", "--workspace-limit", "0"], "and the limit is 0"),
    (1, [*VGG, "--json", "/nowhere/out.json"], "is no folder"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "arguments", "text"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments(code, arguments, text, capsys):
    assert main(["explain", "conv", *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and text in printed.err and printed.err.count("\n") == 1, printed.err


def test_from_python():
    shape = ops.conv_shape((64, 512, 14, 14), (512, 512, 3, 3), padding=1)
    found = ops.explain("conv2d_forward", shape, "sim")
    assert found.algorithm == ops.choose("conv2d_forward", shape, "sim") and found.card is CARDS["H200"]
    assert [each.name for each in found.candidates if each.refused is None] == ops.algorithms(
        "conv2d_forward", shape, device="sim"
    )
    with pytest.raises(gpucnn.UnsupportedAlgorithm, match="toeplitz.*does not run on the device sim"):
        ops.explain("conv2d_forward", shape, "sim", algorithm="toeplitz")
    doubles = ops.explain("conv2d_forward", shape, "cpu", np.float64)
    assert {each.name for each in doubles.candidates if each.refused is None} >= {"direct", "im2col"}
