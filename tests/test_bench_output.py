"""Results of benchmarks as tables and pictures: what is written, at every width, of every kind of row."""

from __future__ import annotations

import importlib.util
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from gpucnn.bench import figures, plot, results
from gpucnn.bench.table import print_table
from gpucnn.files import WriteError
from tests import bench_results as made

RESULTS = {
    "vgg16": made.vgg16,
    "awkward": made.awkward,
    "none": made.result,
    "one": lambda: made.result(made.row()),
    "many": lambda: made.many(500),
    "sim": lambda: made.result(made.counted("conv1", "im2col"), made.counted("conv1", "implicit_gemm")),
}
every_result = pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS.keys())


def printed(result: Any, width: int = 120, color: bool = False) -> str:
    stream = io.StringIO()
    print_table(
        result, Console(file=stream, width=width, force_terminal=color, color_system="standard" if color else None)
    )
    return stream.getvalue()


@pytest.mark.parametrize(
    "value, text",
    [
        (0.012345, "0.0123"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (0, "0"),
        (1e-5, "1.0e-05"),
        (1e9, "1.0e+09"),
        (None, ""),
    ]
    + [(math.nan, ""), (math.inf, ""), ("12", ""), (True, "")],
)
def test_three_digits(value, text):
    assert figures.digits(value) == text


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (512, "512 B"), (1500, "1.50 kB"), (999_900, "1.00 MB"), (2.5e8, "250 MB"), (3e9, "3.00 GB")],
)
def test_sizes(value, text):
    assert figures.size(value) == text


def test_counts_and_ratios():
    assert [figures.count(value) for value in (640, 999_999, 1_234_567, 2.5e9, 1.25)] == [
        "640",
        "999,999",
        "1.23 M",
        "2.50 G",
        "1.25",
    ]
    assert [figures.ratio(value) for value in (0.5, 12.345, 1234, math.nan)] == ["0.50×", "12.35×", "1,234×", ""]


def test_the_reference_has_the_rows_precision():
    times = {"cudnn_nchw": 3.0, "cudnn_nhwc": 2.5, "cudnn_nchw_tf32": 1.0, "cudnn_nhwc_tf32": None}
    assert figures.reference(made.row(references=times)) == 2.5
    assert figures.reference(made.row(references=times, precision="tf32")) == 1.0
    assert figures.reference(made.row(references={"torch": math.nan})) is None


def test_a_table_holds_every_figure():
    result = made.result(
        made.row("conv1", "im2col", workspace_bytes=12_000_000), made.row("conv1", "auto", chosen="fft")
    )
    lines = printed(result).splitlines()
    assert "AMD EPYC, commit abc1234, 2026-11-25" in lines[0]
    headings = next(line for line in lines if "p20–p80" in line).split()
    assert headings == "layer algorithm ms p20–p80 GFLOP/s % of peak workspace error reference ms ratio".split()
    first = next(line for line in lines if "im2col" in line)
    assert first.split() == "conv1 im2col 10.0 9.50–11.2 50.0 50.0 12.0 MB 1.2e-07 20.0 2.00×".split()
    assert any("auto (fft)" in line for line in lines)
    assert "geometric means" in printed(result)


def test_the_unit_follows_the_rates():
    assert "GFLOP/s" in printed(made.result(made.row(tflops=0.9)))
    assert "TFLOP/s" in printed(made.result(made.row(tflops=0.9), made.row("conv2", tflops=40.0)))


@every_result
@pytest.mark.parametrize("width", [80, 120])
def test_tables_keep_within_the_terminal(make, width):
    lines = printed(make(), width).splitlines()
    assert all(len(line) <= width for line in lines if not line.startswith(("AMD", "ceiling", "note")))


def test_a_narrow_terminal_says_what_it_leaves_out():
    text = printed(made.vgg16(), 80)
    assert "no room for: p20–p80" in text and "ratio" in text and "reference ms" in text
    assert "no room for" not in printed(made.vgg16(), 120)


def test_rows_without_a_result_say_why():
    text = printed(made.vgg16())
    assert text.count("fft FAILED on conv1_2: RuntimeError: the answer is wrong") == 3
    assert text.count("winograd4 not measured on conv1_1: winograd: the kernel is 5×5; it takes 3×3") == 3
    reason = made.unmeasured("conv2", "direct", "predicted 40 times slower than the best")
    both = made.result(made.unmeasured("conv1", "direct", reason["reason"]), reason)
    assert "direct not measured on conv1, conv2: predicted 40 times slower than the best" in printed(both)


def test_wrong_answers_are_in_no_table_and_no_mean():
    wrong = made.row("conv1", "fft", milliseconds=0.001, ratio=2e4, ok=False, reason="error 0.1, limit 1e-5")
    text = printed(made.result(made.row("conv1", "im2col"), wrong))
    assert "fft FAILED on conv1: error 0.1" in text and "0.001" not in text
    (mean,) = (line for line in text.splitlines() if "1/1" in line)
    assert mean.split() == ["vgg16", "forward", "im2col", "1/1", "2.00×", "50.0", "10.0"]
    both = printed(
        made.result(made.row("conv1", "im2col"), made.row("conv1", "fft", milliseconds=5.0, ratio=4.0), wrong)
    )
    assert next(line for line in both.splitlines() if "best" in line).split()[:3] == ["best", "1/1", "4.00×"]


def test_the_fastest_is_bold():
    slow, fast = made.row("conv1", "im2col"), made.row("conv1", "fft", milliseconds=7.77)
    bold = [line for line in printed(made.result(slow, fast), color=True).splitlines() if "\x1b[1m" in line]
    assert any("7.77" in line for line in bold) and not any("im2col" in line and "conv1" in line for line in bold)


def test_counters_stand_where_times_would():
    text = printed(RESULTS["sim"](), 160)
    assert (
        "ideal sectors" not in text
        and "ideal wavefronts" in text
        and "sectors and wavefronts:" in text
        and "123 M" in text
    )
    assert " ms" not in text and "geometric" not in text


def test_markup_and_control_characters_are_text():
    text = printed(made.awkward(), color=True)
    assert "[bold]x[/bold]" in text and "[red]fft" in text and made.HOSTILE in text
    assert "\x1b[31m\n" not in text and "\u202e" not in text


def picture(result: Any, path: Path) -> np.ndarray:
    plot.plot(result, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def colours(pixels: np.ndarray) -> set[str]:
    values, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    return {"#" + bytes(value).hex() for value, count in zip(values, counts, strict=True) if count > 200}


@pytest.mark.parametrize("name", ["awkward", "none", "one", "many", "sim"])
def test_pictures(name, tmp_path: Path):
    pixels = picture(RESULTS[name](), tmp_path / "a.png")
    assert 900 < pixels.shape[1] < 2400 and pixels.shape[0] < plot.LARGEST
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_every_algorithm_has_its_colour(tmp_path: Path):
    found = colours(picture(made.network("vgg16", made.VGG16[:3], ("forward",)), tmp_path / "a.png"))
    assert {figures.COLOURS[name] for name in made.ALGORITHMS} <= found
    assert figures.COLOURS["toeplitz"] not in found


def test_bars_have_the_lengths_of_the_rates(tmp_path: Path):
    rows = [made.row("conv1", "im2col", tflops=0.02), made.row("conv1", "direct", tflops=0.08)]
    pixels = picture(made.result(*rows, settings={}), tmp_path / "a.png")
    lengths = []
    for name in ("im2col", "direct"):
        wanted = [int(figures.COLOURS[name][i : i + 2], 16) for i in (1, 3, 5)]
        lengths.append((pixels == wanted).all(axis=2).sum(axis=1).max())
    assert lengths[1] / lengths[0] == pytest.approx(4, rel=0.03)


@pytest.mark.parametrize(
    "values, expected", [([1, 2, 59], False), ([1, 2, 500, 600], True), ([], False), ([3.0], False)]
)
def test_bars_are_logarithmic_where_they_would_vanish(values, expected):
    assert figures.logarithmic(values) == expected


def test_roofs():
    ceiling = figures.Ceiling(0.1, 12.5)
    assert ceiling.ridge == pytest.approx(8)
    assert figures.roof(ceiling, 1, 100) == [(1, pytest.approx(0.0125)), (8, pytest.approx(0.1)), (100, 0.1)]
    assert figures.roof(figures.Ceiling(0.1, None), 1, 100) == [(1, 0.1), (100, 0.1)]
    assert figures.roof(figures.Ceiling(None, None), 1, 100) == []


def test_colours_differ():
    found = figures.series(made.row(algorithm=name) for name in ("64x64", "128x128", "im2col", "auto"))
    assert len(set(found.values())) == 4 and found["im2col"] == figures.COLOURS["im2col"]


def test_a_picture_needs_matplotlib(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install 'gpucnn\\[viz\\]'"):
        plot.plot(made.vgg16(), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written(tmp_path: Path):
    with pytest.raises(WriteError, match="create the folder first"):
        plot.plot(made.result(made.row()), tmp_path / "none" / "a.png")


def test_means_ignore_what_is_no_number():
    rows = [made.row("a", ratio=4.0), made.row("b", ratio=math.nan), made.row("c", ratio=1.0)]
    mean = figures.means(made.result(*rows))[0]
    assert mean["ratio"] == pytest.approx(2) and mean["layers"] == 3
    assert results.validate(made.vgg16())
