"""`twn report`: tables in the terminal, and the self-contained HTML report, of finished runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from twn_lightning.commands import parser
from twn_lightning.commands.tables import table_console
from twn_lightning.errors import DataError
from twn_lightning.reporting import SuiteReport, load_runs, print_tables, write_markdown, write_report
from twn_lightning.reporting.sweep import load_sweep
from twn_lightning.reporting.sweep_page import write_sweep_report
from twn_lightning.reporting.sweep_tables import job_table, settings_table, sweep_finding
from twn_lightning.reporting.tables import print_text_tables
from twn_lightning.reporting.task_tables import suite_task_table
from twn_lightning.sweep_folder import SweepFolder


def main(arguments: list[str]) -> None:
    """Read run folders or a sweep folder, print their tables, write the report."""
    options = parser(
        "report",
        "The report of evaluated runs as one HTML file: every router, quality against tokens, every task, calibration, "
        "cost, decisions to browse; of benchmark runs the scoreboard.",
        """twn report outputs/evaluate/nano/*
        twn report outputs/sft/nano_sft/* outputs/evaluate/nano/* --output report.html
        twn report outputs/evaluate/run/RUN --output report.md
        twn report sweep=outputs/sweeps/nano_sft/TIME
        twn report outputs/sweeps/nano_gate/TIME --metric val/loss --minimize""",
    )
    options.add_argument(
        "runs", nargs="+", type=Path, help="run folders, the last evaluated one gives the numbers; or a sweep folder"
    )
    options.add_argument("--output", type=Path, help=".html or .md (default: report.html in the last folder)")
    options.add_argument("--metric", help="of a sweep: what is compared (default: the headline metric)")
    options.add_argument("--minimize", action="store_true", help="of a sweep: lower is better")
    chosen = options.parse_args(arguments)
    folders = [Path(str(run).removeprefix("sweep=")) for run in chosen.runs]
    if folders != chosen.runs or SweepFolder(folders[0]).exists():
        _sweep(folders, chosen)
        return
    if chosen.metric or chosen.minimize:
        raise DataError(f"--metric and --minimize are for the report of a sweep, and {folders[0]} is no sweep folder")
    data = load_runs(chosen.runs)
    if isinstance(data, SuiteReport):
        print_text_tables([suite_task_table(data.scores)], table_console())
    else:
        print_tables(data.summary)
    output = chosen.output or chosen.runs[-1] / "report.html"
    write = write_markdown if output.suffix == ".md" else write_report
    print(write(data, output))


def _sweep(folders: list[Path], chosen: argparse.Namespace) -> None:
    if len(folders) > 1:
        raise DataError(f"a report is of one sweep, got {len(folders)} folders")
    report = load_sweep(folders[0], chosen.metric, minimize=chosen.minimize)
    print_text_tables([settings_table(report), job_table(report)], table_console())
    print(sweep_finding(report))
    if command := report.best_command():
        print(f"best: {command}")
    print(write_sweep_report(report, chosen.output or folders[0] / "report.html"))
