"""Scores of a benchmark suite as a run folder holds them: of runs that measure an encoder, not routers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twn_lightning.benchmark.aggregate import Aggregate, PublishedScores, aggregate, published_scores
from twn_lightning.benchmark.registry import SUITE, TASK_FILES, all_tasks
from twn_lightning.benchmark.score_file import read_score_file
from twn_lightning.errors import DataError
from twn_lightning.evaluation.suite_files import SCORES, read_scores
from twn_lightning.reporting.read import SUMMARY_FILE, ReportData, RunRecord, load_report, load_run


@dataclass(frozen=True)
class SuiteScores:
    """What one encoder scored on tasks of a suite.

    Args:
        suite: `mmeb_v2` or `mmeb_nano`.
        model: what was evaluated.
        tasks: each task's scores.json, in scoreboard order.
        means: over the tasks.
        split: which page-level tasks, where the suite has them.
        frames: of a video.
        warnings: what a reader should know of the files.
    """

    suite: str
    model: str
    tasks: dict[str, dict[str, Any]]
    means: Aggregate
    split: str
    frames: int | None
    warnings: list[str]

    def published(self) -> list[PublishedScores]:
        """The published models that report every mean, best first; of other suites than MMEB-V2 there are none."""
        rows = [row for row in published_scores() if row.all is not None] if self.suite == SUITE else []
        return sorted(rows, key=lambda row: -(row.all or 0))


@dataclass(frozen=True)
class SuiteReport:
    """Everything that the report of a benchmark run shows."""

    scores: SuiteScores
    runs: list[RunRecord]


def load_runs(folders: Sequence[Path]) -> ReportData | SuiteReport:
    """Read run folders: the last with gate decisions gives the numbers, else the last with scores of a suite.

    Args:
        folders: run folders, at least one of an evaluation.

    Returns:
        The data of a report.

    Raises:
        DataError: no folder holds an evaluation, or a file in one is missing or malformed.
    """
    if any((folder / SUMMARY_FILE).is_file() for folder in folders):
        return load_report(folders)
    runs = [load_run(folder) for folder in folders]
    found = [scores for folder in folders if (scores := load_suite_scores(folder)) is not None]
    if not found:
        listed = "".join(f"\n  {folder}" for folder in folders) or " (none given)"
        raise DataError(
            f"no run folder holds a {SUMMARY_FILE}, or scores of a suite:{listed}\nWrite one with `twn evaluate`."
        )
    return SuiteReport(found[-1], runs)


def load_suite_scores(folder: Path) -> SuiteScores | None:
    """The scores of the suite that a run folder was last evaluated on; None where there are none.

    Args:
        folder: a run folder.

    Raises:
        DataError: a score file that cannot be read.
    """
    files = [path for suite in TASK_FILES for path in folder.glob(f"eval/{suite}/*/{suite}.json")]
    if not files:
        return None
    file = max(files, key=lambda path: path.stat().st_mtime_ns)
    suite = file.stem
    found = {path.parent.name: read_scores(path.parent) for path in file.parent.glob(f"*/{SCORES}")}
    tasks = {task.name: scores for task in all_tasks(suite) if (scores := found.get(task.name)) is not None}
    if not tasks:
        raise DataError(f"{file} has no {SCORES} beside it. Evaluate again in the same run folder.")
    read = read_score_file(file)
    return SuiteScores(
        suite,
        read.model,
        tasks,
        aggregate({name: scores["score"] for name, scores in tasks.items()}, suite),
        read.split if suite == SUITE else "–",
        read.frames,
        read.warnings if suite == SUITE else [],
    )
