"""Figures by task: what thinking earns where, and a benchmark run among the published ones.

Shape letters: T rows of the figure.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from twn_lightning.benchmark.registry import TASK_FILES, meta_tasks
from twn_lightning.reporting.decisions import Decisions
from twn_lightning.reporting.figure_style import MARKERS, ReportFigure, color, inline_svg, new_figure, styled
from twn_lightning.reporting.read import ReportData
from twn_lightning.reporting.suite_scores import SuiteScores
from twn_lightning.reporting.tables import percent

ROW_HEIGHT = 0.3
"""Inches of one row."""
_NAME = 24
"""Characters of a row's name."""


def think_rate_by_task(data: ReportData) -> ReportFigure:
    """How often the gate thinks, and what that earns: by meta-task of a benchmark suite, by task of other sources.

    Args:
        data: of an evaluation under every router.
    """
    name, (groups, what) = "tasks", _groups(data.decisions, data.summary["suite"])
    rate_T = [float(data.decisions.think_N[rows].mean()) for rows in groups.values()]
    quality = {
        "never": data.decisions.hit_discriminative_N,
        "always": data.decisions.hit_generative_N,
        "adaptive": data.decisions.hit_adaptive_N,
    }
    with styled(name):
        figure = new_figure(1.3 + ROW_HEIGHT * len(groups))
        axes = figure.add_subplot()
        places_T = np.arange(len(groups))
        axes.barh(places_T, rate_T, height=0.72, color=color("adaptive"), alpha=0.22, label="think rate")
        for router, values_N in quality.items():
            axes.plot(
                [float(values_N[rows].mean()) for rows in groups.values()],
                places_T,
                MARKERS[router],
                color=color(router),
                markeredgecolor=color("surface"),
                markeredgewidth=0.7,
                markersize=6.5,
                label=f"quality {router}",
            )
        _rows(axes, list(groups))
        axes.set_xlim(-0.02, 1.03)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_xlabel("share of queries")
        figure.legend(loc="outside lower center", ncols=2, handletextpad=0.4, columnspacing=1.0)
        listed = "; ".join(f"{group}: {percent(rate, 0)}" for group, rate in zip(groups, rate_T, strict=True))
        alt = f"Think rate by {what}. {listed}."
        svg = inline_svg(figure, name, alt)
    caption = "Bars: how often the gate thinks. Marks: quality without thinking, with it, and by the gate's choice."
    return ReportFigure(name, f"Think rate by {what}", caption, alt, svg)


def _groups(decisions: Decisions, suite: str) -> tuple[dict[str, np.ndarray], str]:
    """Rows (N,) of bool by the name of each group, and what the groups are."""
    if suite not in TASK_FILES:
        prefix = f"{suite}/"
        return {t.removeprefix(prefix): decisions.task_N == t for t in np.unique(decisions.task_N).tolist()}, "task"
    members = {group: [f"{suite}/{task}" for task in tasks] for group, tasks in meta_tasks(suite).items()}
    rows = {group: np.isin(decisions.task_N, tasks) for group, tasks in members.items()}
    return {group: found for group, found in rows.items() if found.any()}, "meta-task"


def scores_against_published(scores: SuiteScores) -> ReportFigure | None:
    """The run's mean of each meta-task among the published models'; None where no meta-task is whole.

    Args:
        scores: of a benchmark run.
    """
    name = "published"
    ours = {group: 100 * mean for group, mean in scores.means.meta_tasks.items() if mean is not None}
    if not ours:
        return None
    published = scores.published()
    with styled(name):
        figure = new_figure(1.2 + ROW_HEIGHT * len(ours))
        axes = figure.add_subplot()
        for place, group in enumerate(ours):
            others = [row.meta_tasks[group] for row in published if group in row.meta_tasks]
            axes.plot(others, [place] * len(others), "o", color=color("never"), alpha=0.4, markersize=5)
        axes.plot(
            list(ours.values()),
            range(len(ours)),
            MARKERS["adaptive"],
            color=color("adaptive"),
            markeredgecolor=color("surface"),
            markersize=9,
            label=scores.model,
        )
        if published:
            axes.plot([], [], "o", color=color("never"), alpha=0.4, markersize=5, label="published")
        _rows(axes, list(ours))
        axes.set_xlim(-2, 102)
        axes.set_xlabel("score, percent")
        legend = figure.legend(loc="outside lower center", ncols=2, handletextpad=0.4)
        for text in legend.get_texts():
            text.set_parse_math(False)
        alt = "Scores by meta-task. " + "; ".join(f"{group}: {mean:.1f} %" for group, mean in ours.items()) + "."
        svg = inline_svg(figure, name, alt)
    caption = "The mean over each meta-task's tasks. Published page-level scores of another split do not compare."
    title = "Among the published" if published else "Score by meta-task"
    return ReportFigure(name, title, caption, alt, svg)


def _rows(axes: Axes, names: list[str]) -> None:
    """Names down the y axis, the first on top; long ones are cut, and a dollar sign starts no formula."""
    axes.set_yticks(range(len(names)), [name if len(name) <= _NAME else f"{name[: _NAME - 1]}…" for name in names])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x")
