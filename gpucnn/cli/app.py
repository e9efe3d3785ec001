"""The commands put together, and `main`, which turns every expected failure into one line on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

from gpucnn.cli.bench import bench
from gpucnn.cli.build_kernels import build_kernels
from gpucnn.cli.doctor import doctor
from gpucnn.cli.evaluate import evaluate
from gpucnn.cli.explain import explain
from gpucnn.cli.import_weights import import_weights
from gpucnn.cli.predict import predict
from gpucnn.cli.sim import sim
from gpucnn.cli.summary import summary
from gpucnn.cli.train import train
from gpucnn.cli.tune import tune
from gpucnn.device import DeviceLost
from gpucnn.version import __version__

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def gpucnn(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Train, measure and use convolutional networks."""
    if version:
        typer.echo(f"gpucnn {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("train")(train)
app.command("eval")(evaluate)
app.command("predict")(predict)
app.command("import-weights")(import_weights)
app.command("summary")(summary)
app.command("tune")(tune)
app.command("build-kernels")(build_kernels)
app.command("doctor")(doctor)
app.add_typer(sim, name="sim")
app.add_typer(explain, name="explain")
app.add_typer(bench, name="bench")


def main(arguments: list[str] | None = None) -> int:
    """Run a command line (sys.argv by default); return its exit code.

    0 done, 1 wrong data, file or state, 2 wrong arguments, 130 interrupted; the reason is one line on stderr.
    """
    try:
        return app(args=arguments, prog_name="gpucnn", standalone_mode=False) or 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = "gpucnn" if context is None else context.command_path
        return _complain(f"{error.format_message().rstrip('.')}; see {command} --help", MISUSED)
    except BrokenPipeError:  # the reader of our output, such as head, has left
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except MemoryError as error:
        return _complain(f"not enough memory ({error}); use a smaller --width, --image-size or --batch-size", FAILED)
    except (ValueError, OSError, DeviceLost) as error:
        return _complain(_text(error), FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def _text(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and text.startswith("[Errno"):
        return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)
    return text


def _complain(text: str, code: int) -> int:
    print("error:", " ".join(text.split()), file=sys.stderr)
    return code
