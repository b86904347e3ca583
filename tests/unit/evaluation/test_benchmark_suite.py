"""The suite over made tasks and a fake encoder: files, modes, guards, skipped items, memory."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_encoder import FakeEncoder
from tests.support.made_tasks import PROTOCOL, made_task, with_text
from tests.support.suite_runs import all_kept, predictions, run, tasks_of
from twn_lightning.errors import ConfigError, DataError, NumericalError
from twn_lightning.evaluation.benchmark_suite import SuiteProgress
from twn_lightning.evaluation.task_scores import BENCHMARK_KEYS
from twn_lightning.metrics.retrieval import ranking_metrics
from twn_lightning.run import RunFolder
from twn_lightning.types import EmbeddingMode, Side


def test_a_task_leaves_scores_predictions_and_the_suite_file(tmp_path: Path) -> None:
    tasks = tasks_of()
    result = run(FakeEncoder(), tasks, tmp_path)
    assert result.folder.relative_to(tmp_path / "run").parts[:2] == ("eval", "mmeb_v2")
    assert result.folder.name == f"gate0.500-q_adaptive-c_discriminative-{PROTOCOL.digest()}"
    suite = json.loads(result.file.read_text())
    assert suite["metadata"]["model_name"] == "fake"
    assert list(suite["metrics"]) == ["image", "video", "visdoc"]
    assert list(suite["metrics"]["image"]) == ["T0", "T1"]
    assert tuple(suite["metrics"]["visdoc"]["T2"]) == BENCHMARK_KEYS
    for task in tasks:
        scores = json.loads((result.folder / task.name / "scores.json").read_text())
        assert scores == json.loads(json.dumps(result.scores[task.name]))
        lines = predictions(result, task.name)
        assert [line["query"] for line in lines] == [item.key for item in task.queries]
        assert scores["num_pred"] == scores["num_data"] == 20
        expected = ranking_metrics([line["prediction"] for line in lines], task.labels, task.relevance)
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        assert scores["score"] == scores[scores["metric"]]
        low, high = scores["ci95"]
        assert 0 <= low <= scores["score"] <= high <= 1
        assert 0 < scores["score"] < 1, "a task that all or none get right would compare nothing"


def test_what_thinking_cost_is_told_apart_by_side(tmp_path: Path) -> None:
    task = made_task()
    scores = run(FakeEncoder(), [task], tmp_path).scores["T0"]
    think = [len(item.text) % 2 == 0 for item in task.queries]
    tokens = [len(item.text) * t for item, t in zip(task.queries, think, strict=True)]
    odd = [t and "odd" in item.text for item, t in zip(task.queries, think, strict=True)]
    assert scores["think_rate"] == sum(think) / 20
    assert scores["tokens_per_query"] == sum(tokens) / 20
    assert scores["candidate_think_rate"] == scores["tokens_per_candidate"] == 0
    assert scores["malformed"] == sum(odd) > 0
    assert scores["malformed_rate"] == sum(odd) / sum(think)
    lines = predictions(run(FakeEncoder(), [task], tmp_path), "T0")
    assert [line["think"] for line in lines] == think
    assert [line["tokens"] for line in lines] == tokens
    assert {line["probability"] for line in lines} == {0.25, 0.75}


def test_candidates_that_think_are_counted(tmp_path: Path) -> None:
    protocol = replace(PROTOCOL, query_mode="discriminative", candidate_mode="generative")
    scores = run(FakeEncoder(), [made_task(protocol=protocol)], tmp_path, protocol=protocol).scores["T0"]
    assert scores["think_rate"] == 0
    assert scores["candidate_think_rate"] == 1
    assert scores["tokens_per_candidate"] > 0
    assert (scores["query_mode"], scores["candidate_mode"]) == ("discriminative", "generative")


def test_a_mode_that_the_encoder_lacks_says_what_to_set(tmp_path: Path) -> None:
    plain = FakeEncoder(modes=(EmbeddingMode.DISCRIMINATIVE,))
    with pytest.raises(ConfigError, match=r"task\.query_mode=adaptive.*only: discriminative.*=discriminative"):
        run(plain, tasks_of(), tmp_path)
    protocol = replace(PROTOCOL, query_mode="discriminative")
    result = run(plain, [made_task(protocol=protocol)], tmp_path, protocol=protocol)
    assert result.folder.name.startswith("nogate-q_discriminative-c_discriminative-")


def test_a_task_of_another_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another protocol"):
        run(FakeEncoder(), tasks_of(), tmp_path, protocol=replace(PROTOCOL, ties="first"))


def test_a_collapsed_encoder_scores_at_chance_and_is_noticed(tmp_path: Path) -> None:
    scores = run(FakeEncoder(constant=True), [made_task()], tmp_path).scores["T0"]
    assert scores["hit@1"] == 0
    assert scores["guards"]["tie_rate"] == 1
    assert scores["guards"]["constant_queries"] is scores["guards"]["constant_candidates"] is True


def test_counts_are_compared_with_the_table(tmp_path: Path) -> None:
    task = made_task()
    short = replace(task, task=replace(task.task, num_candidates=1000))
    assert run(FakeEncoder(), [task], tmp_path).scores["T0"]["guards"]["counts"]["agree"] is True
    guard = run(FakeEncoder(), [short], tmp_path).scores["T0"]["guards"]["counts"]
    assert guard["agree"] is False
    assert guard["table"] == {"queries": 20, "candidates": 1000}
    assert guard["found"]["most_candidates"] == 30


def test_nan_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    class Broken(FakeEncoder):
        def _vector(self, item, mode):  # type: ignore[no-untyped-def]
            return super()._vector(item, mode) * (math.nan if item.key == "T1/q4" else 1)

    with pytest.raises(NumericalError, match="T1/q4"):
        run(Broken(), tasks_of(), tmp_path)
    assert [path.parent.name for path in tmp_path.rglob("scores.json")] == ["T0"]


def test_equal_items_are_encoded_once(tmp_path: Path) -> None:
    task = made_task()
    same = replace(task, queries=[replace(item, text=task.queries[i // 4].text) for i, item in enumerate(task.queries)])
    encoder = FakeEncoder()
    result = run(encoder, [same], tmp_path)
    assert encoder.encoded == 5 + 30
    assert all_kept(run(FakeEncoder(), [same], tmp_path / "b", chunk_size=3, cache=None)) == all_kept(result)
    tops = [line["prediction"] for line in predictions(result, "T0")]
    assert all(tops[i] == tops[i // 4 * 4] for i in range(20))


def test_broken_items_end_the_suite_or_are_skipped_and_listed(tmp_path: Path) -> None:
    task = made_task(scope="local")
    label = task.items[0].labels[0]
    broken = with_text(with_text(task, "T0/q5", "broken query"), label, "broken candidate")
    with pytest.raises(DataError, match=r"task 'T0', query: .*is truncated"):
        run(FakeEncoder(), [broken], tmp_path)
    scores = run(FakeEncoder(), [broken], tmp_path, on_error="skip").scores["T0"]
    lost = {i for i, item in enumerate(task.items) if item.labels == (label,)} | {5}
    assert scores["num_data"] == 20
    assert scores["num_pred"] == 20 - len(lost)
    assert len(scores["skipped"]) == scores["counts"]["skipped"] == 2 + len(lost - {5})
    assert any("T0/q5" in line for line in scores["skipped"])
    assert any("none of its labels" in line for line in scores["skipped"])
    clean = run(FakeEncoder(), [task], tmp_path / "clean")
    by_query = {line["query"]: line for line in predictions(clean, "T0")}
    for line in predictions(run(FakeEncoder(), [broken], tmp_path, on_error="skip"), "T0"):
        expected = [key for key in by_query[line["query"]]["prediction"] if key != label]
        assert line["prediction"][: len(expected)] == expected


def test_a_task_that_cannot_be_scored_at_all_is_skipped_and_listed(tmp_path: Path) -> None:
    tasks = tasks_of(2)
    hopeless = replace(tasks[0], queries=[replace(item, text="broken") for item in tasks[0].queries])
    result = run(FakeEncoder(), [hopeless, tasks[1]], tmp_path, on_error="skip")
    assert list(result.scores) == ["T1"]
    assert "no query is left" in result.failed["T0"]
    assert list(json.loads(result.file.read_text())["metrics"]["image"]) == ["T1"]


def test_progress_counts_every_item_once(tmp_path: Path) -> None:
    class Counts(SuiteProgress):
        def __init__(self) -> None:
            self.sides: list[tuple[str, Side, int]] = []
            self.finished: list[tuple[str, bool]] = []
            self.tasks, self.done = 0, 0

        def suite_started(self, tasks: int) -> None:
            self.tasks = tasks

        def side_started(self, task: str, side: Side, items: int) -> None:
            self.sides.append((task, side, items))

        def advanced(self, items: int) -> None:
            self.done += items

        def task_finished(self, scores: Any, *, reused: bool) -> None:
            self.finished.append((scores["task"], reused))

    run(FakeEncoder(), tasks_of(1), tmp_path)
    counts = Counts()
    run(FakeEncoder(), tasks_of(3), tmp_path, progress=counts)
    assert counts.tasks == 3
    assert counts.done == 100
    assert counts.sides == [(t, *s) for t in ("T1", "T2") for s in ((Side.QUERY, 20), (Side.CANDIDATE, 30))]
    assert counts.finished == [("T0", True), ("T1", False), ("T2", False)]


def test_the_encoder_is_asked_once_who_it_is(tmp_path: Path) -> None:
    class Asked(FakeEncoder):
        def identity(self, side: Side, mode: EmbeddingMode) -> dict[str, Any]:
            asked.append((side, mode))
            return super().identity(side, mode)

        def decision_identity(self, side: Side) -> dict[str, Any]:
            asked.append((side, None))
            return super().decision_identity(side)

    asked: list[tuple[Side, EmbeddingMode | None]] = []
    run(Asked(), tasks_of(3), tmp_path)
    modes = (EmbeddingMode.ADAPTIVE, EmbeddingMode.GENERATIVE, None)
    assert sorted(map(str, asked)) == sorted(
        map(str, [(Side.CANDIDATE, EmbeddingMode.DISCRIMINATIVE), *((Side.QUERY, mode) for mode in modes)])
    )


def test_the_suite_file_tells_the_model(tmp_path: Path) -> None:
    class Named(FakeEncoder):
        def model_name(self) -> str:
            return f"backbone+{self.adapters}"

    def name(encoder: FakeEncoder, **options: Any) -> str:
        return str(
            json.loads(run(encoder, tasks_of(1), tmp_path, **options).file.read_text())["metadata"]["model_name"]
        )

    assert name(FakeEncoder()) == "fake"
    assert name(Named()) == "backbone+a"
    assert name(Named(), model_name="my run") == "my run"


def test_nothing_is_left_beside_the_files(tmp_path: Path) -> None:
    result = run(FakeEncoder(), tasks_of(1), tmp_path)
    assert {path.name for path in result.folder.rglob("*") if path.is_file()} == {
        "mmeb_v2.json", "scores.json", "predictions.jsonl",
    }  # fmt: skip
    assert RunFolder(tmp_path / "run").read_status() == {}


def test_memory_does_not_grow_with_the_number_of_tasks(tmp_path: Path) -> None:
    def peak(count: int, folder: Path) -> int:
        encoder = FakeEncoder(dimension=512)
        tasks = [made_task(f"T{i}", queries=10, candidates=150) for i in range(count)]
        tracemalloc.start()
        run(encoder, tasks, folder, chunk_size=64, bootstrap_samples=10)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1, tmp_path / "warm")
    one, many = peak(2, tmp_path / "one"), peak(10, tmp_path / "many")
    kept = 8 * 160 * 512 * 4  # what eight more tasks would add if their embeddings stayed
    assert many - one < kept / 4, f"{one / 1e6:.2f} MB with 2 tasks, {many / 1e6:.2f} MB with 10"
