"""Text to video: the corpus is the union of the rows' own videos."""

from __future__ import annotations

from pathlib import PurePosixPath

from twn_lightning.benchmark.context import LoadContext, Row
from twn_lightning.benchmark.parsers.video_files import find_video
from twn_lightning.benchmark.rows import RowBuilder, RowEntry, TaskRows
from twn_lightning.errors import DataError
from twn_lightning.types import Media


def msrvtt(context: LoadContext) -> TaskRows:
    """MSR-VTT: columns `video_id`, `video` (file name), `caption`.

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            _pair(context, row, entry, row.identifier("video_id"), row.text("caption"), row.text("video"))
    return rows.finish()


def msvd(context: LoadContext) -> TaskRows:
    """MSVD: columns `video_id`, `video` (file name), `caption` (a list, of which the first is used).

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            _pair(context, row, entry, row.identifier("video_id"), _first(row, "caption"), row.text("video"))
    return rows.finish()


def didemo(context: LoadContext) -> TaskRows:
    """DiDeMo: columns `video` (path), `caption`; the key is the file's name without folder and extension.

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            file = PurePosixPath(row.identifier("video"))
            _pair(context, row, entry, file.stem, row.text("caption"), file.name)
    return rows.finish()


def youcook2(context: LoadContext) -> TaskRows:
    """YouCook2: columns `id`, `video_path`, `sentence`.

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            file = PurePosixPath(row.text("video_path")).name
            _pair(context, row, entry, row.identifier("id"), row.text("sentence"), file)
    return rows.finish()


def vatex(context: LoadContext) -> TaskRows:
    """VATEX: columns `videoID`, `enCap` (a list, of which the first is used).

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            _pair(context, row, entry, row.identifier("videoID"), _first(row, "enCap"))
    return rows.finish()


def _pair(context: LoadContext, row: Row, entry: RowEntry, key: str, caption: str, *files: str) -> None:
    """A caption as the query, its video as a candidate of the corpus."""

    def video() -> tuple[Media, ...]:
        return (find_video(context, row, key, *(file for file in files if file)),)

    entry.query(caption, labels=[key])
    entry.candidate(key, media=video)


def _first(row: Row, column: str) -> str:
    captions = row.texts(column)
    if not captions:
        raise DataError(f"{row.where}: column '{column}' is an empty list; its first caption is the query")
    return captions[0]
