"""Training in 16 bits beside float32: a few steps where kernels run, the figures on file, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpucnn.bench import mixed_precision
from gpucnn.bench.mixed_precision import AGREEMENT, LIMIT, TASKS, losses, verdicts

STORED = Path(mixed_precision.__file__).parent / "results" / "simulator" / "mixed_precision.json"


@pytest.mark.parametrize(("network", "steps"), [("lenet5", 10), ("vgg11_bn", 2)])
def test_few_steps_where_kernels_run(device, network, steps):
    """Float32's losses are the CPU's, and those of 16 bits stay near them."""
    task = TASKS[network]._replace(batch=8)
    expected = losses(task, "float32", "cpu", steps)
    few = steps // 2
    assert np.abs(losses(task, "float32", device, few) / expected[:few] - 1).max() < AGREEMENT
    for precision, count in (("bfloat16", steps), ("float16", few)):
        found = losses(task, precision, device, count)
        assert len(found) == count and not np.array_equal(found, expected[:count])
        assert abs(found.mean() / expected[:count].mean() - 1) < LIMIT


def test_figures_on_file():
    """Networks learnt in a few hundred steps, and each window of bfloat16 is within the limit of float32's."""
    content = json.loads(STORED.read_text())
    assert set(content) == set(TASKS)
    for network, stored in content.items():
        found = {name: np.array(values) for name, values in stored["losses"].items()}
        assert stored["settings"]["network"] == network and len(found["bfloat16 on sim"]) >= 200
        assert found["bfloat16 on sim"][-50:].mean() < 0.75 * found["float32"][0]
        assert mixed_precision.holds(verdicts(found, "sim")) and stored["holds"]


def test_verdicts_find_what_departs():
    flat = np.full(150, 2.0)
    found = {name: flat for name in ("float32", "float16 on sim", "bfloat16 on sim")}
    found["float32 on sim"] = flat[:20]
    assert mixed_precision.holds(verdicts(found, "sim"))
    late = flat.copy()
    late[100:] *= 1.03
    for name, changed in (
        ("bfloat16 on sim", late),
        ("float16 on sim", 1.03 * flat[:20]),
        ("float32 on sim", 1.001 * flat[:20]),
    ):
        assert not mixed_precision.holds(verdicts({**found, name: changed}, "sim"))


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mixed_precision, "WINDOW", 2)
    monkeypatch.setattr(mixed_precision, "TASKS", {"lenet5": TASKS["lenet5"]._replace(batch=4, steps=4)})
    path = tmp_path / "figures.json"
    path.write_text('{"other": 1}')
    assert mixed_precision.main(["--device", "cpu", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert content["other"] == 1 and content["lenet5"]["holds"] and content["lenet5"]["settings"]["steps"] == 4
    assert len(content["lenet5"]["windows"]["bfloat16 on cpu"]) == 2
    assert "float32, one unit away" in capsys.readouterr().out
    monkeypatch.setattr(mixed_precision, "LIMIT", 0.0)
    assert mixed_precision.main(["--device", "cpu", "--steps", "4"]) == 1
