"""The report of a benchmark run: its score, the scoreboard with the published models, every task, the runs."""

from __future__ import annotations

from pathlib import Path

from twn_lightning.reporting.markup import element
from twn_lightning.reporting.page import figure_card, header, page, run_list, section, text_table
from twn_lightning.reporting.suite_scores import SuiteReport, SuiteScores
from twn_lightning.reporting.tables import duration, percent
from twn_lightning.reporting.task_figures import scores_against_published
from twn_lightning.reporting.task_tables import MEANS, scoreboard, suite_task_table


def render_suite_report(data: SuiteReport, folder: Path) -> str:
    """The report of a benchmark run as HTML, the same text for the same data.

    Args:
        data: the run.
        folder: where the file will lie; links are relative to it.

    Returns:
        A whole HTML document.
    """
    scores = data.scores
    links = {"scoreboard": "Scoreboard", "tasks": "Tasks", "provenance": "Runs"}
    overline = f"twn_lightning · {scores.suite} · {scores.means.status}"
    head = header(overline, scores.model, suite_finding(scores), _tiles(scores), links)
    figure = scores_against_published(scores)
    warnings = element("ul", *(element("li", warning) for warning in scores.warnings)) if scores.warnings else None
    parts = [
        section(
            "scoreboard",
            "Scoreboard",
            figure_card(figure) if figure else None,
            text_table(scoreboard(scores), sortable=True),
            warnings,
            note=_SCOREBOARD_NOTE,
        ),
        section("tasks", "By task", text_table(suite_task_table(scores), sortable=True), note=_TASK_NOTE),
        section("provenance", "Runs and environment", run_list(data.runs, folder)),
    ]
    return page(f"{scores.model}: {scores.suite}", head, *parts)


def suite_finding(scores: SuiteScores) -> str:
    """What the run scored, in a sentence or two, and which tasks are missing."""
    means, missing = scores.means, scores.means.missing
    if not missing:
        return f"{scores.model} scores {percent(means.all)} over the {len(scores.tasks)} tasks of {scores.suite}."
    total = len(scores.tasks) + len(missing)
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return (
        f"{scores.model} has scores of {len(scores.tasks)} of the {total} tasks of {scores.suite}; a mean is given "
        f"only where all its tasks are there. Missing: {shown}."
    )


def _tiles(scores: SuiteScores) -> list[tuple[str, str, str]]:
    """The headline numbers: value, name, explanation."""
    modalities = [task["modality"] for task in scores.tasks.values()]
    tiles = []
    for name, title in MEANS.items():
        count = len(modalities) if name == "all" else modalities.count(name)
        tiles.append((percent(getattr(scores.means, name)), title, f"{count} tasks scored"))
    queries = sum(task["num_data"] for task in scores.tasks.values())
    tokens = sum(task["tokens_per_query"] * task["num_data"] for task in scores.tasks.values())
    seconds = sum(task["seconds"] for task in scores.tasks.values())
    tiles.append((f"{tokens / queries:.1f}", "CoT tokens a query", f"{queries:,} queries"))
    tiles.append((duration(seconds), "wall clock", "what was not cached"))
    return tiles


_SCOREBOARD_NOTE = (
    "Percent: the mean of each task's own metric over the tasks of a group, All over every task. Split: page-level "
    "tasks before 2025-11-03 (old, broken page numbers) or as re-issued then (fixed); VisDoc and All compare within "
    "one split only, Video at the same number of frames. Choose a column name to sort by it."
)
_TASK_NOTE = "Each task by its own metric, with the 95 % interval over its queries. Choose a column name to sort by it."
