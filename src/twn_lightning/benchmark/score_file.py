"""Score files: the public format `{metadata, metrics: {modality: {task: scores}}}`, and our scores.json of one task."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from twn_lightning import checks
from twn_lightning.benchmark.registry import MODALITIES, BenchmarkTask, all_tasks
from twn_lightning.errors import DataError

Split = Literal["old", "fixed", "unspecified"]
"""Of the page-level VD-OOD tasks: broken page numbers, those re-issued on 2025-11-03, or not stated."""
SPLITS: tuple[Split, ...] = get_args(Split)
FIXED = "-fixed"
PAGE_TASKS = ("ViDoSeek-page", "MMLongBench-page")
_REISSUED = "2025-11-03"
_SPLIT_OF_VERSION: Mapping[str, Split] = {"2.0.0": "old", "2.0.1": "old", "2.1": "fixed"}
_NO_SCORES = (None, "FILE_N/A", "DIR_N/A", "JSON_ERROR", "READ_ERROR")
"""What the reference's report writes in the place of a task's scores."""


@dataclass
class ScoreFile:
    """The main metric of each task that a score file, or a folder of them, holds."""

    path: str
    model: str
    scores: dict[str, float] = field(default_factory=dict)
    """By the task's name in the table, as fractions."""
    split: Split = "unspecified"
    frames: int | None = None
    warnings: list[str] = field(default_factory=list)
    """What was left out and why; each names file and task."""


@dataclass(frozen=True)
class _Listed:
    """A task's entry as a file has it."""

    modality: str
    name: str
    scores: Any
    file: Path

    def __str__(self) -> str:
        return f"task '{self.name}' in {self.file}"


def read_score_file(path: str | Path) -> ScoreFile:
    """Read a score file.

    Args:
        path: a suite file of ours, a published file of the reference, a task's scores.json, or a folder with such files
            of one model (`eval/<suite>/<run_key>`).

    Raises:
        DataError: unreadable or no score file; files of different protocols; a task that is there twice, under both of
            its names or under another modality; a score that is not a fraction. All problems of a file together.
    """
    found = ScoreFile(str(path), Path(path).stem)
    listed: dict[str, _Listed] = {}
    problems: list[str] = []
    splits: list[Split] = []
    protocols: dict[Path, Mapping[str, Any]] = {}
    for file in _files(Path(path)):
        document = _parse(file)
        if isinstance(document.get("protocol"), Mapping):
            protocols[file] = document["protocol"]
        metadata = _metadata(document)
        found.model = str(metadata.get("model_name") or found.model)
        found.frames = metadata.get("num_frames", found.frames)
        entries = [entry for entry in _entries(file, document, found.warnings) if entry.scores not in _NO_SCORES]
        splits.append(_split(metadata, [entry.name for entry in entries]))
        for entry in entries:
            task = _task(entry, found.warnings)
            if task is not None:
                problems += _misplaced(task, entry, listed.setdefault(task.name, entry))
                value = _score(task, entry, found.warnings, problems)
                if value is not None:
                    found.scores[task.name] = value
    if problems:
        raise DataError(f"{path} cannot be aggregated:" + "".join(f"\n  - {problem}" for problem in problems))
    _check_protocols(found.path, protocols)
    found.split = splits[0] if len(set(splits)) == 1 else "unspecified"
    _warn_of_mixed_splits(found, splits, [entry.name for entry in listed.values()])
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("**/scores.json"))
    if not files:
        raise DataError(f"{path} holds no scores.json: give a score file, or the folder of one evaluated model")
    return files


def _parse(file: Path) -> dict[str, Any]:
    """A JSON object whose keys are unique at every level."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        merged = dict(pairs)
        if len(merged) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{file}: '{twice}' is there twice in one object: keep one of them")
        return merged

    try:
        document = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{file} holds a {type(document).__name__}, not the object of a score file")
    return document


def _metadata(document: Mapping[str, Any]) -> dict[str, Any]:
    """model_name, version, num_frames and report date, wherever the file has them."""
    given = document.get("metadata")
    metadata = dict(given) if isinstance(given, Mapping) else {}
    protocol = metadata.get("protocol", document.get("protocol"))
    if isinstance(protocol, Mapping):
        metadata |= {key: protocol[key] for key in ("version", "num_frames") if key in protocol}
    metadata.setdefault("version", metadata.get("benchmark_version"))
    encoder = document.get("encoder")
    if isinstance(encoder, Mapping):
        metadata.setdefault("model_name", encoder.get("name"))
    return metadata


def _entries(file: Path, document: Mapping[str, Any], warnings: list[str]) -> Iterator[_Listed]:
    if "task" in document and "modality" in document:  # scores.json of one task
        for name in ("task", "modality"):
            if not isinstance(document[name], str):
                raise DataError(f"{file}: '{name}' must be a text, it is {document[name]!r:.60}")
        yield _Listed(document["modality"], document["task"], document, file)
        return
    metrics = document.get("metrics")
    if not isinstance(metrics, Mapping):
        raise DataError(f"{file} is no score file: it has no 'metrics' with image, video and visdoc tasks")
    for modality, tasks in metrics.items():
        if modality not in MODALITIES:
            warnings.append(f"{file}: modality '{modality}' is not part of MMEB-V2, left out")
        elif isinstance(tasks, Mapping):
            yield from (_Listed(modality, name, scores, file) for name, scores in tasks.items())
        elif tasks not in _NO_SCORES:
            raise DataError(f"{file}: 'metrics.{modality}' must map tasks to scores, it is {tasks!r:.60}")


def _task(entry: _Listed, warnings: list[str]) -> BenchmarkTask | None:
    """The table's row, which some files call by its name with `-fixed`."""
    known = {task.name: task for task in all_tasks()}
    row = known.get(entry.name.removesuffix(FIXED))
    if row is None:
        near = difflib.get_close_matches(entry.name, known, n=1, cutoff=0.8)
        hint = f" (nearest: '{near[0]}')" if near else ""
        warnings.append(f"{entry} is not one of the 78{hint}: left out")
    return row


def _misplaced(task: BenchmarkTask, entry: _Listed, first: _Listed) -> Iterator[str]:
    if entry is not first:
        yield f"{entry} is a second score of {first}: keep one of them"
    if entry.modality != task.modality:
        yield f"{entry} is listed under {entry.modality}, it belongs to {task.modality}"


def _score(task: BenchmarkTask, entry: _Listed, warnings: list[str], problems: list[str]) -> float | None:
    """The task's main metric; None where there is none."""
    if not isinstance(entry.scores, Mapping):
        problems.append(f"{entry} has no scores but {entry.scores!r:.60}")
        return None
    value = entry.scores.get(task.metric)
    if value is None:
        warnings.append(f"{entry} lacks {task.metric}: counted as missing")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        problems.append(f"{entry}: {task.metric} is {value!r:.60}, not a number")
    elif not math.isfinite(value) or not 0 <= value <= 1:
        hint = "; is it percent?" if 1 < value <= 100 else ""
        problems.append(f"{entry}: {task.metric} is {value}, not a fraction from 0 to 1{hint}")
    else:
        return float(value)
    return None


def _split(metadata: Mapping[str, Any], names: list[str]) -> Split:
    """From the version it states; else from `-fixed` names; else from a report older than the re-issued data."""
    stated = str(metadata.get("version") or "").removeprefix("v")
    if stated in _SPLIT_OF_VERSION:
        return _SPLIT_OF_VERSION[stated]
    pages = [name for name in names if name.removesuffix(FIXED) in PAGE_TASKS]
    if any(name.endswith(FIXED) for name in pages):
        return "fixed" if all(name.endswith(FIXED) for name in pages) else "unspecified"
    date = str(metadata.get("report_generated_date") or "")
    return "old" if date[:4].isdigit() and date[:10] < _REISSUED else "unspecified"


def _check_protocols(path: str, protocols: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuse a mean over scores that were measured differently.

    Raises:
        DataError: names the switches that differ, with their values, and a file of each.
    """
    if not protocols:
        return
    (first, one), *others = protocols.items()
    for file, other in others:
        common = sorted((one.keys() & other.keys()) - {"version"})  # `_warn_of_mixed_splits` speaks of versions
        differing = [key for key in common if one[key] != other[key]]
        if differing:
            values = ", ".join(f"{key} is {one[key]!r} there and {other[key]!r} here" for key in differing)
            checks.report(
                "mixed_protocols",
                f"{path} mixes protocols, and a mean over them means nothing: {first} and {file} differ ({values}). "
                "Aggregate the folder of one protocol, eval/<suite>/<run_key>, or evaluate again under one",
                DataError,
            )
            return


def _warn_of_mixed_splits(found: ScoreFile, splits: list[Split], names: list[str]) -> None:
    """Scores of both splits, or of another split than the file states, make no comparable mean."""
    fixed = [name for name in names if name.removesuffix(FIXED) in PAGE_TASKS and name.endswith(FIXED)]
    plain = [name for name in names if name in PAGE_TASKS]
    if len(set(splits)) > 1:
        found.warnings.append(f"{found.path} mixes splits: its files are of {', '.join(sorted(set(splits)))}")
    elif fixed and plain and found.split == "unspecified":
        found.warnings.append(f"{found.path} mixes splits: task '{fixed[0]}' is fixed, task '{plain[0]}' may be old")
    elif fixed and found.split == "old":
        found.warnings.append(f"{found.path} states a version before the fixed split, but has task '{fixed[0]}'")
