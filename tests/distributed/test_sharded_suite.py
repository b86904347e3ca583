"""The benchmark suite over two gloo ranks = over one: scores, predictions, resume, fewer rows than ranks, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_on_ranks
from tests.support.fake_encoder import FakeEncoder
from tests.support.made_tasks import PROTOCOL, made_task, with_text
from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.errors import DataError
from twn_lightning.evaluation.benchmark_suite import SuiteResult, run_suite
from twn_lightning.evaluation.embedding_cache import EmbeddingCache
from twn_lightning.evaluation.embedding_shards import read_digests
from twn_lightning.evaluation.ranks import joined_processes

CHUNK = 6
THRESHOLDS = (0.7, 0.3)
"""The lower one decodes what newly thinks."""


def tasks_of() -> list[EvalTask]:
    few = made_task("T1", queries=1, candidates=2, scope="local")
    repeated = made_task("T3", queries=15)
    same = [replace(item, text=repeated.queries[i // 5].text) for i, item in enumerate(repeated.queries)]
    return [
        made_task("T0", queries=23, candidates=31),
        few,
        made_task("T2", queries=13, candidates=40, scope="local", graded=True),
        replace(repeated, queries=same),
    ]


def run(tasks: list[EvalTask], folder: Path, encoder: FakeEncoder | None = None, **options: Any) -> SuiteResult:
    usual = {"cache": EmbeddingCache(folder / "cache"), "protocol": PROTOCOL, "chunk_size": CHUNK}
    return run_suite(encoder or FakeEncoder(), tasks, output=folder / "run", **(usual | options))


def think(folder: Path, threshold: float) -> FakeEncoder:
    """Adaptive queries, into one cache whatever the threshold."""
    encoder = FakeEncoder(gate="g", threshold=threshold)
    run(tasks_of(), folder / f"thinking_{threshold}", encoder, cache=EmbeddingCache(folder / "thinking_cache"))
    return encoder


def files(folder: Path) -> dict[str, Any]:
    """Everything written, without what differs from run to run."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "run").rglob("*.json*")):
        values = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
        if values is None:
            values = json.loads(path.read_text())
            values.pop("seconds", None)
            values.get("metadata", {}).pop("report_generated_date", None)
        found[str(path.relative_to(folder))] = values
    return found


def with_broken_items() -> list[EvalTask]:
    """A query and a candidate of the second chunk, the second rank's, cannot be read."""
    first, *others = tasks_of()
    return [with_text(with_text(first, "T0/q8", "broken"), "T0/c7", "broken"), *others]


def cots_of(encoder: FakeEncoder) -> int:
    """CoTs that an encoder decoded apart from the decisions."""
    return sum(len(keys) for asked, keys in zip(encoder.calls, encoder.batches, strict=True) if asked == "generative")


def suite_on_rank(rank: int, folder: Path) -> None:
    encoder = FakeEncoder()
    with joined_processes():
        result = run(tasks_of(), folder / "cached", encoder)
        run(tasks_of(), folder / "plain", cache=None)
        again = run(tasks_of(), folder / "cached", FakeEncoder(fail_after=0))
        with pytest.raises(DataError, match=r"T0/q8.*truncated"):
            run(with_broken_items(), folder / "raise")
        run(with_broken_items(), folder / "skip", on_error="skip")
        thought = [cots_of(think(folder, threshold)) for threshold in THRESHOLDS]
    found = {"scores": result.scores, "held": again.resumed, "encoded": encoder.encoded, "cots": cots_of(encoder)}
    found["thought"] = thought
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What two ranks wrote, and one."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    run_on_ranks(suite_on_rank, two)
    run(tasks_of(), one / "cached")
    run(tasks_of(), one / "plain", cache=None)
    run(with_broken_items(), one / "skip", on_error="skip")
    for threshold in THRESHOLDS:
        think(one, threshold)
    return two, one


@pytest.mark.parametrize("kind", ["cached", "plain", "skip", *(f"thinking_{threshold}" for threshold in THRESHOLDS)])
def test_two_ranks_write_what_one_writes(kind: str, folders: tuple[Path, Path]) -> None:
    two, one = (files(folder / kind) for folder in folders)
    assert two == one
    assert len(two) == 1 + 4 * 2


def test_ranks_share_the_work_and_end_with_the_same_result(folders: tuple[Path, Path]) -> None:
    first, second = (json.loads((folders[0] / f"rank{rank}.json").read_text()) for rank in (0, 1))
    straight = FakeEncoder()
    run(tasks_of(), folders[1] / "counted", straight)
    # Every item is read once, and once more where it thinks.
    assert first["encoded"] + second["encoded"] == straight.encoded + first["cots"] + second["cots"]
    assert second["encoded"] > straight.encoded / 4
    assert first["scores"] == second["scores"]
    assert first["held"] == second["held"] == ["T0", "T1", "T2", "T3"]


def test_items_skipped_on_any_rank_are_listed(folders: tuple[Path, Path]) -> None:
    (scores,) = (values for name, values in files(folders[0] / "skip").items() if name.endswith("T0/scores.json"))
    assert [key for message in scores["skipped"] for key in ("T0/q8", "T0/c7") if key in message] == ["T0/q8", "T0/c7"]
    assert scores["num_pred"] == scores["num_data"] - 1 == 22


def test_ranks_decode_equally_many_cots_and_none_twice(folders: tuple[Path, Path]) -> None:
    found = [json.loads((folders[0] / f"rank{rank}.json").read_text())["thought"] for rank in (0, 1)]
    (first, first_again), (second, second_again) = found
    assert min(first, second, first_again, second_again) > 3
    assert abs(first - second) <= len(tasks_of()), "one apart where a task has an odd number"
    shards = [(folder / "thinking_cache").rglob("*.safetensors") for folder in folders]
    two, one = (sum(len(read_digests(path)) for path in paths) for paths in shards)
    assert two == one
