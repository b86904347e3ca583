"""What `twn evaluate task=<suite>/...` shows: bars over tasks and items while it runs, then scores and their means."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from twn_lightning.benchmark.aggregate import Aggregate
from twn_lightning.benchmark.registry import MODALITIES, SUITE
from twn_lightning.commands.tables import table_console
from twn_lightning.evaluation.benchmark_suite import SuiteProgress, SuiteResult
from twn_lightning.messages import visible
from twn_lightning.run import is_first_process
from twn_lightning.types import Side

_PLURAL = {Side.QUERY: "queries", Side.CANDIDATE: "candidates"}


class SuiteBars(SuiteProgress):
    """One bar over the tasks and one over the items of the current task, on the first process."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not is_first_process(),
        )
        self._tasks = self._progress.add_task("tasks", total=None)
        self._items = self._progress.add_task("items", total=None)

    def __enter__(self) -> SuiteBars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def mirror_started(self, rows: int) -> None:
        self._progress.reset(self._items, total=rows, description="MMEB-nano, rows written")

    def suite_started(self, tasks: int) -> None:
        self._progress.update(self._tasks, total=tasks)

    def side_started(self, task: str, side: Side, items: int) -> None:
        self._progress.reset(self._items, total=items, description=f"{task}, {_PLURAL[side]}")

    def advanced(self, items: int) -> None:
        self._progress.advance(self._items, items)

    def task_finished(self, scores: Mapping[str, Any], *, reused: bool) -> None:
        self._progress.advance(self._tasks)
        self._say(f"{scores['task']}: {_percent(scores['score'])}{' (unchanged)' if reused else ''}")

    def task_failed(self, name: str, why: str) -> None:
        self._progress.advance(self._tasks)
        self._say(f"{name}: left out")

    def _say(self, line: str) -> None:
        if is_first_process():
            self._progress.console.print(visible(line), highlight=False, markup=False)


def print_suite(result: SuiteResult, means: Aggregate) -> None:
    """The scores of the tasks asked for, the means as far as they are complete, and where the files are."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in ("Task", "Metric"):
        table.add_column(name, no_wrap=True)
    for name in ("Score", "95 %", "Think rate", "Tokens/query", "Tokens/candidate", "Left out"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, scores in result.scores.items():
        table.add_row(name, scores["metric"], *_cells(scores))
    console = table_console()
    console.print(table)
    shown = [f"{name} {_percent(getattr(means, name))}" for name in (*MODALITIES, "all")]
    lines = [f"{means.status}: {', '.join(shown)}"]
    lines += [f"{name} left out: {why}" for name, why in result.failed.items()]
    lines += [f"{name}: {warning}" for name, scores in result.scores.items() for warning in _warnings(scores)]
    lines += [f"results: {result.folder}"]
    lines += [f"compare: twn aggregate {result.file}"] if means.suite == SUITE else []
    for line in lines:
        console.print(visible(line), markup=False, highlight=False, soft_wrap=True)


def _cells(scores: Mapping[str, Any]) -> list[str]:
    low, high = scores["ci95"]
    tokens = [f"{scores[name]:.1f}" for name in ("tokens_per_query", "tokens_per_candidate")]
    interval = f"{100 * low:.1f} to {100 * high:.1f}"
    return [_percent(scores["score"]), interval, _percent(scores["think_rate"]), *tokens, str(len(scores["skipped"]))]


def _warnings(scores: Mapping[str, Any]) -> list[str]:
    """What a reader of the score should know before trusting it."""
    guards = scores["guards"]
    found = [f"all {side} have one embedding" for side in ("queries", "candidates") if guards[f"constant_{side}"]]
    if guards["tie_rate"] > 0:
        found.append(f"{_percent(guards['tie_rate'])} of the queries tie a right with a wrong candidate")
    if not guards["counts"]["agree"]:
        here, table = guards["counts"]["found"], guards["counts"]["table"]
        found.append(
            f"{here['queries']} queries and at most {here['most_candidates']} candidates, the table says "
            f"{table['queries']} and {table['candidates'] or 'any number'}"
        )
    return found


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f} %"
