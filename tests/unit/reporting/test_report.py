"""The reports: self-contained, deterministic, hostile text escaped, figures true to the decisions."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from rich.console import Console

from twn_lightning.errors import DataError
from twn_lightning.reporting import ReportData, load_report, print_tables, write_markdown, write_report
from twn_lightning.reporting.decisions import VERDICTS, read_decisions
from twn_lightning.reporting.figures import reliability, threshold_curve
from twn_lightning.reporting.finding import finding
from twn_lightning.reporting.gallery import BADGES, GALLERY_SIZE, choose_examples
from twn_lightning.reporting.html import render_report
from twn_lightning.reporting.markdown import escape_markdown
from twn_lightning.reporting.tables import duration, percent
from twn_lightning.reporting.task_figures import think_rate_by_task
from twn_lightning.reporting.task_tables import task_table, time_table, token_table
from twn_lightning.reporting.thumbnails import png_address

HOSTILE = "</pre><script>alert('x')</script><img src=x onerror=alert(1)>\"' onload=\"alert(2)"


class Page(HTMLParser):
    """Tags, ids and addresses of a page, and whether its tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def data(decisions: pa.Table, summary: dict[str, Any]) -> ReportData:
    return ReportData.from_table(summary, decisions)


def test_report_is_one_well_formed_file_without_outside_addresses(data: ReportData) -> None:
    text = render_report(data, Path())
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?:|//[a-z]|@import", text)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("script") == 1
    assert page.tags.count("svg") == 6


def test_report_is_deterministic(data: ReportData) -> None:
    assert render_report(data, Path()) == render_report(data, Path())


def test_model_text_is_escaped(decisions: pa.Table, summary: dict[str, Any]) -> None:
    hostile = decisions
    for name in ("query_text", "cot", "positive", "top1_discriminative", "top1_generative", "task"):
        hostile = hostile.set_column(hostile.column_names.index(name), name, pa.array([HOSTILE] * hostile.num_rows))
    page = Page(render_report(ReportData.from_table(summary, hostile), Path()))
    assert page.tags.count("script") == 1
    assert page.handlers == []
    assert page.open == []


def test_bytes_that_are_no_png_are_not_shown(decisions: pa.Table, summary: dict[str, Any]) -> None:
    fake = pa.array([b"<svg onload=alert(1)>"] * decisions.num_rows, pa.binary())
    table = decisions.set_column(decisions.column_names.index("image_png"), "image_png", fake)
    assert "img" not in Page(render_report(ReportData.from_table(summary, table), Path())).tags


def test_a_photograph_is_embedded_small(decisions: pa.Table, summary: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 150, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    photographs = pa.array([buffer.getvalue()] * decisions.num_rows, pa.binary())
    table = decisions.set_column(decisions.column_names.index("image_png"), "image_png", photographs)
    text = render_report(ReportData.from_table(summary, table), Path())
    assert text.count("data:image/jpeg;base64,") == GALLERY_SIZE
    assert len(text) < 0.5 * GALLERY_SIZE * len(buffer.getvalue())


def test_names_of_tasks_are_no_formulas(decisions: pa.Table, summary: dict[str, Any]) -> None:
    names = pa.array([r"nano/$\frac{a$" + "x" * 100] * decisions.num_rows)
    table = decisions.set_column(decisions.column_names.index("task"), "task", names)
    assert "frac{a" in think_rate_by_task(ReportData.from_table(summary, table)).svg


def test_a_png_that_claims_to_be_huge_is_left_out() -> None:
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, format="PNG")
    assert png_address(buffer.getvalue()) is None
    assert png_address(None) is None


def test_a_graded_outcome_shows_its_metric(decisions: pa.Table, summary: dict[str, Any]) -> None:
    table = decisions
    for name, quality in (("hit_discriminative", 0.63), ("hit_generative", 1.0)):
        table = table.set_column(table.column_names.index(name), name, pa.array([quality] * table.num_rows))
    text = render_report(ReportData.from_table(summary, table), Path())
    assert text.count('<span class="count">63\N{NO-BREAK SPACE}%</span>') == GALLERY_SIZE
    assert text.count('<span class="hit">✓ hit</span>') == GALLERY_SIZE
    assert "✗ miss" not in text


def test_long_texts_are_cut(decisions: pa.Table, summary: dict[str, Any]) -> None:
    long = decisions
    for name in ("query_text", "cot", "positive"):
        texts = pa.array(["word " * 100_000] * decisions.num_rows)
        long = long.set_column(long.column_names.index(name), name, texts)
    text = render_report(ReportData.from_table(summary, long), Path())
    assert "(496,000 more characters)" in text
    assert len(text) < 3_000_000


def test_task_table_is_of_the_decisions(data: ReportData) -> None:
    table = task_table(data)
    assert table.keys == ["nano/exit", "nano/follow", "nano/read"]
    chosen = data.decisions.task_N == "nano/follow"
    row = dict(zip(table.header, table.rows[1], strict=True))
    assert row["Task"] == "follow"
    assert row["Queries"] == str(chosen.sum())
    assert row["Adaptive"] == percent(float(data.decisions.hit_adaptive_N[chosen].mean()))
    low, high = (float(bound) for bound in re.findall(r"[\d.]+", row["95 % interval"]))
    assert low <= float(row["Adaptive"].split("\N{NO-BREAK SPACE}")[0]) <= high


def test_tasks_of_a_suite_name_meta_task_and_metric(summary: dict[str, Any], decisions: pa.Table) -> None:
    names = pa.array(["mmeb_nano/NanoDoc", "mmeb_nano/NanoQA"] * (decisions.num_rows // 2))
    table = decisions.set_column(decisions.column_names.index("task"), "task", names)
    data = ReportData.from_table(summary | {"suite": "mmeb_nano"}, table)
    shown = task_table(data)
    assert [row[:3] for row in shown.rows] == [["NanoQA", "I-QA", "hit@1"], ["NanoDoc", "VisDoc", "ndcg_linear@5"]]
    assert think_rate_by_task(data).title == "Think rate by meta-task"
    assert "I-QA: " in think_rate_by_task(data).alt


def test_cost_counts_every_token_and_second(data: ReportData) -> None:
    tokens = dict(zip(token_table(data).keys, token_table(data).rows, strict=True))
    spent = int(data.decisions.tokens_N[data.decisions.think_N].sum())
    assert tokens["adaptive"][1] == f"{spent / len(data.decisions):.1f}"
    assert tokens["adaptive"][-1] == f"{spent:,}"
    assert tokens["never"][1:] == ["0.0", "–", "–", "0"]
    times = time_table(data.summary)
    assert times.keys == ["sft", "rl", "gate", "evaluation", "total"]
    assert times.rows[-2][1] == duration(231.5 - 121.4 - 48.0 - 9.3)


def test_gallery_is_bounded_and_shows_every_verdict(data: ReportData) -> None:
    examples = choose_examples(data)
    present = set(data.decisions.verdicts().tolist())
    assert len(examples) == GALLERY_SIZE
    assert {example.verdict for example in examples} == present
    assert set(BADGES) == set(VERDICTS)
    assert len({example.row["query_key"] for example in examples}) == GALLERY_SIZE


def test_run_folders_are_read_and_linked_relatively(make_run: Callable[..., Path], decisions: pa.Table) -> None:
    folders = [make_run("sft"), make_run("rl", status="INTERRUPTED"), make_run("gate", decisions)]
    output = write_report(folders, folders[0].parent / "report.html")
    text = output.read_text()
    assert {"./sft/", "./rl/", "./gate/"} <= set(Page(text).addresses)
    assert "$ twn train stage=rl &#x27;name=my demo&#x27;" in text
    assert "interrupted" in text
    assert "/somewhere" not in text
    markdown = write_markdown(folders, folders[0].parent / "report.md").read_text()
    assert markdown.startswith("# Think when needed\n\nOn 600 queries of nano")
    assert "| **adaptive (gate)** |" in markdown


def test_errors_of_run_folders(make_run: Callable[..., Path], decisions: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run folder at"):
        load_report([tmp_path / "nowhere"])
    bare, evaluated = make_run("sft"), make_run("gate", decisions)
    with pytest.raises(DataError, match=r"no run folder holds a summary\.json"):
        load_report([bare])
    (evaluated / "gate_decisions.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not readable parquet"):
        load_report([evaluated])
    (evaluated / "gate_decisions.parquet").unlink()
    with pytest.raises(DataError, match=r"has no gate_decisions\.parquet"):
        load_report([evaluated])
    (bare / "status.json").write_text("{")
    with pytest.raises(DataError, match=r"status\.json is broken"):
        load_report([bare])


def test_summary_of_another_evaluation_is_refused(decisions: pa.Table, summary: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="counts 600 queries and the gate decisions have 10"):
        ReportData.from_table(summary, decisions.slice(0, 10))


def test_threshold_curve_runs_from_never_to_always_through_adaptive(decisions: pa.Table) -> None:
    columns = read_decisions(decisions)
    tokens_P, hit_P = threshold_curve(columns)
    assert hit_P[0] == pytest.approx(columns.hit_discriminative_N.mean())
    assert hit_P[-1] == pytest.approx(columns.hit_generative_N.mean())
    assert tokens_P[-1] == pytest.approx(columns.tokens_N.mean())
    assert np.all(np.diff(tokens_P) > 0)
    adaptive = np.argmin(np.abs(tokens_P - (columns.tokens_N * columns.think_N).mean()))
    assert hit_P[adaptive] == pytest.approx(columns.hit_adaptive_N.mean())


def test_reliability_counts_every_query(decisions: pa.Table) -> None:
    bins = reliability(read_decisions(decisions))
    assert bins.count_B.sum() == decisions.num_rows
    assert np.all((bins.low_B <= bins.observed_B + 1e-12) & (bins.observed_B <= bins.high_B + 1e-12))


def test_steps_unknown_everywhere(decisions: pa.Table, summary: dict[str, Any]) -> None:
    unknown = pa.array([None] * decisions.num_rows, pa.int64())
    table = decisions.set_column(decisions.column_names.index("steps"), "steps", unknown)
    summary |= {"by_steps": {}, "cot_length_ratio": None}
    text = render_report(ReportData.from_table(summary, table), Path())
    assert "Think rate by steps" not in text


@pytest.mark.parametrize("think", [True, False])
def test_a_gate_that_always_says_the_same(decisions: pa.Table, summary: dict[str, Any], think: bool) -> None:
    table = decisions.set_column(decisions.column_names.index("think"), "think", pa.array([think] * 600))
    assert Page(render_report(ReportData.from_table(summary, table), Path())).open == []


def test_finding_says_so_when_thinking_did_not_pay(summary: dict[str, Any]) -> None:
    modes = summary["modes"]
    modes["adaptive"]["hit@1"] = modes["always"]["hit@1"] - 0.05
    assert "loses 5.0 points" in finding(summary)
    modes["always"]["hit@1"] = modes["never"]["hit@1"] - 0.1
    assert "thinking did not help" in finding(summary)
    del modes["adaptive"]
    assert "hit@1 by router: never" in finding(summary)


def test_terminal_tables_fit_80_columns(summary: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=80)
    print_tables(summary, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "random, equal rate" in text
    assert "…" not in text


def test_a_benchmark_suite_shows_its_score_and_kinds(summary: dict[str, Any], decisions: pa.Table) -> None:
    part = summary["by_steps"]["0"]
    summary["by_kind"] = {"lookalike": part}
    summary["modes"]["oracle"]["score"] = 0.8712
    console = Console(file=io.StringIO(), width=80)
    print_tables(summary, console)
    page = render_report(ReportData.from_table(summary, decisions), Path())
    for text in (console.file.getvalue(), page):  # type: ignore[attr-defined]
        assert "lookalike" in text
        assert re.search(r"87\.1\s%", text)


def test_markdown_cells_cannot_break_out() -> None:
    assert escape_markdown("a|b\n<c>") == r"a\|b \<c\>"
