"""From run folders to what people read: summary.json, terminal tables, figures, the HTML and Markdown reports."""

from twn_lightning.reporting.html import write_report
from twn_lightning.reporting.markdown import write_markdown
from twn_lightning.reporting.read import ReportData, load_report, load_run
from twn_lightning.reporting.suite_scores import SuiteReport, load_runs
from twn_lightning.reporting.summary import build_summary, validate_summary, write_summary
from twn_lightning.reporting.sweep import load_sweep
from twn_lightning.reporting.sweep_page import write_sweep_report
from twn_lightning.reporting.tables import print_tables

__all__ = [
    "ReportData",
    "SuiteReport",
    "build_summary",
    "load_report",
    "load_run",
    "load_runs",
    "load_sweep",
    "print_tables",
    "validate_summary",
    "write_markdown",
    "write_report",
    "write_summary",
    "write_sweep_report",
]
