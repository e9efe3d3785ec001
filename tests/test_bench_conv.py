"""`gpucnn bench`: the suites' work, the float64 answer, contests with wrong and slow candidates, the command."""

from __future__ import annotations

import ast
import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from gpucnn import ops
from gpucnn.bench import (
    ceiling,
    conv,
    gemm,
    layers,
    machine,
    oracle,
    pool,
    reference_worker,
    references,
    results,
    timing,
)
from gpucnn.bench import session as sessions
from gpucnn.bench.contest import Arena, Candidate, Limits, Problem
from gpucnn.bench.policies import POLICIES
from gpucnn.bench.report import Report
from gpucnn.cli import main
from tests import reference


@pytest.fixture(autouse=True)
def short(monkeypatch) -> None:
    """Nothing here depends on how good a time is."""
    monkeypatch.setattr(timing, "CPU_FLUSH_LIMIT", 1 << 16)
    monkeypatch.setattr(ceiling, "COPY_BYTES", 1 << 12)
    monkeypatch.setattr(ceiling, "SECONDS", 0.001)


def work(suite: str) -> int:
    """Multiply-adds of a network's convolutions for one image."""
    return sum(layer.repeats * layer.with_batch(1).shape.multiply_adds for layer in layers.SUITES[suite])


@pytest.mark.parametrize(
    "suite, connections, gflop, batch",
    [
        ("alexnet", 9216 * 4096 + 4096 * 4096 + 4096 * 1000, 531, 128),
        ("overfeat", 36864 * 3072 + 3072 * 4096 + 4096 * 1000, 2124, 128),
        ("vgg_a", 25088 * 4096 + 4096 * 4096 + 4096 * 1000, 2911, 64),
        ("googlenet", 1024 * 1000, 1185, 128),
    ],
)
def test_networks_do_the_known_work(suite, connections, gflop, batch):
    """A training step's: three passes, but the first layer needs no gradient of its input."""
    first = layers.SUITES[suite][0].shape
    assert first.N == batch
    total = 2 * batch * 3 * (work(suite) + connections) - 2 * first.multiply_adds
    assert total == pytest.approx(gflop * 1e9, rel=2e-3)


def test_other_suites_do_the_known_work():
    assert [round(2e-9 * layer.shape.multiply_adds, 1) for layer in layers.LAYERS] == [124.2, 532.7, 195.7, 20.6, 41.1]
    assert work("vgg16") == 15_346_630_656
    assert work("resnet50") == pytest.approx(4.09e9, rel=1e-3)
    assert work("lenet5") == 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25
    assert sum(layer.repeats for layer in layers.SUITES["googlenet"]) == 57
    assert sum(layer.repeats for layer in layers.SUITES["resnet50"]) == 53


@pytest.mark.parametrize("suite", layers.SUITES)
def test_layers_of_a_suite_are_distinct_and_shrink(suite):
    found = layers.SUITES[suite]
    assert len({layer.name for layer in found}) == len({layer.shape for layer in found}) == len(found)
    for layer in found:
        small = layers.shrunk(layer, conv.SIMULATED_MULTIPLY_ADDS).shape
        assert small.multiply_adds <= conv.SIMULATED_MULTIPLY_ADDS
        assert (small.R, small.S, small.stride, small.padding) == (
            layer.shape.R,
            layer.shape.S,
            layer.shape.stride,
            layer.shape.padding,
        )
        assert min(small.P, small.Q) >= min(8, layer.shape.P)


def test_shapes_are_parsed():
    shape = layers.parse_shape("2,8,9,10,6,3,2,2,1,1,2").shape
    assert shape == ops.conv_shape((2, 8, 9, 10), (6, 4, 3, 2), 2, 1, 1, 2)
    for text in ("1,2,3", "2,8,9,10,6,3,x", "0,8,9,10,6,3,2", "2,8,9,10,6,3,2,1,0,1,3"):
        with pytest.raises(ValueError, match=text):
            layers.parse_shape(text)


GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": (2, 1), "padding": (2, 0)},
    {"groups": 2, "padding": 1},
    {"groups": 4},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_right_answer_is_that_of_the_plain_loops(geometry, rng):
    shape = ops.conv_shape((2, 4, 7, 6), (8, 4 // geometry.get("groups", 1), 3, 2), **geometry)
    x, w, gy = (rng.standard_normal(size) for size in (shape.x, shape.weight, shape.y))
    want = reference.conv2d(x, w, None, **geometry)
    np.testing.assert_allclose(oracle.convolve("conv2d_forward", x, w, shape, shape.groups), want, atol=1e-12)
    gx = oracle.convolve("conv2d_backward_input", gy, w, shape, shape.groups)
    gw = oracle.convolve("conv2d_backward_weight", x, gy, shape, shape.groups)
    assert np.vdot(gx, x) == pytest.approx(np.vdot(want, gy)) == np.vdot(gw, w)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("pass_", conv.PASSES)
@pytest.mark.parametrize("budget", [10**9, 5000, 50])
def test_a_part_of_the_answer_is_enough_to_see_a_fault(pass_, geometry, budget, rng):
    shape = ops.conv_shape((3, 8, 7, 6), (12, 8 // geometry.get("groups", 1), 3, 2), **geometry)
    arrays = {"x": shape.x, "w": shape.weight, "gy": shape.y}
    operation = conv.operation_of(pass_)
    one, other = (rng.standard_normal(arrays[name], np.float32) for name in oracle.OPERANDS[operation][:2])
    result = conv.run(pass_, one, other, shape, "direct")
    assert oracle.error(operation, one, other, result, shape, budget, budget) <= oracle.LIMIT
    assert oracle.error(operation, one, other, result + 0.01, shape, budget, budget) > oracle.LIMIT
    result[tuple(size - 1 for size in result.shape)] = np.nan
    assert oracle.error(operation, one, other, result, shape, budget, budget) == math.inf


def test_limits_of_errors():
    single, double = np.dtype(np.float32), np.dtype(np.float64)
    assert oracle.limit("direct", single) < oracle.limit("winograd4", single) < oracle.limit("direct", single, "tf32")
    assert oracle.limit("direct", double) < 1e-14
    limits = {policy.label: oracle.limit("gemm", single, policy.label) for policy in POLICIES.values()}
    assert limits["fp32_tensor"] == limits["fp32"] < limits["fp16"] < limits["tf32"] < limits["bf16"] < 1 / 128


# ---- contests ----


TWICE = Limits(2, 5.0)


def an_arena(limits: Limits = TWICE, worker: references.Worker | None = None, device: str = "cpu") -> Arena:
    return Arena(Report("conv", device, None), limits, worker)


def a_candidate(name: str, call=lambda: np.ones(3), error=lambda result: 0.0, **more) -> Candidate:
    labels = {"suite": "s", "layer": "l", "pass": "forward", "algorithm": name, "precision": "fp32"}
    return Candidate(labels, call, error, 1e-6, **more)


def run_contest(arena: Arena, *candidates: Candidate) -> dict[str, dict]:
    arena.run(Problem({"operation": "none"}, 1e6, 1000), list(candidates))
    results.validate(arena.report.content)
    return {row["algorithm"]: row for row in arena.report.rows}


def test_a_row_has_the_figures(monkeypatch):
    monkeypatch.setattr(ceiling, "measure", lambda *arguments: {"tflops": 0.1, "gb_per_s": 10.0})
    row = run_contest(an_arena(), a_candidate("fine", values={"workspace_bytes": 8}))["fine"]
    assert row["ok"] and row["calls"] == 2 and row["p20"] <= row["milliseconds"] <= row["p80"]
    assert row["tflops"] == pytest.approx(1e-3 * 1e6 / row["milliseconds"] * 1e-6)
    assert row["percent_of_peak"] == pytest.approx(100 * row["tflops"] / 0.1)
    assert row["workspace_bytes"] == 8 and row["ratio"] is None and row["references"] == {}


def test_a_failing_candidate_and_a_wrong_one_are_rows():
    def fail() -> None:
        raise MemoryError("no room")

    rows = run_contest(
        an_arena(), a_candidate("bad", fail), a_candidate("wrong", error=lambda r: 1e-3), a_candidate("good")
    )
    assert (rows["bad"]["ok"], rows["bad"]["reason"]) == (False, "MemoryError: no room")
    assert not rows["wrong"]["ok"] and rows["wrong"]["milliseconds"] is None
    assert rows["wrong"]["reason"].startswith("wrong: error 0.001 of the sum of magnitudes")
    assert rows["good"]["ok"] and rows["good"]["milliseconds"] > 0


@pytest.mark.parametrize("undefined", [math.nan, math.inf])
def test_an_answer_that_is_no_number_is_wrong(undefined):
    assert not run_contest(an_arena(), a_candidate("nan", error=lambda result: undefined))["nan"]["ok"]


def test_what_is_predicted_to_be_far_slower_is_not_called():
    called: list[str] = []
    slow = a_candidate("slow", lambda: called.append("slow"), predict=lambda: 60.0)
    rows = run_contest(an_arena(Limits(2, 0.5)), slow, a_candidate("fast", predict=lambda: 1e-4))
    assert not called and rows["fast"]["milliseconds"] is not None
    assert rows["slow"]["ok"] and rows["slow"]["milliseconds"] is None
    assert rows["slow"]["reason"].startswith("predicted: 60 s a call") and "--max-seconds 0.5" in rows["slow"]["reason"]


def test_what_is_alone_is_timed_however_slow():
    rows = run_contest(an_arena(Limits(9, 1e-4)), a_candidate("slow", predict=lambda: 60.0))
    assert rows["slow"]["calls"] == 1


def test_what_is_needed_is_timed_however_slow():
    slow = a_candidate("auto", predict=lambda: 60.0, needed=True)
    assert run_contest(an_arena(Limits(2, 0.5)), slow, a_candidate("fast", predict=lambda: 1e-4))["auto"]["calls"] == 2


def test_candidates_and_reference_alternate():
    order: list[str] = []

    class Beside:
        library = "torch"

        def prepare(self, spec, mean_square):
            order.append(f"prepare {mean_square:g}")

        def turn(self, seconds):
            order.append("torch")
            return [0.5]

    arena = an_arena(Limits(3, 5.0), Beside())  # type: ignore[arg-type]
    rows = run_contest(arena, *(a_candidate(name, lambda name=name: order.append(name) or np.ones(3)) for name in "ab"))
    single = [name for position, name in enumerate(order) if name != order[position - 1] or position == 0]
    assert single == ["a", "b", "prepare 1", *"ab", "torch", *"ab", "torch", *"ab", "torch"]
    assert rows["a"]["references"] == {"torch": 500.0}
    assert rows["a"]["ratio"] == pytest.approx(500 / rows["a"]["milliseconds"])


def test_a_reference_that_fails_leaves_the_rows():
    class Broken:
        library = "torch"

        def prepare(self, spec, mean_square):
            raise references.ReferenceFailed("it cannot")

    arena = an_arena(worker=Broken())  # type: ignore[arg-type]
    row = run_contest(arena, a_candidate("a"))["a"]
    assert row["references"] == {"torch": None} and row["ratio"] is None and row["milliseconds"] > 0
    assert arena.report.content["settings"]["references_missing"] == {"it cannot": 1}


def test_the_simulator_counts_instead_of_timing(device):
    if device != "sim":
        pytest.skip("counters are the simulator's")
    arena = an_arena(device="sim")
    plan = conv.Plan((layers.square("vgg16", "tiny", 1, 8, 9, 8, 3, 1, 1),), ("forward",), ("all", "fft"))
    conv.measure(arena, plan)
    results.validate(arena.report.content)
    rows = {row["algorithm"]: row for row in arena.report.rows}
    counted = rows["im2col"]["counters"]
    assert counted.keys() >= set(results.COUNTERS)
    assert counted["flops"] >= 2 * rows["im2col"]["multiply_adds"] and counted["global_bytes"] > counted["ideal_bytes"]
    assert rows["im2col"]["milliseconds"] is None and rows["im2col"]["max_error"] <= oracle.LIMIT
    assert rows["auto"]["counters"] == rows[rows["auto"]["chosen"]]["counters"]


def test_large_layers_are_shrunk_on_the_simulator():
    small = layers.shrunk(layers.LAYERS[1], conv.SIMULATED_MULTIPLY_ADDS)
    case = conv.Case(small, "sim")
    found = conv.describe(small.shape, layers.LAYERS[1].shape, "im2col", "forward", case)
    assert found["shrunk_from"] == "128x64x64x64 128x9x9" and found["shape"] == conv.words(small.shape)


def test_a_prediction_comes_from_one_image(monkeypatch):
    monkeypatch.setattr(conv, "PREDICTED_MULTIPLY_ADDS", 1)
    shapes: list[int] = []
    run = conv.run

    def spy(pass_, one, other, shape, *rest):
        shapes.append(shape.N)
        return run(pass_, one, other, shape, *rest)

    monkeypatch.setattr(conv, "run", spy)
    plan = conv.Plan((layers.square("s", "l", 3, 2, 6, 4, 3),), algorithms=("im2col",))
    arena = an_arena(Limits(1, 1.0))
    conv.measure(arena, plan)
    assert shapes[:2] == [1, 3] and all(row["ok"] for row in arena.report.rows)


def test_on_a_gpu_one_comes_after_the_other_beside_the_same_references(monkeypatch):
    order: list[str] = []
    arena = an_arena(Limits(3, 5.0))
    beside = {"cudnn_nchw": 30.0, "cudnn_nhwc": 20.0, "cudnn_nchw_tf32": 1.0, "cudnn_nhwc_tf32": 1.0}
    monkeypatch.setattr(arena, "_gpu_references", lambda problem: order.append("references") or beside)
    monkeypatch.setattr(arena.report, "seconds", lambda usual: 0.0)
    candidates = [a_candidate(name, lambda name=name: order.append(name) or np.ones(3)) for name in "ab"]
    arena._one_by_one(Problem({"operation": "none"}, 1e6, 1000), candidates)
    assert order.index("references") < order.index("b") and order.count("references") == 1
    assert order == sorted(order, key=lambda name: {"references": 0, "a": 0, "b": 1}[name])
    rows = arena.report.rows
    assert [row["references"] for row in rows] == [beside, beside]
    assert all(row["ratio"] == pytest.approx(20 / row["milliseconds"]) for row in rows)


# ---- references ----

CONV = layers.square("s", "l", 2, 4, 7, 6, 3, 1, 1)


def test_references_of_a_gpu_have_their_names(torch):
    case = conv.Case(CONV, "cpu")
    clock = timing.WallClock()
    found = references.on_gpu(case.spec("backward_weight", "nchw", 1), "cpu", clock, None, 0.0)
    assert list(found) == ["cudnn_nchw", "cudnn_nchw_tf32", "cudnn_nhwc", "cudnn_nhwc_tf32"] and all(found.values())
    spec = {"operation": "matmul", "a": (3, 4), "b": (4, 5), "transposed": [False, False]}
    found = references.on_gpu({**spec, "dtype": "float32", "layout": "nchw"}, "cpu", clock, None, 0.0)
    assert list(found) == ["cublas", "cublas_tf32"]
    spec = {"operation": "function", "function": "relu", "arguments": [], "x": (3,), "backward": True}
    assert list(references.on_gpu({**spec, "dtype": "float32", "layout": "nchw"}, "cpu", clock, None, 0.0)) == ["torch"]


@pytest.mark.parametrize("pass_", conv.PASSES)
@pytest.mark.parametrize("layout", conv.LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_computes_the_same(pass_, layout, dtype, torch):
    case = conv.Case(CONV, "cpu", POLICIES[dtype])
    call = reference_worker.torch_call(torch, case.spec(pass_, layout, 1))
    ours = conv.run(pass_, *case.operands(pass_, layout), case.shape, "direct")
    np.testing.assert_allclose(call().numpy(), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("product", gemm.products(["7,5,9"], gemm.LAYOUTS, "cpu"), ids=lambda p: p.layout)
def test_torch_multiplies_the_same(product, torch):
    a, b = gemm.operands(product, "cpu", "float32")
    spec = {"operation": "matmul", **gemm.stored(product), "dtype": "float32", "layout": "nchw"}
    call = reference_worker.torch_call(torch, {**spec, "transposed": [letter == "T" for letter in product.layout]})
    np.testing.assert_allclose(call().numpy(), a @ b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", pool.OPERATIONS)
@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_torch_has_the_same_functions(name, pass_, torch):
    operation = pool.OPERATIONS[name]
    shape = (4, 9) if name == "log_softmax" else (2, 6, 7, 7)
    x = reference_worker.random(shape, 0)
    spec = {"operation": "function", "function": operation.theirs, "arguments": list(operation.arguments), "x": shape}
    call = reference_worker.torch_call(
        torch, {**spec, "dtype": "float32", "layout": "nchw", "backward": pass_ == "backward"}
    )
    got = call().detach().numpy()
    assert pool.error(operation, x, pass_, got) <= oracle.LIMIT


def test_a_worker_answers_and_names_what_fails(torch):
    case = conv.Case(CONV, "cpu")
    spec = {**case.spec("forward", "nchw", 1), "flush_bytes": 1024}
    ours = references.mean_square(conv.run("forward", *case.operands("forward", "nchw"), case.shape, "im2col"))
    with references.Worker("torch") as worker:
        worker.prepare(spec, ours)
        assert all(seconds > 0 for seconds in worker.turn(0.001))
        with pytest.raises(references.ReferenceFailed, match="computes something else"):
            worker.prepare(spec, 2 * ours)
        with pytest.raises(references.ReferenceFailed, match="KeyError"):
            worker.prepare({"flush_bytes": 0, "threads": 1}, None)
        worker.prepare(spec, ours)


def test_a_worker_that_ends_is_a_failure(torch):
    with references.Worker("torch") as worker:
        worker._started().kill()
        with pytest.raises(references.ReferenceFailed, match="ended with exit code -9"):
            worker.turn(0.1)


def test_onnxruntime_computes_the_same():
    pytest.importorskip("onnxruntime")
    case = conv.Case(layers.parse_shape("2,6,14,13,8,3,2,2,1,1,2"), "cpu")
    call = reference_worker.make_call({**case.spec("forward", "nchw", 1), "library": "onnxruntime"})
    ours = conv.run("forward", *case.operands("forward", "nchw"), case.shape, "direct")
    np.testing.assert_allclose(call(), ours, rtol=1e-4, atol=1e-4)


def test_protocol_buffers_are_encoded():
    assert reference_worker._varint(300) == b"\xac\x02"
    assert reference_worker._field(2, "ab") == b"\x12\x02ab" and reference_worker._field(3, 1) == b"\x18\x01"


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(reference_worker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--reference onnxruntime: it is not installed; pip install onnxruntime"):
        references.Worker("onnxruntime")


def test_the_worker_imports_nothing_of_gpucnn():
    tree = ast.parse(Path(reference_worker.__file__).read_text())
    names = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert names and not any("gpucnn" in name for name in names)


def test_data_are_random_and_the_same_in_both_processes():
    ours = conv.peer.random((3, (1 << 19) + 5), 2, "cpu", "float64")
    np.testing.assert_array_equal(ours, reference_worker.random((3, (1 << 19) + 5), 2, "float64"))
    assert abs(ours.std() - 1) < 0.01 and np.float64(np.float32(ours[0, 0])) != ours[0, 0]


def test_the_ceiling_is_measured():
    found = ceiling.measure("cpu", np.dtype(np.float32))
    assert found["tflops"] > 0 and found["gb_per_s"] > 0
    assert machine.cache_bytes() >= 1 << 16


def test_the_ceiling_of_a_device(device):
    assert ceiling.measure(device, np.dtype(np.float32)).keys() == {"tflops", "gb_per_s"}


# ---- the command ----

SMALL = ["bench", "conv", "--shape", "2,3,6,6,4,3,3", "--device", "cpu", "--repeat", "1", "--reference", "none"]


def test_bench_conv_writes_every_output(tmp_path: Path, capsys):
    pytest.importorskip("matplotlib")
    paths = {name: tmp_path / f"out.{end}" for name, end in
             (("json", "json"), ("csv", "csv"), ("plot", "png"), ("html", "html"))}  # fmt: skip
    options = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    assert main([*SMALL, "--algorithms", "im2col,direct", "--layout", "nchw,nhwc", *options]) == 0
    found = results.load(paths["json"])
    assert len(found["rows"]) == 12 and all(row["max_error"] <= oracle.LIMIT for row in found["rows"])
    assert {row["layout"] for row in found["rows"]} == {"nchw", "nhwc"}
    assert {row["pass"] for row in found["rows"]} == set(conv.PASSES)
    assert found["settings"]["threads"] >= 1 and found["settings"]["ceiling"]["float32"]["tflops"] > 0
    with paths["csv"].open() as file:
        assert len(list(csv.DictReader(file))) == 12
    assert paths["plot"].read_bytes().startswith(b"\x89PNG") and b"im2col" in paths["html"].read_bytes()
    assert "im2col" in capsys.readouterr().out


def test_bench_conv_beside_torch(torch, tmp_path: Path):
    path = tmp_path / "out.json"
    command = [*SMALL[:-1], "torch", "--algorithms", "im2col", "--passes", "forward", "--json", str(path)]
    assert main(command) == 0
    (row,) = results.load(path)["rows"]
    assert row["references"]["torch"] > 0
    assert row["ratio"] == pytest.approx(row["references"]["torch"] / row["milliseconds"])


def test_all_stands_for_every_algorithm_and_auto(tmp_path: Path):
    path = tmp_path / "out.json"
    assert main([*SMALL, "--passes", "forward", "--json", str(path)]) == 0
    rows = results.load(path)["rows"]
    assert {row["algorithm"] for row in rows} == {*ops.table("conv2d_forward", "cpu"), "auto"}
    assert all(row.get("reason") or row["milliseconds"] for row in rows)


@pytest.mark.parametrize("precision", ["float32_tensor", "tf32"])
def test_tensor_cores_on_the_simulator(precision, tmp_path: Path):
    """Rows are right within the precision's limit; in tf32 only winograd4 and fft, which do without, in float32's."""
    path, sim = tmp_path / "out.json", ["--device", "sim", "--repeat", "1", "--json"]
    label = POLICIES[precision].label
    shape = ["--shape", "1,16,6,6,8,3,3,1,1", "--passes", "forward", "--algorithms", "implicit_gemm,winograd4,fft,auto"]
    assert main(["bench", "conv", *shape, "--precision", precision, *sim, str(path)]) == 0
    assert main(["bench", "gemm", "--size", "32", "--layout", "NN", "--precision", label, *sim, str(path) + "2"]) == 0
    rows = results.load(path)["rows"] + results.load(Path(str(path) + "2"))["rows"]
    assert [row["algorithm"] for row in rows] == ["implicit_gemm", "winograd4", "fft", "auto", "gemm"]
    assert all((row["precision"], row["dtype"], row["ok"]) == (label, "float32", True) for row in rows)
    exceeds = [row["max_error"] > oracle.LIMIT for row in rows]
    assert exceeds[1:3] == [False] * 2 and {exceeds[0], exceeds[4]} == {precision == "tf32"}


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_references_compute_16_bits_in_16_bits(name):
    torch = pytest.importorskip("torch")
    a, b = gemm.operands(layers.Product("8", 8, 8, 8, "NN"), "cpu", name)
    spec = {
        "operation": "matmul",
        "a": (8, 8),
        "b": (8, 8),
        "transposed": [False, False],
        "dtype": name,
        "layout": "nchw",
    }
    got = reference_worker.torch_call(torch, spec)()
    assert a.dtype.name == b.dtype.name == str(got.dtype).removeprefix("torch.") == name
    assert gemm.error(a, b, got.float().numpy()) <= oracle.limit("gemm", a.dtype, POLICIES[name].label)


def test_float64(tmp_path: Path):
    path = tmp_path / "out.json"
    assert main([*SMALL, "--dtype", "float64", "--algorithms", "im2col", "--json", str(path)]) == 0
    assert all(row["precision"] == "fp64" and row["max_error"] < 1e-14 for row in results.load(path)["rows"])


@pytest.mark.parametrize(
    "options, text",
    [
        (["conv"], "give --suite or --shape"),
        (["conv", "--suite", "vgg"], "--suite 'vgg': use one of layers, alexnet"),
        (["conv", "--suite", "lenet5", "--algorithms", "im2col,fast"], "--algorithms 'fast': use one of direct"),
        (["conv", "--suite", "lenet5", "--passes", "forwards"], "--passes 'forwards': use one of forward"),
        (["conv", "--suite", "lenet5", "--passes", ","], "--passes ',': use some of forward"),
        (["conv", "--suite", "lenet5", "--layout", "chwn"], "--layout 'chwn'"),
        (["conv", "--suite", "lenet5", "--dtype", "int8"], "--dtype 'int8'"),
        (["conv", "--suite", "lenet5", "--precision", "fp8"], "--precision 'fp8': use one of float32, float64"),
        (
            ["conv", "--suite", "lenet5", "--precision", "tf32", "--device", "cpu"],
            "--precision tf32: the CPU has float32",
        ),
        (["conv", "--suite", "lenet5", "--dtype", "float16", "--device", "cpu"], "--precision float16: the CPU has"),
        (["gemm", "--dtype", "float64", "--precision", "tf32"], "--precision tf32: float64 is not computed in it"),
        (["conv", "--suite", "lenet5", "--reference", "jax"], "--reference 'jax': use one of torch"),
        (["conv", "--suite", "lenet5", "--repeat", "0"], "'0' is not a whole number"),
        (["conv", "--suite", "lenet5", "--max-seconds", "-1"], "'-1' is not a finite number above 0"),
        (["gemm", "--dtype", "float64", "--device", "sim"], "--dtype float64: kernels compute in float32"),
        (["pool", "--operations", "relu,gelu"], "--operations 'gelu'"),
    ],
)
def test_wrong_arguments(options, text, capsys):
    assert main(["bench", *options]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, text",
    [
        (["conv", "--shape", "1,2,3"], "'1,2,3' is not N,C,H,W,K,R,S"),
        (["gemm", "--size", "5,x,1"], "'5,x,1' is not N, or M,N,K"),
        (["net", "resnet9"], "model 'resnet9' is unknown"),
    ],
)
def test_wrong_values(options, text, capsys):
    assert main(["bench", *options, "--device", "cpu"]) == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--csv", "--plot", "--html"])
def test_a_missing_folder_is_named_before_anything_is_measured(option, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(conv, "measure", lambda *arguments: pytest.fail("measured"))
    assert main([*SMALL, option, str(tmp_path / "no" / "file")]) == 1
    assert f"{option} {tmp_path}/no/file: {tmp_path}/no is no folder; make it first" in capsys.readouterr().err
    assert main([*SMALL, option, str(tmp_path)]) == 1
    assert "is a folder; name a file in it" in capsys.readouterr().err


def test_ctrl_c_saves_what_is_done(tmp_path: Path, capsys, monkeypatch):
    run = conv.run

    def interrupted(pass_, *rest):
        if pass_ == "backward_weight":
            raise KeyboardInterrupt
        return run(pass_, *rest)

    monkeypatch.setattr(conv, "run", interrupted)
    path = tmp_path / "out.json"
    assert main([*SMALL, "--algorithms", "im2col", "--json", str(path)]) == 130
    found = results.load(path)
    assert [row["pass"] for row in found["rows"]] == ["forward", "backward_input"] and found["interrupted"]
    assert "interrupted: these are the rows measured by then" in capsys.readouterr().err


def test_a_failed_row_is_exit_code_1(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(oracle, "LIMIT", 0.0)
    path = tmp_path / "out.json"
    assert main([*SMALL, "--algorithms", "im2col", "--passes", "forward", "--json", str(path)]) == 1
    (row,) = results.load(path)["rows"]
    assert not row["ok"] and row["reason"].startswith("wrong: error")


def test_bench_gemm_and_pool(tmp_path: Path):
    common = ["--device", "cpu", "--repeat", "1", "--reference", "none", "--json", str(tmp_path / "out.json")]
    assert main(["bench", "gemm", "--size", "33", "--size", "5,7,9", "--dtype", "float64", *common]) == 0
    rows = results.load(tmp_path / "out.json")["rows"]
    assert len(rows) == 6 and all(0 < row["max_error"] < 1e-14 and row["tflops"] for row in rows)
    assert main(["bench", "pool", "--operations", "relu,sgd,adam", "--batch", "1", *common]) == 0
    rows = results.load(tmp_path / "out.json")["rows"]
    assert [row["pass"] for row in rows] == ["forward", "backward", "step", "step"]
    assert all(row["gb_per_s"] and row["max_error"] is not None for row in rows)


def test_bench_net_on_the_cpu(tmp_path: Path):
    path = tmp_path / "out.json"
    command = ["bench", "net", "lenet5", "--train", "--device", "cpu", "--batch", "2", "--repeat", "1"]
    assert main([*command, "--max-seconds", "0.05", "--reference", "none", "--json", str(path)]) == 0
    (row,) = results.load(path)["rows"]
    assert row["images_per_second"] == pytest.approx(2e3 / row["milliseconds"])
    assert row["max_error"] < 1e-4 and (row["peak_bytes"] > 1e7 or sys.platform != "linux")


def test_bench_net_on_the_simulator(tmp_path: Path, device):
    path = tmp_path / "out.json"
    assert main(["bench", "net", "lenet5", "--infer", "--device", "sim", "--json", str(path)]) == 0
    rows = results.load(path)["rows"]
    assert [row["algorithm"] for row in rows] == ["auto", "plan"] and all(row["counters"]["flops"] for row in rows)


def test_bench_sim(tmp_path: Path):
    path = tmp_path / "out.json"
    assert main(["bench", "sim", "--size", "32", "--repeat", "1", "--json", str(path)]) == 0
    rows = results.load(path)["rows"]
    assert {row["algorithm"] for row in rows} == {"fast", "asan", "race"} and all(row["milliseconds"] for row in rows)


def test_others_are_named():
    assert sessions._others(0.05) == "other programs took 5% of the machine"
    assert "doubtful" in sessions._others(0.5)


# ---- results ----


def test_results_survive_a_round_trip_and_refuse_what_they_are_not(tmp_path: Path):
    row = results.blank(suite="s", layer="l", algorithm="a", milliseconds=math.inf, reason="x")
    result = {"device": "d", "commit": "c", "date": "t", "settings": {}, "rows": [row]}
    results.save(result, tmp_path / "r.json")  # type: ignore[arg-type]
    assert results.load(tmp_path / "r.json")["rows"][0]["milliseconds"] is None
    bad_rows = [{**row, "ratio": "2"}], [{**row, "milliseconds": None, "reason": ""}]
    for change, text in (
        ({"device": 3}, "'device'"),
        ({"rows": [{}]}, "row 0 lacks"),
        ({"rows": bad_rows[0]}, "'ratio' is '2'"),
        ({"rows": bad_rows[1]}, "neither milliseconds"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps({**result, **change}).replace("Infinity", "1"))
        with pytest.raises(ValueError, match=f"bad.json: .*{text}"):
            results.load(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="bad.json: not JSON"):
        results.load(tmp_path / "bad.json")


def test_geometric_means():
    def a_row(layer: str, algorithm: str, ms: float | None, ratio: float | None, repeats: int = 1) -> dict:
        labels = {"suite": "s", "layer": layer, "pass": "forward", "algorithm": algorithm, "repeats": repeats}
        return results.blank(**labels, milliseconds=ms, ratio=ratio, reason="slow" if ms is None else "")

    rows = [a_row("1", "a", 2, 2), a_row("1", "b", 4, 1), a_row("2", "a", 3, 8, 2), a_row("2", "b", None, None)]
    result = {"device": "d", "commit": "c", "date": "t", "settings": {}, "rows": rows}
    means = {mean["algorithm"]: mean for mean in results.geometric_means(result)}  # type: ignore[arg-type]
    assert means["a"]["ratio"] == pytest.approx(4) and means["a"]["milliseconds"] == 8
    assert (means["b"]["layers"], means["b"]["of"], means["b"]["milliseconds"]) == (1, 2, None)
    assert means["best"]["ratio"] == pytest.approx(4)


def test_only_references_of_the_same_precision_count():
    found = {"cudnn_nchw": 3.0, "cudnn_nhwc": 2.0, "cudnn_nchw_tf32": 1.0, "cudnn_nhwc_tf32": None}
    assert results.fastest_reference(found, "fp32") == 2.0 and results.fastest_reference(found, "tf32") == 1.0
    assert results.fastest_reference({"torch": None}, "fp32") is None
    found = {"cudnn_nchw": 9.0, "cudnn_nchw_tf32": 5.0, "cudnn_nhwc_bf16": 2.0, "cublas_fp16": 1.0}
    wanted = {"fp32": 9.0, "fp32_tensor": 9.0, "tf32": 5.0, "bf16": 2.0, "fp16": 1.0}
    assert {precision: results.fastest_reference(found, precision) for precision in wanted} == wanted
