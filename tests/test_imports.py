"""The layers of docs/architecture.md: a file imports what is below it, and heavy libraries only where it uses them."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Files and folders of the package; a file may import lower ranks, and others of its own folder.
RANKS = {
    "_C": -1, "kernels": -1, "simulator_runtime": -1, "device": 0, "random": 0, "threads": 0, "files": 0, "version": 0,
    "precision": 0, "dtypes": -1,
    "tensorfile": 1, "launch": 1,
    "ops": 2, "tensor": 2, "data": 2,
    "functional": 3,
    "nn": 4, "optim": 4,
    "models": 5,
    "checkpoint": 6,
    "train": 7,
    "summary": 8, "plot": 8, "doctor": 8, "simulation": 8, "weights": 8,
    "bench": 9,
    "cli": 10, "__main__": 11,
}  # fmt: skip
HEAVY = {"cupy", "scipy", "matplotlib", "PIL", "torch", "onnx"}
FOLDERS = (
    ("", ROOT / "gpucnn"),
    ("bench", ROOT / "bench"),
    ("kernels", ROOT / "kernels"),
    ("simulator_runtime", ROOT / "csrc" / "simulator"),
)
SOURCES = {
    ".".join(("gpucnn", folder, *path.relative_to(base).with_suffix("").parts)).replace("..", "."): path
    for folder, base in FOLDERS
    for path in sorted(base.rglob("*.py"))
}
MODULES = {name.removesuffix(".__init__"): path for name, path in SOURCES.items()}
modules = pytest.mark.parametrize("module", MODULES)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imported_names(node: ast.AST) -> list[str]:
    """Dotted names that an import statement loads; `from package import name` may name a module or something in it."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def at_the_top(module: str) -> list[str]:
    return [name for node in tree(module).body for name in imported_names(node)]


def inside(module: str) -> list[str]:
    """What is imported anywhere but at the top: in functions, classes, conditions."""
    top = {id(node) for node in tree(module).body}
    return [name for node in ast.walk(tree(module)) if id(node) not in top for name in imported_names(node)]


def own_module(name: str) -> str | None:
    """The module of this package that an imported name stands for or lies in; None for another library's."""
    if name.split(".")[0] != "gpucnn":
        return None
    if name.startswith("gpucnn._C"):
        return "gpucnn._C"
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def rank(module: str) -> int:
    return RANKS[module.split(".")[1]]


def folder(module: str) -> Path:
    return MODULES[module].parent


@pytest.mark.parametrize("module", [module for module in MODULES if module != "gpucnn"])
def test_a_file_imports_lower_ranks_or_its_own_folder(module):
    for name in at_the_top(module):
        other = own_module(name)
        if other is None or other == "gpucnn._C":
            continue
        assert other != "gpucnn", f"{module} imports {name} from the package's surface; import the file that defines it"
        neighbours = folder(module) == folder(other) != ROOT / "gpucnn"
        assert neighbours or rank(other) < rank(module), (
            f"{module} (rank {rank(module)}) imports {other} ({rank(other)})"
        )


def test_files_of_a_folder_stand_in_an_order():
    """No circle: graphlib raises CycleError and names one."""
    graph = {module: {own_module(name) for name in at_the_top(module)} - {None} for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


@modules
def test_own_imports_stand_at_the_top(module):
    """Only threads.py prepares the environment before it loads the extension."""
    own = {name for name in inside(module) if own_module(name)}
    assert own <= ({"gpucnn._C"} if module == "gpucnn.threads" else set())


@modules
def test_heavy_libraries_are_imported_where_they_are_used(module):
    assert not {name.split(".")[0] for name in at_the_top(module)} & HEAVY


@pytest.mark.parametrize("module", ["gpucnn.ops", "gpucnn.data"])
def test_arrays_know_no_tensors(module):
    files = [name for name in MODULES if name.split(".")[:2] == module.split(".")]
    assert files
    assert not any(own_module(name) == "gpucnn.tensor" for file in files for name in at_the_top(file))


def test_ranks_name_what_is_there():
    found = {module.split(".")[1] for module in MODULES if module != "gpucnn"}
    assert found == set(RANKS) - {"_C"}


def test_import_loads_nothing_heavy():
    code = "import sys, gpucnn; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in loaded.stdout.split()} & HEAVY
