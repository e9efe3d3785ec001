"""gpucnn bench: algorithms and operations, checked and timed beside other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpucnn import device as devices
from gpucnn.bench import conv as convolutions
from gpucnn.bench import gemm as products
from gpucnn.bench import layers, pages, policies, references, simulator
from gpucnn.bench import net as networks
from gpucnn.bench import pool as memory_bound
from gpucnn.bench.contest import Limits
from gpucnn.bench.policies import HALVES, POLICIES, Policy
from gpucnn.bench.session import Outputs, Session, check_file
from gpucnn.cli import options
from gpucnn.train.rules import COUNT, POSITIVE

bench = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Measure, beside other libraries; every answer is first checked against float64.",
)
EVERY_PASS, EVERY_TRANSPOSITION = ",".join(convolutions.PASSES), ",".join(products.LAYOUTS)


def one_of(name: str, known: list[str] | tuple[str, ...], text: str) -> str:
    """`text` if it is known; raises BadParameter naming what is."""
    if text not in known:
        raise typer.BadParameter(f"--{name} {text!r}: use one of {', '.join(known)}")
    return text


def some_of(name: str, known: list[str] | tuple[str, ...], text: str) -> tuple[str, ...]:
    """The names in `text`, separated by commas, each once; raises BadParameter for one that is not known."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise typer.BadParameter(f"--{name} {text!r}: use some of {', '.join(known)}, separated by commas")
    return tuple(dict.fromkeys(one_of(name, known, part) for part in parts))


Algorithms = Annotated[str, typer.Option(metavar="NAME,…", help="As in im2col,fft,auto; all: each one, and auto.")]
Passes = Annotated[str, typer.Option(metavar="PASS,…", help=f"Some of {', '.join(convolutions.PASSES)}.")]
DTYPES = ("float32", "float64", *HALVES)
Dtype = Annotated[
    str,
    typer.Option(metavar="NAME", help="Of the arrays: float32, float64 (CPU only), bfloat16 or float16 (not there)."),
]
Precision = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"What products may be computed in: {', '.join(POLICIES)}; default: the dtype."),
]
Layouts = Annotated[str, typer.Option(metavar="NAME,…", help="Of images: nchw, nhwc; copies into another count.")]
Reference = Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(references.LIBRARIES)}.")]
Repeat = Annotated[int, typer.Option(parser=options.number(COUNT), metavar="N", help="Turns; their median counts.")]
MaxSeconds = Annotated[
    float,
    typer.Option(
        parser=options.number(POSITIVE),
        metavar="SECONDS",
        help="About what the calls of a candidate on a layer may take; one far slower than the best is left out.",
    ),
]
Threads = Annotated[int | None, options.count("N", "Of gpucnn and of a reference on the CPU.")]
Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the rows here as CSV.")]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw bars and a roofline (needs matplotlib).")
]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with table and charts.")]


def session(
    device: str | None,
    reference: str,
    repeat: int,
    max_seconds: float,
    threads: int | None,
    json: Path | None,
    csv: Path | None,
    plot: Path | None,
    html: Path | None,
) -> Session:
    """The session of these options."""
    one_of("reference", references.LIBRARIES, reference)
    limits = Limits(repeat, max_seconds)
    return Session(devices.resolve(device or "auto"), reference, limits, threads, Outputs(json, csv, plot, html))


def policy_of(dtype: str, precision: str | None, device: str) -> tuple[str, Policy]:
    """(name, policy) of these options; raises BadParameter where they do not fit each other or the device."""
    one_of("dtype", DTYPES, dtype)
    try:
        policy = policies.named(precision or dtype)
    except ValueError as error:
        raise typer.BadParameter(f"--{error}") from None
    if policy.dtype != dtype and dtype != "float32":
        raise typer.BadParameter(f"--precision {precision}: {dtype} is not computed in it; use --dtype {policy.dtype}")
    kind = device.partition(":")[0]
    if policy.on_tensor_cores and kind == "cpu":
        raise typer.BadParameter(f"--precision {precision or dtype}: the CPU has float32 and float64; use cuda or sim")
    if policy.dtype == "float64" and kind != "cpu":
        raise typer.BadParameter("--dtype float64: kernels compute in float32; use --device cpu")
    return next(name for name, each in POLICIES.items() if each == policy), policy


def end(code: int) -> None:
    """Leave with an exit code other than 0."""
    if code:
        raise typer.Exit(code)


@bench.command()
def conv(
    suite: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"{', '.join(layers.SUITES)}; may be repeated.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(metavar="SIZES", help=f"{layers.SHAPE_FORM}; may be repeated.")
    ] = None,
    algorithms: Algorithms = "all",
    passes: Passes = EVERY_PASS,
    dtype: Dtype = "float32",
    precision: Precision = None,
    batch: Annotated[
        int | None, options.count("N", "Images; default: 4 on the CPU, 1 simulated, the suite's own on a GPU.")
    ] = None,
    layout: Layouts = "nchw",
    device: options.Device = None,
    reference: Reference = "torch",
    repeat: Repeat = 9,
    max_seconds: MaxSeconds = 5.0,
    threads: Threads = None,
    json: options.Json = None,
    csv: Csv = None,
    plot: Plot = None,
    html: Html = None,
) -> None:
    """Convolutions by every algorithm and pass; exit code 1 if one failed or was wrong."""
    found = session(device, reference, repeat, max_seconds, threads, json, csv, plot, html)
    name, _ = policy_of(dtype, precision, found.device)
    if not suite and not shape:
        raise typer.BadParameter(f"give --suite or --shape; suites are {', '.join(layers.SUITES)}")
    suites = [one_of("suite", list(layers.SUITES), name) for name in suite or []]
    plan = convolutions.Plan(
        convolutions.chosen_layers(suites, shape or [], batch, found.device),
        some_of("passes", convolutions.PASSES, passes),
        some_of("algorithms", [*convolutions.known_algorithms(), "all"], algorithms),
        some_of("layout", list(convolutions.LAYOUTS), layout),
        name,
    )
    found.outputs.check()
    end(found.run("conv", lambda arena, progress: convolutions.measure(arena, plan, progress), **plan.settings()))


@bench.command()
def gemm(
    size: Annotated[list[str] | None, typer.Option(metavar="SIZES", help="N, or M,N,K; may be repeated.")] = None,
    layout: Annotated[
        str, typer.Option(metavar="NAME,…", help="Some of NN, NT, TN: which operands are stored transposed.")
    ] = EVERY_TRANSPOSITION,
    dtype: Dtype = "float32",
    precision: Precision = None,
    device: options.Device = None,
    reference: Reference = "torch",
    repeat: Repeat = 9,
    max_seconds: MaxSeconds = 5.0,
    threads: Threads = None,
    json: options.Json = None,
    csv: Csv = None,
    plot: Plot = None,
    html: Html = None,
) -> None:
    """Matrix products; on the simulator counters instead of times."""
    found = session(device, reference, repeat, max_seconds, threads, json, csv, plot, html)
    name, policy = policy_of(dtype, precision, found.device)
    chosen = products.products(size or [], some_of("layout", products.LAYOUTS, layout), found.device)
    settings = {"dtype": policy.dtype, "precision": name}
    end(found.run("gemm", lambda arena, progress: products.measure(arena, chosen, policy, progress), **settings))


@bench.command()
def pool(
    operations: Annotated[
        str, typer.Option(metavar="NAME,…", help=f"Some of {', '.join(memory_bound.NAMES)}; all: each one.")
    ] = "all",
    batch: Annotated[int | None, options.count("N", "Images; default: 4 on the CPU, 64 on a GPU.")] = None,
    device: options.Device = None,
    reference: Reference = "torch",
    repeat: Repeat = 9,
    max_seconds: MaxSeconds = 5.0,
    threads: Threads = None,
    json: options.Json = None,
    csv: Csv = None,
    plot: Plot = None,
    html: Html = None,
) -> None:
    """Pooling, activations, normalisation and optimisers: what memory bounds, in bytes a second."""
    found = session(device, reference, repeat, max_seconds, threads, json, csv, plot, html)
    names = some_of("operations", (*memory_bound.NAMES, "all"), operations)
    names = memory_bound.NAMES if "all" in names else names
    size = memory_bound.sizes(found.device, batch)
    end(found.run("pool", lambda arena, progress: memory_bound.measure(arena, names, size, progress)))


@bench.command()
def net(
    model: options.Model,
    train: Annotated[bool, typer.Option("--train", help="Time training steps only.")] = False,
    infer: Annotated[bool, typer.Option("--infer", help="Time evaluation only.")] = False,
    batch: Annotated[
        int | None, options.count("N", "Images a step; default: 8 on the CPU, 2 simulated, 64 on a GPU.")
    ] = None,
    image_size: options.ImageSize = None,
    device: options.Device = None,
    reference: Reference = "torch",
    repeat: Repeat = 9,
    max_seconds: MaxSeconds = 9.0,
    threads: Threads = None,
    json: options.Json = None,
    csv: Csv = None,
    plot: Plot = None,
    html: Html = None,
) -> None:
    """A network's images a second and most memory, trained and evaluated (both unless one is asked for)."""
    found = session(device, reference, repeat, max_seconds, threads, json, csv, plot, html)
    step = networks.step_of(model, batch, image_size, found.device)
    passes = tuple(name for name, wanted in (("train", train), ("infer", infer)) if wanted) or networks.PASSES
    end(found.run("net", lambda arena, progress: networks.measure(arena, [step], passes, progress), batch=step.batch))


@bench.command("sim")
def simulated(
    size: Annotated[int, options.count("N", "Of square products.")] = simulator.SIZE,
    repeat: Annotated[int, options.count("N", "Runs; their median counts.")] = simulator.ROUNDS,
    json: options.Json = None,
    csv: Csv = None,
    plot: Plot = None,
    html: Html = None,
) -> None:
    """How fast the simulator itself is, in each of its modes: real time on this CPU."""
    found = Session("sim", "none", Limits(repeat), None, Outputs(json, csv, plot, html))
    times = "real time of the simulator, not a GPU's"
    end(found.run("sim", lambda arena, progress: simulator.measure(arena.report, size, repeat, progress), times=times))


@bench.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where results are kept, by device.")] = pages.FOLDER,
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="The page.")] = Path("bench.html"),
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the geometric means here as Markdown.")
    ] = None,
) -> None:
    """All results that are kept, on one page."""
    check_file("--html", html)
    if markdown is not None:
        check_file("--markdown", markdown)
    read = pages.write_report(folder, html, markdown)
    print(f"{html}: {len(read)} files of results")
