"""The page of a benchmark's results: as text, and in a real browser where one is installed."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gpucnn.bench import page
from gpucnn.files import WriteError
from tests import bench_results as made

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
VOID = {"meta", "input", "br"}
RESULTS = {
    "vgg16": made.vgg16,
    "awkward": made.awkward,
    "none": made.result,
    "one": lambda: made.result(made.row()),
    "many": lambda: made.many(500),
    "sim": lambda: made.result(made.counted("conv1", "im2col"), made.counted("conv1", "implicit_gemm")),
}


class Structure(HTMLParser):
    """Which elements there are, with their attributes; fails where an end does not fit its start."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID and not (self.open and self.open[-1] == "svg" and tag == "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def written(result: Any, folder: Path) -> str:
    page.write_html(result, folder / "page.html")
    assert [path.name for path in folder.iterdir()] == ["page.html"]
    return (folder / "page.html").read_text()


@pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS.keys())
def test_the_page_is_well_formed_and_whole(make, tmp_path: Path):
    found = Structure()
    found.feed(written(make(), tmp_path))
    assert not found.open
    assert sum(tag == "script" for tag, _ in found.found) == 1
    for tag, attributes in found.found:
        assert not {"src", "href", "srcset", "action"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
    rows = [attributes for tag, attributes in found.found if tag == "tr" and "-" in (attributes.get("data-row") or "")]
    assert len(rows) == len(make()["rows"])


def test_the_policy_names_the_only_script(tmp_path: Path):
    text = written(made.awkward(), tmp_path)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    name = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{name}'" in text
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text and "url(" not in text


def test_text_is_escaped(tmp_path: Path):
    text = written(made.awkward(), tmp_path)
    assert made.HOSTILE not in text and "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in text
    found = Structure()
    found.feed(text)
    assert made.HOSTILE in found.texts


def test_numbers_are_sorted_by_their_value(tmp_path: Path):
    text = written(made.result(made.row(milliseconds=1234.5, max_error=float("nan"))), tmp_path)
    assert '<td class="figure" data-value="1234.5">1,234</td>' in text
    assert (
        "nan" not in text and "None" not in text and "inf" not in re.sub(r"<script>.*</script>", "", text, flags=re.S)
    )


def test_bars_have_the_lengths_of_the_rates(tmp_path: Path):
    text = written(made.result(made.row("a", tflops=0.02), made.row("b", tflops=0.08, references={})), tmp_path)
    assert [float(length) for length in re.findall(r"--length:([\d.]+)", text)] == [0.25, 1.0]
    assert [float(place) for place in re.findall(r"--at:([\d.]+)", text)] == [0.125]


@pytest.mark.parametrize("low, high, expected", [(0.9, 12, [1, 2, 5, 10]), (0.5, 2e3, [1, 10, 100, 1000])])
def test_ticks(low, high, expected):
    assert page.ticks(low, high) == expected


def test_a_page_that_cannot_be_written(tmp_path: Path):
    with pytest.raises(WriteError, match="create the folder first"):
        page.write_html(made.result(), tmp_path / "none" / "page.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser. Where there is none the test is skipped, or fails if GPUCNN_REQUIRE_BROWSER=1."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    missing = (
        "no chromium" if program is None else "no playwright" if not importlib.util.find_spec("playwright") else ""
    )
    if missing and os.environ.get("GPUCNN_REQUIRE_BROWSER") == "1":
        pytest.fail(f"GPUCNN_REQUIRE_BROWSER=1 but there is {missing}: apt install chromium, pip install playwright")
    if missing:
        pytest.skip(f"there is {missing}; apt install chromium and pip install playwright for the page in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield running
        running.close()


class Visit:
    """A page that is open in the browser, with all that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
        self.page.set_default_timeout(20_000)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())

    def column(self, heading: str) -> list[str]:
        """The texts of a column's visible cells."""
        names = self.page.locator("table.rows thead th button").all_inner_texts()
        place = names.index(heading) + 1
        return self.page.locator(f"table.rows tbody tr:not([hidden]) td:nth-child({place})").all_inner_texts()

    def sort_by(self, heading: str) -> str:
        """Press a column's button; returns its new direction."""
        button = self.page.locator("table.rows thead").get_by_role("button", name=heading, exact=True)
        button.focus()
        self.page.keyboard.press("Enter")
        return button.locator("xpath=..").get_attribute("aria-sort")


def test_the_page_in_a_browser(browser, tmp_path: Path):
    result = made.network("vgg16", made.VGG16[:3], ("forward", "backward_input"))
    result["rows"][3]["layer"] = made.HOSTILE
    written(result, tmp_path)
    visit = Visit(browser, tmp_path / "page.html")

    assert visit.sort_by("ms") == "ascending"
    times = [float(text.replace(",", "")) for text in visit.column("ms") if text]
    assert times == sorted(times) and visit.column("ms")[len(times) :] == [""] * (30 - len(times)) and len(times) == 24
    assert visit.sort_by("ms") == "descending"
    assert [float(text.replace(",", "")) for text in visit.column("ms") if text] == times[::-1]
    assert visit.sort_by("layer") == "ascending"
    assert (
        visit.page.locator("table.rows th[aria-sort=none]").count()
        == len(visit.page.locator("table.rows th").all()) - 1
    )
    assert visit.column("layer") == sorted(visit.column("layer"))

    visit.page.get_by_label("filter").fill("conv1_2 BACKWARD")
    assert set(visit.column("layer")) == {"conv1_2"} and set(visit.column("pass")) == {"backward_input"}
    assert visit.page.locator("form.filters output").inner_text() == "5 of 30 rows"
    assert visit.page.locator("figure:not([hidden]) .bar:not([hidden])").count() == 5
    visit.page.get_by_label("algorithm").select_option("im2col")
    assert visit.column("algorithm") == ["im2col"]
    visit.page.get_by_label("filter").fill("<script>")
    visit.page.get_by_label("algorithm").select_option("")
    assert visit.column("layer") == [made.HOSTILE]

    before = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    visit.page.get_by_role("button", name="Colours").click()
    visit.page.get_by_role("button", name="Colours: light").click()
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    visit.page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert visit.complaints == [] and visit.requests == [(tmp_path / "page.html").as_uri()]


@pytest.mark.parametrize("name", ["awkward", "none", "many"])
def test_pages_that_are_no_usual_ones_in_a_browser(browser, tmp_path: Path, name):
    written(RESULTS[name](), tmp_path)
    visit = Visit(browser, tmp_path / "page.html", color_scheme="dark")
    assert visit.page.locator("table.rows tbody tr").count() == len(RESULTS[name]()["rows"])
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert visit.complaints == [] and visit.requests == [(tmp_path / "page.html").as_uri()]
