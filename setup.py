"""Builds the extension gpucnn._C and maps folders into the package; everything else stands in pyproject.toml.

Where GPUCNN_CUDA_ARCHS is set, as in "sm_90a;sm_80", kernels are compiled with nvcc for these GPUs and shipped as well.
"""

import importlib
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# Packages that stand at the top of the tree, under their names in gpucnn.
FOLDERS = {"gpucnn.bench": "bench", "gpucnn.kernels": "kernels", "gpucnn.simulator_runtime": "csrc/simulator"}


def openmp_flags() -> list[str]:
    """["-fopenmp"] if the compiler can build and link a program with it, else [] for one thread."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        command = [os.environ.get("CXX", "c++"), "-fopenmp", str(source), "-o", str(Path(folder, "probe"))]
        try:
            found = subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            found = False
    if not found:
        print("gpucnn: the C++ compiler has no OpenMP; the CPU operations will use one thread", file=sys.stderr)
    return ["-fopenmp"] if found else []


def compilers() -> types.ModuleType:
    """gpucnn.launch.compilers, which needs the standard library alone, without all else that its packages load."""
    for name, folder in {"gpucnn": "gpucnn", "gpucnn.launch": "gpucnn/launch", "gpucnn.kernels": "kernels"}.items():
        module = sys.modules[name] = types.ModuleType(name)
        module.__path__, module.__file__ = [str(ROOT / folder)], str(ROOT / folder / "__init__.py")
    return importlib.import_module("gpucnn.launch.compilers")


class BuildExtension(build_ext):
    """Builds the extension, then the code for GPUs that GPUCNN_CUDA_ARCHS asks for."""

    def run(self) -> None:
        super().run()
        architectures = [name for name in os.environ.get("GPUCNN_CUDA_ARCHS", "").split(";") if name]
        if not architectures:
            return
        folder = ROOT / "gpucnn" / "cubins" if self.inplace else Path(self.build_lib, "gpucnn", "cubins")
        folder.mkdir(parents=True, exist_ok=True)
        module = compilers()
        for architecture in architectures:
            module.check_architecture(architecture)
            for file in module.files():
                module.compile_into(folder, str(file), architecture, "nvcc")


openmp = openmp_flags()
extension = Pybind11Extension(
    "gpucnn._C",
    sources=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp")),
    depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.hpp")),
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=["-O3", "-Wall", "-Wextra", "-fno-math-errno", "-fno-trapping-math", *openmp],
    extra_link_args=openmp,
    libraries=["dl"],
)

with ParallelCompile("GPUCNN_BUILD_JOBS", default=os.cpu_count() or 1):
    setup(
        packages=[*find_packages(include=["gpucnn", "gpucnn.*"]), *FOLDERS],
        package_dir=FOLDERS,
        package_data={
            "gpucnn": ["py.typed", "*.pyi"],
            "gpucnn.bench": ["*.cu", "*.css", "*.js"],
            "gpucnn.data": ["*.npz"],
            "gpucnn.kernels": ["*.cu", "*.cuh"],
            "gpucnn.simulator_runtime": ["*.cpp", "*.hpp"],
        },
        ext_modules=[extension],
        cmdclass={"build_ext": BuildExtension},
    )
