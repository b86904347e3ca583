"""`twn tasks`: the 78 tasks of MMEB-V2 or the eleven of MMEB-nano, or some of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from twn_lightning.benchmark.registry import SUITE, TASK_FILES, VERSIONS, BenchmarkTask, select_tasks
from twn_lightning.commands import parser
from twn_lightning.commands.tables import table_console


def main(arguments: list[str]) -> None:
    """Print the table, or a JSON list of its rows with every field."""
    options = parser(
        "tasks",
        "The tasks of MMEB-V2, or of another suite: modality, meta-task, metric, sizes, parser, and where the data is.",
        """twn tasks
        twn tasks V-QA DocVQA
        twn tasks visdoc --version 2.0.0
        twn tasks --suite mmeb_nano
        twn tasks --json""",
    )
    options.add_argument("names", nargs="*", metavar="NAME", help="tasks, meta-tasks or modalities (default: all)")
    options.add_argument("--version", choices=VERSIONS, default=VERSIONS[-1], help=f"default {VERSIONS[-1]}")
    options.add_argument("--suite", choices=TASK_FILES, default=SUITE, help=f"default {SUITE}")
    options.add_argument("--json", action="store_true", help="rows with every field, nothing else")
    chosen = options.parse_intermixed_args(arguments)
    tasks = [task.at_version(chosen.version) for task in select_tasks(chosen.names or ["all"], chosen.suite)]
    if chosen.json:
        print(json.dumps([_row(task, chosen.version) for task in tasks], indent=2, ensure_ascii=False))
    else:
        _print(tasks, f"MMEB-V2 {chosen.version}" if chosen.suite == SUITE else "MMEB-nano")


def _row(task: BenchmarkTask, version: str) -> dict[str, Any]:
    """Every field of the task at that version."""
    row = asdict(task)
    del row["versions"]  # what differs elsewhere
    return row | {"version": version}


def _print(tasks: Sequence[BenchmarkTask], title: str) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in ("Task", "Modality", "Meta-task", "Metric"):
        table.add_column(name, no_wrap=True)
    for name in ("Queries", "Candidates"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("Scope", "Parser", "Data"):
        table.add_column(name, overflow="fold")
    for task in tasks:
        candidates = "varies" if task.num_candidates is None else f"{task.num_candidates:,}"
        sizes = f"{task.num_queries:,}", candidates
        scope = task.eval_type + (", graded" if task.graded else "")
        table.add_row(task.name, task.modality, task.meta_task, task.metric, *sizes, scope, task.parser, _data(task))
    console = table_console()
    console.print(table, highlight=False)
    console.print(f"{len(tasks)} tasks, {sum(task.num_queries for task in tasks):,} queries", highlight=False)


def _data(task: BenchmarkTask) -> str:
    """Repository, subset, split and revision."""
    parts = [task.hf_repo, task.hf_subset or "default", task.hf_split]
    return f"{'/'.join(parts)} @ {task.hf_revision or 'main'}"
