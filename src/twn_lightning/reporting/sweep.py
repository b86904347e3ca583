"""A sweep folder as a report reads it: settings of the swept keys, each over its seeds, and the best of them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twn_lightning.errors import DataError, unknown_name
from twn_lightning.metrics import Interval, student_interval
from twn_lightning.sweep_folder import SweepFolder, SweepJob

SEED = "seed"
"""The key whose values are repetitions of a setting and not settings of their own."""
ABSENT = "default"
"""The value of a key that a job does not set."""


@dataclass(frozen=True)
class SweepSetting:
    """One combination of the swept keys.

    Args:
        values: swept key, the seed apart, to its value.
        scores: seed to the final metric, of the jobs that completed.
        seconds: mean time of those jobs; 0 without any.
    """

    values: dict[str, str]
    scores: dict[str, float]
    seconds: float

    @property
    def mean(self) -> float | None:
        """The mean metric over seeds."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval over seeds; None below two."""
        return student_interval(list(self.scores.values())) if len(self.scores) > 1 else None

    def difference(self, other: SweepSetting) -> Interval | None:
        """How much higher this setting is than another, paired by seed; None below two seeds in common."""
        shared = [seed for seed in self.scores if seed in other.scores]
        if len(shared) < 2:
            return None
        return student_interval([self.scores[seed] - other.scores[seed] for seed in shared])


@dataclass(frozen=True)
class SweepReport:
    """Everything that the report of a sweep shows.

    Args:
        sweep: the folder.
        plan: its sweep.yaml.
        jobs: those that were started, by number.
        metric: the metric compared; None while no job has completed.
        minimize: lower is better.
        keys: the swept keys, the seed apart.
        settings: best first: those with the most seeds by their mean, then the others; without a result last.
    """

    sweep: SweepFolder
    plan: dict[str, Any]
    jobs: list[SweepJob]
    metric: str | None
    minimize: bool
    keys: list[str]
    settings: list[SweepSetting]

    @property
    def seeds(self) -> list[str]:
        """The seeds of the jobs, in the order of the jobs."""
        return list(dict.fromkeys(seed_of(job) for job in self.jobs))

    @property
    def best(self) -> SweepSetting | None:
        """The setting with the best mean among those with the most seeds; None without a result."""
        return self.settings[0] if self.settings and self.settings[0].scores else None

    @property
    def second(self) -> SweepSetting | None:
        """The next best, None where there is none with as many seeds."""
        if self.best is None or len(self.settings) < 2:
            return None
        second = self.settings[1]
        return second if len(second.scores) == len(self.best.scores) else None

    @property
    def complete_seeds(self) -> list[str]:
        """The seeds that every combination of values has completed: over them the means of values compare."""
        levels = [len({setting.values[key] for setting in self.settings}) for key in self.keys]
        if len(self.settings) < math.prod(levels):
            return []
        return [seed for seed in self.seeds if all(seed in setting.scores for setting in self.settings)]

    def value(self, job: SweepJob) -> float | None:
        """A job's metric; None where it has not completed or did not measure it."""
        return None if self.metric is None else _number(job.run.metrics(), self.metric)

    def best_command(self) -> str | None:
        """What to type to train the best setting."""
        if self.best is None:
            return None
        common = [text for text in self.jobs[0].overrides if all(text in job.overrides for job in self.jobs)]
        chosen = [f"{key}={value}" for key, value in self.best.values.items() if value != ABSENT]
        return shlex.join(["twn", "train", *(o for o in common if not o.startswith(f"{SEED}=")), *chosen])


def seed_of(job: SweepJob) -> str:
    """The job's seed, as text."""
    return job.values.get(SEED, ABSENT)


def load_sweep(folder: Path, metric: str | None = None, *, minimize: bool = False) -> SweepReport:
    """Read a sweep folder; the sweep may still run.

    Args:
        folder: with sweep.yaml and the jobs' run folders.
        metric: a name in the jobs' metrics.json; None: the headline metric of their stage.
        minimize: whether lower is better.

    Returns:
        The data of a report.

    Raises:
        DataError: no sweep folder, an unknown metric, or jobs of different headline metrics.
    """
    sweep = SweepFolder(folder)
    plan, jobs = sweep.read_plan(), sweep.jobs()
    metric = _checked_metric(jobs, metric) if metric else _headline(jobs)
    values = {key: {job.values.get(key, ABSENT) for job in jobs} for job in jobs for key in job.values}
    keys = [key for key in [*plan["axes"], *values] if key != SEED and len(values.get(key, ())) > 1]
    keys = list(dict.fromkeys(keys))
    groups: dict[tuple[str, ...], list[SweepJob]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.values.get(key, ABSENT) for key in keys), []).append(job)
    settings = [_setting(dict(zip(keys, group, strict=True)), members, metric) for group, members in groups.items()]
    settings.sort(key=lambda setting: _rank(setting, minimize))
    return SweepReport(sweep, plan, jobs, metric, minimize, keys, settings)


def _setting(values: dict[str, str], jobs: Sequence[SweepJob], metric: str | None) -> SweepSetting:
    found = [(job, None if metric is None else _number(job.run.metrics(), metric)) for job in jobs]
    scores = {seed_of(job): value for job, value in found if value is not None}
    seconds = sum(job.seconds for job, value in found if value is not None)
    return SweepSetting(values, scores, seconds / max(1, len(scores)))


def _rank(setting: SweepSetting, minimize: bool) -> tuple[int, float]:
    if setting.mean is None:
        return 0, 0.0
    return -len(setting.scores), setting.mean if minimize else -setting.mean


def _number(metrics: Mapping[str, Any], name: str) -> float | None:
    value = metrics.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def _headline(jobs: Sequence[SweepJob]) -> str | None:
    names = sorted({found[0] for job in jobs if (found := job.headline()) is not None})
    if len(names) > 1:
        raise DataError(
            f"the jobs are of different stages, with the headline metrics {', '.join(names)}: choose what to compare "
            "with --metric"
        )
    return names[0] if names else None


def _checked_metric(jobs: Sequence[SweepJob], metric: str) -> str:
    known = {name for job in jobs for name in job.run.metrics() if _number(job.run.metrics(), name) is not None}
    if metric not in known:
        raise DataError(unknown_name("metric", metric, known))
    return metric
