"""Kernel sources are read as they are written, and arguments are checked before anything runs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gpucnn
from gpucnn import device as devices
from gpucnn.launch import Strided, launch, simulator, sources
from gpucnn.launch.dispatch import bind, grid_for
from gpucnn.launch.sources import Parameter, evaluate, parse
from tests.check import assert_equal
from tests.kernel_check import on

TEXT = """
constexpr int THREADS = 64;  // KERNEL(1, 1) in_a_comment(int n)
struct Shape {
    int N, C;  // sizes
    int64 strides[4];
    float scale;
};
template <int BM>
__device__ void work(const float* x) {}
KERNEL(THREADS, 2) plain(const float* __restrict__ x, float* y, int64 count, Shape shape) {
    work<1>(x);
}
#define STAMP(BM, BN, layout)                                              \\
    KERNEL((BM / 8) * (BN / 8), 1) product_##layout##_##BM##x##BN(const int* a, unsigned b) { \\
        work<BM>(a);                                                       \\
    }
STAMP(128, 64, nn)
STAMP(64, 64, nt)
"""


def test_entry_points_are_read():
    found = {entry.name: entry for entry in parse(TEXT, "x.cu")}
    assert set(found) == {"plain", "product_nn_128x64", "product_nt_64x64"}
    assert (found["plain"].threads, found["plain"].blocks) == (64, 2)
    assert found["product_nn_128x64"].threads == 128 and found["product_nt_64x64"].threads == 64
    assert found["plain"].parameters == (
        Parameter("float", "x", pointer=True, const=True),
        Parameter("float", "y", pointer=True, const=False),
        Parameter("int64", "count", pointer=False, const=False),
        Parameter("Shape", "shape", pointer=False, const=False),
    )
    assert found["product_nt_64x64"].parameters[1] == Parameter("unsigned", "b", pointer=False, const=False)


@pytest.mark.parametrize("text, value", [("4", 4), ("(A / 8) * 2", 32), ("B - 1", 15), ("A + B * 2", 160)])
def test_evaluate(text, value):
    assert evaluate(text, {"A": "8 * B", "B": "16"}) == value


@pytest.mark.parametrize("text", ["f(3)", "__import__('os')", "1.5", "C"])
def test_evaluate_refuses(text):
    with pytest.raises(ValueError, match="is not an expression of integers"):
        evaluate(text, {})


def test_every_kernel_file_declares_entry_points():
    """Every KERNEL of the library's files is found: none is written in a way that the reader passes over."""
    for path in sources.files():
        text = re.sub(r"//[^\n]*", "", path.read_text()).replace("\\\n", " ")
        outside_macros = re.sub(r"^#define .*$", "", text, flags=re.MULTILINE).count("KERNEL(")
        stamping = [name for name in re.findall(r"^#define (\w+)\(.*KERNEL\(", text, re.MULTILINE)]
        stamped = sum(len(re.findall(rf"^{name}\(", text, re.MULTILINE)) for name in stamping)
        found = list(parse(path.read_text(), str(path)))
        assert len(found) >= outside_macros + stamped > 0, path


@pytest.fixture(scope="module")
def own_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "own.cu"
    path.write_text("""
#include "common.cuh"
struct OwnShape {
    int rows, columns;
    int64 stride;
    float scale;
};
KERNEL(32, 1) own_scale_rows(const float* x, float* y, OwnShape shape) {
    for (int row = blockIdx.x; row < shape.rows; row += gridDim.x)
        for (int i = threadIdx.x; i < shape.columns; i += 32)
            y[row * shape.columns + i] = x[row * shape.stride + i] * shape.scale;
}
KERNEL(32, 1) own_types(const int* a, const int64* b, float* y, unsigned u, uint64_t v, int64 w) {
    if (threadIdx.x > 0) return;
    y[0] = static_cast<float>(a[0] + b[0] + w) + static_cast<float>(u) + static_cast<float>(v);
}
KERNEL(32, 1) own_places(int* places, int n) {
    places[(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = n;
}
""")
    sources.register(path)
    return path


@pytest.mark.usefixtures("own_kernels")
def test_own_kernel_with_struct_and_strides(device):
    (x,) = on(device, np.arange(40, dtype=np.float32).reshape(4, 10))
    y = devices.empty((4, 7), np.float32, x)
    launch("own_scale_rows", 2, Strided(x[:, 3:]), y, (4, 7, 10, 2.0))
    assert_equal(devices.to_numpy(y), 2 * np.arange(40).reshape(4, 10)[:, 3:])


@pytest.mark.usefixtures("own_kernels")
def test_all_types(device):
    a, b = on(device, np.array([1], np.int32), np.array([2**20], np.int64))
    y = devices.empty(1, np.float32, a)
    launch("own_types", 1, a, b, y, 2**31, 2**40, -3)
    assert devices.to_numpy(y)[0] == np.float32(2**20 - 2) + np.float32(2**31) + np.float32(2**40)


@pytest.mark.usefixtures("own_kernels")
def test_grid_of_three_axes(device):
    (places,) = on(device, np.zeros(2 * 3 * 5, np.int32))
    launch("own_places", (5, 3, 2), places, 9)
    assert_equal(devices.to_numpy(places), np.full(30, 9))


def test_empty_grid_runs_nothing(device):
    (x,) = on(device, np.zeros(0, np.float32))
    launch("relu_forward", grid_for(0), x, devices.empty_like(x), 0)


X = np.ones(4, np.float32)


@pytest.mark.parametrize(
    "arguments, grid, error, message",
    [
        (lambda x: (x, x), 1, TypeError, r"relu_forward: it takes 3 arguments \(x, y, count\), but 2 were given"),
        (lambda x: (X, x, 4), 1, TypeError, "relu_forward: x is ndarray; it must be an array on 'cuda' or 'sim'"),
        (lambda x: (x.astype("f8"), x, 4), 1, TypeError, "relu_forward: x is float64; the kernel takes float32"),
        (lambda x: (x[::2], x, 2), 1, TypeError, "relu_forward: x is not contiguous"),
        (lambda x: (x, x, 4.0), 1, TypeError, "relu_forward: count is 4.0; it must be an integer"),
        (lambda x: (x, x, 2**63), 1, ValueError, "relu_forward: count is 9223372036854775808; it must fit int64"),
        (lambda x: (x, x, 4), -1, ValueError, "relu_forward: grid.x is -1; it must be from 0 to 2147483647"),
        (lambda x: (x, x, 4), (1, 70000), ValueError, "relu_forward: grid.y is 70000; it must be from 0 to 65535"),
        (lambda x: (None, None, 4), 1, ValueError, "relu_forward: its arrays are on no device"),
    ],
)
def test_errors(arguments, grid, error, message):
    (x,) = on("sim", X)
    with pytest.raises(error, match=message):
        launch("relu_forward", grid, *arguments(x))


def test_unknown_kernel():
    with pytest.raises(ValueError, match="there is no kernel 'relu'"):
        launch("relu", 1)


@pytest.mark.usefixtures("own_kernels")
def test_struct_errors():
    (x,) = on("sim", X)
    entry = sources.entries()["own_scale_rows"]
    with pytest.raises(TypeError, match="own_scale_rows: shape has 3 values; OwnShape has 4"):
        bind(entry, (x, x, (1, 2, 3)))
    with pytest.raises(ValueError, match="own_scale_rows: shape is 2147483648; it must fit int"):
        bind(entry, (x, x, (2**31, 2, 3, 1.0)))


def test_register_errors(tmp_path: Path, own_kernels: Path):
    empty = tmp_path / "empty.cu"
    empty.write_text("__global__ void f() {}\n")
    with pytest.raises(ValueError, match="there is no entry point"):
        sources.register(empty)
    twice = tmp_path / "twice.cu"
    twice.write_text("KERNEL(32, 1) relu_forward(float* x) {}\n")
    with pytest.raises(ValueError, match="relu_forward stands in .*relu.cu and in .*twice.cu"):
        sources.register(twice)
    assert sources.entries()["relu_forward"].file.endswith("relu.cu")
    with pytest.raises(FileNotFoundError):
        sources.register(tmp_path / "missing.cu")


def test_kernel_that_does_not_compile(tmp_path: Path):
    path = tmp_path / "wrong.cu"
    path.write_text('#include "common.cuh"\nKERNEL(32, 1) own_wrong(float* x) { x[0] = unknown; }\n')
    sources.register(path)
    (x,) = on("sim", X)
    with pytest.raises(RuntimeError, match=r"(.|\n)*wrong.cu:2(.|\n)*unknown"):
        launch("own_wrong", 1, x)


@pytest.fixture
def copied_kernels(tmp_path: Path) -> Iterator[Path]:
    """A folder of copies of all kernels, which is the library's."""
    before = sources.folder()
    for path in (*before.glob("*.cu"), *before.glob("*.cuh")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    sources.use_folder(tmp_path)
    yield tmp_path
    sources.use_folder(before)


@pytest.mark.parametrize(
    "changed, files",
    [
        ("common.cuh", {"relu.cu", "gemm.cu", "gemm_tensor.cu"}),
        ("ptx.cuh", {"gemm.cu", "gemm_tensor.cu"}),  # which they include through two others
        ("tile_tensor.cuh", {"gemm_tensor.cu"}),
        ("gemm.cu", {"gemm.cu"}),
    ],
)
def test_a_change_changes_the_digests_of_what_includes_it(changed, files, copied_kernels: Path):
    names = ("relu.cu", "gemm.cu", "gemm_tensor.cu")
    before = {name: sources.digest(str(copied_kernels / name)) for name in names}
    with open(copied_kernels / changed, "a") as file:
        file.write("// changed\n")
    sources.use_folder(copied_kernels)
    assert {name for name in names if sources.digest(str(copied_kernels / name)) != before[name]} == files


def test_digests_do_not_depend_on_the_folder(copied_kernels: Path):
    copied = sources.digest(str(copied_kernels / "gemm_tensor.cu"))
    sources.use_folder(Path(sources.kernels.__file__).parent)
    assert sources.digest(str(sources.folder() / "gemm_tensor.cu")) == copied


def test_includes_are_read_however_they_are_written(tmp_path: Path):
    for name in ("one.cuh", "two.cuh", "three.cuh", "four.cuh", "unused.cuh"):
        (tmp_path / name).write_text('#pragma once\n#include "one.cuh"\n')
    file = tmp_path / "own.cu"
    file.write_text('# include  "two.cuh"\n#ifdef ANY\n  #include <three.cuh>\n#endif\n#include \\\n"four.cuh"\n'
                    '#include <cstdint>\n#include"gone.cuh"\n')  # fmt: skip
    assert [path.name for path in sources.includes(str(file))] == ["four.cuh", "one.cuh", "three.cuh", "two.cuh"]
    file.write_text("#define NAME <common.cuh>\n#include NAME\n")
    sources.use_folder(sources.folder())
    assert set(sources.includes(str(file))) == set(sources.headers())


def test_includes_hold_all_that_a_compiler_reads():
    """The preprocessor's own list of what it opened of the kernels' folder, for every file."""
    flags = ["-std=c++17", "-MM", "-xc++", f"-I{sources.folder()}", f"-I{simulator.RUNTIME}"]
    files = [str(path) for path in sources.files()]
    rules = subprocess.run([simulator.compiler()[0], *flags, *files], capture_output=True, text=True, check=True).stdout
    read = [set(re.findall(r"[\w./-]+\.cuh", rule)) for rule in rules.replace("\\\n", " ").strip().splitlines()]
    for file, opened in zip(files, read, strict=True):
        included = {path.resolve() for path in sources.includes(file)}
        assert {Path(path).resolve() for path in opened} <= included and included, file


@pytest.mark.parametrize("operation", [lambda x: x + 1, np.exp, lambda x: np.where(x > 0, x, 0), lambda x: x.sum(),
                                       lambda x: np.concatenate([x, x]), lambda x: x[0:2], lambda x: x.astype("f8"),
                                       lambda x: np.split(x, 2)[0], lambda x: x @ x])  # fmt: skip
def test_what_numpy_computes_stays_on_the_device(operation, device):
    (x,) = on(device, X)
    assert devices.of(operation(x)) == devices.of(x)


def test_moving_between_devices(device):
    (x,) = on(device, X)
    assert devices.move(x, device) is x
    back = devices.move(x, "cpu")
    assert devices.of(back) == "cpu" and type(back) is np.ndarray
    back[0] = 5
    assert devices.to_numpy(x)[0] == 1


def test_tensor_stays_where_its_array_is(device):
    (x,) = on(device, X)
    made = gpucnn.tensor(x)
    assert made.device == devices.of(x) and made.data is not x
    assert gpucnn.tensor(made).device == devices.of(x)
    assert gpucnn.tensor(x, device="cpu").device == "cpu" and gpucnn.tensor(X).device == "cpu"


def test_dlpack_of_an_unknown_device():
    class Elsewhere:
        def __dlpack__(self) -> None:
            raise AssertionError("never asked")

        def __dlpack_device__(self) -> tuple[int, int]:
            return 10, 0

    with pytest.raises(ValueError, match="DLPack's device 10 is neither a CPU nor an NVIDIA GPU"):
        gpucnn.tensor(Elsewhere())
