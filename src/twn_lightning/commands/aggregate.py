"""`twn aggregate`: score files to the scoreboard's numbers, beside the published ones."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from twn_lightning.benchmark.aggregate import Aggregate, PublishedScores, aggregate, published_scores
from twn_lightning.benchmark.registry import MODALITIES, meta_tasks
from twn_lightning.benchmark.score_file import SPLITS, ScoreFile, read_score_file
from twn_lightning.commands import parser
from twn_lightning.commands.tables import table_console
from twn_lightning.errors import ConfigError

log = logging.getLogger(__name__)

MEANS = (*MODALITIES, "all")
_TITLES = {"image": "Image", "video": "Video", "visdoc": "VisDoc", "all": "All"}
_LEGEND = """Percent: hit@1 of image and video, ndcg_linear@5 of visdoc; means over tasks, All over the 78.
Split: page-level VD-OOD tasks before 2025-11-03 (old, broken page numbers) or as re-issued then (fixed).
VisDoc and All compare within one split only, video at the same number of frames."""
_NONE = "–"


def main(arguments: list[str]) -> None:
    """Print the table, or one JSON object by file."""
    options = parser(
        "aggregate",
        "Means of score files over meta-tasks, modalities and all 78 tasks, beside published ones.",
        """twn aggregate outputs/evaluate/RUN/eval/mmeb_v2/KEY/mmeb_v2.json
        twn aggregate ours.json VLM2Vec-V2.0-Qwen2VL-2B.json --split fixed --meta-tasks
        twn aggregate ours.json --filter Qwen3-VL --filter UME --notes
        twn aggregate ours.json --json""",
    )
    options.add_argument("files", nargs="+", metavar="FILE", help="score files, ours or the reference's, or folders")
    options.add_argument("--json", action="store_true", help="fractions by file, nothing else")
    options.add_argument(
        "--published", action=argparse.BooleanOptionalAction, default=True, help="published models below (default)"
    )
    options.add_argument("--filter", action="append", metavar="NAME", help="published models with this in their name")
    options.add_argument("--split", choices=SPLITS, help="published models measured on this split only")
    options.add_argument("--meta-tasks", action="store_true", help="the twelve meta-tasks too")
    options.add_argument("--notes", action="store_true", help="where published sources contradict themselves")
    chosen = options.parse_intermixed_args(arguments)
    files = {path: read_score_file(path) for path in chosen.files}
    for file in files.values():
        for warning in file.warnings:
            log.warning(warning)
    results = {path: aggregate(file.scores) for path, file in files.items()}
    if chosen.json:
        print(json.dumps({path: result.as_dict() for path, result in results.items()}, indent=2, ensure_ascii=False))
        return
    published = _published(chosen.filter or [], chosen.split) if chosen.published else []
    table = _table(files, results, published, [*MEANS, *meta_tasks()] if chosen.meta_tasks else list(MEANS))
    console = table_console()
    console.print(table)
    notes = [_LEGEND]
    notes += [f"{path} lacks {', '.join(result.missing)}" for path, result in results.items() if result.missing]
    notes += [f"{row.model} ({row.source}): {row.note}" for row in published if row.note and chosen.notes]
    for note in notes:
        console.print(note, markup=False, highlight=False)


def _published(names: Sequence[str], split: str | None) -> list[PublishedScores]:
    """The published models asked for, best first."""
    rows = [row for row in published_scores() if split in (None, row.ood_split) and row.all is not None]
    if names:
        rows = [row for row in rows if any(name.lower() in row.model.lower() for name in names)]
        if not rows:
            models = ", ".join(dict.fromkeys(row.model for row in published_scores() if row.all is not None))
            raise ConfigError(f"no published model has {' or '.join(names)} in its name. There are: {models}")
    return sorted(rows, key=lambda row: -(row.all or 0))


def _table(
    files: Mapping[str, ScoreFile],
    results: Mapping[str, Aggregate],
    published: Sequence[PublishedScores],
    columns: Sequence[str],
) -> Table:
    """The files, then the published models, one row each."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in ("Model", "Size"):
        table.add_column(name, no_wrap=True)
    for name in columns:
        table.add_column(_TITLES.get(name, name), justify="right", no_wrap=True)
    for name in ("Split", "Frames", "Source"):
        table.add_column(name, no_wrap=True)
    for path, result in results.items():
        file = files[path]
        means = [_percent(value, digits=2) for value in _values(result, columns, 100)]
        source = path if not result.missing else f"{result.status}, {path}"
        cells = [file.model, _NONE, *means, file.split, _text(file.frames), source]
        table.add_row(*map(Text, cells), style="bold cyan")
    table.add_section()
    for row in published:
        means = [_percent(value, digits=1) for value in _values(row, columns, 1)]
        cells = [row.model, _text(row.size), *means, row.ood_split, _text(row.frames), row.source]
        table.add_row(*map(Text, cells))
    return table


def _values(row: Aggregate | PublishedScores, columns: Sequence[str], scale: int) -> list[float | None]:
    values = [getattr(row, name) if name in MEANS else row.meta_tasks.get(name) for name in columns]
    return [None if value is None else scale * value for value in values]


def _percent(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _text(value: object) -> str:
    return _NONE if value is None else str(value)
