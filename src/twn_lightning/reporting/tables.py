"""The report's tables: rows of strings that the terminal, the Markdown and the HTML version share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

ROUTER_NAMES: dict[str, str] = {
    "never": "never think",
    "always": "always think",
    "adaptive": "adaptive (gate)",
    "random": "random, equal rate",
    "random_equal_tokens": "random, equal tokens",
    "margin": "top-1 margin",
    "query_length": "query length",
    "oracle": "oracle",
}
STAGE_NAMES: dict[str, str] = {"sft": "supervised", "rl": "reinforcement", "gate": "routing gate"}
HIGHLIGHTED = "adaptive"
BEST = "best"
"""The key of the best row of a sweep's table."""
TEXT_COLUMNS = ("Metric", "Meta-task", "Size", "Split")
"""Columns of words beside the first, set flush left."""
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class TextTable:
    """A titled table of strings; `keys` names each row for tests and styles."""

    title: str
    header: list[str]
    keys: list[str]
    rows: list[list[str]]


def percent(fraction: float | None, digits: int = 1) -> str:
    """`0.957` as `95.7 %`, with a space that does not break; an en dash where there is no number."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}{NO_BREAK}%"


def duration(seconds: float) -> str:
    """Seconds as `9.3 s`, `48 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def router_label(name: str) -> str:
    """A router's name for people."""
    return ROUTER_NAMES.get(name, name.replace("_", " "))


def ordered_routers(modes: Mapping[str, Any]) -> list[str]:
    """The routers that were scored: known ones in reading order, then the rest."""
    return [name for name in ROUTER_NAMES if name in modes] + [name for name in modes if name not in ROUTER_NAMES]


def router_table(summary: Mapping[str, Any]) -> TextTable:
    """Router x (hit@1 with interval, tokens a query, share of always' tokens, think rate)."""
    modes = summary["modes"]
    always = modes.get("always", {}).get("tokens_per_query", 0.0)
    names = ordered_routers(modes)
    rows = []
    for name in names:
        score = modes[name]
        low, high = score["ci95"]
        share = percent(score["tokens_per_query"] / always, 0) if always else "–"
        rows.append(
            [
                router_label(name),
                percent(score["hit@1"]),
                f"{100 * low:.1f} – {100 * high:.1f}",
                f"{score['tokens_per_query']:.1f}",
                share,
                percent(score.get("think_rate"), 0),
            ]
        )
    header = ["Router", "hit@1", "95 % interval", "Tokens/query", "of always", "Think rate"]
    return TextTable("Routers", header, names, rows)


def score_table(summary: Mapping[str, Any]) -> TextTable:
    """Router x score of a benchmark suite; no rows where the summary is of none, or lacks tasks."""
    names = [name for name in ordered_routers(summary["modes"]) if "score" in summary["modes"][name]]
    rows = [[router_label(name), percent(summary["modes"][name]["score"])] for name in names]
    return TextTable("Score of the suite", ["Router", "Score"], names, rows)


def steps_table(summary: Mapping[str, Any]) -> TextTable:
    """True number of steps x (think rate, hit@1 without, with and by the gate's choice of thinking)."""
    parts = {step: summary["by_steps"][step] for step in sorted(summary["by_steps"], key=int)}
    return _parts_table("By reasoning steps", "Steps", parts)


def kinds_table(summary: Mapping[str, Any]) -> TextTable:
    """The same by what MMEB-nano calls a query; no rows where the source has no kinds."""
    return _parts_table("By kind of query", "Kind", summary.get("by_kind", {}))


def _parts_table(title: str, first: str, parts: Mapping[str, Mapping[str, Any]]) -> TextTable:
    rows = []
    for name, entry in parts.items():
        rates = [percent(entry[mode]) for mode in ("never", "always", "adaptive")]
        count = f"{entry['num_queries']:,}" if "num_queries" in entry else "–"
        rows.append([name, count, percent(entry["think_rate"], 0), *rates])
    header = [first, "Queries", "Think rate", "Never", "Always", "Adaptive"]
    return TextTable(title, header, list(parts), rows)


def stage_table(summary: Mapping[str, Any]) -> TextTable:
    """Stage x (metric, before, after, change, time), in the order that they ran."""
    names = list(summary["stages"])
    rows = []
    for name in names:
        stage = summary["stages"][name]
        rows.append(
            [
                STAGE_NAMES.get(name, name),
                stage["metric"],
                f"{stage['before']:.3f}",
                f"{stage['after']:.3f}",
                f"{stage['after'] - stage['before']:+.3f}",
                duration(stage["seconds"]),
            ]
        )
    return TextTable("Stages", ["Stage", "Metric", "Before", "After", "Change", "Time"], names, rows)


def summary_tables(summary: Mapping[str, Any]) -> list[TextTable]:
    """The tables of a summary that have rows."""
    tables = (router_table, score_table, steps_table, kinds_table, stage_table)
    return [table for make in tables if (table := make(summary)).rows]


def print_tables(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables of a summary to the terminal."""
    print_text_tables(summary_tables(summary), console)


def print_text_tables(tables: Sequence[TextTable], console: Console | None = None) -> None:
    """Print tables to the terminal, each under its title."""
    (console or Console()).print(Group(*map(_terminal_table, tables)))


def _terminal_table(text_table: TextTable) -> Table:
    """Every word as `Text`: rich would take `[never,always]` in a plain string for markup and leave it out."""
    table = Table(
        title=Text(text_table.title, "bold"),
        title_justify="left",
        header_style="dim",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for index, name in enumerate(text_table.header):
        is_text = index == 0 or name in TEXT_COLUMNS
        table.add_column(Text(name), justify="left" if is_text else "right", no_wrap=True)
    for key, row in zip(text_table.keys, text_table.rows, strict=True):
        table.add_row(*map(Text, row), style="bold cyan" if key in (HIGHLIGHTED, BEST) else None)
    return table
