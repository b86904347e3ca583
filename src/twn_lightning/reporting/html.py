"""The report: one self-contained HTML file that asks the network for nothing and trusts no model output."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from twn_lightning.reporting.decisions import VERDICTS
from twn_lightning.reporting.figure_style import ReportFigure
from twn_lightning.reporting.figures import draw_figures
from twn_lightning.reporting.finding import finding
from twn_lightning.reporting.gallery import BADGES, gallery
from twn_lightning.reporting.markup import Markup, element, join, table
from twn_lightning.reporting.read import ReportData, RunRecord, load_report
from twn_lightning.reporting.tables import (
    TextTable,
    duration,
    kinds_table,
    percent,
    router_table,
    score_table,
    stage_table,
    steps_table,
)
from twn_lightning.run import write_text


def write_report(source: ReportData | Sequence[Path], output: Path) -> Path:
    """Write the report of an evaluation as one HTML file.

    Args:
        source: run folders, or data already read.
        output: the file to write; links to run folders are relative to its folder.

    Returns:
        `output`.

    Raises:
        DataError: no folder holds an evaluation, or a file in one is missing or malformed.
    """
    data = source if isinstance(source, ReportData) else load_report(source)
    write_text(output, render_report(data, output.parent))
    return output


def render_report(data: ReportData, folder: Path) -> str:
    """The report as HTML, the same text for the same data.

    Args:
        data: the evaluation.
        folder: where the file will lie; links are relative to it.

    Returns:
        A whole HTML document.
    """
    style, script = _asset("report.css"), _asset("report.js")
    figures = draw_figures(data)
    summary = data.summary
    body = join(
        _header(summary),
        element(
            "main",
            _section("routers", "Every router", _text_table(router_table(summary)), note=_ROUTER_NOTE),
            _section("score", "Score", _text_table(score_table(summary)), note=_SCORE_NOTE)
            if score_table(summary).rows
            else None,
            _section("figures", "Figures", element("div", *map(_figure, figures), class_="figures")),
            _section("steps", "By reasoning steps", _text_table(steps_table(summary)), note=_STEPS_NOTE)
            if summary["by_steps"]
            else None,
            _section("kinds", "By kind of query", _text_table(kinds_table(summary)), note=_KINDS_NOTE)
            if summary.get("by_kind")
            else None,
            _section("stages", "Training stages", _text_table(stage_table(summary)), note=_STAGES_NOTE)
            if summary["stages"]
            else None,
            _section("examples", "Decisions", _verdict_legend(), gallery(data)),
            _section("provenance", "Runs and environment", _runs(data.runs, folder), _ratios(summary)),
        ),
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return Template(_asset("report.html")).substitute(
        title=join(f"Think when needed: {summary['suite']}"),
        style=style,
        script=script,
        script_digest=digest,
        body=body,
    )


_ROUTER_NOTE = (
    "hit@1 over all queries with its 95 % interval, and the reasoning tokens each router spends, averaged over all "
    "queries. The oracle knows the outcome beforehand: it thinks where only thinking hits."
)
_SCORE_NOTE = "The mean over the suite's meta-tasks of the mean over their tasks, each by its own metric."
_STEPS_NOTE = "hit@1 without thinking, with it, and by the gate's choice, by the true number of reasoning steps."
_KINDS_NOTE = (
    "The same by kind: direct asks for what is shown, a lookalike has near-duplicates that a CoT does not tell apart, "
    "steps need reasoning."
)
_STAGES_NOTE = "In the order in which they ran, on held-out data."


def _asset(name: str) -> str:
    return files("twn_lightning.reporting").joinpath("assets").joinpath(name).read_text(encoding="utf-8")


def _header(summary: Mapping[str, Any]) -> Markup:
    overline = f"twn_lightning · {summary['suite']} · {summary['num_queries']:,} queries"
    links = [("routers", "Routers"), ("figures", "Figures"), ("examples", "Decisions"), ("provenance", "Runs")]
    return element(
        "header",
        element("p", overline, class_="overline"),
        element("h1", "Think when needed"),
        element("p", finding(summary), class_="finding"),
        element("dl", *(_tile(*tile) for tile in _tiles(summary)), class_="tiles"),
        element("nav", *(element("a", name, href=f"#{target}") for target, name in links), aria_label="Sections"),
    )


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
    tiles.append((duration(summary["seconds"]), "wall clock", "training and evaluation"))
    return tiles


def _tile(value: str, name: str, detail: str) -> Markup:
    return element("div", element("dt", name), element("dd", value, element("small", detail)))


def _section(name: str, title: str, *content: object, note: str | None = None) -> Markup:
    heading = element("h2", title, id=f"{name}-title")
    paragraph = element("p", note, class_="note") if note else None
    return element("section", heading, paragraph, *content, id=name, aria_labelledby=f"{name}-title")


def _text_table(text_table: TextTable) -> Markup:
    return table(text_table.title, text_table.header, text_table.rows, text_table.keys)


def _figure(figure: ReportFigure) -> Markup:
    return element(
        "figure",
        element("h3", figure.title),
        figure.svg,
        element("figcaption", figure.caption),
        id=f"figure-{figure.name}",
    )


def _verdict_legend() -> Markup:
    entries = [
        join(element("dt", element("span", BADGES[verdict], class_=f"badge {verdict}")), element("dd", meaning))
        for verdict, meaning in VERDICTS.items()
    ]
    return element("dl", *entries, class_="legend")


def _runs(runs: Sequence[RunRecord], folder: Path) -> Markup | None:
    if not runs:
        return None
    return join(*(_run(run, folder) for run in runs))


def _run(run: RunRecord, folder: Path) -> Markup:
    relative = Path(os.path.relpath(run.path, folder)).as_posix()
    link = element("a", relative, href=f"./{quote(relative)}/")
    error = element("pre", run.error, class_="error") if run.error else None
    facts = [
        join(element("dt", name), element("dd", value)) for name, value in flatten(run.environment) if value is not None
    ]
    environment = (
        element("details", element("summary", "Environment"), element("dl", *facts, class_="environment"))
        if facts
        else None
    )
    return element(
        "article",
        element("h3", link, " ", element("span", run.status.lower(), class_=f"badge status-{run.status.lower()}")),
        element("pre", f"$ {run.command}", class_="command") if run.command else None,
        error,
        environment,
        class_="run",
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """A nested mapping as rows of dotted name and value."""
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{name}.")
        elif value != []:
            rows.append((f"{prefix}{name}", value))
    return rows


def _ratios(summary: Mapping[str, Any]) -> Markup:
    ratios = ", ".join(f"{name} {percent(ratio)}" for name, ratio in summary["added_parameter_ratio"].items())
    parts = [f"Parameters added to the frozen backbone (adapters, queries, gate): {ratios}."]
    if "malformed_cot_rate" in summary:
        parts.append(f"Malformed chains of thought: {percent(summary['malformed_cot_rate'])}.")
    if summary.get("oracle_tokens_ratio") is not None:
        parts.append(f"The gate spends {summary['oracle_tokens_ratio']:.2f} times the oracle's tokens.")
    return element("p", " ".join(parts), class_="note")
