"""The engine "native" against a driver that only notes what it is asked for, and plans on the simulator."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gpucnn import _C, launch
from gpucnn import device as devices
from gpucnn.launch import compilers, dispatch, jit, native
from tests.check import assert_equal
from tests.kernel_check import on

SOURCE = Path(__file__).parent / "fake_cuda.cpp"
ARGUMENTS = [(4096).to_bytes(8, "little"), np.int32(7).tobytes()]


class FakeDriver:
    """The fake library, opened by the engine and by the test."""

    def __init__(self, path: Path) -> None:
        self.driver = _C.NativeDriver(str(path))
        self.library = ctypes.CDLL(str(path))
        self.library.fake_calls.restype = ctypes.c_char_p
        self.reset()

    def reset(self, failing_launch: int = -1) -> None:
        self.library.fake_reset(failing_launch)

    def calls(self) -> list[str]:
        return self.library.fake_calls().decode().split(";")[:-1]


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    path = tmp_path_factory.mktemp("fake") / "libcuda.so.1"
    subprocess.run(["g++", "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(path)], check=True)
    return FakeDriver(path)


def bound(fake: FakeDriver, shared_bytes: int = 0) -> _C.NativeLaunch:
    module = _C.NativeModule(fake.driver, b"cubin")
    return _C.NativeLaunch(module, "kernel", (5, 2, 1), 128, shared_bytes, ARGUMENTS)


def test_launch(fake):
    launched = bound(fake)
    fake.reset()
    launched.run(64)
    launched.run(64)
    assert fake.calls() == ["launch 5,2,1 x128 0 (4096, 7) stream"] * 2


def test_much_shared_memory_is_asked_for(fake):
    fake.reset()
    bound(fake, shared_bytes=64 << 10)
    assert fake.calls() == ["function kernel", "attribute 8=65536"]


def test_graph(fake):
    launches = [bound(fake), bound(fake)]
    fake.reset()
    graph = _C.NativeGraph(fake.driver, launches)
    graph.run(0)
    graph.run(0)
    captured = ["captured 5,2,1 x128 0 (4096, 7)"] * 2
    assert fake.calls() == [*captured, "destroy graph", "destroy stream", "graph", "graph"]
    del graph
    assert fake.calls()[-1] == "destroy executable"


def test_failed_capture_leaves_nothing(fake):
    launched = bound(fake)
    fake.reset(failing_launch=0)
    with pytest.raises(RuntimeError, match="cuLaunchKernel: CUDA_ERROR_OF_A_TEST \\(719\\)"):
        _C.NativeGraph(fake.driver, [launched])
    assert fake.calls() == ["destroy graph", "destroy stream"]


def test_context_is_made_current(fake):
    fake.reset()
    fake.driver.require_context(0)
    assert fake.calls() == ["context"]


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda fake: _C.NativeDriver("libnone.so"), "there is no CUDA driver here .*libnone.so"),
        (lambda fake: _C.NativeDriver("libm.so.6"), "the CUDA driver has no cuInit"),
        (lambda fake: _C.NativeModule(fake.driver, b"other"), r"cuModuleLoadData: CUDA_ERROR_OF_A_TEST \(200\)"),
        (
            lambda fake: _C.NativeLaunch(_C.NativeModule(fake.driver, b"cubin"), "missing", (1, 1, 1), 1, 0, []),
            r"missing: CUDA_ERROR_OF_A_TEST \(500\)",
        ),
    ],
)
def test_errors(fake, act, message):
    with pytest.raises(RuntimeError, match=message):
        act(fake)


def test_value_bytes():
    layout = np.dtype([("a", "int32"), ("b", "int64")], align=True)
    struct = np.array([(1, 2)], layout)[0]
    assert native.value_bytes(np.float32(1)) == b"\x00\x00\x80?"
    assert native.value_bytes(None) == bytes(8)
    assert len(native.value_bytes(struct)) == 16


def test_architecture():
    assert [native.architecture(capability) for capability in ("75", "86", "90", "120")] == [
        "sm_75", "sm_86", "sm_90a", "sm_120",
    ]  # fmt: skip


def test_engine_is_chosen_by_name(monkeypatch):
    assert dispatch.engine("cuda:0") is dispatch.ENGINES["jit"]
    monkeypatch.setenv("GPUCNN_ENGINE", "native")
    assert dispatch.engine("cuda:0") is native.run
    monkeypatch.setenv("GPUCNN_ENGINE", "fast")
    with pytest.raises(ValueError, match="GPUCNN_ENGINE is 'fast'; it must be one of jit, native"):
        dispatch.engine("cuda:0")


def test_plan_replays():
    (x,) = on("sim", np.array([-1, 2, -3], np.float32))
    y, z = devices.empty_like(x), devices.empty_like(x)
    with launch.recording() as plan:
        launch.launch("relu_forward", 1, x, y, 3)
        launch.launch("relu_backward", 1, y, x, z, 3)
    assert len(plan) == 2
    x[...] = [5, -6, 7]
    plan.replay()
    assert_equal(y, [5, 0, 7])
    assert_equal(z, [5, 0, 7])


def test_plan_errors():
    with launch.recording() as plan:
        with pytest.raises(ValueError, match="another plan is being recorded"), launch.recording():
            pass
    with pytest.raises(ValueError, match="a graph needs launches of the engine 'native'"):
        plan.capture()


def test_nvcc_compiles_for_a_gpu():
    if not compilers.has_tool("nvcc"):
        pytest.skip("nvcc is not installed")
    code, log = compilers.cubin(dispatch.find("relu_forward").file, "sm_90a", "nvcc")
    assert code[:4] == b"\x7fELF" and "relu_forward" in log


def test_cupy_gets_structs_as_arrays_of_one_element():
    """CuPy 14 passes a NumPy array of size one by value; a structured scalar it refuses."""
    layout = np.dtype([("a", "int32"), ("b", "int64")], align=True)
    struct = np.array([(1, 2)], layout)[0]
    value = jit._value(struct)
    assert type(value) is np.ndarray and value.size == 1 and value.tobytes() == struct.tobytes()
    pointers = jit._value(())
    assert type(pointers) is np.ndarray and pointers.size == 1 and pointers.nbytes == 8 * launch.max_pointers()
    assert jit._value(None) is None and jit._value(np.int32(3)) == 3
