"""gpucnn build-kernels."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from tqdm import tqdm

from gpucnn import device as devices
from gpucnn.cli import options
from gpucnn.launch import compilers, native


def build_kernels(
    arch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Such as sm_90a; may be repeated. Default: this machine's GPU, else all known."
        ),
    ] = None,
    compiler: Annotated[str, typer.Option(metavar="NAME", help=f"{' or '.join(compilers.COMPILERS)}.")] = "nvcc",
    json: options.Json = None,
) -> None:
    """Compile all kernels into the cache, so that the engine 'native' needs no compiler later; no GPU is needed."""
    options.check_output(json)
    if compiler not in compilers.COMPILERS:
        raise typer.BadParameter(f"--compiler {compiler}: it must be one of {', '.join(compilers.COMPILERS)}")
    architectures = list(dict.fromkeys(arch or present_architectures()))
    for name in architectures:
        try:
            compilers.check_architecture(name)
        except ValueError as error:
            raise typer.BadParameter(f"--arch: {error}") from None
    version = compilers.version(compiler)
    console = Console(width=100)
    console.print(f"{compiler} {version}, {', '.join(architectures)}; into {compilers.cache_folder('cubin')}")
    rows = list(tqdm(compilers.build(architectures, compiler), total=compilers.jobs(architectures), disable=None))
    for row in rows:
        console.print(line(row), style="red" if row["error"] else "", markup=False, highlight=False)
    options.write_json(json, {"compiler": compiler, "version": version, "files": rows})
    failed = [row["error"] for row in rows if row["error"]]
    if failed:
        raise ValueError(f"{len(failed)} of {len(rows)} did not compile: {failed[0]}")


def line(row: dict[str, Any]) -> str:
    """One compiled file in words."""
    result = "failed" if row["error"] else f"{row['bytes']:>9,} bytes, {row['seconds']:.1f} s"
    return f"{row['file']:34} {row['arch']:8} {result}"


def present_architectures() -> list[str]:
    """That of the GPU here, else all known ones."""
    if not devices.has_cuda():
        return list(compilers.ARCHITECTURES)
    return [native.architecture(devices.cupy().cuda.Device().compute_capability)]
