"""All results on one page, and the README's tables: what the results say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpucnn.bench import pages, readme, results
from gpucnn.cli import main
from tests import bench_results as made

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "bench" / "results"
EMPTY = "".join(
    f"<!-- table: {name} -->\n<!-- end of table -->\n" for name in ("networks", "algorithms", "convolutions", "gpu")
)


def networks(**changes: Any) -> dict[str, Any]:
    """As `python -m gpucnn.bench.cpu --json` writes it."""
    case = {"batch": 8, "milliseconds": 2.0, "torch_milliseconds": 5.0, "images_per_second": 4000.0, "ratio": 2.5}
    case |= {"peak_bytes": 50, "torch_peak_bytes": 200, "others": 0.0}
    layer = {"layer": "vgg16-64-64", "repeats": 1, "batch": 4, "auto": "winograd", "others": 0.0}
    return {
        "cpu": "AMD EPYC",
        "date": "2026-11-25",
        "commit": "abc1234",
        "torch": "2.13.0+cpu",
        "threads": 2,
        "rounds": 9,
        "rows": [{"case": "lenet5-8-forward", **case}, {"case": "lenet5-8-train", **case, "ratio": 0.5}],
        "layers": [{**layer, "milliseconds": {"im2col": 30.0, "winograd": 10.0}}],
    } | changes


def on_a_gpu() -> dict[str, Any]:
    times = {"cudnn_nchw": 20.0, "cudnn_nhwc": 10.0, "cudnn_nchw_tf32": 2.0}
    rows = [made.row(name, "implicit_gemm", references=times, ratio=1.25, tflops=20.0) for name in ("a", "b")]
    return made.result(
        *rows, made.row("a", "winograd", ratio=5.0, milliseconds=2.5), device="NVIDIA H100", settings={"part": "conv"}
    )


def folder_of(folder: Path, **files: Any) -> Path:
    """A folder of results; cpu__networks stands for cpu/networks.json."""
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


checkout = pytest.mark.skipif(not KEPT.is_dir(), reason="results are kept in checkouts only")


@checkout
def test_the_readme_has_the_tables_of_the_results():
    assert readme.main([str(ROOT / "README.md"), "--results", str(KEPT), "--check"]) == 0, "make tables"


def test_what_has_not_been_measured_is_said(tmp_path: Path):
    blocks = readme.tables(tmp_path)
    assert blocks["gpu"] == "Not measured on a GPU yet."
    assert all("not measured" in block.lower() for block in blocks.values())


def test_networks_and_algorithms(tmp_path: Path):
    blocks = readme.tables(folder_of(tmp_path / "bench" / "results", cpu__networks=networks()))
    assert "PyTorch 2.13.0 on 2 threads of an AMD EPYC (commit abc1234, 2026-11-25" in blocks["networks"]
    assert "`bench/results/cpu/networks.json`" in blocks["networks"]
    assert "| LeNet-5, 8 | 2.5× | 0.5× | 0.25× | 0.25× |" in blocks["networks"]
    assert blocks["algorithms"].endswith(
        "| layer | batch | `winograd` |\n| --- | --- | --- |\n| vgg16-64-64 | 4 | 3.0× |\n"
    )


def test_convolutions_on_cpu_and_gpu(tmp_path: Path):
    content = made.network("vgg16", made.VGG16[:2], ("forward", "backward_input"))
    folder_of(tmp_path, cpu__vgg16=content, **{"nvidia-h100__conv": on_a_gpu()}, simulator__conv=content)
    blocks = readme.tables(tmp_path)
    assert "beside `torch`, geometric means" in blocks["convolutions"]
    table = [line for line in blocks["convolutions"].splitlines() if line.startswith("|")]
    assert table[0] == "| suite | pass | `im2col` | `direct` | `winograd` | `winograd4` | `fft` | best |"
    assert [line.split(" | ")[1] for line in table[2:]] == ["forward", "backward input"]
    assert "(1/2)" in table[2] and "simulator" not in blocks["convolutions"]
    assert "| vgg16 | forward | 5.00× (1/2) | 1.25× | 2.50× |" in blocks["gpu"].replace("`", "")
    assert "NVIDIA H100" in blocks["gpu"] and "yet" not in blocks["gpu"]


def test_rates_where_there_is_no_reference(tmp_path: Path):
    rows = [made.row(name, "im2col", references={}, ratio=None) for name in ("a", "b")]
    text = readme.tables(folder_of(tmp_path, cpu__conv=made.result(*rows)))["convolutions"]
    assert "Rates of convolutions" in text and "`im2col`, GFLOP/s" in text and "| 50.0 |" in text


def test_names_are_no_markup(tmp_path: Path):
    content = made.result(made.row("a", "b`|c", suite="<b>|x|_y_"))
    text = readme.tables(folder_of(tmp_path, cpu__conv=content))["convolutions"]
    assert r"| \<b\>\|x\|\_y\_ |" in text and "`b??c`" in text


def test_update_keeps_all_else():
    text = f"before\n{EMPTY}after\n"
    blocks = {"networks": r"a \1 \g<0>", "gpu": "b\n"}
    new = readme.update(text, blocks)
    assert "<!-- table: networks -->\na \\1 \\g<0>\n<!-- end of table -->" in new
    assert new.startswith("before\n") and new.endswith("<!-- table: gpu -->\nb\n<!-- end of table -->\nafter\n")
    assert readme.update(new, blocks) == new


@pytest.mark.parametrize("text", ["", EMPTY * 2, "<!-- table: gpu -->\n"])
def test_update_needs_its_markers(text):
    with pytest.raises(ValueError, match="one block between <!-- table: gpu -->"):
        readme.update(text, {"gpu": "x"})


def test_writing_the_readme(tmp_path: Path, capsys):
    folder = folder_of(tmp_path / "results", cpu__networks=networks())
    path = tmp_path / "README.md"
    path.write_text(EMPTY)
    assert readme.main([str(path), "--results", str(folder), "--check"]) == 1
    assert path.read_text() == EMPTY and "make tables" in capsys.readouterr().err
    assert readme.main([str(path), "--results", str(folder)]) == 0
    assert readme.main([str(path), "--results", str(folder), "--check"]) == 0
    assert "LeNet-5" in path.read_text()


def test_every_kind_of_file_becomes_rows():
    rows = pages.as_result(networks())["rows"]
    assert [(row["suite"], row["layer"], row["pass"], row["algorithm"]) for row in rows] == [
        ("net", "lenet5, batch 8", "forward", "auto"),
        ("net", "lenet5, batch 8", "train", "auto"),
        ("algorithms", "vgg16-64-64", "forward", "im2col"),
        ("algorithms", "vgg16-64-64", "forward", "winograd"),
    ]
    assert rows[0]["ratio"] == 2.5 and rows[3]["ratio"] == 3.0 and rows[0]["references"] == {"torch": 5.0}
    speed = {"device": "AMD EPYC", "gflops": {"gemm 128x128, fast": 5.0}, "lenet_step_seconds": 0.2}
    rows = pages.as_result(speed)["rows"]
    assert [row["milliseconds"] for row in rows] == [200.0, pytest.approx(2 * 256**3 / 5e9 * 1e3)]


def test_parts_of_the_gpu_suite_become_rows():
    part = {"device": "NVIDIA H100", "driver": "1", "ended": "finished", "settings": {"part": "pool"}}
    part["rows"] = [
        {"operation": "relu", "ok": True, "ms": 0.5, "ms_p20": 0.4, "ms_p80": 0.6, "gb_per_s": 900.0, "ratio": 1.1},
        {"operation": "lrn", "ok": False, "reason": "CompileError: no"},
        {"test": "tests/test_x.py", "ok": True},
    ]
    found = pages.as_result(part)
    assert found["settings"]["passed"] == 1 and len(found["rows"]) == 2
    blank = {"layer": "", "algorithm": "", "milliseconds": None, "p20": None, "library": "torch"}
    part["rows"][0] |= blank
    assert pages.as_result(part)["rows"][0] == found["rows"][0] | blank | {"algorithm": "torch", "layer": "relu"} | {
        "milliseconds": 0.5,
        "p20": 0.4,
    }
    assert found["rows"][0]["p20"] == 0.4 and found["rows"][0]["layer"] == "relu"
    assert results.failed(found["rows"][1])


def test_the_page_of_all_results(tmp_path: Path, capsys):
    files = {"cpu__networks": networks(), "nvidia-h100__conv": on_a_gpu(), "cpu__awkward": {**made.awkward()}}
    folder = folder_of(tmp_path / "results", **files)
    options = [str(folder), "--html", str(tmp_path / "a.html"), "--markdown", str(tmp_path / "a.md")]
    assert main(["bench", "report", *options]) == 0
    names = ["cpu/awkward.json", "cpu/networks.json", "nvidia-h100/conv.json"]
    assert "a.html: 3 files" in capsys.readouterr().out
    text = (tmp_path / "a.html").read_text()
    assert [text.count(f'href="#result-{i}">{name}<') for i, name in enumerate(names)] == [1, 1, 1]
    assert [text.count(f'id="result-{i}"') for i in range(3)] == [1, 1, 1] and made.HOSTILE not in text
    markdown = (tmp_path / "a.md").read_text()
    assert "## nvidia-h100/conv.json\n\nNVIDIA H100, commit abc1234, 2026-11-25; 3 rows, 0 failed" in markdown
    assert made.HOSTILE not in markdown


@checkout
def test_the_results_that_are_kept_make_a_page(tmp_path: Path):
    assert pages.write_report(KEPT, tmp_path / "a.html", tmp_path / "a.md")


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "holds no *.json"),
        ({"cpu__a": "{"}, "a.json: not JSON"),
        ({"cpu__a": [1]}, "a.json: it holds no JSON object"),
        ({"cpu__a": {"cpu": "x", "rows": 3}}, "a.json: no results that can be shown"),
    ],
)
def test_what_is_no_results(tmp_path: Path, capsys, files, message):
    (tmp_path / "results").mkdir()
    folder = folder_of(tmp_path / "results", **files)
    assert main(["bench", "report", str(folder), "--html", str(tmp_path / "a.html")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "a.html").exists()
    assert main(["bench", "report", str(tmp_path / "none"), "--html", str(tmp_path / "a.html")]) == 1
