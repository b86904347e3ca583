"""The report in a driven browser: tables sort and the gallery filters, by click and by key; phone and paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.test_report_browser import decisions, summary_of
from tests.support.browser import Browser, browser, needs_browser
from tests.unit.reporting.test_suite_report import make_run
from twn_lightning.reporting import ReportData, write_report

pytestmark = needs_browser
ENTER, TAB = "\ue007", "\ue004"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = decisions()
    folder = tmp_path_factory.mktemp("report")
    return write_report(ReportData.from_table(summary_of(table), table), folder / "report.html")


@pytest.fixture
def report(written: Path, window: Browser) -> Iterator[Browser]:
    """The report, just opened at 1280 pixels; nothing may land on the console."""
    window.show(1280, 1000)
    window.open("about:blank")
    window.open(written.as_uri())
    yield window
    assert window.console() == []


def column(page: Browser, number: int, table: str = "#tasks") -> list[str]:
    """The cells of a column, from the top."""
    return page.texts(f"{table} tbody tr > :nth-child({number})")


def test_a_table_sorts_by_click_both_ways(report: Browser) -> None:
    before = column(report, 2)
    numbers = [int(text) for text in before]
    report.click("#tasks th:nth-child(2) button")
    assert [int(text) for text in column(report, 2)] == sorted(numbers, reverse=True)
    assert report.run("return document.querySelector('#tasks th:nth-child(2)').ariaSort") == "descending"
    report.click("#tasks th:nth-child(2) button")
    assert [int(text) for text in column(report, 2)] == sorted(numbers)
    names = column(report, 1)
    report.click("#tasks th:nth-child(1) button")
    assert column(report, 1) == sorted(names)
    assert report.run("return document.querySelectorAll('#tasks [aria-sort]').length") == 1


def test_a_table_sorts_by_key(report: Browser) -> None:
    report.run("document.querySelector('#routers th:nth-child(2) button').focus()")
    report.keys(ENTER)
    shown = [float(text.split("\N{NO-BREAK SPACE}")[0]) for text in column(report, 2, "#routers")]
    assert shown == sorted(shown, reverse=True)
    report.keys(TAB)
    assert report.run("return document.activeElement.textContent") == "95 % interval"


def test_rows_without_a_number_sort_last(window: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", names=["N24News"])
    window.show(1280, 1000)
    window.open(write_report([run], tmp_path / "report.html").as_uri())
    place = 1 + window.run("return [...document.querySelectorAll('#scoreboard th')].map(h => h.textContent)").index(
        "I-CLS"
    )
    for _ in ("high first", "low first"):
        window.click(f"#scoreboard th:nth-child({place}) button")
        cells = column(window, place, "#scoreboard")
        known = [float(cell) for cell in cells if cell != "–"]
        assert len(known) < len(cells)
        assert cells[len(known) :] == ["–"] * (len(cells) - len(known))
        assert known in (sorted(known), sorted(known, reverse=True))
    assert window.console() == []


def cards(page: Browser) -> list[dict[str, str]]:
    """The data of every card that is shown."""
    script = (
        "return [...document.querySelectorAll('.card')].filter(c => c.checkVisibility()).map(c => ({...c.dataset}))"
    )
    return list(page.run(script))


def test_the_gallery_filters_by_verdict_task_and_text(report: Browser) -> None:
    assert len(cards(report)) == 60
    report.click("#filters button[data-verdict=hurt]")
    assert {card["verdict"] for card in cards(report)} == {"hurt"}
    report.click("#filters button[data-verdict=missed]")
    assert {card["verdict"] for card in cards(report)} == {"hurt", "missed"}
    report.run(_CHOOSE, "task", "nano/read")
    assert {card["task"] for card in cards(report)} == {"nano/read"}
    assert "verdict=hurt%2Cmissed" in report.run("return location.hash")
    report.type("#filters input[type=search]", "no such words")
    assert cards(report) == []
    assert report.text("#shown") == "0 of 60 examples"
    assert report.texts("#none") == ["No example fits these filters."]


_CHOOSE = """
const field = document.querySelector(`#filters select[name=${arguments[0]}]`);
field.value = arguments[1];
field.dispatchEvent(new Event("input"));
"""


def test_text_search_finds_the_query(report: Browser) -> None:
    wanted = max(report.texts(".card h3"), key=len).split("<")[0].strip()
    report.type("#filters input[type=search]", wanted.upper())
    found = report.texts(".card h3")
    assert 0 < len(found) < 60
    assert all(wanted.split()[1] in text for text in found)


def test_the_gallery_by_keys(report: Browser) -> None:
    focused = "return [...document.querySelectorAll('.card')].indexOf(document.activeElement)"
    report.keys("j")
    assert report.run(focused) == 0
    report.keys("j", "j", "k")
    assert report.run(focused) == 1
    assert report.texts(".card:nth-child(2) pre") == []
    report.keys(ENTER)
    assert len(report.texts(".card:nth-child(2) pre")) == 1
    report.keys("/")
    assert report.run("return document.activeElement.type") == "search"
    report.keys("j")
    assert report.run("return document.activeElement.value") == "j"
    report.keys(ENTER)


def test_the_keyboard_reaches_the_results_first(report: Browser) -> None:
    report.keys(TAB)
    assert report.run("return document.activeElement.getAttribute('href')") == "#main"
    assert report.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(report: Browser, width: int, scheme: str) -> None:
    report.show(width, 900, scheme)
    assert report.run("return document.documentElement.scrollWidth") == width


def test_text_has_contrast_in_both_schemes(report: Browser) -> None:
    for scheme in ("light", "dark"):
        report.show(1280, 900, scheme)
        for selector in ("p.note", "th", ".card h3", ".badge.hurt", ".badge.wasted", ".facts dt", "figcaption"):
            assert report.run(_CONTRAST, selector) >= 4.5, (scheme, selector)


_CONTRAST = """
const light = (color) => {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
  const linear = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
};
const shown = document.querySelector(arguments[0]);
let behind = shown;
while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
const pair = [getComputedStyle(shown).color, getComputedStyle(behind).backgroundColor].map(light).sort((a, b) => b - a);
return (pair[0] + 0.05) / (pair[1] + 0.05);
"""


def test_on_paper_there_are_tables_and_no_controls(report: Browser, tmp_path: Path) -> None:
    report.show(800, 1100, "dark", media="print")
    assert report.texts("nav a, #filters button") == []
    assert len(column(report, 1)) == 4
    pixels = np.asarray(Image.open(report.screenshot(tmp_path / "paper.png")).convert("RGB"))
    assert tuple(pixels[2, 2]) == (255, 255, 255)
