"""Tables by task, of the scoreboard, and of what thinking costs.

Shape letters: N queries of the evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from twn_lightning.benchmark.aggregate import Aggregate, PublishedScores
from twn_lightning.benchmark.registry import TASK_FILES, BenchmarkTask, all_tasks, meta_tasks
from twn_lightning.metrics.statistics import bootstrap_mean
from twn_lightning.reporting.decisions import Decisions
from twn_lightning.reporting.read import ReportData
from twn_lightning.reporting.suite_scores import SuiteScores
from twn_lightning.reporting.tables import (
    NO_BREAK,
    STAGE_NAMES,
    TextTable,
    duration,
    ordered_routers,
    percent,
    router_label,
)

MEANS = {"all": "All", "image": "Image", "video": "Video", "visdoc": "VisDoc"}
OURS = "ours"
"""Row key of the run in the scoreboard."""


def task_table(data: ReportData) -> TextTable:
    """Task x (meta-task, metric, queries, hit@1 or the metric by mode, interval of adaptive, think rate, tokens).

    Args:
        data: of an evaluation under every router.

    Returns:
        One row per task; meta-task and metric only of a benchmark suite.
    """
    suite, decisions = data.summary["suite"], data.decisions
    known = _known_tasks(suite)
    names = list(dict.fromkeys(_ordered(np.unique(decisions.task_N).tolist(), suite, known)))
    rows = []
    for name in names:
        task = known.get(name.removeprefix(f"{suite}/"))
        about = [] if not known else [task.meta_task, task.metric] if task else ["–", "hit@1"]
        rows.append([name.removeprefix(f"{suite}/"), *about, *_task_cells(decisions, decisions.task_N == name)])
    about = ["Meta-task", "Metric"] if known else []
    header = ["Task", *about, "Queries", "Never", "Always", "Adaptive", "95 % interval", "Think rate", "Tokens/query"]
    return TextTable("By task", header, names, rows)


def _known_tasks(suite: str) -> dict[str, BenchmarkTask]:
    return {task.name: task for task in all_tasks(suite)} if suite in TASK_FILES else {}


def _ordered(names: list[str], suite: str, known: Mapping[str, BenchmarkTask]) -> list[str]:
    """Names in scoreboard order, those the suite does not know after them."""
    order = {f"{suite}/{name}": place for place, name in enumerate(known)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def _task_cells(decisions: Decisions, chosen_N: np.ndarray) -> list[str]:
    adaptive = decisions.hit_adaptive_N[chosen_N]
    interval = bootstrap_mean(adaptive)
    return [
        f"{int(chosen_N.sum()):,}",
        percent(float(decisions.hit_discriminative_N[chosen_N].mean())),
        percent(float(decisions.hit_generative_N[chosen_N].mean())),
        percent(float(adaptive.mean())),
        _interval(interval.low, interval.high),
        percent(float(decisions.think_N[chosen_N].mean()), 0),
        f"{float((decisions.tokens_N * decisions.think_N)[chosen_N].mean()):.1f}",
    ]


def suite_task_table(scores: SuiteScores) -> TextTable:
    """Task x (meta-task, metric, queries, score with interval, think rate, tokens, seconds) of a benchmark run."""
    meta = {task.name: task.meta_task for task in all_tasks(scores.suite)}
    rows = [
        [
            name,
            meta[name],
            task["metric"],
            f"{task['num_data']:,}",
            percent(task["score"]),
            _interval(*task["ci95"]),
            percent(task["think_rate"], 0),
            f"{task['tokens_per_query']:.1f}",
            f"{task['seconds']:,.1f}",
        ]
        for name, task in scores.tasks.items()
    ]
    header = [
        "Task", "Meta-task", "Metric", "Queries", "Score", "95 % interval", "Think rate", "Tokens/query", "Seconds",
    ]  # fmt: skip
    return TextTable("By task", header, list(scores.tasks), rows)


def scoreboard(scores: SuiteScores) -> TextTable:
    """Model x (size, split, means over all, by modality and by meta-task, frames): the run, then the published."""
    groups = list(meta_tasks(scores.suite))
    rows = [[scores.model, "–", scores.split, *_means(scores.means, groups, 100), _text(scores.frames)]]
    rows += [
        [row.model, _text(row.size), row.ood_split, *_means(row, groups, 1), _text(row.frames)]
        for row in scores.published()
    ]
    header = ["Model", "Size", "Split", *MEANS.values(), *groups, "Frames"]
    return TextTable("Scoreboard", header, [OURS, *("published" for _ in rows[1:])], rows)


def _means(row: Aggregate | PublishedScores, groups: list[str], scale: int) -> list[str]:
    values = [getattr(row, name) for name in MEANS] + [row.meta_tasks.get(name) for name in groups]
    return ["–" if value is None else f"{scale * value:.1f}" for value in values]


def token_table(data: ReportData) -> TextTable:
    """Router x CoT tokens: mean over all queries, median and 95th percentile of those that think, the sum."""
    summary, decisions = data.summary, data.decisions
    spent = {
        "never": np.zeros(len(decisions), dtype=bool),
        "always": np.ones(len(decisions), dtype=bool),
        "adaptive": decisions.think_N,
    }
    names = [name for name in ordered_routers(summary["modes"]) if name in spent]
    rows = [[router_label(name), *_token_cells(decisions, spent[name])] for name in names]
    return TextTable("Tokens", ["Router", "Tokens/query", "Median", "p95", "In all"], names, rows)


def _token_cells(decisions: Decisions, think_N: np.ndarray) -> list[str]:
    tokens = decisions.tokens_N[think_N]
    if not len(tokens):
        return ["0.0", "–", "–", "0"]
    median, high = np.quantile(tokens, [0.5, 0.95])
    return [f"{tokens.sum() / len(decisions):.1f}", f"{median:.0f}", f"{high:.0f}", f"{int(tokens.sum()):,}"]


def time_table(summary: Mapping[str, Any]) -> TextTable:
    """What was done x (wall-clock time, its share of the whole)."""
    total = summary["seconds"]
    parts = {name: stage["seconds"] for name, stage in summary["stages"].items()}
    parts["evaluation"] = max(0.0, total - sum(parts.values()))
    rows = [[STAGE_NAMES.get(name, name), duration(seconds), percent(seconds / total if total else None, 0)]
            for name, seconds in parts.items()]  # fmt: skip
    if len(parts) > 1:
        parts["total"] = total
        rows.append(["in all", duration(total), percent(1.0, 0)])
    return TextTable("Time", ["Part", "Wall clock", "Share"], list(parts), rows)


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.1f}{NO_BREAK}–{NO_BREAK}{100 * high:.1f}"


def _text(value: object) -> str:
    return "–" if value is None else str(value)
