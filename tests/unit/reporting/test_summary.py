"""summary.json: numbers from hand-made tables, and errors that name the path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from twn_lightning.benchmark.registry import NANO_SUITE, all_tasks
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.reporting import build_summary, validate_summary, write_summary
from twn_lightning.reporting.decisions import read_decisions
from twn_lightning.reporting.summary import paired_difference, suite_score


def with_columns(table: pa.Table, **columns: list[Any]) -> pa.Table:
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return table


@pytest.fixture
def four(decisions: pa.Table) -> pa.Table:
    """Two queries of 0 steps and two of 2; the second one thinks in vain, the last one should have."""
    return with_columns(
        decisions.slice(0, 4),
        steps=[0, 0, 2, 2],
        think=[False, True, True, False],
        hit_discriminative=[1.0, 1.0, 0.0, 0.0],
        hit_generative=[1.0, 0.0, 1.0, 1.0],
        tokens=[6, 8, 10, 10],
        malformed=[False, True, False, False],
    )


def build(table: pa.Table, **changes: Any) -> dict[str, Any]:
    hits = np.full(table.num_rows, 0.5)
    score = SimpleNamespace(hit_at_1=0.5, tokens_per_query=3.0, think_rate=0.25, ci95=(0.4, 0.6), hits=hits)
    arguments: dict[str, Any] = {
        "suite": "nano",
        "stages": {},
        "added_parameter_ratio": {"nano": 0.1, "qwen3vl_4b": 0.05, "qwen3vl_8b": 0.03},
        "router_scores": {"oracle": score},
        "gate": {"auroc": float("nan"), "ece": 0.1},
        "seconds": 3,
    }
    return build_summary(table, **{**arguments, **changes})


def test_numbers_of_a_hand_made_table(four: pa.Table) -> None:
    summary = build(four)
    validate_summary(summary, complete=False)
    assert summary["by_steps"] == {
        "0": {"never": 1.0, "always": 0.5, "adaptive": 0.5, "think_rate": 0.5, "num_queries": 2},
        "2": {"never": 0.0, "always": 1.0, "adaptive": 0.5, "think_rate": 0.5, "num_queries": 2},
    }
    assert summary["cot_length_ratio"] == pytest.approx(0.7)
    assert summary["think_rate"] == 0.5
    assert summary["malformed_cot_rate"] == 0.25
    assert summary["oracle_tokens_ratio"] == pytest.approx(4.5 / 3.0)
    assert summary["paired"]["difference"] == pytest.approx(-0.25)
    assert summary["gate"] == {"auroc": None, "ece": 0.1}


def test_parts_by_kind_and_by_task(four: pa.Table) -> None:
    assert build(four)["by_kind"] == {}
    four = with_columns(four, task=["s/a", "s/b", "s/b", "s/b"])
    summary = build(four.append_column("kind", pa.array(["direct", "lookalike", "steps", None])))
    validate_summary(summary, complete=False)
    assert {name: part["num_queries"] for name, part in summary["by_kind"].items()} == {
        "direct": 1,
        "lookalike": 1,
        "steps": 1,
    }
    assert summary["by_kind"]["lookalike"]["think_rate"] == 1.0
    assert summary["by_task"]["s/b"] == {
        "never": pytest.approx(1 / 3),
        "always": pytest.approx(2 / 3),
        "adaptive": pytest.approx(1 / 3),
        "think_rate": pytest.approx(2 / 3),
        "num_queries": 3,
    }


def test_the_score_is_the_mean_over_meta_tasks_of_the_mean_over_tasks() -> None:
    """I-RET has three tasks of nine meta-tasks; NanoT2I has two queries."""
    tasks = [f"mmeb_nano/{task.name}" for task in all_tasks(NANO_SUITE)]
    value_N = np.array([1.0] * len(tasks) + [0.0])
    value_N[tasks.index("mmeb_nano/NanoCLS")] = 0.25
    expected = (8 + 0.25 - (1 - (1 + 1 + 0.5) / 3)) / 9
    task_N = np.array([*tasks, "mmeb_nano/NanoT2I"])
    assert suite_score(value_N, task_N, "mmeb_nano") == pytest.approx(expected)
    assert suite_score(value_N[1:], task_N[1:], "mmeb_nano") is None, "a task is missing"
    with pytest.raises(ConfigError, match="unknown suite 'nano'"):
        suite_score(value_N, task_N, "nano")


def test_the_summary_holds_the_score_of_every_router(four: pa.Table) -> None:
    tasks = [f"mmeb_nano/{task.name}" for task in all_tasks(NANO_SUITE)]
    table = pa.concat_tables([four.slice(i % 4, 1) for i in range(len(tasks))])
    summary = build(with_columns(table, task=tasks), suite="mmeb_nano", scored=True)
    validate_summary(summary, complete=False)
    assert summary["modes"]["oracle"]["score"] == pytest.approx(0.5)
    assert "score" not in build(four)["modes"]["oracle"]


def test_verdicts(four: pa.Table) -> None:
    assert read_decisions(four).verdicts().tolist() == ["skipped", "hurt", "helped", "missed"]
    graded = with_columns(four, hit_discriminative=[0.6, 0.6, 0.6, 0.6], hit_generative=[0.6, 0.5, 1.0, 0.7])
    assert read_decisions(graded).verdicts().tolist() == ["skipped", "hurt", "helped", "missed"]


def test_without_known_steps_nothing_is_made_up(four: pa.Table) -> None:
    summary = build(with_columns(four, steps=pa.array([None] * 4, pa.int64())))
    assert summary["by_steps"] == {}
    assert summary["cot_length_ratio"] is None


def test_paired_interval_contains_the_difference_and_is_reproducible(decisions: pa.Table) -> None:
    columns = read_decisions(decisions)
    paired = paired_difference(columns)
    assert paired["ci95"][0] < paired["difference"] < paired["ci95"][1]
    assert paired == paired_difference(columns)


def test_identical_choices_have_a_difference_of_exactly_zero(decisions: pa.Table) -> None:
    always = with_columns(decisions, think=[True] * decisions.num_rows)
    assert paired_difference(read_decisions(always)) == {"difference": 0.0, "ci95": [0.0, 0.0]}


def test_complete_summary_survives_json(summary: dict[str, Any], tmp_path: Path) -> None:
    write_summary(summary, tmp_path / "deep" / "summary.json")
    assert json.loads((tmp_path / "deep" / "summary.json").read_text()) == summary


def drop_router(summary: dict[str, Any]) -> None:
    del summary["modes"]["oracle"]


def drop_stage(summary: dict[str, Any]) -> None:
    del summary["stages"]["rl"]


def hit_above_one(summary: dict[str, Any]) -> None:
    summary["modes"]["adaptive"]["hit@1"] = 96.0


def not_finite(summary: dict[str, Any]) -> None:
    summary["stages"]["gate"]["after"] = float("nan")


def nine_steps(summary: dict[str, Any]) -> None:
    summary["by_steps"]["9"] = summary["by_steps"]["8"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_router, r"modes: 'oracle' is a required"),
        (drop_stage, r"stages: 'rl' is a required"),
        (hit_above_one, r"modes\.adaptive\.hit@1: 96\.0 is greater than the maximum"),
        (not_finite, r"stages\.gate\.after: nan is not a finite"),
        (nine_steps, r"by_steps: .*'9'"),
    ],
)
def test_error_names_the_path(
    summary: dict[str, Any], damage: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    damage(summary)
    with pytest.raises(DataError, match=message):
        write_summary(summary, tmp_path / "summary.json")
    assert not (tmp_path / "summary.json").exists()


def test_partial_summary_may_lack_routers_and_stages_but_not_fields(summary: dict[str, Any]) -> None:
    summary["stages"], summary["modes"] = {}, {"never": summary["modes"]["never"]}
    validate_summary(summary, complete=False)
    del summary["gate"]
    with pytest.raises(DataError, match="'gate' is a required"):
        validate_summary(summary, complete=False)


def test_a_benchmark_suite_trains_no_stage(summary: dict[str, Any]) -> None:
    summary["stages"] = {}
    with pytest.raises(DataError, match="stages: 'gate' is a required"):
        validate_summary(summary)
    validate_summary({**summary, "suite": "mmeb_nano"})


def test_bad_tables_are_named(four: pa.Table) -> None:
    with pytest.raises(DataError, match=r"lack the column\(s\) gain, cot"):
        read_decisions(four.drop_columns(["gain", "cot"]))
    with pytest.raises(DataError, match="0 rows"):
        read_decisions(four.slice(0, 0))
    with pytest.raises(DataError, match="'probability' of the gate decisions has 1 empty"):
        read_decisions(with_columns(four, probability=[0.1, None, 0.2, 0.3]))
    with pytest.raises(DataError, match="12 reasoning steps"):
        build(with_columns(four, steps=[0, 0, 2, 12]))
