"""Retrieval metrics of ranked keys, under the names and definitions of the MMEB-V2 score files."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from twn_lightning.errors import DataError
from twn_lightning.metrics.label_ranks import NOT_RANKED, FloatArray, LabelRanks, metric_values
from twn_lightning.metrics.query_labels import NdcgPairing, as_keys, read_labels

KS = (1, 5, 10)


def ranking_metrics(
    predictions: Sequence[Any],
    labels: Sequence[Any],
    relevance: Sequence[Sequence[float] | Mapping[Any, float] | None] | None = None,
    ks: Sequence[int] = KS,
    *,
    ndcg_pairing: NdcgPairing = "correct",
) -> dict[str, float]:
    """Means over the queries of hit, NDCG, precision, recall, F1, MAP and MRR.

    Args:
        predictions: One list of keys a query, best first. A key that is listed twice is one candidate, where it is
            first; lists may end anywhere after max(ks) distinct keys.
        labels: The right keys of each query, at least one.
        relevance: Grades of each query's labels, in their order or by key; None, or None for a query: all 1.
        ks: Cut-offs.
        ndcg_pairing: "correct", or "compat" for the reference evaluator's pairing of grades with labels.

    Returns:
        `hit@1`, `ndcg_linear@5`, `ndcg_exponential@10`, `precision@k`, `recall@k`, `f1@k`, `map@k` and `mrr@k` as
        fractions, and num_pred and num_data, the number of queries. Definitions: `label_ranks.metric_values`.

    Raises:
        DataError: Lists that do not fit each other, a query without label or prediction, NaN, infinite or negative
            relevance; each names the query.
        ConfigError: "compat" for labels that are not integers.
    """
    values = per_query_metrics(predictions, labels, relevance, ks, ndcg_pairing=ndcg_pairing)
    return means(values) | {"num_pred": len(predictions), "num_data": len(labels)}


def per_query_metrics(
    predictions: Sequence[Any],
    labels: Sequence[Any],
    relevance: Sequence[Sequence[float] | Mapping[Any, float] | None] | None = None,
    ks: Sequence[int] = KS,
    *,
    ndcg_pairing: NdcgPairing = "correct",
) -> dict[str, FloatArray]:
    """The metrics of each query, (Q,) float64, for intervals and comparisons; arguments and errors of the means."""
    cutoffs = checked_ks(ks)
    grades = [None] * len(labels) if relevance is None else relevance
    if not len(predictions) == len(labels) == len(grades):
        raise DataError(
            f"there are {len(predictions)} predictions, {len(labels)} label lists and {len(grades)} relevance lists: "
            f"query {min(len(predictions), len(labels), len(grades))} lacks one of them"
        )
    if len(labels) == 0:
        raise DataError("there are no queries to score")
    query_N: list[int] = []
    rank_N: list[int] = []
    grade_N: list[float] = []
    for query, (prediction, right, graded) in enumerate(zip(predictions, labels, grades, strict=True)):
        known = read_labels(query, right, graded, ndcg_pairing)
        rank_of = _ranks(query, prediction, max(cutoffs))
        query_N += [query] * len(known.keys)
        rank_N += [rank_of.get(key, NOT_RANKED) for key in known.keys]
        grade_N += known.paired_grades
    ranked = LabelRanks(np.array(query_N), np.array(rank_N), np.array(grade_N))
    return metric_values(ranked, cutoffs)


def means(values: Mapping[str, FloatArray]) -> dict[str, float]:
    """The mean over the queries of each metric."""
    return {name: float(value_Q.mean()) for name, value_Q in values.items()}


def checked_ks(ks: Sequence[int]) -> tuple[int, ...]:
    """The cut-offs, ascending, each once.

    Raises:
        DataError: none, or one below 1.
    """
    cutoffs = tuple(sorted({int(k) for k in ks})) if isinstance(ks, Iterable) else ()
    if not cutoffs or cutoffs[0] < 1:
        raise DataError(f"ks must be cut-offs of at least 1, got {list(cutoffs) or ks}")
    return cutoffs


def _ranks(query: int, prediction: Any, deepest: int) -> dict[Hashable, int]:
    """Rank, from 1, of the first distinct keys of a prediction."""
    keys = as_keys(prediction)
    if not keys:
        raise DataError(f"query {query} has an empty prediction list: it had no candidates")
    return {key: rank for rank, key in enumerate(islice(dict.fromkeys(keys), deepest), start=1)}
