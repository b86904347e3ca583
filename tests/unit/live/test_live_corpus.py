"""The candidates of a run: each distinct one once, found by similarity, by task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.fake_encoder import FakeEncoder
from twn_lightning.errors import ConfigError
from twn_lightning.live.corpus import encode_corpus, run_candidates
from twn_lightning.settings import DataSettings, PathSettings, Settings, TaskSettings
from twn_lightning.types import EmbeddingMode, Item, Side


def item(text: str, key: str | None = None) -> Item:
    return Item(key or text, "", text)


CANDIDATES = {
    "t/one": [item("red 1"), item("blue 2"), item("green 3")],
    "t/two": [item("blue 2"), item("grey 4"), item("red 1")],
}


def test_shared_candidates_are_encoded_once() -> None:
    encoder = FakeEncoder()
    corpus = encode_corpus(encoder, CANDIDATES)
    assert [found.text for found in corpus.items] == ["red 1", "blue 2", "green 3", "grey 4"]
    assert encoder.encoded == 4
    assert {task: rows.tolist() for task, rows in corpus.rows.items()} == {"t/one": [0, 1, 2], "t/two": [0, 1, 3]}
    assert corpus.left_out == 0


def test_nearest_are_the_most_similar_of_the_task() -> None:
    encoder = FakeEncoder()
    corpus = encode_corpus(encoder, CANDIDATES)
    query_D = encoder.encode([item("grey 4")], Side.QUERY, EmbeddingMode.DISCRIMINATIVE).embedding_ND[0]
    found = corpus.nearest(query_D, None, 2)
    assert found[0].item.text == "grey 4"
    assert found[0].score == pytest.approx(1)
    scores = corpus.embedding_CD @ query_D
    assert [n.score for n in corpus.nearest(query_D, None, 9)] == pytest.approx(sorted(scores.tolist(), reverse=True))
    assert {n.item.text for n in corpus.nearest(query_D, "t/one", 9)} == {"red 1", "blue 2", "green 3"}


def test_beyond_the_limit_each_task_keeps_its_first() -> None:
    corpus = encode_corpus(FakeEncoder(), CANDIDATES, limit=4)
    assert [found.text for found in corpus.items] == ["red 1", "blue 2", "grey 4"]
    assert corpus.left_out == 2


def test_a_source_without_candidates_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no candidates"):
        encode_corpus(FakeEncoder(), {"t/one": []})


def test_a_nano_run_has_the_candidates_of_every_task() -> None:
    candidates, mode = run_candidates(Settings(data=DataSettings(source="nano")))
    assert mode is EmbeddingMode.DISCRIMINATIVE
    assert {task: len(items) for task, items in candidates.items()}["nano/read"] == 60
    assert all(np.unique([found.key for found in items]).size == len(items) for items in candidates.values())


def test_a_run_on_a_suite_has_its_tasks_candidates(tmp_path: Path) -> None:
    task = TaskSettings(suite="mmeb_nano", names=["NanoQA"], protocol="nano")
    settings = Settings(task=task, data=DataSettings(test_pairs=2), paths=PathSettings(output_root=str(tmp_path)))
    candidates, mode = run_candidates(settings)
    assert mode is EmbeddingMode.DISCRIMINATIVE
    assert {name: len(items) for name, items in candidates.items()} == {"NanoQA": 217}


def test_a_run_on_the_benchmark_needs_its_media(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.media_root is not set"):
        run_candidates(Settings(task=TaskSettings(suite="mmeb_v2", names=["N24News"])))
