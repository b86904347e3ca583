"""The retrieval metrics, written once, over the ranks that a ranking gives the labels.

Q queries, N labels of all queries together. Hit, precision, recall, F1, MAP, MRR and NDCG need nothing of a ranking but
where it puts the labels, so rankings of keys and matrices of scores are first reduced to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
NOT_RANKED = 2**62
"""The rank of a label that the ranking does not contain: beyond every cut-off."""


@dataclass(frozen=True)
class LabelRanks:
    """Where each query's labels rank, all queries together."""

    query_N: IntArray
    """Which query a label belongs to, ascending; every query of 0..Q-1 has at least one label."""
    rank_N: IntArray
    """From 1, distinct within a query, or NOT_RANKED."""
    grade_N: FloatArray
    """Relevance, at least 0."""

    @property
    def num_queries(self) -> int:
        return int(self.query_N[-1]) + 1


def metric_values(labels: LabelRanks, ks: Sequence[int]) -> dict[str, FloatArray]:
    """Every metric at every cut-off.

    Args:
        labels: Ranks of the labels.
        ks: Cut-offs, each at least 1.

    Returns:
        `hit@1` ... `mrr@10`, each (Q,) in [0, 1]. hit: a label is among the k best; ndcg_linear, ndcg_exponential:
        gains `grade` and `2^grade - 1`, discount `1 / log2(rank + 1)`, over those of the ideal order, 0 where all
        grades are 0; precision divides by k, recall by the number of labels, f1 is their harmonic mean; map divides
        by min(labels, k); mrr is 1 / rank of the first label, 0 beyond k. Grades matter to ndcg only.

    Reference: `src/utils/eval_utils/metrics.py` of TIGER-AI-Lab/VLM2Vec.
    """
    query_N, rank_N, num_queries = labels.query_N, labels.rank_N, labels.num_queries
    count_Q = np.bincount(query_N)
    best_Q = np.minimum.reduceat(rank_N, _first_of_query(query_N))

    def total(value_N: NDArray[Any]) -> FloatArray:
        return np.asarray(np.bincount(query_N, weights=value_N, minlength=num_queries), dtype=np.float64)

    place_N = _place_in_query(query_N, rank_N)  # among the query's own labels, from 1
    ideal_N = _place_in_query(query_N, -labels.grade_N)
    gains = {"ndcg_linear": labels.grade_N, "ndcg_exponential": np.exp2(labels.grade_N) - 1.0}
    values: dict[str, dict[int, FloatArray]] = {}

    def put(metric: str, k: int, value_Q: FloatArray) -> None:
        values.setdefault(metric, {})[k] = value_Q

    for k in ks:
        found_N = rank_N <= k
        found_Q = total(found_N)
        precision_Q, recall_Q = found_Q / k, found_Q / count_Q
        put("hit", k, (best_Q <= k).astype(np.float64))
        for metric, gain_N in gains.items():
            dcg_Q = total(np.where(found_N, gain_N, 0.0) / np.log2(rank_N + 1.0))
            ideal_Q = total(np.where(ideal_N <= k, gain_N, 0.0) / np.log2(ideal_N + 1.0))
            put(metric, k, np.divide(dcg_Q, ideal_Q, out=np.zeros(num_queries), where=ideal_Q > 0))
        put("precision", k, precision_Q)
        put("recall", k, recall_Q)
        both_Q = precision_Q + recall_Q
        put("f1", k, np.divide(2 * precision_Q * recall_Q, both_Q, out=np.zeros(num_queries), where=both_Q > 0))
        put("map", k, total(np.where(found_N, place_N / rank_N, 0.0)) / np.minimum(count_Q, k))
        put("mrr", k, np.where(best_Q <= k, 1.0 / best_Q, 0.0))
    return {f"{metric}@{k}": by_k[k] for metric, by_k in values.items() for k in ks}


def _first_of_query(query_N: IntArray) -> IntArray:
    """Index of each query's first label."""
    return np.flatnonzero(np.diff(query_N, prepend=-1))


def _place_in_query(query_N: IntArray, value_N: NDArray[Any]) -> IntArray:
    """Place of each label among its query's labels by ascending value, from 1; of equal values the first one leads."""
    order_N = np.lexsort((value_N, query_N))
    place_N = np.empty(len(query_N), dtype=np.int64)
    place_N[order_N] = np.arange(1, len(query_N) + 1) - _first_of_query(query_N)[query_N]
    return place_N
