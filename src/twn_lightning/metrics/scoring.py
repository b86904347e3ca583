"""Scores of embeddings: similarities, ties and labels to the metrics of a task. Q queries, C candidates, D width."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.metrics.label_ranks import IntArray, LabelRanks, metric_values
from twn_lightning.metrics.query_labels import NdcgPairing
from twn_lightning.metrics.retrieval import KS, checked_ks, means
from twn_lightning.metrics.similarity import CHUNK_SIZE, Similarities
from twn_lightning.metrics.tied_ranks import TIES, Ties, best_columns, label_ranks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankedCandidates:
    """The best candidates of one query, best first."""

    query: int
    keys: list[Any]
    scores: list[float]


def score_embeddings(
    queries: Any,
    candidates: Any,
    candidate_keys: Sequence[Any],
    items: Sequence[Any],
    ties: Ties = "pessimistic",
    *,
    ks: Sequence[int] = KS,
    ndcg_pairing: NdcgPairing = "correct",
    chunk_size: int = CHUNK_SIZE,
) -> dict[str, Any]:
    """Rank candidates by dot product and compute every metric.

    Args:
        queries: (Q, D) array or tensor, any float type; compared in fp32 as they are, so normalise them before.
        candidates: (C, D) likewise.
        candidate_keys: C keys; rows with the same key are one candidate, the first of them.
        items: Q entries with labels, relevance and candidate_keys (the query's own list, or None for all candidates):
            `RankingItem`s, or objects or mappings with those fields.
        ties: Among candidates of equal score irrelevant ones rank first ("pessimistic", lower before higher grades),
            last ("optimistic"), or as they are listed ("first", the reference evaluator's).
        ks: Cut-offs.
        ndcg_pairing: As in `ranking_metrics`.
        chunk_size: Most queries compared at once. Memory is bounded apart from it, and no score depends on it beyond
            the rounding of the matrix product.

    Returns:
        The means of `ranking_metrics`, and
        tie_rate: share of queries whose best label has the score of a candidate that is no label;
        num_queries, num_candidates (distinct keys);
        constant_queries, constant_candidates: whether all embeddings of a side are equal, which is also logged.

    Raises:
        DataError: Wrong shapes, an unknown label or candidate, an empty candidate list; names query and key.
        NumericalError: NaN or Inf, or scores that overflow; names row and key.
        ConfigError: Unknown tie rule or pairing.
    """
    cutoffs = checked_ks(ks)
    _check_ties(ties)
    task = Similarities(queries, candidates, candidate_keys, items, ndcg_pairing)
    for side, constant in (("query", task.constant_queries), ("candidate", task.constant_candidates)):
        if constant:
            log.warning("all %s embeddings are the same: the encoder has collapsed, its scores mean nothing", side)
    query_N: list[int] = []
    grade_N: list[float] = []
    ranks: list[IntArray] = []
    tied = 0
    for chunk, rows_QC, scores_QC in task.chunks(chunk_size):
        rank_N, tied_Q = label_ranks(chunk, rows_QC, scores_QC, ties)
        ranks.append(rank_N)
        tied += int(tied_Q.sum())
        for query in chunk:
            query_N += [query.index] * len(query.label_rows)
            grade_N += query.labels.paired_grades
    ranked = LabelRanks(np.array(query_N), np.concatenate(ranks), np.array(grade_N))
    num_queries = len(task.queries)
    return {
        **means(metric_values(ranked, cutoffs)),
        "num_pred": num_queries,
        "num_data": num_queries,
        "tie_rate": tied / num_queries,
        "num_queries": num_queries,
        "num_candidates": len(task.index.row_of),
        "constant_queries": task.constant_queries,
        "constant_candidates": task.constant_candidates,
    }


def rank_candidates(
    queries: Any,
    candidates: Any,
    candidate_keys: Sequence[Any],
    items: Sequence[Any],
    ties: Ties = "pessimistic",
    *,
    top_k: int = max(KS),
    chunk_size: int = CHUNK_SIZE,
) -> Iterator[RankedCandidates]:
    """The best candidates of each query under the tie rule of `score_embeddings`, in the order of the queries.

    `ranking_metrics` of these keys equals `score_embeddings`, up to cut-offs of top_k. Arguments and errors as there.

    Yields:
        At most top_k distinct keys with their fp32 scores.
    """
    (top_k,) = checked_ks([top_k])
    _check_ties(ties)
    task = Similarities(queries, candidates, candidate_keys, items, "correct")
    for chunk, rows_QC, scores_QC in task.chunks(chunk_size):
        for query, row_C, score_C in zip(chunk, rows_QC, scores_QC, strict=True):
            count = len(query.candidate_rows)
            order = best_columns(query, row_C[:count], score_C[:count], top_k, ties)
            keys = [task.index.keys[row] for row in row_C[order].tolist()]
            yield RankedCandidates(query.index, keys, score_C[order].tolist())


def _check_ties(ties: str) -> None:
    if ties not in TIES:
        raise ConfigError(unknown_name("tie rule", str(ties), TIES))
