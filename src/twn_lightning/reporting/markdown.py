"""The report as Markdown, for pull requests: the finding and the tables, no figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from twn_lightning.atomic import write_text
from twn_lightning.reporting.finding import finding
from twn_lightning.reporting.read import ReportData
from twn_lightning.reporting.suite_page import suite_finding
from twn_lightning.reporting.suite_scores import SuiteReport, load_runs
from twn_lightning.reporting.tables import BEST, HIGHLIGHTED, TextTable, summary_tables
from twn_lightning.reporting.task_tables import OURS, scoreboard, suite_task_table, task_table, token_table


def write_markdown(source: ReportData | SuiteReport | Sequence[Path], output: Path) -> Path:
    """Write the report of an evaluation as Markdown.

    Args:
        source: run folders, or data already read.
        output: the file to write.

    Returns:
        `output`.

    Raises:
        DataError: no folder holds an evaluation, or a file in one is missing or malformed.
    """
    data = source if isinstance(source, (ReportData, SuiteReport)) else load_runs(source)
    write_text(output, render_markdown(data))
    return output


def render_markdown(data: ReportData | SuiteReport) -> str:
    """The finding, the tables and the commands as GitHub-flavoured Markdown."""
    if isinstance(data, SuiteReport):
        title, found = f"{data.scores.model}: {data.scores.suite}", suite_finding(data.scores)
        tables = [scoreboard(data.scores), suite_task_table(data.scores)]
    else:
        title, found = "Think when needed", finding(data.summary)
        tables = [*summary_tables(data.summary), task_table(data), token_table(data)]
    parts = [f"# {escape_markdown(title)}", escape_markdown(found), *map(markdown_table, tables)]
    if data.runs:
        lines = "\n".join(
            f"- {escape_markdown(str(run.path))}: {run.status.lower()}"
            + (f", {inline_code(run.command)}" if run.command else "")
            for run in data.runs
        )
        parts.append(f"## Runs\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def escape_markdown(text: str) -> str:
    """Text whose markup characters stand for themselves, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def inline_code(text: str) -> str:
    """Inline code, fenced by more backticks than it holds."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def markdown_table(text_table: TextTable) -> str:
    """A table under its title, the row that matters most in bold."""
    header = "| " + " | ".join(text_table.header) + " |"
    rule = "|" + "|".join([" --- "] + [" ---: "] * (len(text_table.header) - 1)) + "|"
    lines = [f"## {text_table.title}", "", header, rule]
    for key, row in zip(text_table.keys, text_table.rows, strict=True):
        cells = [escape_markdown(cell) for cell in row]
        if key in (HIGHLIGHTED, OURS, BEST):
            cells = [f"**{cell}**" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
