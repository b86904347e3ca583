"""Chains of thought for a user's own pairs, one side at a time: the teacher never sees what the other side says.

Rows are done in chunks, all sides of a chunk before the next; what is written is in data/annotation_files.py.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from twn_lightning.data.annotation_files import append, claim
from twn_lightning.data.corpus import cot_problem, is_label_like, normalise_cot
from twn_lightning.data.pair_rows import PairRows
from twn_lightning.errors import ConfigError, DataError, unknown_name
from twn_lightning.types import Item

AnnotatedSide = Literal["query", "positive", "both"]


class Teacher(Protocol):
    """A model that writes CoTs."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its CoTs, as plain values."""

    def count_tokens(self, text: str) -> int: ...

    def generate(self, items: Sequence[Item], temperature: float = 0.0, seed: int = 0) -> list[str]:
        """One text per item; temperature 0 is greedy."""


@dataclass(frozen=True)
class AnnotateSettings:
    """Which side to annotate, and what to keep."""

    side: AnnotatedSide = "query"
    max_cot_tokens: int = 384
    retries: int = 0
    """Further attempts, sampled, for a CoT that the filters refuse."""
    temperature: float = 0.7
    """Of the retries; the first attempt is greedy."""
    batch_size: int = 8
    """Rows of a chunk, generated together."""
    seed: int = 0
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        if self.side not in get_args(AnnotatedSide):
            raise ConfigError(unknown_name("side", self.side, get_args(AnnotatedSide)))
        for name, least in (("max_cot_tokens", 1), ("retries", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, it is {getattr(self, name)}")
        if self.retries and self.temperature <= 0:
            raise ConfigError(
                f"retries need a temperature above 0, it is {self.temperature}: greedy would repeat itself"
            )

    @property
    def sides(self) -> tuple[str, ...]:
        return ("query", "positive") if self.side == "both" else (self.side,)


@dataclass
class _Row:
    """One row on its way."""

    index: int
    values: dict[str, Any]
    items: dict[str, Item]
    """By side."""
    reason: str | None = None
    """Why it is dropped."""
    written: str | None = None
    """What the teacher wrote, where that is why."""


def annotate(
    teacher: Teacher,
    pairs: PairRows,
    output: Path,
    settings: AnnotateSettings,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write CoTs for pairs, or go on where an earlier run with the same teacher, settings and file stopped.

    A target that is a short label gets no CoT; a CoT that a row has already and that passes the filters is kept.

    Args:
        teacher: writes the CoTs.
        pairs: the rows.
        output: the folder for the results.
        settings: side, filters, retries, chunks.
        overwrite: start anew whatever is there.
        progress: called with the number of rows done, those of an earlier run at once.

    Returns:
        The content of annotate.json.

    Raises:
        ConfigError: results of another teacher, settings or file are there.
        CheckpointError: results that are shorter than annotate.json says.
        DataError: a row that cannot be read (under `raise`).
    """
    plain = json.loads(json.dumps({"teacher": teacher.identity, "settings": asdict(settings), "pairs": _source(pairs)}))
    record = claim(output, plain, len(pairs), overwrite)
    done = record["rows_done"]
    if progress is not None and done:
        progress(done)
    for start in range(done, len(pairs), settings.batch_size):
        counts: Counter[str] = Counter(record["counts"])
        rows = [
            _read(pairs, index, settings, counts)
            for index in range(start, min(start + settings.batch_size, len(pairs)))
        ]
        for side in settings.sides:
            _annotate_side(teacher, rows, side, start, settings, counts)
        _append(output, rows, record, counts)
        if progress is not None:
            progress(len(rows))
    return record


def _source(pairs: PairRows) -> dict[str, Any]:
    return {"file": pairs.path.name, "sha256": hashlib.sha256(pairs.path.read_bytes()).hexdigest(), "rows": len(pairs)}


def _read(pairs: PairRows, index: int, settings: AnnotateSettings, counts: Counter[str]) -> _Row:
    values = pairs.values(index)
    row = _Row(index, dict(values), {})
    try:
        for side in settings.sides:
            row.items[side] = pairs.item(index, side)
            row.values[f"{side}_cot"] = pairs.cot(index, side)
        json.dumps(values)
    except TypeError as error:
        raise DataError(
            f"{pairs.where(index)}: it holds images themselves; store them as files and give their paths"
        ) from error
    except DataError as error:
        if settings.on_error == "raise":
            raise
        row.reason, row.written = "unreadable", str(error)
    counts["rows"] += 1
    return row


def _annotate_side(
    teacher: Teacher, rows: list[_Row], side: str, start: int, settings: AnnotateSettings, counts: Counter[str]
) -> None:
    """Write one side's CoTs into the rows, or why there is none."""
    field = f"{side}_cot"
    waiting: list[_Row] = []
    for row in rows:
        if row.reason is not None:
            continue
        own = normalise_cot(row.values.get(field) or "")
        if side == "positive" and is_label_like(row.items[side]):
            row.values[field] = None
            counts["positive label-like"] += 1
        elif own and cot_problem(own, teacher.count_tokens, settings.max_cot_tokens) is None:
            row.values[field] = own
            counts[f"{side} kept"] += 1
        else:
            waiting.append(row)
    problems: dict[int, str] = {}
    for attempt in range(settings.retries + 1):
        if not waiting:
            break
        texts = _generate(teacher, waiting, side, start, attempt, settings)
        for row, text in zip(list(waiting), texts, strict=True):
            problem = _take(row, field, text, teacher, settings)
            if problem is None or row.reason is not None:
                waiting.remove(row)
            else:
                problems[row.index] = problem
            if problem is None:
                counts[f"{side} written"] += 1
                counts[f"{side} written after retries"] += attempt > 0
    for row in waiting:
        row.reason = f"{side} {problems[row.index]}"


def _take(row: _Row, field: str, text: str | None, teacher: Teacher, settings: AnnotateSettings) -> str | None:
    """Put a CoT into its row if it is fit, else say what is wrong with it."""
    if text is None:
        row.reason = "unreadable"
        return row.reason
    cot = normalise_cot(text)
    problem = cot_problem(cot, teacher.count_tokens, settings.max_cot_tokens)
    if problem is None:
        row.values[field] = cot
    else:
        row.written = text
    return problem


def _generate(
    teacher: Teacher, rows: list[_Row], side: str, start: int, attempt: int, settings: AnnotateSettings
) -> list[str | None]:
    """The teacher's texts; under `skip`, None for an item that cannot be read."""
    seed = int.from_bytes(hashlib.sha256(f"{settings.seed}/{start}/{side}/{attempt}".encode()).digest()[:4], "big")
    temperature = settings.temperature if attempt else 0.0
    try:
        return list(teacher.generate([row.items[side] for row in rows], temperature, seed))
    except DataError as error:
        if settings.on_error == "raise":
            raise
        if len(rows) == 1:
            rows[0].written = str(error)
            return [None]
    return [text for row in rows for text in _generate(teacher, [row], side, start, attempt, settings)]


def _append(output: Path, rows: list[_Row], record: dict[str, Any], counts: Counter[str]) -> None:
    kept = [row.values for row in rows if row.reason is None]
    dropped = [
        {"row": row.index, "key": row.values.get("key"), "reason": row.reason, "written": row.written}
        for row in rows
        if row.reason is not None
    ]
    counts["pairs kept"] += len(kept)
    counts["pairs dropped"] += len(dropped)
    append(output, record, kept, dropped, counts)
