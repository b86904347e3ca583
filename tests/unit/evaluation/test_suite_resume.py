"""The suite again: what holds is not run again, what changed never reused, and a killed run ends as a straight one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_encoder import FakeEncoder
from tests.support.made_tasks import made_task, with_text
from tests.support.suite_runs import all_kept, predictions, run, tasks_of
from twn_lightning.errors import DataError
from twn_lightning.evaluation import embedding_space
from twn_lightning.evaluation.embedding_cache import EmbeddingCache
from twn_lightning.evaluation.encoders.protocol import EncodedItems


def test_finished_tasks_are_not_run_again(tmp_path: Path) -> None:
    first = run(FakeEncoder(), tasks_of(2), tmp_path)
    encoder = FakeEncoder()
    again = run(encoder, tasks_of(3), tmp_path)
    assert again.resumed == ["T0", "T1"]
    assert {key for batch in encoder.batches for key in batch} == {
        item.key for item in [*tasks_of()[2].queries, *tasks_of()[2].candidates]
    }
    assert all_kept(again)["T0"] == all_kept(first)["T0"]
    assert list(json.loads(again.file.read_text())["metrics"]["image"]) == ["T0", "T1"]


@pytest.mark.parametrize("change", ["adapters", "text", "label", "table", "file"])
def test_scores_of_anything_else_are_never_reused(change: str, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(b"one")
    task = made_task(media=image)
    before = run(FakeEncoder(), [task], tmp_path)
    encoder = FakeEncoder(adapters="b" if change == "adapters" else "a")
    if change == "text":
        task = with_text(task, "T0/c3", "something else")
    elif change == "label":
        task = replace(task, items=[replace(task.items[0], labels=("T0/c0",)), *task.items[1:]])
    elif change == "table":
        task = replace(task, task=replace(task.task, metric="hit@5"))
    elif change == "file":
        image.write_bytes(b"other")
    result = run(encoder, [task], tmp_path)
    assert result.resumed == []
    assert result.scores["T0"]["digest"] != before.scores["T0"]["digest"]
    if change in ("adapters", "file"):
        assert encoder.encoded >= 20, "these change the embeddings"


def test_without_resume_everything_is_scored_again(tmp_path: Path) -> None:
    first = run(FakeEncoder(), tasks_of(), tmp_path)
    again = run(FakeEncoder(), tasks_of(), tmp_path, resume=False)
    assert again.resumed == []
    assert all_kept(again) == all_kept(first)
    assert again.scores["T0"]["from_cache"] == {"queries": 20, "candidates": 30}


def test_the_suite_file_mixes_no_encoders(tmp_path: Path) -> None:
    run(FakeEncoder("a"), tasks_of(3), tmp_path)
    result = run(FakeEncoder("b"), tasks_of(1), tmp_path)
    metrics = json.loads(result.file.read_text())["metrics"]
    assert list(metrics["image"]) == ["T0"]
    assert metrics["visdoc"] == {}


@pytest.mark.parametrize("batches", [0, 1, 4, 9, 15])
def test_interrupted_and_resumed_equals_straight(batches: int, tmp_path: Path) -> None:
    straight_encoder = FakeEncoder()
    straight = run(straight_encoder, tasks_of(), tmp_path / "straight")
    broken = FakeEncoder(fail_after=batches)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tasks_of(), tmp_path / "cut")
    encoder = FakeEncoder()
    resumed = run(encoder, tasks_of(), tmp_path / "cut")
    assert all_kept(resumed) == all_kept(straight)
    assert predictions(resumed, "T2") == predictions(straight, "T2")
    assert broken.encoded + encoder.encoded == straight_encoder.encoded, "what was encoded is not encoded again"
    assert broken.batches + encoder.batches == straight_encoder.batches, "and in the same batches"


class Killed(FakeEncoder):
    def encode(self, *arguments: Any, **options: Any) -> EncodedItems:
        if len(self.batches) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(*arguments, **options)


def test_killed_and_resumed_equals_straight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run(FakeEncoder(), tasks_of(), tmp_path / "straight")
    monkeypatch.setattr(embedding_space, "FLUSH_ROWS", 8)
    process = multiprocessing.get_context("fork").Process(target=run, args=(Killed(), tasks_of(), tmp_path / "cut"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    encoder = FakeEncoder()
    resumed = run(encoder, tasks_of(), tmp_path / "cut")
    assert resumed.resumed == ["T0"]
    assert all_kept(resumed) == all_kept(straight)
    assert len(encoder.batches) == 3 * 7 - 9
    names = {path.name for path in resumed.folder.rglob("*") if path.is_file()}
    assert names == {"mmeb_v2.json", "scores.json", "predictions.jsonl"}


def test_a_truncated_scores_file_is_made_again(tmp_path: Path) -> None:
    first = run(FakeEncoder(), tasks_of(1), tmp_path)
    path = first.folder / "T0" / "scores.json"
    path.write_text(path.read_text()[:100])
    assert all_kept(run(FakeEncoder(), tasks_of(1), tmp_path)) == all_kept(first)


def test_only_cache_refuses_before_any_work(tmp_path: Path) -> None:
    run(FakeEncoder(), tasks_of(1), tmp_path)
    encoder = FakeEncoder()
    with pytest.raises(DataError, match="20 of 20 items are not in the embedding cache"):
        run(encoder, tasks_of(2), tmp_path, cache=EmbeddingCache(tmp_path / "cache", "only-cache"))
    assert encoder.batches == []
