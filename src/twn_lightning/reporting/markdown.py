"""The report as Markdown, for pull requests: the finding and the tables, no figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from twn_lightning.reporting.finding import finding
from twn_lightning.reporting.read import ReportData, load_report
from twn_lightning.reporting.tables import HIGHLIGHTED, TextTable, summary_tables
from twn_lightning.run import write_text


def write_markdown(source: ReportData | Sequence[Path], output: Path) -> Path:
    """Write the report of an evaluation as Markdown.

    Args:
        source: run folders, or data already read.
        output: the file to write.

    Returns:
        `output`.

    Raises:
        DataError: no folder holds an evaluation, or a file in one is missing or malformed.
    """
    data = source if isinstance(source, ReportData) else load_report(source)
    write_text(output, render_markdown(data))
    return output


def render_markdown(data: ReportData) -> str:
    """The finding, the tables and the commands as GitHub-flavoured Markdown."""
    parts = ["# Think when needed", escape_markdown(finding(data.summary))]
    parts += [_table(text_table) for text_table in summary_tables(data.summary)]
    if data.runs:
        lines = "\n".join(
            f"- {escape_markdown(str(run.path))}: {run.status.lower()}"
            + (f", {_code(run.command)}" if run.command else "")
            for run in data.runs
        )
        parts.append(f"## Runs\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def escape_markdown(text: str) -> str:
    """Text whose markup characters stand for themselves, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Inline code, fenced by more backticks than it holds."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _table(text_table: TextTable) -> str:
    header = "| " + " | ".join(text_table.header) + " |"
    rule = "|" + "|".join([" --- "] + [" ---: "] * (len(text_table.header) - 1)) + "|"
    lines = [f"## {text_table.title}", "", header, rule]
    for key, row in zip(text_table.keys, text_table.rows, strict=True):
        cells = [escape_markdown(cell) for cell in row]
        if key == HIGHLIGHTED:
            cells = [f"**{cell}**" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
