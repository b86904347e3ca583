"""The report: one self-contained HTML file that asks the network for nothing and trusts no model output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twn_lightning.atomic import write_text
from twn_lightning.reporting.decisions import VERDICTS
from twn_lightning.reporting.figure_style import ReportFigure
from twn_lightning.reporting.figures import (
    cot_length_by_steps,
    gain_histogram,
    gate_calibration,
    quality_against_tokens,
    think_rate_by_steps,
)
from twn_lightning.reporting.finding import finding
from twn_lightning.reporting.gallery import BADGES, gallery
from twn_lightning.reporting.markup import Markup, element, join
from twn_lightning.reporting.page import figure_card, header, page, run_list, section, text_table
from twn_lightning.reporting.read import ReportData
from twn_lightning.reporting.suite_page import render_suite_report
from twn_lightning.reporting.suite_scores import SuiteReport, load_runs
from twn_lightning.reporting.tables import (
    duration,
    kinds_table,
    percent,
    router_table,
    score_table,
    stage_table,
    steps_table,
)
from twn_lightning.reporting.task_figures import think_rate_by_task
from twn_lightning.reporting.task_tables import task_table, time_table, token_table


def write_report(source: ReportData | SuiteReport | Sequence[Path], output: Path) -> Path:
    """Write the report of an evaluation as one HTML file.

    Args:
        source: run folders, or data already read.
        output: the file to write; links to run folders are relative to its folder.

    Returns:
        `output`.

    Raises:
        DataError: no folder holds an evaluation, or a file in one is missing or malformed.
    """
    data = source if isinstance(source, (ReportData, SuiteReport)) else load_runs(source)
    folder = output.parent
    text = render_suite_report(data, folder) if isinstance(data, SuiteReport) else render_report(data, folder)
    write_text(output, text)
    return output


def render_report(data: ReportData, folder: Path) -> str:
    """The report of an evaluation under every router as HTML, the same text for the same data.

    Args:
        data: the evaluation.
        folder: where the file will lie; links are relative to it.

    Returns:
        A whole HTML document.
    """
    summary = data.summary
    parts = _sections(data, folder)
    links = {"routers": "Routers", "figures": "Figures", "tasks": "Tasks", "cost": "Cost", "examples": "Decisions"}
    overline = f"twn_lightning · {summary['suite']} · {summary['num_queries']:,} queries"
    head = header(overline, "Think when needed", finding(summary), _tiles(summary), links | {"provenance": "Runs"})
    return page(f"Think when needed: {summary['suite']}", head, *parts)


def _sections(data: ReportData, folder: Path) -> list[Markup | None]:
    summary = data.summary
    steps, kinds, stages = (make(summary) for make in (steps_table, kinds_table, stage_table))
    difficulty = [text_table(content) for content in (steps, kinds) if content.rows]
    return [
        _routers(summary),
        section("figures", "Figures", element("div", *map(figure_card, _figures(data)), class_="figures")),
        section(
            "difficulty",
            "By difficulty",
            element("div", *difficulty, class_="pair"),
            note=_STEPS_NOTE + (_KINDS_NOTE if kinds.rows else ""),
        )
        if difficulty
        else None,
        section("tasks", "By task", text_table(task_table(data), sortable=True), note=_TASK_NOTE),
        section(
            "cost",
            "Cost",
            element("div", text_table(token_table(data)), text_table(time_table(summary)), class_="pair"),
            note=_COST_NOTE,
        ),
        section("stages", "Training stages", text_table(stages), note=_STAGES_NOTE) if stages.rows else None,
        section("examples", "Decisions", _verdict_legend(), gallery(data)),
        section("provenance", "Runs and environment", run_list(data.runs, folder), _ratios(summary)),
    ]


def _routers(summary: Mapping[str, Any]) -> Markup:
    """Every router; of a benchmark suite with its score as a further column."""
    routers, scores = router_table(summary), score_table(summary)
    if not scores.rows:
        return section("routers", "Every router", text_table(routers, sortable=True), note=_ROUTER_NOTE)
    score_of = {key: row[1] for key, row in zip(scores.keys, scores.rows, strict=True)}
    rows = [[*row, score_of.get(key, "–")] for key, row in zip(routers.keys, routers.rows, strict=True)]
    scored = replace(routers, header=[*routers.header, "Score"], rows=rows)
    return section("routers", "Every router", text_table(scored, sortable=True), note=f"{_ROUTER_NOTE} {_SCORE_NOTE}")


def _figures(data: ReportData) -> list[ReportFigure]:
    """Every figure that the data allows: without known steps, think rate by steps is left out."""
    by_steps = [think_rate_by_steps] if data.summary["by_steps"] else []
    others = [think_rate_by_task, gate_calibration, gain_histogram, cot_length_by_steps]
    return [figure(data) for figure in (quality_against_tokens, *by_steps, *others)]


_ROUTER_NOTE = (
    "hit@1 over all queries with its 95 % interval, and the reasoning tokens each router spends, averaged over all "
    "queries. The oracle knows the outcome beforehand: it thinks where only thinking hits."
)
_SCORE_NOTE = "Score: the mean over the suite's meta-tasks of the mean over their tasks, each by its own metric."
_STEPS_NOTE = "hit@1 without thinking, with it, and by the gate's choice, by the true number of reasoning steps."
_KINDS_NOTE = (
    " The same by kind of query: direct asks for what is shown, a lookalike has near-duplicates that a CoT does not "
    "tell apart, steps need reasoning."
)
_TASK_NOTE = (
    "Each task by its own metric, which is hit@1 where none is named. The interval is of the gate's choice, over the "
    "task's queries. Choose a column name to sort by it."
)
_COST_NOTE = (
    "Reasoning tokens: the mean is over all queries, median and 95th percentile (p95) over those that think. Time: as "
    "measured on the machine below; embeddings and CoTs that were cached already took none."
)
_STAGES_NOTE = "In the order in which they ran, on held-out data."


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The headline numbers: value, name, explanation."""
    modes = summary["modes"]
    tiles = []
    if "adaptive" in modes:
        adaptive = modes["adaptive"]
        low, high = adaptive["ci95"]
        tiles.append((percent(adaptive["hit@1"]), "adaptive hit@1", f"{100 * low:.1f} – {100 * high:.1f}"))
        if modes.get("always", {}).get("tokens_per_query"):
            share = adaptive["tokens_per_query"] / modes["always"]["tokens_per_query"]
            tiles.append((percent(share, 0), "of always' tokens", f"{adaptive['tokens_per_query']:.1f} a query"))
    if summary["think_rate"] is not None:
        tiles.append((percent(summary["think_rate"], 0), "think rate", "share of queries"))
    auroc, ece = summary["gate"]["auroc"], summary["gate"]["ece"]
    if auroc is not None:
        tiles.append((f"{auroc:.3f}", "gate AUROC", "" if ece is None else f"ECE {ece:.3f}"))
    what = "training and evaluation" if summary["stages"] else "evaluation"
    tiles.append((duration(summary["seconds"]), "wall clock", what))
    return tiles


def _verdict_legend() -> Markup:
    entries = [
        join(element("dt", element("span", BADGES[verdict], class_=f"badge {verdict}")), element("dd", meaning))
        for verdict, meaning in VERDICTS.items()
    ]
    return element("dl", *entries, class_="legend")


def _ratios(summary: Mapping[str, Any]) -> Markup:
    ratios = ", ".join(f"{name} {percent(ratio)}" for name, ratio in summary["added_parameter_ratio"].items())
    parts = [f"Parameters added to the frozen backbone (adapters, queries, gate): {ratios}."]
    if "malformed_cot_rate" in summary:
        parts.append(f"Malformed chains of thought: {percent(summary['malformed_cot_rate'])}.")
    if summary.get("oracle_tokens_ratio") is not None:
        parts.append(f"The gate spends {summary['oracle_tokens_ratio']:.2f} times the oracle's tokens.")
    return element("p", " ".join(parts), class_="note")
