"""The report of a sweep, as one HTML file or as Markdown for pull requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twn_lightning.atomic import write_text
from twn_lightning.reporting.figure_style import ReportFigure
from twn_lightning.reporting.markdown import escape_markdown, inline_code, markdown_table
from twn_lightning.reporting.markup import Markup, element
from twn_lightning.reporting.page import figure_card, header, page, run_list, section, text_table
from twn_lightning.reporting.read import load_run
from twn_lightning.reporting.sweep import SweepReport
from twn_lightning.reporting.sweep_figures import sweep_figures
from twn_lightning.reporting.sweep_tables import job_table, number, settings_table, span, sweep_finding
from twn_lightning.reporting.tables import duration

_SETTINGS_NOTE = (
    "Means over training seeds with Student's t intervals. Best minus this: the interval of how far the best setting "
    "leads, paired by seed. The best of many settings is partly lucky, and no interval here accounts for the choice."
)
_COMMAND_NOTE = "Trains the best setting with the default seed."
_STYLE = """
#settings tr[data-key="best"] :is(th, td) { background: var(--blue-soft); font-weight: 650; }
#figure-parallel { grid-column: 1 / -1; }
#figure-parallel svg { max-width: 40rem; }
"""


def write_sweep_report(report: SweepReport, output: Path) -> Path:
    """Write the report of a sweep.

    Args:
        report: from `load_sweep`.
        output: a .md file, or HTML; links to run folders are relative to its folder.

    Returns:
        `output`.
    """
    render = render_sweep_markdown(report) if output.suffix == ".md" else render_sweep_html(report, output.parent)
    write_text(output, render)
    return output


def render_sweep_html(report: SweepReport, folder: Path) -> str:
    """The report as a whole HTML document, the same text for the same data; links are relative to `folder`."""
    figures = sweep_figures(report)
    command = report.best_command()
    links = {"settings": "Settings"} | ({"figures": "Figures"} if figures else {})
    links |= ({"command": "Best command"} if command else {}) | {"jobs": "Jobs", "runs": "Runs"}
    overline = f"twn_lightning · sweep · {report.plan['jobs']} jobs"
    parts = [
        section("settings", "Settings", text_table(settings_table(report), sortable=True), note=_SETTINGS_NOTE),
        section("figures", "Figures", _cards(figures)) if figures else None,
        section("command", "Best command", _command(command), note=_COMMAND_NOTE) if command else None,
        section("jobs", "Jobs", text_table(job_table(report), sortable=True), _command(report.plan["command"])),
        section("runs", "Runs and environment", run_list([load_run(job.run.path) for job in report.jobs], folder)),
    ]
    title = f"Sweep {_title(report)}"
    head = header(overline, title, sweep_finding(report), _tiles(report), links)
    return page(title, head, *parts, style=_STYLE)


def render_sweep_markdown(report: SweepReport) -> str:
    """The finding, the tables, the commands and what failed as GitHub-flavoured Markdown."""
    parts = [f"# Sweep {escape_markdown(_title(report))}", escape_markdown(sweep_finding(report))]
    parts += [markdown_table(settings_table(report)), _SETTINGS_NOTE]
    if command := report.best_command():
        parts.append(f"Best: {inline_code(command)}")
    parts += [markdown_table(job_table(report)), f"All jobs: {inline_code(report.plan['command'])}"]
    failed = [job for job in report.jobs if job.state == "FAILED"]
    if failed:
        parts.append("\n".join(f"- job {job.number}: {escape_markdown(job.error or '')}" for job in failed))
    return "\n\n".join(parts) + "\n"


def _title(report: SweepReport) -> str:
    keys = [*report.keys, *(["seed"] if len(report.seeds) > 1 else [])]
    return f"over {', '.join(keys)}" if keys else "of one job"


def _cards(figures: Sequence[ReportFigure]) -> Markup:
    return element("div", *map(figure_card, figures), class_="figures")


def _command(text: str) -> Markup:
    return element("pre", f"$ {text}", class_="command")


def _tiles(report: SweepReport) -> list[tuple[str, str, str]]:
    """The headline numbers: value, name, explanation."""
    completed = sum(job.state == "COMPLETED" for job in report.jobs)
    best = report.best
    tiles = [] if best is None else [(number(best.mean), f"best {report.metric}", span(best.interval))]
    tiles.append((f"{completed} / {report.plan['jobs']}", "jobs completed", f"{len(report.settings)} settings"))
    tiles.append((duration(sum(job.seconds for job in report.jobs)), "training time", "all jobs together"))
    return tiles
