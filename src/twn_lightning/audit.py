"""Whether a run folder is what its run left: status, settings, log, checkpoints, scores and digests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from twn_lightning.atomic import UNFINISHED
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.manifest import manifest_differences
from twn_lightning.run import RunFolder, State
from twn_lightning.run_lock import is_locked
from twn_lightning.stages.checkpoint_content import CHECKPOINT_KEY, CHECKPOINT_VERSION
from twn_lightning.stages.checkpoint_files import read_checkpoint


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a run folder."""

    check: str
    """The name of the check that found it, one of `CHECKS`."""
    message: str


def audit(folder: str | Path) -> list[Problem]:
    """Every problem of a run folder; none says that it is complete and unchanged.

    Args:
        folder: a run folder, finished or not. What is open in one that is not is no problem, unless the process that
            wrote it is gone without a word.

    Raises:
        CheckpointError: the folder is not a run folder.
    """
    run = RunFolder(folder)
    if not (run.path / "status.json").is_file():
        raise CheckpointError(f"{run.path} is not a run folder: it has no status.json")
    return [Problem(name, message) for name, check in CHECKS.items() for message in check(run)]


def _status(run: RunFolder) -> Iterator[str]:
    """status.json names a known state, and one that can be true."""
    content = _json(run.path / "status.json")
    if not isinstance(content, dict):
        yield "status.json is torn or altered"
        return
    state = content.get("status")
    if state not in get_args(State):
        yield f"status.json says {state!r}, which is none of {', '.join(get_args(State))}"
    if state == "RUNNING" and not is_locked(run.path):
        yield f"status.json says RUNNING, but no process writes here: continue with twn train --resume {run.path}"
    if state == "COMPLETED" and not _json(run.path / "metrics.json"):
        yield "status.json says COMPLETED, but metrics.json is missing or empty"


def _config(run: RunFolder) -> Iterator[str]:
    """config.yaml still resolves."""
    try:
        run.settings()
    except (CheckpointError, ConfigError) as error:
        yield str(error)


def _log(run: RunFolder) -> Iterator[str]:
    """metrics.jsonl has whole lines only, and its steps do not go back."""
    last = -1
    for number, line in enumerate(_lines(run.metrics_log) if run.metrics_log.exists() else (), 1):
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            yield f"metrics.jsonl, line {number}: not one JSON object with a step"
            continue
        if step < last:
            yield f"metrics.jsonl, line {number}: step {step} comes after step {last}"
        last = step


def _checkpoints(run: RunFolder) -> Iterator[str]:
    """Every checkpoint has the content it was saved with, of a version that this release resumes."""
    for path in sorted(run.checkpoints.glob("*.ckpt")):
        try:
            version = (read_checkpoint(path).get(CHECKPOINT_KEY) or {}).get("version")
        except CheckpointError as error:
            yield str(error)
            continue
        if version not in range(1, CHECKPOINT_VERSION + 1):
            yield f"{path} has version {version}, this release resumes 1 to {CHECKPOINT_VERSION}"


def _scores(run: RunFolder) -> Iterator[str]:
    """Every scores.json and its predictions can be read."""
    for path in sorted(run.path.glob("eval/**/scores.json")):
        if not isinstance(_json(path), dict):
            yield f"{path} is torn or altered"
        predictions = path.with_name("predictions.jsonl")
        if not predictions.is_file():
            yield f"{predictions} is missing"
        elif any(_parsed(line) is None for line in _lines(predictions)):
            yield f"{predictions} is torn or altered"


def _manifest(run: RunFolder) -> Iterator[str]:
    """A finished run has the files that it finished with."""
    status = _json(run.path / "status.json")
    if isinstance(status, dict) and status.get("status") == "COMPLETED":
        try:
            yield from manifest_differences(run.path)
        except CheckpointError as error:
            yield str(error)


def _unfinished(run: RunFolder) -> Iterator[str]:
    """No process has left a half-written file behind."""
    if not is_locked(run.path):
        for path in sorted(run.path.rglob(UNFINISHED)):
            yield f"{path} was never finished: its writer died. Nothing reads it, delete it"


CHECKS: dict[str, Callable[[RunFolder], Iterator[str]]] = {
    "status": _status,
    "config": _config,
    "log": _log,
    "checkpoints": _checkpoints,
    "scores": _scores,
    "manifest": _manifest,
    "unfinished": _unfinished,
}
"""What `audit` looks at, by name."""


def _json(path: Path) -> Any:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
