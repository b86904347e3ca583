"""Embeddings of a task to its score file: metrics, guards, what thinking cost, and the best candidates of each query.

Shape letters: Q queries, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.errors import DataError
from twn_lightning.evaluation.task_encoding import TaskSide
from twn_lightning.metrics.retrieval import KS, per_query_metrics
from twn_lightning.metrics.scoring import RankedCandidates, rank_candidates, score_embeddings
from twn_lightning.metrics.statistics import bootstrap_mean
from twn_lightning.types import RankingItem

METRIC_NAMES = ("hit", "ndcg_linear", "ndcg_exponential", "precision", "recall", "f1", "map", "mrr")
BENCHMARK_KEYS = (*(f"{name}@{k}" for name in METRIC_NAMES for k in KS), "num_pred", "num_data")
"""What the public score files hold of a task."""


@dataclass(frozen=True)
class Scorable:
    """What is left of a task to score: rows of its queries and candidates, and the ranking item of each such query."""

    query_rows: list[int]
    candidate_rows: list[int]
    items: list[RankingItem]
    skipped: list[str]
    """One message for each query or candidate left out."""


def without_failed(task: EvalTask, queries: TaskSide, candidates: TaskSide) -> Scorable:
    """Leave out what could not be encoded, and queries that have no label without it.

    Raises:
        DataError: no query is left.
    """
    everything = list(range(len(task.candidates)))
    if not queries.failed and not candidates.failed:
        return Scorable(list(range(len(task.queries))), everything, list(task.items), [])
    lost = {task.candidates[row].key for row in candidates.failed}
    skipped = [*queries.failed.values(), *candidates.failed.values()]
    lists: dict[int, tuple[str, ...] | None] = {}
    rows, items = [], []
    for row, item in enumerate(task.items):
        if row in queries.failed:
            continue
        kept = _without(item, lost, lists)
        if kept.labels:
            rows.append(row)
            items.append(kept)
        else:
            skipped.append(f"query '{task.queries[row].key}': none of its labels could be encoded: {list(item.labels)}")
    if not items:
        raise DataError(f"task '{task.name}': no query is left to score. The first problem: {skipped[0]}")
    return Scorable(rows, [row for row in everything if row not in candidates.failed], items, skipped)


def _without(item: RankingItem, lost: set[str], lists: dict[int, tuple[str, ...] | None]) -> RankingItem:
    """An item without some candidates; a list that queries share stays one object, which scoring reads once."""
    kept = [i for i, label in enumerate(item.labels) if label not in lost]
    if item.candidate_keys is not None and id(item.candidate_keys) not in lists:
        lists[id(item.candidate_keys)] = tuple(key for key in item.candidate_keys if key not in lost)
    return replace(
        item,
        labels=tuple(item.labels[i] for i in kept),
        relevance=None if item.relevance is None else tuple(item.relevance[i] for i in kept),
        candidate_keys=lists.get(id(item.candidate_keys)),
    )


def score_task(
    task: EvalTask,
    queries: TaskSide,
    candidates: TaskSide,
    *,
    top_k: int = max(KS),
    bootstrap_samples: int = 1000,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores and predictions.

    Args:
        task: what was encoded.
        queries: embeddings of its queries.
        candidates: embeddings of its candidates.
        top_k: candidates kept of each query, at least the largest cut-off.
        bootstrap_samples: behind the main metric's interval.

    Returns:
        The task's part of scores.json, and one entry a query for predictions.jsonl.

    Raises:
        DataError: nothing to score.
        NumericalError: scores that overflow.
    """
    left = without_failed(task, queries, candidates)
    embeddings = _rows(queries.embedding_ND, left.query_rows), _rows(candidates.embedding_ND, left.candidate_rows)
    keys = [task.candidates[row].key for row in left.candidate_rows]
    protocol = task.protocol
    found = score_embeddings(*embeddings, keys, left.items, protocol.ties, ndcg_pairing=protocol.ndcg_pairing)
    metric = task.task.metric
    ranked, quality_Q = ranked_with_quality(task, *embeddings, keys, left.items, top_k=top_k)
    interval = bootstrap_mean(quality_Q, samples=bootstrap_samples)
    scores = {
        "task": task.name,
        "modality": task.task.modality,
        "meta_task": task.task.meta_task,
        "metric": metric,
        "score": found[metric],
        "ci95": [interval.low, interval.high],
        **{name: found[name] for name in BENCHMARK_KEYS},
        "num_data": len(task.queries),
        **_thinking(queries, candidates, left),
        "guards": {
            **{name: found[name] for name in ("tie_rate", "constant_queries", "constant_candidates")},
            "counts": count_guard(task),
        },
        "counts": {**task.counts, "skipped": len(task.skipped) + len(left.skipped)},
        "skipped": [*task.skipped, *left.skipped],
    }
    return scores, list(_predictions(task, queries, left, ranked, top_k))


def ranked_with_quality(
    task: EvalTask,
    queries_QD: np.ndarray,
    candidates_CD: np.ndarray,
    keys: Sequence[str],
    items: Sequence[RankingItem],
    *,
    top_k: int = max(KS),
) -> tuple[list[RankedCandidates], np.ndarray]:
    """Each query's best candidates, and its value of the task's own metric, in [0, 1].

    Args:
        task: decides metric and tie rule.
        queries_QD: query embeddings.
        candidates_CD: candidate embeddings.
        keys: of the candidates.
        items: of the queries.
        top_k: candidates kept of each query, at least the largest cut-off.

    Raises:
        DataError, NumericalError: as `score_embeddings`.
    """
    protocol = task.protocol
    ranked = list(rank_candidates(queries_QD, candidates_CD, keys, items, protocol.ties, top_k=max(top_k, *KS)))
    values = per_query_metrics(
        [ranking.keys for ranking in ranked],
        [item.labels for item in items],
        [item.relevance for item in items],
        ndcg_pairing=protocol.ndcg_pairing,
    )
    return ranked, values[task.task.metric]


def count_guard(task: EvalTask) -> dict[str, Any]:
    """Queries and candidates found, beside the table's numbers; null where the table has none because it varies."""
    listed = [len(task.candidates) if item.candidate_keys is None else len(item.candidate_keys) for item in task.items]
    table = {"queries": task.task.num_queries, "candidates": task.task.num_candidates}
    found = {
        "queries": len(task.queries),
        "fewest_candidates": task.counts.get("smallest_list", min(listed)),
        "most_candidates": task.counts.get("largest_list", max(listed)),
    }
    agree = found["queries"] == table["queries"] and (
        table["candidates"] is None or found["most_candidates"] == table["candidates"]
    )
    return {"table": table, "found": found, "agree": agree}


def _rows(embedding_ND: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    return embedding_ND if len(rows) == len(embedding_ND) else embedding_ND[list(rows)]


def _thinking(queries: TaskSide, candidates: TaskSide, left: Scorable) -> dict[str, Any]:
    """Who thought, and what it cost, on each side apart."""
    malformed = int(queries.malformed_N[left.query_rows].sum() + candidates.malformed_N[left.candidate_rows].sum())
    thought = int(queries.think_N[left.query_rows].sum() + candidates.think_N[left.candidate_rows].sum())
    return {
        "think_rate": float(queries.think_N[left.query_rows].mean()),
        "candidate_think_rate": float(candidates.think_N[left.candidate_rows].mean()),
        "tokens_per_query": float(queries.tokens_N[left.query_rows].mean()),
        "tokens_per_candidate": float(candidates.tokens_N[left.candidate_rows].mean()),
        "malformed": malformed,
        "malformed_rate": malformed / thought if thought else 0.0,
    }


def _predictions(
    task: EvalTask, queries: TaskSide, left: Scorable, ranked: Sequence[RankedCandidates], top_k: int
) -> Iterator[dict[str, Any]]:
    for row, item, ranking in zip(left.query_rows, left.items, ranked, strict=True):
        yield {
            "query": task.queries[row].key,
            "prediction": ranking.keys[:top_k],
            "scores": ranking.scores[:top_k],
            "label": list(item.labels),
            "rel_scores": None if item.relevance is None else list(item.relevance),
            "think": bool(queries.think_N[row]),
            "probability": None if np.isnan(queries.probability_N[row]) else float(queries.probability_N[row]),
            "tokens": int(queries.tokens_N[row]),
        }


def benchmark_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """A task's entry of the public score format."""
    return {name: scores[name] for name in BENCHMARK_KEYS}
