"""Kernel sources: which file has which entry point, and what its parameters are, read from the files themselves.

An entry point is `KERNEL(threads, blocks) name(parameters)`, or `CLUSTER_KERNEL(threads, blocks, cluster) name(…)`.
Where a macro stamps several from a template, its `#define` holds that line, with names pasted by ## from the macro's
parameters, and each use of the macro at the start of a line is an entry point: every kernel is declared in one place.
"""

from __future__ import annotations

import ast
import hashlib
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpucnn import kernels

_folder = Path(kernels.__file__).parent
_registered: dict[Path, None] = {}
SCALARS = {
    "int": "int32",
    "unsigned": "uint32",
    "int64": "int64",
    "uint64_t": "uint64",
    "float": "float32",
    "double": "float64",
}
ELEMENTS = {
    **SCALARS,
    "bfloat16": "bfloat16",
    "float16": "float16",
}  # what arrays may hold: NumPy's names

_KERNEL = re.compile(r"\b(?:CLUSTER_)?KERNEL\(((?:[^()]|\([^()]*\))*)\)\s*([\w#\s]+?)\s*\(([^()]*)\)")
_DEFINE = re.compile(r"^#define (\w+)\(([^()]*)\)(.*)$", re.MULTILINE)
_CONSTANT = re.compile(r"^constexpr int (\w+) = ([^;]+);", re.MULTILINE)
_STRUCT = re.compile(r"(?<!>\n)^struct (\w+) \{(.*?)^\};", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\s*([\w ]+?\*?) (\w+(?:\[\w+\])?(?:, \w+(?:\[\w+\])?)*);", re.MULTILINE)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: `type` is a C scalar, a struct's name or TENSOR_MAP; a pointer points to such."""

    type: str
    name: str
    pointer: bool
    const: bool


@dataclass(frozen=True)
class Entry:
    """An entry point of the file `file`: `threads` a block, of which at least `blocks` fit a multiprocessor.

    - cluster: how many blocks along x are a cluster; the grid is a multiple of it
    """

    name: str
    file: str
    threads: int
    blocks: int
    parameters: tuple[Parameter, ...]
    cluster: int = 1


def folder() -> Path:
    """Where the library's kernels and headers are."""
    return _folder


def use_folder(path: Path) -> None:
    """Take kernels and headers from another folder, as a copy with changes to try."""
    global _folder
    _folder = path
    _forget()


def register(path: str | Path) -> list[str]:
    """Add a file of kernels of one's own, which may include the library's headers; returns its entry points.

    Raises OSError if it cannot be read, and ValueError if it has no entry point or one of a name that is taken.
    """
    path = Path(path).absolute()
    names = [entry.name for entry in parse(path.read_text(), str(path))]
    if not names:
        raise ValueError(f"{path}: there is no entry point: KERNEL(threads, blocks) name(parameters)")
    before = dict(_registered)
    _registered[path] = None
    _forget()
    try:
        entries()
    except ValueError:
        _registered.clear()
        _registered.update(before)
        _forget()
        raise
    return names


def files() -> list[Path]:
    """Every file of kernels: the library's and the registered ones."""
    return [*sorted(folder().glob("*.cu")), *_registered]


def suits(file: str | Path, architecture: str) -> bool:
    """Whether a file of kernels is compiled for an architecture: *_hopper.cu only for sm_90a, whose own instructions
    it is made of; the simulator calls it sm_90."""
    return not Path(file).stem.endswith("_hopper") or architecture in ("sm_90", "sm_90a")


def headers() -> list[Path]:
    return sorted(folder().glob("*.cuh"))


@cache
def entries() -> dict[str, Entry]:
    """Every entry point by its name; raises ValueError for a name that stands twice."""
    found: dict[str, Entry] = {}
    for path in files():
        for entry in parse(path.read_text(), str(path)):
            if entry.name in found:
                raise ValueError(f"kernels: {entry.name} stands in {found[entry.name].file} and in {path}")
            found[entry.name] = entry
    return found


def parse(text: str, file: str) -> Iterator[Entry]:
    """The entry points of one file's text."""
    text = re.sub(r"//[^\n]*", "", text).replace("\\\n", " ")
    constants = {name: value for name, value in _CONSTANT.findall(text)}
    macros = {name: (parameters, body) for name, parameters, body in _DEFINE.findall(text) if "KERNEL(" in body}
    for match in _KERNEL.finditer(_DEFINE.sub("", text)):
        yield _entry(match, file, constants)
    for name, (parameters, body) in macros.items():
        for use in re.finditer(rf"^{name}\(([^()]*)\)", text, re.MULTILINE):
            stamped = _paste(body, _split(parameters), _split(use[1]))
            for match in _KERNEL.finditer(stamped):
                yield _entry(match, file, constants)


def _paste(body: str, parameters: list[str], arguments: list[str]) -> str:
    for parameter, argument in zip(parameters, arguments, strict=True):
        body = re.sub(rf"(?:\s*##\s*)?\b{parameter}\b(?:\s*##\s*)?", argument, body)
    return re.sub(r"\s*##\s*", "", body)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _entry(match: re.Match[str], file: str, constants: dict[str, str]) -> Entry:
    threads, blocks, cluster = (*(evaluate(bound, constants) for bound in match[1].split(",")), 1)[:3]
    return Entry(match[2].strip(), file, threads, blocks, tuple(map(_parameter, _split(match[3]))), cluster)


def _parameter(text: str) -> Parameter:
    words = text.replace("*", " * ").replace("__restrict__", "").split()
    kinds = [word for word in words[:-1] if word not in ("const", "*")]
    return Parameter(" ".join(kinds), words[-1], "*" in words, "const" in words)


_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv}


def evaluate(expression: str, constants: dict[str, str]) -> int:
    """The value of a C expression of integers, + − * /, parentheses and a file's constexpr ints."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id in constants:
            return evaluate(constants[node.id], constants)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"kernels: {expression.strip()!r} is not an expression of integers and the file's constants")

    return value(ast.parse(expression.strip(), mode="eval").body)


@cache
def structs() -> dict[str, tuple[tuple[str, int], ...]]:
    """Structs that kernels take by value: name → ((C type of a field, how many of them), …) in their order."""
    found = {}
    for path in (*files(), *headers()):
        text = re.sub(r"//[^\n]*", "", path.read_text())
        constants = {name: value for name, value in _CONSTANT.findall(text)}
        for name, body in _STRUCT.findall(text):
            found[name] = tuple(_fields(body, constants))
    return found


def _fields(body: str, constants: dict[str, str]) -> Iterator[tuple[str, int]]:
    for kind, names in _FIELD.findall(body):
        if kind.removesuffix("*") not in SCALARS:
            continue
        for name in _split(names):
            count = re.search(r"\[(\w+)\]", name)
            yield kind, evaluate(count[1], constants) if count else 1


_INCLUDE = re.compile(r"""^[ \t]*#[ \t]*include\b[ \t]*(?:["<]([^">\n]+)[">])?""", re.MULTILINE)


@cache
def includes(file: str) -> tuple[Path, ...]:
    """The headers of kernels that a file includes, itself or through others; those of compilers are none.

    Every #include counts, whatever it stands under, and every file that it may mean: any, where it names a macro.
    """
    found: dict[Path, None] = {}
    waiting = [Path(file)]
    while waiting:
        path = waiting.pop()
        for name in _INCLUDE.findall(path.read_text().replace("\\\n", "")):
            for header in (path.parent / name, folder() / name) if name else headers():
                if header.is_file() and header not in found:
                    found[header] = None
                    waiting.append(header)
    return tuple(sorted(found))


@cache
def digest(file: str) -> str:
    """A digest of a file of kernels and of the headers it includes: what was compiled from other texts is not used."""
    found = hashlib.sha256()
    for path in (Path(file), *includes(file)):
        found.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def _forget() -> None:
    for function in (entries, structs, includes, digest):
        function.cache_clear()
