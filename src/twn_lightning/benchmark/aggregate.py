"""Scores of tasks to the scoreboard's numbers, and the published ones to stand beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from twn_lightning.benchmark.registry import MODALITIES, SUITE, all_tasks, get_task, meta_tasks, selections
from twn_lightning.benchmark.score_file import Split

PUBLISHED_FILE = Path(__file__).with_name("published_scores.yaml")


@dataclass(frozen=True)
class Aggregate:
    """Means over tasks as fractions; None where a task of the group is missing, so that no mean hides one."""

    image: float | None
    video: float | None
    visdoc: float | None
    all: float | None
    """Over the tasks, not over the three modalities."""
    meta_tasks: dict[str, float | None]
    missing: list[str]
    """In scoreboard order."""
    suite: str = SUITE

    @property
    def status(self) -> str:
        """`complete`, or `incomplete: n/78`."""
        total = len(all_tasks(self.suite))
        return f"incomplete: {total - len(self.missing)}/{total}" if self.missing else "complete"

    def as_dict(self) -> dict[str, Any]:
        """For `twn aggregate --json`."""
        means = {name: getattr(self, name) for name in (*MODALITIES, "all")}
        return {"status": self.status, **means, "meta_tasks": self.meta_tasks, "missing": self.missing}


@dataclass(frozen=True)
class PublishedScores:
    """A published result in percent. Field meanings: the head of published_scores.yaml."""

    model: str
    ood_split: Split
    source: str
    size: str | None = None
    image: float | None = None
    video: float | None = None
    visdoc: float | None = None
    all: float | None = None
    meta_tasks: Mapping[str, float] = field(default_factory=dict)
    frames: int | None = None
    note: str | None = None


def aggregate(scores: Mapping[str, float], suite: str = SUITE) -> Aggregate:
    """The scoreboard of one model.

    Args:
        scores: the main metric by task, as fractions.
        suite: whose tasks they are.

    Returns:
        Unweighted means over the tasks of each meta-task, of each modality, and of all.

    Raises:
        ConfigError: a name that is no task of the suite.
    """
    for name in scores:
        get_task(name, suite)

    def mean(names: Iterable[str]) -> float | None:
        values = [scores.get(name, math.nan) for name in names]
        return None if any(map(math.isnan, values)) else math.fsum(values) / len(values)

    groups = selections(suite)
    return Aggregate(
        **{name: mean(groups[name]) for name in (*MODALITIES, "all")},
        meta_tasks={name: mean(tasks) for name, tasks in meta_tasks(suite).items()},
        missing=[task.name for task in all_tasks(suite) if task.name not in scores],
        suite=suite,
    )


def mean_over_meta_tasks(scores: Mapping[str, float], suite: str) -> float | None:
    """The mean over a suite's meta-tasks of the mean over each one's tasks: the score of MMEB-nano.

    Args:
        scores: the main metric by task, as fractions.
        suite: whose tasks they are.

    Returns:
        The mean, or None where a task is missing.
    """
    means = aggregate(scores, suite).meta_tasks.values()
    known = [mean for mean in means if mean is not None]
    return math.fsum(known) / len(known) if len(known) == len(means) else None


@cache
def published_scores() -> tuple[PublishedScores, ...]:
    """Published results, as listed in published_scores.yaml."""
    return tuple(PublishedScores(**row) for row in yaml.safe_load(PUBLISHED_FILE.read_text(encoding="utf-8")))
