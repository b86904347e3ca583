"""`twn evaluate task=mmeb_nano/...`: files written, loaded, scored by the suite and under every router; twice."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.tiny_adapters import save_undecided_adapters
from twn_lightning import cli
from twn_lightning.benchmark.registry import NANO_SUITE, all_tasks
from twn_lightning.reporting import validate_summary
from twn_lightning.run import RunFolder

QUERIES = 22


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random adapters of the `tiny` backbone, with a gate that thinks about some queries."""
    return save_undecided_adapters(tmp_path_factory.mktemp("adapters"))


def arguments(folder: Path, adapters: Path | None, *more: str) -> list[str]:
    """None: the packaged backbone with its adapters."""
    chosen = [] if adapters is None else ["model=tiny", f"adapters.init_from={adapters}", "data.max_new_tokens=8"]
    return [
        "evaluate",
        *chosen,
        f"data.test_pairs={QUERIES}",
        f"paths.output_root={folder}",
        f"paths.run_dir={folder / 'run'}",
        f"task.cache_root={folder / 'cache'}",
        "evaluation.bootstrap_samples=20",
        *more,
    ]


def test_the_suite_is_written_scored_and_summarised_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments(tmp_path, None, "task=mmeb_nano/all")) == 0
    printed = capsys.readouterr().out
    assert "complete: image" in printed
    assert "oracle" in printed
    assert "twn aggregate" not in printed, "MMEB-V2's scoreboard"
    first = json.loads((tmp_path / "run" / "summary.json").read_text())
    validate_summary(first)
    assert first["suite"] == "mmeb_nano"
    assert first["num_queries"] == QUERIES
    assert set(first["by_task"]) == {f"mmeb_nano/{task.name}" for task in all_tasks(NANO_SUITE)}
    assert all(0 <= mode["score"] <= 1 for mode in first["modes"].values())
    decisions = pq.read_table(tmp_path / "run" / "gate_decisions.parquet")
    assert decisions.num_rows == QUERIES
    assert set(decisions.column("kind").to_pylist()) == {"direct", "steps"}, "two rows a task"
    (mirror,) = (tmp_path / "mmeb_nano").iterdir()
    assert (mirror / "mirror.json").is_file()
    assert cli.main(arguments(tmp_path, None, "task=mmeb_nano/all")) == 0
    assert capsys.readouterr().out.count("(unchanged)") == 11
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert RunFolder(tmp_path / "run").read_status()["status"] == "COMPLETED"
    assert cli.main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "report.html")]) == 0


def test_the_suite_s_score_is_that_of_the_adaptive_router(adapters: Path, tmp_path: Path) -> None:
    """Two roads to the same numbers: scores.json of each task, and the recorded outcomes of every mode."""
    assert cli.main(arguments(tmp_path, adapters, "task=mmeb_nano/video")) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    metrics = RunFolder(tmp_path / "run").metrics()
    for name, score in metrics["tasks"].items():
        assert summary["by_task"][f"mmeb_nano/{name}"]["adaptive"] == pytest.approx(score)
    assert summary["num_queries"] == QUERIES, "split evenly over the four tasks"
    assert "score" not in summary["modes"]["adaptive"], "tasks are missing"
    assert metrics["status"] == "incomplete: 4/11"
    assert metrics["modes"]["always"]["think_rate"] == 1.0


def test_too_few_queries_are_refused(adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments(tmp_path, adapters, "task=mmeb_nano/all"), "data.test_pairs=10"]) == 2
    assert "got NanoDoc: 0. Set data.test_pairs" in capsys.readouterr().err
