"""Hard negatives from one's own embeddings: mined per source, written to Parquet, read back by query key.

Shape letters: Q queries, C targets, D width, k negatives of a query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twn_lightning.atomic import whole_file
from twn_lightning.errors import ConfigError, DataError, NumericalError
from twn_lightning.types import Pair, Side

_BLOCK = 1024
_COLUMNS = ("query_key", "negative_hashes", "scores")


@dataclass(frozen=True)
class Embedded:
    """Queries or targets of any sources with their embeddings."""

    embeddings: np.ndarray
    """(N, D) floats, unit norm."""
    sources: Sequence[str]
    """Task of each row, `Pair.source`."""
    hashes: Sequence[str]
    """Target hash of each target; of a query, that of its positive."""
    keys: Sequence[str]
    """Key of each item; only those of the queries are read."""


@dataclass(frozen=True)
class HardNegatives:
    """What was mined for the queries, in their order."""

    query_keys: list[str]
    negative_hashes: list[list[str]]
    """Hardest first; fewer than k where the source has no more that are allowed."""
    scores: list[list[float]]
    """Cosine similarity of each with the query."""


def embedded_of(side: Side, pairs: Sequence[Pair], path: Path) -> Embedded:
    """A file that `twn embed` wrote of a source's queries or candidates, with what mining needs to know of each row.

    Args:
        side: which items were embedded.
        pairs: the pairs they belong to; other rows of the file are left out.
        path: a Parquet file with the columns `key` and `embedding`.

    Raises:
        DataError: the file cannot be read or lacks columns, or none of its rows is of these pairs.
    """
    known = {(pair.query if side is Side.QUERY else pair.positive).key: pair for pair in pairs}
    table = _read_table(path, ("key", "embedding"), "embeddings", "Write it with `twn embed --format parquet`")
    keys = table["key"].to_pylist()
    rows = [row for row, key in enumerate(keys) if key in known]
    if not rows:
        first = f" (the first is '{keys[0]}')" if keys else ""
        raise DataError(
            f"embeddings {path}: none of its {len(keys)} rows{first} is a {side.value} of the {len(known)} pairs. "
            "Embed the source with the same data settings"
        )
    vectors = np.array(table["embedding"].take(rows).to_pylist(), dtype=np.float32)
    found = [known[keys[row]] for row in rows]
    hashes = [pair.target_hash for pair in found]
    return Embedded(vectors, [pair.source for pair in found], hashes, [keys[row] for row in rows])


def mine_hard_negatives(
    queries: Embedded, targets: Embedded, count: int, *, relative_margin: float = 0.95, skip: int = 0
) -> HardNegatives:
    """The targets of the same source that are most similar to each query without being right, as far as one can tell.

    A target is left out if it has the hash of the query's positive, or if it scores above `relative_margin` times the
    positive's score: so near, it is likely right as well. Every target counts once, by its hash.

    Args:
        queries: (Q, D), with the target hash of each one's positive, which must be among the targets of its source.
        targets: (C, D).
        count: negatives of a query, k.
        relative_margin: above 0, at most 1; of a positive score p, targets up to p - (1 - margin) * |p| are allowed.
        skip: this many of the hardest allowed ones are left out too.

    Returns:
        `HardNegatives`.

    Raises:
        ConfigError: a count, skip or margin out of range.
        DataError: lengths that differ, or a positive that is not among the targets.
        NumericalError: NaN or Inf among the embeddings.

    Reference: the relative margin is NV-Retriever's (arXiv 2407.15831).
    """
    if count < 1 or skip < 0 or not 0 < relative_margin <= 1:
        raise ConfigError(
            f"hard negatives need count >= 1, skip >= 0 and 0 < relative_margin <= 1, not {count}, {skip} and "
            f"{relative_margin}"
        )
    _check(queries, "queries")
    _check(targets, "targets")
    hashes: list[list[str]] = [[] for _ in queries.keys]
    scores: list[list[float]] = [[] for _ in queries.keys]
    target_sources, query_sources = np.asarray(targets.sources), np.asarray(queries.sources)
    for source in dict.fromkeys(queries.sources):
        distinct: dict[str, int] = {}
        for row in np.flatnonzero(target_sources == source).tolist():
            distinct.setdefault(targets.hashes[row], row)
        target_CD = targets.embeddings[list(distinct.values())].astype(np.float32)
        names = list(distinct)
        column = {name: place for place, name in enumerate(names)}
        rows = np.flatnonzero(query_sources == source)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            positives = np.array([_positive_of(queries, row, column, source) for row in block.tolist()])
            scores_QC = queries.embeddings[block].astype(np.float32) @ target_CD.T
            for place, (row, found) in enumerate(
                zip(block.tolist(), _hardest(scores_QC, positives, count, relative_margin, skip), strict=True)
            ):
                hashes[row] = [names[c] for c in found.tolist()]
                scores[row] = scores_QC[place, found].tolist()
    return HardNegatives(list(queries.keys), hashes, scores)


def _hardest(
    scores_QC: np.ndarray, positive_Q: np.ndarray, count: int, relative_margin: float, skip: int
) -> list[np.ndarray]:
    """Columns of the allowed targets of each query, hardest first; equal scores in column order."""
    rows = np.arange(len(scores_QC))
    positive_score_Q = scores_QC[rows, positive_Q]
    limit_Q = positive_score_Q - (1 - relative_margin) * np.abs(positive_score_Q)
    allowed_QC = scores_QC <= limit_Q[:, None]
    allowed_QC[rows, positive_Q] = False
    found = []
    for row in rows:
        columns = np.flatnonzero(allowed_QC[row])
        order = np.argsort(-scores_QC[row, columns], kind="stable")
        found.append(columns[order[skip : skip + count]])
    return found


def _positive_of(queries: Embedded, row: int, column: Mapping[str, int], source: str) -> int:
    place = column.get(queries.hashes[row])
    if place is None:
        raise DataError(
            f"query '{queries.keys[row]}' of source '{source}': its positive {queries.hashes[row]} is not among the "
            f"{len(column)} targets. Embed the targets of the same pairs"
        )
    return place


def _check(embedded: Embedded, what: str) -> None:
    count = len(embedded.embeddings)
    if embedded.embeddings.ndim != 2 or {len(embedded.sources), len(embedded.hashes), len(embedded.keys)} != {count}:
        raise DataError(
            f"{what}: embeddings {embedded.embeddings.shape} need as many sources, hashes and keys, not "
            f"{len(embedded.sources)}, {len(embedded.hashes)} and {len(embedded.keys)}"
        )
    bad = np.flatnonzero(~np.isfinite(embedded.embeddings).all(axis=1))
    if len(bad):
        first = embedded.keys[bad[0]]
        raise NumericalError(f"{what}: {len(bad)} of {count} embeddings contain NaN or Inf, first '{first}'")


def write_hard_negatives(path: Path, mined: HardNegatives) -> None:
    """Write what was mined, for `data.hard_negatives_path`."""
    columns = (mined.query_keys, mined.negative_hashes, mined.scores)
    with whole_file(path) as temporary:
        pq.write_table(pa.table(dict(zip(_COLUMNS, columns, strict=True))), temporary)


def read_hard_negatives(path: Path) -> dict[str, list[str]]:
    """Target hashes of the negatives by query key, hardest first.

    Raises:
        DataError: the file is missing, no Parquet, or lacks columns.
    """
    remedy = "Write it with `twn mine`"
    table = _read_table(path, _COLUMNS[:2], "data.hard_negatives_path", remedy)
    return dict(zip(table["query_key"].to_pylist(), table["negative_hashes"].to_pylist(), strict=True))


def _read_table(path: Path, columns: Sequence[str], what: str, remedy: str) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{what} {path} cannot be read: {error}") from error
    if missing := [name for name in columns if name not in table.column_names]:
        there = ", ".join(table.column_names)
        raise DataError(f"{what} {path} lacks {', '.join(missing)}; it has {there}. {remedy}")
    return table
