"""`twn report`: tables in the terminal, and the self-contained HTML report, of finished runs."""

from __future__ import annotations

from pathlib import Path

from twn_lightning.commands import parser
from twn_lightning.reporting import load_report, print_tables, write_markdown, write_report


def main(arguments: list[str]) -> None:
    """Read run folders, print their tables, write the report."""
    options = parser(
        "report",
        "The report of evaluated runs: quality against tokens, think rate by steps, calibration, examples.",
        """twn report outputs/evaluate/nano/*
        twn report outputs/sft/nano_sft/* outputs/evaluate/nano/* --output report.html
        twn report RUN --output report.md""",
    )
    options.add_argument("runs", nargs="+", type=Path, help="run folders; the last evaluated one gives the numbers")
    options.add_argument("--output", type=Path, help=".html or .md (default: report.html in the last folder)")
    chosen = options.parse_args(arguments)
    data = load_report(chosen.runs)
    print_tables(data.summary)
    output = chosen.output or chosen.runs[-1] / "report.html"
    write = write_markdown if output.suffix == ".md" else write_report
    print(write(data, output))
