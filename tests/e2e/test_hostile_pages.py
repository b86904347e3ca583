"""Every page in a real browser, with hostile text wherever a page shows text: nothing runs, nothing is injected."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.browser import Browser, browser, needs_browser
from tests.unit.reporting.conftest import make_decisions
from tests.unit.reporting.test_suite_report import make_run
from twn_lightning.json_object import write_json
from twn_lightning.reporting import build_summary, write_report, write_summary
from twn_lightning.reporting.sweep import load_sweep
from twn_lightning.reporting.sweep_page import render_sweep_html
from twn_lightning.sweep_folder import SweepFolder

pytestmark = needs_browser

PLAIN = "plain words"
PAYLOADS = {
    "script": "<script>window.broken = 1; alert(1)</script>",
    "end of script": "</script><script>window.broken = 1</script>",
    "image": "<img src=x onerror=\"window.broken=1; alert(1)\">",
    "vector image": "<svg onload=window.broken=1><animate onbegin=alert(1) attributeName=x></svg>",
    "attribute": "\" onmouseover=\"window.broken=1\" autofocus onfocus=\"window.broken=1\" x=\"",
    "single quotes": "' onclick='window.broken=1' style='position:fixed' x='",
    "end of text": "</pre></td></details></title></style><iframe srcdoc='<script>parent.broken=1</script>'></iframe>",
    "comment": "--><!--><b onclick=alert(1)>b</b><![CDATA[<i>]]>",
    "frame": "<iframe src=javascript:parent.broken=1></iframe><object data=javascript:alert(1)></object>",
    "form": "<form action=javascript:alert(1)><input autofocus onfocus=window.broken=1></form><base href=//x>",
    "entity": "&lt;script&gt;window.broken=1&lt;/script&gt;&#60;img src=x onerror=alert(1)&#62;",
    "template": "${body} $title {{constructor.constructor('window.broken=1')()}}",
    "address": "javascript:window.broken=1//data:text/html,<script>parent.broken=1</script>",
    "line ends": "\u2028window.broken=1\u2029\u202etxt.exe\u202c\x0b\x1b[31m",
}  # fmt: skip
USUAL = ("script", "attribute", "end of text", "template", "line ends")
"""One of each kind; `TRUST=full` tries all of them."""
TRIED = list(PAYLOADS) if os.environ.get("TRUST") == "full" else USUAL


def evaluated_run(folder: Path, text: str) -> Path:
    """The report of an evaluated run whose folder, tasks, queries, CoTs, errors and environment hold a text."""
    run = folder / "".join(letter for letter in text if letter not in "/\0")
    run.mkdir(parents=True)
    table = make_decisions(60, images=10)
    columns = {name: [text] * 60 for name in ("cot", "positive", "top1_discriminative", "top1_generative")}
    columns |= {"query_text": [f"{text} {row}" for row in range(60)], "query_key": [f"{text} {i}" for i in range(60)]}
    columns |= {"task": [f"{task} {text}" for task in table["task"].to_pylist()]}
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, run / "gate_decisions.parquet")
    score = SimpleNamespace(hit_at_1=0.5, tokens_per_query=5.0, think_rate=0.5, ci95=(0.4, 0.6), hits=np.zeros(60))
    summary = build_summary(
        table,
        suite=text,
        stages={"sft": {"metric": text, "before": 0.1, "after": 0.2, "seconds": 3.0}},
        added_parameter_ratio={text: 0.1},
        router_scores=dict.fromkeys(("never", "always", "adaptive", "random", "oracle"), score),
        gate={"auroc": 0.9, "ece": 0.1},
        seconds=1.0,
    )
    write_summary(summary, run / "summary.json", complete=False)
    write_json(run / "status.json", {"status": "FAILED", "error": text})
    write_json(run / "env.json", {"command": ["twn", text], "git": {text: text}, "hardware": {"processor": text}})
    return write_report([run], folder / "report.html")


def benchmark_run(folder: Path, text: str) -> Path:
    """The report of a benchmark run of a model with a text for its name."""
    run = make_run(folder / "run", names=["N24News", "DocVQA"], model=text)
    write_json(run / "status.json", {"status": "COMPLETED", "error": text})
    return write_report([run], folder / "report.html")


def sweep(folder: Path, text: str) -> Path:
    """The report of a sweep over a key whose value is a text; one job failed with it."""
    values = ["a", text, f"{text} {text}"]
    swept = SweepFolder(folder / "sweep").plan([f"name={text}"], {"name": values}, 3)
    for number, value in enumerate(values):
        job = swept.job([f"name={value}"], number)
        job.write(60.0, 0)
        if number == 2:
            job.run.status("FAILED", text)
        else:
            job.run.finish({"headline": {"metric": text, "before": 0.0, "after": 0.5 + number / 10}, text: 0.5})
    swept.finish(early=False)
    page = folder / "report.html"
    page.write_text(render_sweep_html(load_sweep(swept.path), folder), encoding="utf-8")
    return page


PAGES: dict[str, Callable[[Path, str], Path]] = {
    "evaluation": evaluated_run,
    "benchmark": benchmark_run,
    "sweep": sweep,
}


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.show(1280, 1000)
        yield opened


@dataclass(frozen=True)
class Elements:
    """What a page consists of once it is loaded."""

    counts: dict[str, int]
    """How many of each kind, figures' insides left out: their ticks and line breaks depend on the texts."""
    in_figures: set[str]
    """The kinds inside figures."""


def elements(window: Browser, page: Path) -> Elements:
    """The elements of a page, after every detail is opened."""
    window.open("about:blank")
    window.open(page.as_uri())
    window.wait("document.readyState === 'complete'")
    counts, in_figures = window.run(_ELEMENTS)
    return Elements(counts, set(in_figures))


_ELEMENTS = """
document.querySelectorAll("details").forEach((details) => { details.open = true; });
const counts = {};
for (const { localName } of document.querySelectorAll(":not(svg *)")) counts[localName] = (counts[localName] || 0) + 1;
return [counts, [...document.querySelectorAll("svg *")].map((found) => found.localName)];
"""
_ATTRIBUTES = """
const links = ["href", "src", "action", "formaction", "data", "xlink:href"];
const risky = [];
for (const found of document.querySelectorAll("*"))
  for (const { name, value } of found.attributes)
    if (name.startsWith("on") || name === "srcdoc" || (links.includes(name) && /^\\s*\\w*script:/i.test(value)))
      risky.push(`${name}=${value}`);
return risky;
"""
"""Attributes that would run a script."""


@pytest.fixture(scope="module")
def plain(window: Browser, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Elements]:
    """The elements of each page where its texts are harmless."""
    return {name: elements(window, make(tmp_path_factory.mktemp(name), PLAIN)) for name, make in PAGES.items()}


@pytest.mark.parametrize("payload", TRIED)
@pytest.mark.parametrize("name", PAGES)
def test_hostile_text_stays_text(
    name: str, payload: str, window: Browser, plain: dict[str, Elements], tmp_path: Path
) -> None:
    text = PAYLOADS[payload]
    page = PAGES[name](tmp_path, text)
    found = elements(window, page)
    assert found.counts == plain[name].counts
    assert found.in_figures <= plain[name].in_figures
    assert window.run("return window.broken") is None
    assert window.run(_ATTRIBUTES) == []
    assert window.run("return document.scripts.length") == 1
    policy = window.run("return document.querySelector('meta[http-equiv=Content-Security-Policy]').content")
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert window.console() == [], "nothing was even tried: the policy logs what it refuses"
    shown = window.run("return document.body.innerText + document.title")
    visible = text.split("\n")[0].strip()[:20]
    assert visible.split()[0] in shown


def test_an_injected_element_would_be_found(window: Browser, plain: dict[str, Elements], tmp_path: Path) -> None:
    """The same page with a payload that is not escaped: counted, and its script refused by the policy."""
    page = sweep(tmp_path, PLAIN)
    page.write_text(page.read_text().replace("</main>", f"{PAYLOADS['script']}{PAYLOADS['image']}</main>"))
    assert elements(window, page).counts != plain["sweep"].counts
    assert window.run("return window.broken") is None
    assert any("Content Security Policy" in line for line in window.console())


def test_a_picture_that_is_no_picture_is_left_out(window: Browser, tmp_path: Path) -> None:
    """Bytes in place of a thumbnail go nowhere near the page."""
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, format="PNG")
    run = evaluated_run(tmp_path, PLAIN).parent / PLAIN
    table = pq.read_table(run / "gate_decisions.parquet")
    hostile = b'<svg xmlns="http://www.w3.org/2000/svg"><script>parent.broken=1</script></svg>'
    pictures = pa.array([content.getvalue(), hostile] * 30, pa.binary())
    pq.write_table(
        table.set_column(table.column_names.index("image_png"), "image_png", pictures), run / "gate_decisions.parquet"
    )
    page = write_report([run], tmp_path / "report.html")
    elements(window, page)
    addresses = window.run("return [...document.images].map((image) => image.src.slice(0, 22))")
    assert addresses
    assert set(addresses) <= {"data:image/png;base64,"}
    assert window.run("return window.broken") is None
