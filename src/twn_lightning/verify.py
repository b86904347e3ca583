"""A score file computed again from what it says of itself, with nothing from a cache, and compared."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twn_lightning.benchmark.nano_mirror import load_mirror
from twn_lightning.benchmark.registry import NANO_SUITE, get_task, select_tasks
from twn_lightning.errors import CheckpointError
from twn_lightning.evaluate import build_encoder, evaluate, nano_mirror, protocol_of, score_tasks
from twn_lightning.evaluation.benchmark_suite import SuiteProgress
from twn_lightning.evaluation.repeat import adapter_digests, evaluated_adapters
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings
from twn_lightning.train import device_for
from twn_lightning.validation import settings_from_dict

TOLERANCE = 1e-6
"""Batches of another make-up change an embedding by about as much."""
_NOT_COMPARED = ("seconds", "from_cache", "digest", "versions", "repeat")
"""How long it took, and what follows from where and when files were written."""


@dataclass(frozen=True)
class Verification:
    """What a repetition found."""

    task: str
    differences: list[str]
    """Empty: the scores are confirmed."""
    versions: list[str]
    """Packages that are other ones than then."""


def verify(path: str | Path, *, adapters: str | None = None, tolerance: float = TOLERANCE) -> Verification:
    """Repeat a task's scores and compare every number.

    Args:
        path: a scores.json, or the folder that holds it.
        adapters: where its adapters are now, if they have moved.
        tolerance: largest difference of a number that counts as none.

    Raises:
        CheckpointError: the file cannot be read or does not say how to repeat it, or the adapters are other ones.
    """
    recorded = _read(Path(path))
    settings = settings_from_dict(recorded["repeat"]["settings"], on_this_machine=True)
    if adapters is not None:
        settings = replace(settings, adapters=replace(settings.adapters, init_from=adapters))
    _check_adapters(settings, recorded["repeat"]["adapters"])
    with tempfile.TemporaryDirectory() as folder:
        now = _repeat(settings, recorded["task"], RunFolder(folder))
    then_versions, now_versions = recorded["versions"], now["versions"]
    versions = [
        f"{k}: {v} then, {now_versions.get(k)} now" for k, v in then_versions.items() if now_versions.get(k) != v
    ]
    differences = list(_differences(_compared(recorded), _compared(now), "", tolerance))
    return Verification(recorded["task"], differences, versions)


def _read(path: Path) -> dict[str, Any]:
    path = path / "scores.json" if path.is_dir() else path
    try:
        scores: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in ("task", "versions", "repeat") if name not in scores]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a score file ({type(error).__name__}: {error})") from error
    if missing:
        raise CheckpointError(
            f"{path} does not say how to repeat it: it lacks {', '.join(missing)}. An older release wrote it, or it is "
            "a suite's file: name eval/<suite>/<run_key>/<task>/scores.json, or evaluate again"
        )
    return scores


def _check_adapters(settings: Settings, then: dict[str, str]) -> None:
    folder = evaluated_adapters(settings)
    if folder is None:
        return
    now = adapter_digests(folder)
    other = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if other:
        raise CheckpointError(
            f"the adapters in {folder} are not those that were scored: {', '.join(other)} "
            f"{'differs' if len(other) == 1 else 'differ'} or went missing. Name their folder with --adapters"
        )


def _repeat(settings: Settings, task: str, run: RunFolder) -> dict[str, Any]:
    settings = replace(settings, task=replace(settings.task, cache="never"))
    device = str(device_for(settings.trainer))
    if settings.task.suite == "nano":
        evaluate(settings, run, device=device)
        found = [json.loads(path.read_text(encoding="utf-8")) for path in run.path.rglob("scores.json")]
        return next(scores for scores in found if scores["task"] == task)
    protocol, progress = protocol_of(settings.task), SuiteProgress()
    encoder = build_encoder(settings, protocol, device)
    if settings.task.suite != NANO_SUITE:
        return score_tasks(settings, run, encoder, select_tasks([task]), protocol, progress).scores[task]
    mirror = nano_mirror(settings, select_tasks(settings.task.names, NANO_SUITE), progress)
    return score_tasks(
        settings, run, encoder, load_mirror(mirror, [get_task(task)], protocol), protocol, progress
    ).scores[task]


def _compared(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scores.items() if name not in _NOT_COMPARED}


def _differences(then: Any, now: Any, name: str, tolerance: float) -> Iterator[str]:
    """One sentence for each value that is another one now."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted(then.keys() | now.keys()):
            yield from _differences(then.get(key), now.get(key), f"{name}.{key}" if name else key, tolerance)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for place, (left, right) in enumerate(zip(then, now, strict=True)):
            yield from _differences(left, right, f"{name}[{place}]", tolerance)
    elif isinstance(then, float) and isinstance(now, (int, float)):
        if not math.isclose(then, now, rel_tol=0, abs_tol=tolerance):
            yield f"{name} was {then}, is {now} now (by {now - then:+.2e})"
    elif then != now:
        yield f"{name} was {then!r}, is {now!r} now"
