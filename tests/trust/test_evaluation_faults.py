"""An evaluation that meets a fault and is started again ends with the same scores, and computes nothing twice."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_encoder import FakeEncoder
from tests.support.suite_runs import all_kept, kept, predictions, run, tasks_of
from tests.support.tiny_adapters import save_undecided_adapters
from tests.trust.faults import DISK_FULL, Fault, Work, chosen_moments, count_moments, run_apart
from tests.trust.outcomes import assert_same, injected
from twn_lightning import cli
from twn_lightning.evaluation import embedding_space
from twn_lightning.evaluation.benchmark_suite import SuiteResult
from twn_lightning.evaluation.embedding_shards import read_digests
from twn_lightning.manifest import file_digest
from twn_lightning.run import RunFolder

TASKS = 5
EXIT_CODES = {"SIGKILL": (-9,), "SIGTERM": (143, -15)}
FLUSH_ROWS = 8
"""The cache writes a file for every batch, so that faults meet many of them."""


def evaluate_made_tasks(folder: Path) -> None:
    embedding_space.FLUSH_ROWS = FLUSH_ROWS
    run(FakeEncoder(), tasks_of(TASKS), folder)


def evaluating(folder: Path) -> Work:
    return Work(evaluate_made_tasks, (folder,), "tests.support.fake_encoder:FakeEncoder.encode")


def what_it_left(result: SuiteResult, folder: Path) -> dict[str, Any]:
    shards = sorted((folder / "cache").rglob("*.safetensors"))
    cached = {(shard.parent.name, digest) for shard in shards for digest in read_digests(shard).tolist()}
    written = {name: predictions(result, name) for name in result.scores}
    return {"scores": all_kept(result), "predictions": written, "items in the cache": len(cached)}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """The moments of an undisturbed evaluation, and what it left."""
    folder = tmp_path_factory.mktemp("straight")
    count = count_moments(evaluating(folder))
    return count, what_it_left(run(FakeEncoder(fail_after=0), tasks_of(TASKS), folder), folder)


@pytest.mark.parametrize(
    ("kind", "code"), [("SIGKILL", -9), ("SIGTERM", -15), ("SIGINT", 130), ("SIGUSR1", -10), (DISK_FULL, 2)]
)
def test_a_suite_goes_on_where_it_was(
    kind: str,
    code: int,
    straight: tuple[int, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    count, expected = straight
    monkeypatch.setattr(embedding_space, "FLUSH_ROWS", FLUSH_ROWS)
    for number, moment in enumerate(chosen_moments(count, f"evaluation {kind}", in_ci=2)):
        folder = tmp_path / str(number)
        with injected(kind, "evaluation", number), caplog.at_level(logging.WARNING):
            assert run_apart(evaluating(folder), Fault(kind, moment)) == code
            finished = {path.parent.name for path in folder.rglob("scores.json")}
            encoder = FakeEncoder()
            result = run(encoder, tasks_of(TASKS), folder)
            assert_same(what_it_left(result, folder), expected, f"{kind} at moment {moment} of {count}")
            assert set(result.resumed) == finished
            assert not {key.partition("/")[0] for batch in encoder.batches for key in batch} & finished
    assert "torn" not in caplog.text
    assert "damaged" not in caplog.text


def call_command(arguments: list[str]) -> None:
    raise SystemExit(cli.main(arguments))


def command(suite: str, folder: Path, adapters: Path) -> Work:
    arguments = [
        "evaluate",
        *(["task=mmeb_nano/all"] if suite == "mmeb_nano" else []),
        "model=tiny",
        f"adapters.init_from={adapters}",
        "data.max_new_tokens=4",
        "data.test_pairs=22",
        f"paths.output_root={folder}",
        f"paths.run_dir={folder / 'run'}",
        f"task.cache_root={folder / 'cache'}",
        "evaluation.bootstrap_samples=20",
        "evaluation.batch_size=4",
    ]
    return Work(call_command, (arguments,), "twn_lightning.backbone.dual_lora:DualLoRABackbone.embed")


def what_the_command_left(folder: Path) -> dict[str, Any]:
    run = RunFolder(folder / "run")
    scores = {path.parent.name: kept(json.loads(path.read_text())) for path in run.path.rglob("scores.json")}
    for values in scores.values():
        for name in ("repeat", "digest"):  # they hold paths
            values.pop(name, None)
    texts = {path.parent.name: path.read_text() for path in run.path.rglob("predictions.jsonl")}
    return {"metrics": run.metrics(), "scores": scores, "texts": texts, "decisions": file_digest(run.gate_decisions)}


@pytest.mark.parametrize(("suite", "kind"), [("nano", "SIGTERM"), ("mmeb_nano", "SIGKILL")])
def test_the_command_again_goes_on(suite: str, kind: str, tmp_path: Path) -> None:
    adapters = save_undecided_adapters(tmp_path / "adapters")
    count = count_moments(command(suite, tmp_path / "straight", adapters))
    expected = what_the_command_left(tmp_path / "straight")
    for number, moment in enumerate(chosen_moments(count, f"{suite} {kind}")):
        folder = tmp_path / str(number)
        again = command(suite, folder, adapters)
        with injected(kind, f"twn evaluate task={suite}", number):
            assert run_apart(again, Fault(kind, moment)) in EXIT_CODES[kind]
            status = RunFolder(folder / "run").read_status()
            if status.get("status") == "INTERRUPTED":
                assert status["error"] == f"continue with: the same command with paths.run_dir={folder / 'run'}"
            if status.get("status") != "COMPLETED":
                assert run_apart(again) == 0
            assert_same(what_the_command_left(folder), expected, f"{kind} at moment {moment} of {count}")
