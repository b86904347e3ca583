"""Places in a ranking under a tie rule. Q queries of a chunk, C candidates of each, N labels of the chunk."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twn_lightning.metrics.candidate_index import Query, Rows
from twn_lightning.metrics.label_ranks import IntArray
from twn_lightning.metrics.similarity import MOST_SCORES, FloatMatrix

Ties = Literal["pessimistic", "optimistic", "first"]
TIES: tuple[Ties, ...] = ("pessimistic", "optimistic", "first")


def label_ranks(
    chunk: list[Query], rows_QC: Rows, scores_QC: FloatMatrix, ties: Ties
) -> tuple[IntArray, NDArray[np.bool_]]:
    """Where each label of a chunk ranks.

    Args:
        chunk: Q queries.
        rows_QC: Candidate rows of each.
        scores_QC: Their scores; -inf where a list has ended.
        ties: The tie rule.

    Returns:
        Ranks (N,) from 1, query by query in the order of their labels, and for each query (Q,) whether its best label
        has the score of a candidate that is no label.
    """
    query_N = np.repeat(np.arange(len(chunk)), [len(query.label_rows) for query in chunk])
    row_N = np.concatenate([query.label_rows for query in chunk])
    grade_N = np.concatenate([query.labels.grades for query in chunk])
    column_N, above_N, equal_N, equal_before_N = np.empty((4, len(row_N)), dtype=np.int64)
    step = max(1, MOST_SCORES // (4 * scores_QC.shape[1]))
    for part in (slice(start, start + step) for start in range(0, len(row_N), step)):
        theirs_NC = scores_QC[query_N[part]]
        column_N[part] = (rows_QC[query_N[part]] == row_N[part, None]).argmax(1)
        own_N1 = np.take_along_axis(theirs_NC, column_N[part, None], axis=1)
        equal_NC = theirs_NC == own_N1
        above_N[part] = (theirs_NC > own_N1).sum(1)
        equal_N[part] = equal_NC.sum(1)
        equal_before_N[part] = (equal_NC & (np.arange(equal_NC.shape[1]) < column_N[part, None])).sum(1)
    merit_N = -grade_N if ties == "optimistic" else grade_N
    place_N, tied_labels_N = _place_among_tied(query_N, above_N, merit_N)
    rivals_N = equal_N - tied_labels_N
    before_N = {"pessimistic": rivals_N + place_N, "optimistic": place_N, "first": equal_before_N}[ties]
    tied_Q = np.zeros(len(chunk), dtype=bool)
    best_Q = np.full(len(chunk), np.iinfo(np.int64).max)
    np.minimum.at(best_Q, query_N, above_N)
    tied_Q[query_N[(above_N == best_Q[query_N]) & (rivals_N > 0)]] = True
    return 1 + above_N + before_N, tied_Q


def _place_among_tied(query_N: IntArray, above_N: IntArray, merit_N: NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Place, from 0, of each label among its query's labels of the same score, by merit, and how many those are.

    Labels of a query have the same score where the same number of candidates is above them.
    """
    order = np.lexsort((merit_N, above_N, query_N))
    new_N = np.ones(len(order), dtype=bool)
    new_N[1:] = (np.diff(query_N[order]) != 0) | (np.diff(above_N[order]) != 0)
    group_N = np.cumsum(new_N) - 1
    place_N, size_N = np.empty((2, len(order)), dtype=np.int64)
    place_N[order] = np.arange(len(order)) - np.flatnonzero(new_N)[group_N]
    size_N[order] = np.bincount(group_N)[group_N]
    return place_N, size_N


def best_columns(query: Query, row_C: Rows, score_C: FloatMatrix, top_k: int, ties: Ties) -> NDArray[np.int64]:
    """Columns of the best candidates of one query, at most top_k, best first.

    Args:
        query: The query.
        row_C: Its candidate rows.
        score_C: Their scores.
        top_k: How many.
        ties: The tie rule.
    """
    if top_k < len(score_C):
        least = np.partition(score_C, len(score_C) - top_k)[len(score_C) - top_k]
        column_C = np.flatnonzero(score_C >= least)
    else:
        column_C = np.arange(len(score_C))
    merit_C = np.zeros(len(column_C))  # 0 for candidates that are no label, above it for labels
    for row, grade in zip(query.label_rows, query.labels.grades, strict=True):
        merit_C[row_C[column_C] == row] = 1.0 + grade
    merit_C *= {"pessimistic": 1, "optimistic": -1, "first": 0}[ties]
    return column_C[np.lexsort((merit_C, -score_C[column_C]))[:top_k]]
