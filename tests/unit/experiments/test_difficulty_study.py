"""The study of difficulty, on made evaluations: where thinking hurts is, or is not, a property of the query."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from experiments.difficulty import collect as difficulty
from experiments.difficulty.figures import draw_by_steps, draw_by_task
from experiments.difficulty.modes import Modes, levels_of, repeated, tasks_of
from experiments.studies.runs import read_seeds
from tests.support.study_runs import decisions, write_evaluation
from tests.support.variant_models import is_rectangular
from twn_lightning.errors import DataError

COUNT = 400
SEEDS = (0, 1, 2)


def with_graded_task(table: pa.Table) -> pa.Table:
    """Every fourth query is of a task with graded quality, where a CoT finds the right page and loses others."""
    key_N = np.array([int(key.split("/")[2]) for key in table.column("query_key").to_pylist()])
    graded_N = key_N % 4 == 0
    values = {
        "task": np.where(graded_N, "mmeb_nano/NanoDoc", "mmeb_nano/NanoQA"),
        "hit_discriminative": np.where(graded_N, 0.7, table.column("hit_discriminative").to_numpy()),
        "hit_generative": np.where(graded_N, 0.6, table.column("hit_generative").to_numpy()),
        "positive": np.full(len(table), "page 1"),
        "top1_discriminative": np.where(key_N % 8 == 0, "page 1", "page 2"),
        "top1_generative": np.where(graded_N, "page 1", "page 2"),
    }
    for name, column in values.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(column))
    return table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [
        write_evaluation(root / str(seed), f"seed{seed}", with_graded_task(decisions(seed, COUNT))) for seed in SEEDS
    ]


def test_what_is_gained_and_lost_adds_up_to_the_oracle() -> None:
    modes = Modes(np.array([[1.0, 0.0, 0.5], [1.0, 1.0, 0.5]]), np.array([[0.0, 1.0, 0.7], [1.0, 0.0, 0.1]]))
    assert modes.hurt_SN == pytest.approx(np.array([[1, 0, 0], [0, 1, 0.4]]))
    assert modes.helped_SN == pytest.approx(np.array([[0, 1, 0.2], [0, 0, 0]]))
    assert modes.oracle_SN == pytest.approx(modes.generative_SN + modes.hurt_SN)
    assert modes.oracle_SN == pytest.approx(modes.discriminative_SN + modes.helped_SN)


def test_the_mode_that_suits_a_query_in_other_models() -> None:
    without_cot = [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    with_cot = [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    modes = Modes(np.array(without_cot).T, np.array(with_cot).T)
    chosen_SN = modes.chosen_by_other_seeds_SN()
    assert chosen_SN[:, 0].tolist() == [1, 1, 1], "all models agree that a CoT hurts"
    assert chosen_SN[:, 1].tolist() == [0, 0, 0], "one model is hurt, another is helped: each is led astray"
    assert chosen_SN[:, 2].tolist() == [1, 1, 0], "where the others disagree or see no difference, a query thinks"
    with pytest.raises(DataError, match="name at least two"):
        Modes(modes.discriminative_SN[:1], modes.generative_SN[:1]).chosen_by_other_seeds_SN()


@pytest.mark.parametrize(
    ("hurt", "share"),
    [
        ([[1, 0], [1, 0], [1, 0]], 1.0),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 0.0),
        ([[1, 1], [1, 0]], 2 / 3),
        ([[0, 0], [0, 0]], None),
        ([[1, 0]], None),
    ],
)
def test_how_often_the_same_query_is_hurt_again(hurt: list[list[float]], share: float | None) -> None:
    assert repeated(np.array(hurt, dtype=float)) == (share if share is None else pytest.approx(share))


def test_groups_cover_every_query_once(runs: list[Path]) -> None:
    seed = read_seeds(runs)[0]
    for groups in (levels_of(seed), tasks_of(seed)):
        assert (np.sum(list(groups.values()), axis=0) == 1).all()
    assert list(levels_of(seed)) == ["direct", "lookalike", "1 step", *(f"{steps} steps" for steps in range(2, 9))]
    assert list(tasks_of(seed)) == ["Doc", "QA"]


def test_the_study_finds_what_was_made(runs: list[Path]) -> None:
    results, claims = difficulty.collect(runs)
    verdicts = {claim.id: claim.verdict for claim in claims}
    assert verdicts == {"steps": "holds", "lookalike": "holds", "oracle": "holds", "other_seeds": "holds"}
    levels, tasks = results["levels"], results["tasks"]
    assert sum(level["num_queries"] for name, level in levels.items() if name != "all") == COUNT
    assert sum(task["share_of_all_hurt"] for task in tasks.values()) == pytest.approx(1)
    assert tasks["Doc"]["hurt"]["mean"] == pytest.approx(0.1)
    assert tasks["Doc"]["hurt_again"] == 1
    assert tasks["QA"]["hurt_again"] < 1
    graded = results["graded"]
    assert all(name.startswith("Doc, ") for name in graded)
    assert all(row["right_first"]["generative"]["mean"] == 1 for row in graded.values())
    right = sum(row["right_first"]["discriminative"]["mean"] * row["num_queries"] for row in graded.values())
    assert right == pytest.approx(COUNT / 8)
    text = difficulty.table(results)
    assert is_rectangular(text)
    assert "| Doc | 100 | 70.0 [70.0, 70.0] | 60.0 [60.0, 60.0] | -10.0 [-10.0, -10.0] |" in text
    steps, by_task = draw_by_steps(levels).axes[0], draw_by_task(tasks).axes[0]
    assert [label.get_text() for label in steps.get_xticklabels()] == ["direct", "lookalike", *map(str, range(1, 9))]
    assert [label.get_text() for label in by_task.get_yticklabels()] == ["QA", "Doc"], "the most to gain first"
