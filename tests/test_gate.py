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
        on_tensor_cores = "tensor" in record["kernel"] or "tf32" in record["kernel"]
        if record["kernel"].startswith(tuple(gate.BUDGETS)) and not (on_tensor_cores and record["arch"] == "sm_75"):
            assert max(record["main_loop"].get(kind, 0) for kind in gate.PRODUCTS) >= 16


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


LOOPS = [  # two loops in one, of which the second has fewer other instructions
    "MOV R1, c[0x0][0x28]",
    "LDS.128 R4, [R0]",
    "FFMA.FTZ R8, R4, R5, R8",
    "IADD3 R0, R0, 0x10, RZ",
    "@P0 BRA 0x10",
    "FFMA R8, R4, R5, R8",
    "@!P1 BRA 0x80",
    "@P0 BRA 0x50",
    "@P2 BRA 0x0",
    "EXIT",
]


def test_main_loop_is_the_innermost_with_most_multiply_adds():
    assert gate.loops(LOOPS) == [(1, 4), (5, 7), (0, 8)]
    assert gate.main_loop(LOOPS) == {"instructions": 3, "FFMA": 1, "BRA": 2}
    more = [*LOOPS[:3], *LOOPS[2:3], *LOOPS[4:]]
    assert gate.main_loop(more) == {"instructions": 4, "FFMA": 2, "LDS": 1, "BRA": 1}
    assert gate.main_loop(["MOV R1, R2", "EXIT"]) == gate.main_loop(["IADD3 R1, R1, R1, RZ", "@P0 BRA 0x0"]) == {}


ON_TENSOR_CORES = [  # a loop that copies, one that multiplies and waits in a loop of its own, and one of float32 units
    "UTMALDG.2D [UR4], [UR6]",
    "SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R2+URZ], R3",
    "@P0 BRA 0x0",
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2+URZ], R3",
    "@!P0 BRA 0x30",
    "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24",
    "IADD3 R0, R0, 0x1, RZ",
    "@P1 BRA 0x30",
    "FFMA R8, R4, R5, R8",
    "FFMA R9, R4, R5, R9",
    "@P2 BRA 0x80",
    "EXIT",
]


def test_loops_on_tensor_cores():
    listing = ON_TENSOR_CORES
    assert gate.main_loop(listing) == {"instructions": 5, "BRA": 2, "SYNCS": 1, "HGMMA": 1, "IADD3": 1}
    assert gate.loops_on_tensor_cores(listing) == "1 HGMMA, 1 SYNCS of 5; 1 UTMALDG, 1 SYNCS of 3"
    assert (
        gate.loops_on_tensor_cores(listing[5:6] + ["LDSM.16.M88.4 R4, [R2]", "@P0 BRA 0x0"]) == "1 HGMMA, 1 LDSM of 3"
    )
    assert gate.loops_on_tensor_cores(["FFMA R1, R1, R1, R1", "BRA 0x0"]) == ""
    one_loop = ["UTMALDG.2D [UR4], [UR6]", "HMMA.1688.F32.TF32 R4, R4, R5, R4", "BRA 0x0"]
    assert gate.loops_on_tensor_cores(one_loop) == "1 HMMA, 1 UTMALDG of 3"


def test_the_table_keeps_loops_on_tensor_cores():
    record = {"kernel": "a", "arch": "sm_80", "registers": 32, "shared_bytes": 64}
    assert gate.table_of([record | {"tensor_loops": ""}]) == {"a": {"sm_80": [32, 64]}}
    assert gate.table_of([record | {"tensor_loops": "1 HMMA of 3"}]) == {"a": {"sm_80": [32, 64, "1 HMMA of 3"]}}


def test_small_share_of_tensor_products_is_a_fault():
    loop = {"instructions": 100, "FFMA": 90, "HMMA": 13}
    record = {"kernel": "gemm_nn_float32_tensor_128x128", "arch": "sm_80", "main_loop": loop}
    (fault,) = gate.over_budget(record)
    assert fault == "13 of 100 instructions of the main loop are HMMA, 13.0%; at least 14%"
    loop["HMMA"] = 14
    assert gate.over_budget(record) == []


def test_small_share_of_multiply_adds_is_a_fault():
    record = {"kernel": "conv2d_forward_128x256", "arch": "sm_90a", "main_loop": {"instructions": 100, "FFMA": 91}}
    assert gate.over_budget(record) == []
    record["main_loop"]["FFMA"] = 90
    (fault,) = gate.over_budget(record)
    assert fault == "90 of 100 instructions of the main loop are FFMA, 90.0%; at least 91%"
    for loop in ({}, {"instructions": 5}):
        assert gate.over_budget(record | {"main_loop": loop})


def test_budgets_are_of_kernels_that_exist():
    for start in gate.BUDGETS:
        assert any(name.startswith(start) for name in sources.entries()), start


def test_differences_are_told():
    old, new = {"a": {"sm_80": [32, 0]}, "b": {}}, {"a": {"sm_80": [40, 0]}, "c": {}}
    assert [line.split(":")[0] for line in gate.differences(old, new)] == ["a", "b", "c"]


def test_spills_are_read():
    log = "ptxas info : Function properties for k\nptxas   .  8 bytes stack frame, 12 bytes spill stores, 4 bytes"
    assert gate.spilled_bytes(log) == {"k": 16}


def test_waits_that_the_compiler_adds_are_a_fault():
    log = (
        "ptxas info    : (C7517) warpgroup.wait is injected in around line 74 by compiler to allow use of registers "
        "defined by GMMA in function 'x'\nptxas info    : Used 90 registers\n"
    )
    (remark,) = gate.pipeline_remarks(log)["x"]
    record = {
        "kernel": "x",
        "arch": "sm_75",
        "spill_bytes": 0,
        "local_bytes": 0,
        "instructions": {},
        "remarks": [remark],
    }
    assert gate.record_faults(record) == [f"x, sm_75: {remark}"] and remark.startswith("(C7517) warpgroup.wait")


def test_wrong_architecture():
    with pytest.raises(ValueError, match="architecture '-I/tmp': it must be such as sm_75"):
        compilers.cubin("x.cu", "-I/tmp", "nvcc")


def test_compile_error_names_file(tmp_path: Path):
    file = tmp_path / "broken.cu"
    file.write_text('#include "common.cuh"\nKERNEL(32, 1) broken(float* x) { x[0] = unknown; }\n')
    for compiler in compilers.COMPILERS:
        with pytest.raises(compilers.CompileError, match=r"broken.cu, sm_80(.|\n)*unknown"):
            compilers.cubin(str(file), "sm_80", compiler)
