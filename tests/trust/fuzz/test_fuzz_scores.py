"""Score files that attack the scoreboard: every score that is read is the file's own."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.fuzz.broken_files import Edit, damaged
from tests.trust.fuzz.cases import check, examples, nothing_left
from tests.trust.fuzz.test_fuzz_media import EDITS
from tests.trust.fuzz.test_fuzz_rows import JSON
from tests.trust.fuzz.test_fuzz_sources import VALUES, spoil
from twn_lightning.benchmark.aggregate import aggregate
from twn_lightning.benchmark.registry import all_tasks
from twn_lightning.benchmark.score_file import ScoreFile, read_score_file

TASKS = all_tasks()
DEEP = "[" * 5000 + "]" * 5000


@pytest.fixture(scope="module", autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left("score files"):
        yield


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def score_document(choice: random.Random) -> dict[str, Any]:
    """A score file of some tasks in the public format."""
    metrics: dict[str, dict[str, Any]] = {}
    for task in choice.sample(TASKS, 6):
        metrics.setdefault(task.modality, {})[task.name] = {task.metric: round(choice.random(), 4), "num_data": 10}
    return {"metadata": {"model_name": "made", "num_frames": 8, "version": "2.1"}, "metrics": metrics}


@examples(100, 600)
@given(
    seed=st.integers(0, 9999),
    value=VALUES | st.just("take it away") | st.sampled_from([0.5, 1.5, -0.1, 50.0]),
    times=st.integers(0, 2),
    edits=st.just([]) | EDITS,
)
def test_score_files(folder: Path, seed: int, value: Any, times: int, edits: list[Edit]) -> None:
    choice = random.Random(seed)
    document = score_document(choice)
    for _ in range(times):
        spoil(document, value, choice)
    path = folder / "scores.json"
    path.write_bytes(damaged(json.dumps(document).encode(), edits))

    def right(found: ScoreFile) -> None:
        metrics = json.loads(path.read_bytes())["metrics"]
        for name, score in found.scores.items():
            task = next(task for task in TASKS if task.name == name)
            entry = metrics[task.modality].get(name) or metrics[task.modality][f"{name}-fixed"]
            assert score == entry[task.metric]
            assert 0 <= score <= 1
        means = aggregate(found.scores)
        assert len(means.missing) == len(TASKS) - len(found.scores)
        assert means.all is None

    check(
        "score files",
        f"{value!r:.80} {times} {seed} {edits}",
        lambda: read_score_file(path),
        right,
        names="scores.json",
    )


@examples(60, 300)
@given(document=st.dictionaries(
    st.sampled_from(["task", "modality", "metrics", "metadata", "protocol", "encoder"]), JSON, max_size=5
))  # fmt: skip
def test_score_files_of_any_json(folder: Path, document: dict[str, Any]) -> None:
    path = folder / "scores.json"
    path.write_text(json.dumps(document))

    def right(found: ScoreFile) -> None:
        assert found.scores == {}

    check("score files", f"{document}", lambda: read_score_file(path), right, names="scores.json")


@pytest.mark.parametrize(
    "content", ["{" * 9, DEEP, "[]", "null", '{"metrics": {}, "metrics": {}}', "\ufeff{}", '{"metrics": NaN}']
)
def test_score_files_that_are_none(folder: Path, content: str) -> None:
    path = folder / "scores.json"
    path.write_text(content)
    check("score files", content[:30], lambda: read_score_file(path), None, names="scores.json")
