"""Runs of the benchmark suite over made tasks, and what they wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.fake_encoder import FakeEncoder
from tests.support.made_tasks import PROTOCOL, made_task
from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.evaluation.benchmark_suite import SuiteResult, run_suite
from twn_lightning.evaluation.embedding_cache import EmbeddingCache

VOLATILE = ("seconds", "from_cache")


def tasks_of(count: int = 3) -> list[EvalTask]:
    scopes = ["global", "local", "global"]
    return [made_task(f"T{i}", scope=scopes[i % 3], graded=i % 3 == 2) for i in range(count)]  # type: ignore[arg-type]


def run(encoder: FakeEncoder, tasks: list[EvalTask], folder: Path, **options: Any) -> SuiteResult:
    usual = {"protocol": PROTOCOL, "chunk_size": 8, "cache": EmbeddingCache(folder / "cache")}
    return run_suite(encoder, tasks, output=folder / "run", **(usual | options))


def kept(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scores.items() if name not in VOLATILE}


def all_kept(result: SuiteResult) -> dict[str, dict[str, Any]]:
    return {name: kept(scores) for name, scores in result.scores.items()}


def predictions(result: SuiteResult, name: str) -> list[dict[str, Any]]:
    lines = (result.folder / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
