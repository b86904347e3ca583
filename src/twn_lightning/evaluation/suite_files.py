"""The files of a suite: scores and predictions per task, the suite file in the public format, and when they still hold.

eval/<suite>/<run_key>/<suite>.json
eval/<suite>/<run_key>/<task>/{scores.json, predictions.jsonl}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from twn_lightning.atomic import write_text
from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.benchmark.protocol import Protocol
from twn_lightning.benchmark.registry import MODALITIES, TASK_FILES, all_tasks
from twn_lightning.data.record_files import StoredImage
from twn_lightning.evaluation.task_scores import benchmark_scores
from twn_lightning.json_object import write_json
from twn_lightning.types import Media

SCORES = "scores.json"
PREDICTIONS = "predictions.jsonl"
_SCORES_FORMAT = 1


def task_digest(task: EvalTask, encoder: str) -> str:
    """Digest of everything a task's scores follow from: scores with the same digest need not be computed again.

    Protocol, encoder, the task's row, every item with its labels, and size and time of change of every file they name.

    Args:
        task: as loaded.
        encoder: digest of the encoder's identity on both sides.
    """
    digest = hashlib.sha256()
    head = {
        "format": _SCORES_FORMAT,
        "protocol": task.protocol.as_dict(),
        "encoder": encoder,
        "task": asdict(task.task),
        "counts": dict(task.counts),
        "skipped": task.skipped,
    }
    digest.update(json.dumps(head, sort_keys=True).encode())
    for line in _content(task):
        digest.update(line.encode())
    return digest.hexdigest()[:32]


def _content(task: EvalTask) -> Iterator[str]:
    for items in (task.queries, task.candidates):
        for item in items:
            yield json.dumps([item.key, item.instruction, item.text, [_reference(media) for media in item.media]])
    last: tuple[str, ...] | None = None
    for ranking in task.items:
        yield json.dumps([ranking.labels, ranking.relevance])
        if ranking.candidate_keys is not last:  # queries of a task often share one list
            last = ranking.candidate_keys
            yield json.dumps(last)


def _reference(media: Media) -> list[str]:
    """Which content a medium has, without reading it; files that changed differ in size or time."""
    content = media.content
    if isinstance(content, np.ndarray):
        return [media.kind, media.digest()]
    if isinstance(content, tuple):
        return [media.kind, *map(_state, content)]
    if isinstance(content, Path):
        return [media.kind, _state(content)]
    if isinstance(content, StoredImage):
        return [media.kind, content.name, _state(content.file)]
    return [media.kind, content.name, media.digest()]


def _state(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:  # encoding will say so
        return str(path)
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def read_scores(folder: Path) -> dict[str, Any] | None:
    """A task's scores.json; None where there is none, or none that can be read."""
    try:
        scores: dict[str, Any] = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return scores if isinstance(scores, dict) else None


def write_task(folder: Path, scores: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> None:
    """Write a task's files; scores.json last, because its presence says that the task is done."""
    lines = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in predictions)
    write_text(folder / PREDICTIONS, "".join(lines))
    write_json(folder / SCORES, scores)


def suite_tasks(folder: Path, encoder: str, leave_out: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The scores in a suite's folder that are of this encoder, by task, in scoreboard order.

    Args:
        folder: `eval/<suite>/<run_key>`.
        encoder: digest of the encoder's identity.
        leave_out: tasks whose scores are about to be made again.
    """
    found = {path.parent.name: read_scores(path.parent) for path in folder.glob(f"*/{SCORES}")}
    known = {task.name: i for suite in TASK_FILES for i, task in enumerate(all_tasks(suite))}
    names = sorted(found, key=lambda name: (known.get(name, len(known)), name))
    tasks = {}
    for name in names:
        scores = found[name]
        if scores is not None and name not in leave_out and scores.get("encoder", {}).get("digest") == encoder:
            tasks[name] = scores
    return tasks


def write_suite(
    path: Path, tasks: Mapping[str, Mapping[str, Any]], *, model: str, protocol: Protocol, encoder: str
) -> None:
    """Write the suite file in the format of the published scores.

    Args:
        path: the file.
        tasks: scores by task.
        model: what was evaluated.
        protocol: that all of them follow.
        encoder: digest of the encoder's identity.
    """
    metrics: dict[str, dict[str, Any]] = {modality: {} for modality in MODALITIES}
    for name, scores in tasks.items():
        metrics[scores["modality"]][name] = benchmark_scores(scores)
    metadata = {
        "model_name": model,
        "report_generated_date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "benchmark_version": protocol.version,
        "protocol": protocol.as_dict(),
        "encoder_digest": encoder,
    }
    write_json(path, {"metadata": metadata, "metrics": metrics})
