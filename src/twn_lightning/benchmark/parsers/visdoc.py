"""The 24 visual document tasks: BEIR triples of queries, qrels and a corpus of page images, ranked as a whole."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath

from twn_lightning.benchmark.context import LoadContext, Row
from twn_lightning.benchmark.rows import RowBuilder, TaskRows
from twn_lightning.data.record_files import StoredImage
from twn_lightning.errors import DataError
from twn_lightning.types import Media

Qrels = dict[str, dict[str, float]]
_SHORT_NAME = 50


def vidore(context: LoadContext) -> TaskRows:
    """ViDoRe, ViDoSeek and MMLongBench: subsets `queries`, `qrels`, `corpus`, ids mostly integers.

    Columns: corpus `corpus-id`, `image`; queries `query-id`, `query`; qrels `query-id`, `corpus-id`, `score`. A page's
    key is its id as a string. Its image stays in the table; a corpus without the column `image` has it in
    `<corpus-id>.png` below the task's media folder.

    Raises:
        DataError: a row that is not in the schema, a missing image, qrels that name an unknown page or a grade that is
            no number, a query without a relevant page, duplicate ids.
    """
    return _beir(context, lambda page: f"{page}.png")


def visrag(context: LoadContext) -> TaskRows:
    """VisRAG: as `vidore`, with file names as ids, which image files shorten (`short_name`)."""
    return _beir(context, short_name)


def short_name(page: str) -> str:
    """The file name of a VisRAG page: the first 50 characters of its stem, `_`, 8 hex digits of its MD5, the suffix."""
    suffix = PurePosixPath(page).suffix
    digest = hashlib.md5(page.encode(), usedforsecurity=False).hexdigest()[:8]
    return f"{page.removesuffix(suffix)[:_SHORT_NAME]}_{digest}{suffix}"


def _beir(context: LoadContext, file_name: Callable[[str], str]) -> TaskRows:
    rows = RowBuilder(context)
    for row in context.rows(context.records(subset="corpus")):
        with rows.row(row, is_query=False) as entry:
            page = row.identifier("corpus-id")
            entry.candidate(page, media=partial(_page_image, context, row, file_name(page)), unique=True)
    qrels = _read_qrels(context, rows)
    for row in context.rows(context.records(subset="queries")):
        with rows.row(row) as entry:
            query = row.identifier("query-id")
            relevant = qrels.get(query, {})
            entry.query(row.text("query"), list(relevant), relevance=list(relevant.values()), id=query)
    return rows.finish()


def _page_image(context: LoadContext, row: Row, file_name: str) -> tuple[Media, ...]:
    if row.has("image") and isinstance(image := row.value("image"), StoredImage):
        return (Media("image", image),)
    return (context.media.image(file_name, row.where),)


def _read_qrels(context: LoadContext, rows: RowBuilder) -> Qrels:
    """Grades above 0 by query and page; of repeated ones the highest."""
    qrels: Qrels = {}
    for row in context.rows(context.records(subset="qrels")):
        with rows.row(row, is_query=False):
            query, page, grade = row.identifier("query-id"), row.identifier("corpus-id"), _grade(row)
            if grade > 0 and page not in rows.known:
                raise DataError(f"{row.where}: qrels of query '{query}' name document '{page}', which the corpus lacks")
            if grade > 0:
                pages = qrels.setdefault(query, {})
                pages[page] = max(grade, pages.get(page, 0.0))
    return qrels


def _grade(row: Row) -> float:
    score = row.value("score")
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise DataError(f"{row.where}: column 'score' must be a finite number, got {score!r}")
    return float(score)
