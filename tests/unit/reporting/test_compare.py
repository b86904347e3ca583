"""Runs side by side: settings and metrics that differ, and paired differences on the queries that two share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from tests.unit.reporting.conftest import make_decisions, make_summary
from twn_lightning.errors import DataError
from twn_lightning.reporting.compare import (
    difference_table,
    metrics_table,
    run_names,
    settings_table,
    shared_decisions,
    training_curve,
)
from twn_lightning.reporting.example_figure import example_figure
from twn_lightning.reporting.gallery import choose_examples
from twn_lightning.reporting.read import ReportData
from twn_lightning.run import RunFolder
from twn_lightning.settings import GateSettings, Settings


def trained(folder: Path, settings: Settings, metrics: dict[str, object]) -> Path:
    run = RunFolder(folder).create(settings)
    run.log(0, {"val/loss": 2.0, "train/other": 1.0})
    run.log(5, {"val/loss": 1.0})
    run.finish(metrics)
    return folder


def test_only_what_differs_is_shown(tmp_path: Path) -> None:
    cheap, dear = (
        trained(tmp_path / name, Settings(seed=1, gate=GateSettings(price=price)), {"a": price, "text": "x", name: 1.0})
        for name, price in (("cheap", 0.1), ("dear", 2.0))
    )
    assert settings_table([cheap, dear]).rows == [["gate.price", "0.1", "2.0"]]
    assert metrics_table([cheap, dear]).rows == [["a", "0.1000", "2.0000"]]


def test_curves_are_read_from_the_log(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", Settings(), {})
    steps, values = training_curve(folder, "val/loss")
    assert (steps.tolist(), values.tolist()) == ([0, 5], [2.0, 1.0])
    assert training_curve(folder, "val/accuracy")[0].size == 0


def test_differences_are_over_shared_queries_in_one_order(make_run: Callable[..., Path]) -> None:
    table = make_decisions(300)
    other = table.slice(100).take(np.random.default_rng(0).permutation(200))
    better = other.set_column(other.column_names.index("hit_generative"), "hit_generative", pa.array(np.ones(200)))
    first, second = make_run("a", table), make_run("b", better)
    rows, before, after = shared_decisions(first, second)
    assert [row["query_key"] for row in rows] == [f"q{i}" for i in range(100, 300)]
    np.testing.assert_array_equal(before.hit_discriminative_N, after.hit_discriminative_N)
    shown = {row[1]: row for row in difference_table([first, second]).rows}
    assert shown["never think"][-2:] == ["+0.0", "+0.0 to +0.0"]
    gained = 100 * (1 - before.hit_generative_N.mean())
    assert shown["always think"][2:6] == ["200", f"{100 - gained:.1f}", "100.0", f"{gained:+.1f}"]
    assert difference_table([first]).rows == []


def test_evaluations_of_other_queries_are_refused(make_run: Callable[..., Path]) -> None:
    table = make_decisions(50)
    renamed = table.set_column(0, "query_key", pa.array([f"other{i}" for i in range(50)]))
    first, second = make_run("a", table), make_run("b", renamed)
    with pytest.raises(DataError, match="share none of their 50 and 50 queries"):
        difference_table([first, second])


def test_one_key_for_two_queries_is_refused(make_run: Callable[..., Path]) -> None:
    table = make_decisions(50)
    other = table.set_column(table.column_names.index("query_text"), "query_text", pa.array(["another"] * 50))
    with pytest.raises(DataError, match=r"50 of the 50 query keys .* stand for different queries"):
        difference_table([make_run("a", table), make_run("b", other)])


def test_names_are_as_short_as_tells_runs_apart() -> None:
    assert run_names([Path("out/sft"), Path("out/rl")]) == ["sft", "rl"]
    assert run_names([Path("a/sft/1"), Path("b/sft/1")]) == ["a/sft/1", "b/sft/1"]
    with pytest.raises(DataError, match="named twice"):
        run_names([Path("out/sft"), Path("out/sft")])


def test_examples_become_a_figure_whatever_the_model_wrote() -> None:
    table = make_decisions(40)
    hostile = pa.array(["$\\frac{1}{ <think> " + "long " * 500] * 40)
    table = table.set_column(table.column_names.index("cot"), "cot", hostile)
    examples = choose_examples(ReportData.from_table(make_summary(table), table))[:3]
    figure = example_figure(examples)
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len(words) == 3
    assert all(f"{example.verdict}: p(think)" in text for example, text in zip(examples, words, strict=True))
    with pytest.raises(DataError, match="no decision to show"):
        example_figure([])
