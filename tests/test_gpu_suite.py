"""The GPU suite: timing with a clock that is told the time, rows that survive faults, and the whole path on `sim`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpucnn import device as devices
from gpucnn.bench import (
    adopt,
    conv,
    device_tests,
    gemm,
    gpu_suite,
    layers,
    net,
    peer,
    pool,
    report,
    results,
    tensor,
    timing,
)

ROOT = Path(__file__).parents[1]


class FakeClock:
    """A clock that stands still but for `pass_by`."""

    def __init__(self) -> None:
        self.now, self.waits = 0.0, 0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    def mark(self) -> float:
        return self.now

    def synchronize(self) -> None:
        self.waits += 1

    def elapsed(self, start: float, end: float) -> float:
        return end - start


def test_measure_counts_calls_and_leaves_the_flush_out():
    clock, calls, flushes = FakeClock(), [], []
    found = timing.measure(
        lambda: (calls.append(1), clock.pass_by(0.01)),
        clock,
        seconds=0.2,
        flush=lambda: (flushes.append(1), clock.pass_by(5)),
    )
    assert found.repeats == len(flushes) == 20
    assert len(calls) == 2 + 5 + 20
    assert found.median == pytest.approx(0.01) and found.p80 == pytest.approx(0.01)


@pytest.mark.parametrize("seconds, repeats", [(1e-6, 100), (0.1, 5), (2.0, 3)])
def test_repeats_are_bounded(seconds, repeats):
    clock = FakeClock()
    assert timing.measure(lambda: clock.pass_by(seconds), clock, 0.3).repeats == repeats


def test_median_and_percentiles():
    found = timing.summarize([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    assert (found.median, found.p20, found.p80) == (6, 3, 9)
    assert found.milliseconds() == {"milliseconds": 6000, "p20": 3000, "p80": 9000, "calls": 11}


def a_report(path: Path, seconds: float = 60) -> report.Report:
    return report.Report("conv", "sim", path, True, time.monotonic() + seconds, "abc", with_torch=False)


def fail() -> dict:
    raise RuntimeError("no such kernel")


def test_a_failing_case_is_a_row(tmp_path: Path):
    path = tmp_path / "x.json"
    found = a_report(path)
    found.add(fail, layer="a")
    found.add(lambda: {"ms": 1.0}, layer="b")
    content = json.loads(path.read_text())
    assert content["rows"] == [
        {"layer": "a", "ok": False, "reason": "RuntimeError: no such kernel"},
        {"layer": "b", "ok": True, "ms": 1.0},
    ]
    assert content["commit"] == "abc" and content["settings"]["quick"] and content["device"] and content["date"]
    again = a_report(path)
    again.add(fail, layer="b")
    assert again.rows == content["rows"]


def test_no_case_starts_late(tmp_path: Path):
    with pytest.raises(report.OutOfTime):
        a_report(tmp_path / "x.json", seconds=-1).add(fail, layer="a")


def test_a_lost_device_ends_the_process_after_its_row(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(report.Report, "device_works", lambda self: False)
    path = tmp_path / "x.json"
    arguments = ["--device", "sim", "--out", str(path)]
    assert report.main("conv", lambda r: r.add(fail, layer="a"), arguments) == report.LOST_DEVICE
    content = json.loads(path.read_text())
    assert content["ended"] == "the device was lost" and len(content["rows"]) == 1
    assert report.main("conv", lambda r: r.add(fail, layer="a"), arguments) == report.FINISHED


@pytest.mark.parametrize(
    "part, name", [(conv, "conv"), (gemm, "gemm"), (tensor, "tensor"), (pool, "pool"), (net, "net")]
)
def test_parts_write_results(part, name, tmp_path: Path):
    path = tmp_path / "part.json"
    assert report.main(name, part.cases, ["--device", "sim", "--quick", "--out", str(path)]) == report.FINISHED
    rows = results.load(path)["rows"]
    assert all(row.get("counters") or row.get("reason") or row["suite"] == "launches" for row in rows)
    check_rows(rows)


@pytest.mark.parametrize("training", [False, True])
def test_networks_start_from_the_same_weights_in_both_libraries(training, torch):
    (step,) = layers.steps(True)
    ours, theirs = net.ours(step, "cpu", training)(), net.theirs(step, "cpu", training, True)().numpy()
    assert abs(ours - theirs).max() <= net.LIMIT * abs(theirs).max()


def check_rows(rows: list[dict]) -> None:
    """All are right."""
    failed = [row for row in rows if not row.get("ok", True)]
    assert rows and not failed, failed


def test_random_arrays_fill_every_place():
    array = peer.random((3, (1 << 20) + 11), 0, "sim")
    assert devices.of(array) == "sim" and np.isfinite(array).all()
    assert abs(float(array.std()) - 1) < 0.01


def test_files_that_take_a_device():
    names = {path.name for path in device_tests.files(False)}
    assert "test_golden.py" in names and "test_gpu_suite.py" not in names
    assert not any(name.startswith("test_data") for name in names)


def test_pytest_results_are_read(tmp_path: Path):
    file = tmp_path / "test_it.py"
    file.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2\n@pytest.mark.skip\ndef test_c(): pass\n"
    )
    out = tmp_path / "out.xml"
    subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={out}", str(file)], cwd=tmp_path)
    row = device_tests.read(out)
    assert (row["tests"], row["passed"], row["failures"], row["skipped"], row["ok"]) == (3, 1, 1, 1, False)
    assert row["failed"][0]["test"] == "test_b" and "assert 1 == 2" in row["failed"][0]["text"]


def test_a_crashed_test_process_is_a_row(tmp_path: Path, monkeypatch):
    file = tmp_path / "test_it.py"
    file.write_text("import os\ndef test_a(): os.abort()\n")
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--device')\n")
    row = device_tests.run(file, "sim", time.monotonic() + 60)
    assert not row["ok"] and row["reason"].startswith("exit code -6")


def test_the_whole_suite_on_the_simulator(tmp_path: Path):
    """In one command, as on a GPU; at most eight files."""
    command = [str(ROOT / "bench" / "gpu_suite"), "--device", "sim", "--quick", "--without-torch", "--out", "results"]
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "PYTHON": sys.executable, "HOME": str(Path.home())}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    files = {path.name: path for path in (tmp_path / "results").iterdir()}
    assert set(files) == {*(f"{part}.json" for part in gpu_suite.MODULES), "summary.txt"}, done.stderr
    for part in gpu_suite.MODULES:
        content = json.loads(files[f"{part}.json"].read_text())
        assert content["ended"] == "finished"
        check_rows(content["rows"])
    summary = files["summary.txt"].read_text()
    assert [line.partition(":")[0] for line in summary.splitlines()] == list(gpu_suite.MODULES)
    assert summary in done.stdout or all(line in done.stdout for line in summary.splitlines())


def test_a_part_that_is_cut_off_keeps_its_rows(tmp_path: Path, monkeypatch, capsys):
    part = tmp_path / "part.py"
    part.write_text(
        "import sys, time, json\npath = sys.argv[sys.argv.index('--out') + 1]\n"
        "open(path, 'w').write(json.dumps({'ended': 'early', 'rows': [{'ok': True}]}))\ntime.sleep(60)\n"
    )
    monkeypatch.setitem(gpu_suite.MODULES, "conv", "part")
    monkeypatch.setattr(gpu_suite, "prepare", lambda folder: tmp_path)
    code = gpu_suite.main(["--out", str(tmp_path / "out"), "--parts", "conv", "--limit", "2"])
    assert code == 1
    assert json.loads((tmp_path / "out" / "conv.json").read_text()) == {
        "ended": "cut off after 2 s",
        "rows": [{"ok": True}],
    }
    assert "conv: 1 rows, 0 failed, cut off after 2 s" in capsys.readouterr().out


def test_a_part_is_started_again_after_a_fault(tmp_path: Path, monkeypatch):
    part = tmp_path / "part.py"
    part.write_text(
        "import sys, json, os\npath = sys.argv[sys.argv.index('--out') + 1]\n"
        "old = json.load(open(path)) if os.path.exists(path) else {'rows': [], 'ended': 'early'}\n"
        "old['rows'].append({'ok': True}); old['ended'] = 'finished' if len(old['rows']) == 3 else 'lost'\n"
        "json.dump(old, open(path, 'w')); sys.exit(0 if len(old['rows']) == 3 else 3)\n"
    )
    monkeypatch.setitem(gpu_suite.MODULES, "conv", "part")
    monkeypatch.setattr(gpu_suite, "prepare", lambda folder: tmp_path)
    assert gpu_suite.main(["--out", str(tmp_path / "out"), "--parts", "conv"]) == 0
    assert len(json.loads((tmp_path / "out" / "conv.json").read_text())["rows"]) == 3


@pytest.mark.parametrize("option", [["--parts", "conv,fast"], ["--limit", "481"]])
def test_wrong_options(option, tmp_path: Path, capsys):
    with pytest.raises(SystemExit):
        gpu_suite.main(["--out", str(tmp_path), *option])
    assert option[0] in capsys.readouterr().err


def write_results(folder: Path, device: str = "cuda", ended: str = "finished") -> None:
    folder.mkdir(exist_ok=True)
    content = {"device": "NVIDIA H100 80GB HBM3", "driver": "1", "settings": {"device": device, "quick": False}}
    for part in ("golden", "conv"):
        text = json.dumps({**content, "ended": ended, "rows": [{"ok": True}, {"ok": False}]})
        (folder / f"{part}.json").write_text(text)


def test_adopting_results(tmp_path: Path, capsys):
    write_results(tmp_path / "out")
    assert adopt.main([str(tmp_path / "out")], tmp_path) == 0
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("nvidia*/*.json")}
    assert found == {f"bench/results/nvidia-h100-80gb-hbm3/{part}.json" for part in ("golden", "conv")}
    assert (tmp_path / "tests/golden/nvidia-h100-80gb-hbm3.json").exists()
    assert "conv.json: new, 2 rows, 1 failed, finished" in capsys.readouterr().out
    adopt.main([str(tmp_path / "out")], tmp_path)
    assert "conv.json: replaced" in capsys.readouterr().out


def test_only_whole_results_of_a_gpu_are_adopted(tmp_path: Path, capsys):
    write_results(tmp_path / "sim", device="sim")
    assert adopt.main([str(tmp_path / "sim")], tmp_path) == 1
    write_results(tmp_path / "cut", ended="out of time")
    assert adopt.main([str(tmp_path / "cut")], tmp_path) == 0
    assert not (tmp_path / "tests").exists()
    (tmp_path / "empty").mkdir()
    assert adopt.main([str(tmp_path / "empty")], tmp_path) == 1
    assert "has no *.json" in capsys.readouterr().err
