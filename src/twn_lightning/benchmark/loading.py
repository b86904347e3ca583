"""`load_task`: one task's annotations and media as an `EvalTask`, checked and counted, nothing decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, get_args

from twn_lightning.benchmark.context import LoadContext, OnError
from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.benchmark.parsers import get_parser
from twn_lightning.benchmark.protocol import Protocol, get_protocol
from twn_lightning.benchmark.registry import BenchmarkTask, all_tasks, get_task
from twn_lightning.benchmark.rows import TaskRows
from twn_lightning.data.roots import MediaRoot
from twn_lightning.errors import ConfigError, DataError, unknown_name

_VIDEO_FOLDERS = {"V-CLS": "video_cls", "V-QA": "video_qa", "V-RET": "video_ret", "V-MRET": "video_mret"}


def load_task(
    name_or_row: str | BenchmarkTask | Mapping[str, Any],
    annotations_root: str | Path | None,
    media_root: str | Path,
    protocol: str | Protocol = "vlm2vec",
    strict_counts: bool = True,
    *,
    on_error: OnError = "raise",
) -> EvalTask:
    """Load one MMEB-V2 task.

    Args:
        name_or_row: a task's name, its row, or a mapping with a row's fields (more keys do no harm; what a known name
            leaves out is taken from the table).
        annotations_root: local mirror, `<annotations_root>/<org>/<repo>/<subset or "default">/<split>.parquet` or one
            of the other forms in `read_records`; None: the hub.
        media_root: images and frames in the layout of TIGER-Lab/MMEB-V2; the task's are in `<media_root>/<task.media>`.
        protocol: a named protocol or one of your own; decides prompts, frames and the benchmark version.
        strict_counts: refuse a task whose numbers of queries or candidates are not the table's. Where the table says
            that its number of candidates is uncertain, a difference is only logged.
        on_error: raise: the first bad row ends it; skip: bad rows are left out, counted, and listed in
            `EvalTask.skipped`.

    Returns:
        The task. Candidates are distinct by key, and media are references to files.

    Raises:
        ConfigError: unknown task, parser, protocol, version or `on_error`; a mapping that lacks fields.
        DataError: missing or unreadable annotations, a bad row (with task, file and row), counts that differ.
    """
    if on_error not in get_args(OnError):
        raise ConfigError(unknown_name("on_error", str(on_error), get_args(OnError)))
    if not isinstance(media_root, (str, Path)):
        raise ConfigError(f"media_root must be the folder that holds image-tasks, video-tasks, ..., not {media_root!r}")
    protocol = get_protocol(protocol)
    task = resolve_task(name_or_row).at_version(protocol.version)
    parser = get_parser(task.parser)
    context = LoadContext(
        task,
        protocol,
        None if annotations_root is None else Path(annotations_root),
        MediaRoot(MediaRoot(media_root).path(task.media, f"task '{task.name}', field 'media'")),
        on_error,
    )
    rows = parser(context)
    _check_counts(context, rows, strict_counts)
    return EvalTask(task, protocol, rows.queries, rows.candidates, rows.items, rows.skipped, _counts(task, rows))


def resolve_task(name_or_row: str | BenchmarkTask | Mapping[str, Any]) -> BenchmarkTask:
    """The row that a name or a mapping stands for, at the newest version.

    Raises:
        ConfigError: unknown name, or a mapping that lacks fields.
    """
    if isinstance(name_or_row, BenchmarkTask):
        return name_or_row
    if isinstance(name_or_row, str):
        return get_task(name_or_row)
    if not isinstance(name_or_row, Mapping):
        raise ConfigError(f"a task is its name, its row or a mapping with a row's fields, not {name_or_row!r}")
    known = next((asdict(task) for task in all_tasks() if task.name == name_or_row.get("name")), {})
    names = [field.name for field in fields(BenchmarkTask)]
    given = {name: name_or_row[name] for name in names if name_or_row.get(name) is not None}
    if "+" in str(given.get("hf_subset")):  # the three subsets of a BEIR triple, which its parser knows
        del given["hf_subset"]
    row = known | given
    row.setdefault("media", _default_media(row))
    required = [field.name for field in fields(BenchmarkTask) if field.default is field.default_factory is MISSING]
    if missing := [name for name in required if name not in row]:
        raise ConfigError(f"a task row lacks {', '.join(missing)}; it has: {', '.join(sorted(map(str, name_or_row)))}")
    return BenchmarkTask(**row)


def _default_media(row: Mapping[str, Any]) -> str:
    """The task's folder in the layout of TIGER-Lab/MMEB-V2."""
    if row.get("modality") == "image":
        return "image-tasks"
    if row.get("modality") == "visdoc":
        return f"visdoc-tasks/{row.get('name')}"
    group = _VIDEO_FOLDERS.get(str(row.get("meta_task")), "")
    return "/".join(part for part in ("video-tasks/frames", group, str(row.get("name"))) if part)


def _counts(task: BenchmarkTask, rows: TaskRows) -> dict[str, int]:
    """What was found, and beside it what the table expects."""
    counts = {"num_queries": len(rows.queries), "num_candidates": len(rows.candidates), "skipped": len(rows.skipped)}
    if rows.list_sizes is not None:
        counts |= {"smallest_list": rows.list_sizes[0], "largest_list": rows.list_sizes[1]}
    if task.num_candidates is not None:
        counts["expected_candidates"] = task.num_candidates
    return counts | {"expected_queries": task.num_queries}


def _check_counts(context: LoadContext, rows: TaskRows, strict: bool) -> None:
    """Compare with the table. Rows that were skipped on request count as found."""
    task = context.task
    advice = (
        "The data may be of another version or incomplete; strict_counts=False accepts it (task.strict_counts=false)"
    )
    queries = len(rows.queries) + rows.skipped_queries
    if strict and queries != task.num_queries:
        raise DataError(f"task '{task.name}': found {queries} queries, the table says {task.num_queries}. {advice}")
    if task.num_candidates is None:
        return
    smallest, largest = rows.list_sizes or (len(rows.candidates), len(rows.candidates))
    spared = len(rows.skipped) if rows.list_sizes is None else 0
    if task.num_candidates - spared <= smallest <= largest <= task.num_candidates:
        return
    found = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
    scope = "in the corpus" if rows.list_sizes is None else "per query"
    message = f"found {found} candidates {scope}, the table says {task.num_candidates}"
    if strict and not task.candidates_note:
        raise DataError(f"task '{task.name}': {message}. {advice}")
    if strict:
        context.warn(f"{message} ({task.candidates_note})")
