"""The static gate on the kernels, and on kernels in which it must find something."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from gpucnn.bench import gate
from gpucnn.launch import compilers, sources

SPILLS = """
#include "common.cuh"
KERNEL(1024, 2) gate_local_array(const float* x, float* y, int n) {
    float values[256];
    for (int i = 0; i < 256; ++i) values[i] = x[i * n];
    y[threadIdx.x] = values[(n * threadIdx.x) & 255];
}
"""


@pytest.fixture(autouse=True, scope="module")
def needs_compilers() -> None:
    if importlib.util.find_spec("nvidia"):
        return
    if os.environ.get("GPUCNN_REQUIRE_TORCH") == "1":  # where everything that tests can use must be there
        pytest.fail("the CUDA compilers of the extra 'gate' are not installed")
    pytest.skip("the CUDA compilers of the extra 'gate' are not installed")


def test_kernels_pass(tmp_path: Path, capsys):
    out = tmp_path / "gate.json"
    assert gate.main(["--out", str(out)]) == 0, capsys.readouterr().out
    records = json.loads(out.read_text())
    library = {name for name, entry in sources.entries().items() if Path(entry.file).parent == sources.folder()}
    assert {record["kernel"] for record in records} >= library
    assert {record["arch"] for record in records} == set(compilers.ARCHITECTURES)
    for record in records:
        assert record["registers"] > 0 and record["spill_bytes"] == record["local_bytes"] == 0


def test_local_memory_is_a_fault(tmp_path: Path):
    file = tmp_path / "spills.cu"
    file.write_text(SPILLS)
    (record,) = gate.inspect(str(file), "sm_90a")
    assert record["local_bytes"] >= 1024
    assert any("local_bytes" in fault for fault in gate.record_faults(record))
    assert any("STL" in fault for fault in gate.record_faults(record))


def test_missing_instruction_is_a_fault(monkeypatch):
    monkeypatch.setitem(gate.EXPECTED, "gate_", ("LDG.E.128",))
    record = {"kernel": "gate_x", "arch": "sm_80", "spill_bytes": 0, "local_bytes": 0, "instructions": {"LDG.E": 4}}
    assert gate.record_faults(record) == ["gate_x, sm_80: no LDG.E.128, which the kernel is built around"]
    record["instructions"] = {"LDG.E.128": 1}
    assert gate.record_faults(record) == []


def test_differences_are_told():
    old, new = {"a": {"sm_80": [32, 0]}, "b": {}}, {"a": {"sm_80": [40, 0]}, "c": {}}
    assert [line.split(":")[0] for line in gate.differences(old, new)] == ["a", "b", "c"]


def test_spills_are_read():
    log = "ptxas info : Function properties for k\nptxas   .  8 bytes stack frame, 12 bytes spill stores, 4 bytes"
    assert gate.spilled_bytes(log) == {"k": 16}


def test_wrong_architecture():
    with pytest.raises(ValueError, match="architecture '-I/tmp': it must be such as sm_75"):
        compilers.cubin("x.cu", "-I/tmp", "nvcc")


def test_compile_error_names_file(tmp_path: Path):
    file = tmp_path / "broken.cu"
    file.write_text('#include "common.cuh"\nKERNEL(32, 1) broken(float* x) { x[0] = unknown; }\n')
    for compiler in compilers.COMPILERS:
        with pytest.raises(compilers.CompileError, match=r"broken.cu, sm_80(.|\n)*unknown"):
            compilers.cubin(str(file), "sm_80", compiler)
