"""The report of a benchmark run: its scores among the published, every task, and what is missing."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from twn_lightning import cli
from twn_lightning.benchmark.aggregate import published_scores
from twn_lightning.benchmark.protocol import get_protocol
from twn_lightning.benchmark.registry import NANO_SUITE, SUITE, all_tasks
from twn_lightning.errors import DataError
from twn_lightning.evaluation.suite_files import write_suite, write_task
from twn_lightning.evaluation.task_scores import BENCHMARK_KEYS
from twn_lightning.json_object import write_json
from twn_lightning.reporting import SuiteReport, load_runs, write_markdown, write_report
from twn_lightning.reporting.suite_scores import load_suite_scores
from twn_lightning.reporting.tables import print_text_tables
from twn_lightning.reporting.task_tables import OURS, scoreboard, suite_task_table

HOSTILE = "<script>alert(1)</script>"


def scores_of(task: Any, score: float) -> dict[str, Any]:
    return dict.fromkeys(BENCHMARK_KEYS, 0.1) | {
        "task": task.name, "modality": task.modality, "meta_task": task.meta_task, "metric": task.metric,
        "score": score, "ci95": [score - 0.02, score + 0.02], task.metric: score, "num_data": 100, "num_pred": 100,
        "think_rate": 0.25, "tokens_per_query": 12.5, "seconds": 3.0, "encoder": {"name": "twn", "digest": "d"},
    }  # fmt: skip


def make_run(folder: Path, suite: str = SUITE, names: Sequence[str] | None = None, model: str = "ours") -> Path:
    """A run folder with scores: .5 for the first task, a little more for each further one."""
    protocol = get_protocol("vlm2vec")
    chosen = [task for task in all_tasks(suite) if names is None or task.name in names]
    scores = {task.name: scores_of(task, 0.5 + 0.005 * i) for i, task in enumerate(chosen)}
    place = folder / "eval" / suite / "key"
    for name, each in scores.items():
        write_task(place / name, each, [])
    write_suite(place / f"{suite}.json", scores, model=model, protocol=protocol, encoder="d")
    write_json(folder / "status.json", {"status": "COMPLETED", "error": None})
    return folder


def test_all_78_tasks_are_listed_beside_the_published(tmp_path: Path) -> None:
    scores = load_suite_scores(make_run(tmp_path))
    assert scores is not None
    assert scores.model == "ours"
    assert scores.split == "fixed"
    table = suite_task_table(scores)
    assert table.keys == [task.name for task in all_tasks()]
    assert table.rows[1][:6] == ["N24News", "I-CLS", "hit@1", "100", "50.5\N{NO-BREAK SPACE}%", table.rows[1][5]]
    board = scoreboard(scores)
    mean = sum(0.5 + 0.005 * i for i in range(78)) / 78
    assert board.keys[0] == OURS
    assert dict(zip(board.header, board.rows[0], strict=True))["All"] == f"{100 * mean:.1f}"
    whole = [row for row in published_scores() if row.all is not None]
    assert len(board.rows) == 1 + len(whole)
    values = [float(row[board.header.index("All")]) for row in board.rows[1:]]
    assert values == sorted(values, reverse=True)
    assert {row[board.header.index("Split")] for row in board.rows} >= {"old", "fixed"}


def test_the_page_and_its_markdown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", names=["N24News", "DocVQA"], model=HOSTILE)
    data = load_runs([run])
    assert isinstance(data, SuiteReport)
    text = write_report(data, tmp_path / "report.html").read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert text.count("<script") == 1
    assert "2 of the 78 tasks" in text
    assert text.count('class="sortable"') == 2
    assert 'href="./run/"' in text
    markdown = write_markdown([run], tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| DocVQA | I-QA | hit@1 | 100 |" in markdown
    assert HOSTILE not in markdown


def test_a_suite_without_published_scores(tmp_path: Path) -> None:
    scores = load_suite_scores(make_run(tmp_path, NANO_SUITE))
    assert scores is not None
    assert scores.suite == NANO_SUITE
    assert scores.published() == []
    assert len(scoreboard(scores).rows) == 1
    page = write_report([tmp_path], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Score by meta-task" in page
    assert "over the 11 tasks of mmeb_nano" in page


def test_the_newest_suite_of_a_run_is_shown(tmp_path: Path) -> None:
    make_run(tmp_path, NANO_SUITE)
    scores = load_suite_scores(make_run(tmp_path, SUITE, ["N24News"]))
    assert scores is not None
    assert scores.suite == SUITE


def test_the_terminal_gets_the_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, names=["N24News"])
    assert cli.main(["report", str(run)]) == 0
    assert "N24News" in capsys.readouterr().out
    assert (run / "report.html").is_file()
    console = Console(file=io.StringIO(), width=110)
    scores = load_suite_scores(run)
    assert scores is not None
    print_text_tables([suite_task_table(scores)], console)
    assert re.search(r"N24News .* 48\.0 – 52\.0", console.file.getvalue().replace("\N{NO-BREAK SPACE}", " "))  # type: ignore[attr-defined]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert load_suite_scores(tmp_path / "empty") is None
    with pytest.raises(DataError, match=r"no run folder holds a summary\.json, or scores of a suite"):
        load_runs([tmp_path / "empty"])
    run = make_run(tmp_path / "run", names=["N24News"])
    (run / "eval" / SUITE / "key" / "N24News" / "scores.json").unlink()
    with pytest.raises(DataError, match=r"has no scores\.json beside it"):
        load_runs([run])
