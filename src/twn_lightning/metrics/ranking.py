"""Ranking metrics over score matrices, one value per query. Q queries, C candidates.

`relevance` is either int (Q,), the candidate that is each query's only positive, or (Q, C), graded relevance with 0 for
irrelevant. Ties are broken against the system unless asked otherwise, so a constant scorer earns nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twn_lightning.errors import NumericalError

FloatArray = NDArray[np.float64]
Ties = Literal["pessimistic", "optimistic"]


def ranks(scores: ArrayLike, relevance: ArrayLike, ties: Ties = "pessimistic") -> NDArray[np.int64]:
    """Rank of each query's best-scored relevant candidate, from 1.

    Args:
        scores: Similarities (Q, C); higher is better.
        relevance: See the module's first lines.
        ties: Whether irrelevant candidates of the same score rank before ("pessimistic") or after it.

    Returns:
        int64 (Q,).

    Raises:
        NumericalError: On NaN or Inf.
        ValueError: On wrong shapes, a positive outside the candidates, or a query without a relevant one.
    """
    scores_QC, relevance_any = _checked(scores, relevance, ties)
    if relevance_any.ndim == 1:
        best_Q1 = np.take_along_axis(scores_QC, relevance_any[:, None], axis=1)
        rivals_tied_Q = (scores_QC == best_Q1).sum(1) - 1
    else:
        relevant_QC = relevance_any > 0
        best_Q1 = np.where(relevant_QC, scores_QC, -np.inf).max(1, keepdims=True)
        rivals_tied_Q = ((scores_QC == best_Q1) & ~relevant_QC).sum(1)
    above_Q = (scores_QC > best_Q1).sum(1)
    return (1 + above_Q + (rivals_tied_Q if ties == "pessimistic" else 0)).astype(np.int64)


def hit_at_k(scores: ArrayLike, relevance: ArrayLike, k: int = 1, ties: Ties = "pessimistic") -> FloatArray:
    """1 where a relevant candidate is among the k best, else 0; (Q,). Arguments as `ranks`."""
    _check_k(k)
    return (ranks(scores, relevance, ties) <= k).astype(np.float64)


def mrr_at_k(scores: ArrayLike, relevance: ArrayLike, k: int = 10, ties: Ties = "pessimistic") -> FloatArray:
    """1 / rank of the best-scored relevant candidate, 0 beyond rank k; (Q,). Arguments as `ranks`."""
    _check_k(k)
    rank_Q = ranks(scores, relevance, ties)
    return np.where(rank_Q <= k, 1.0 / rank_Q, 0.0)


def ndcg_linear_at_k(scores: ArrayLike, relevance: ArrayLike, k: int = 5, ties: Ties = "pessimistic") -> FloatArray:
    """Normalised discounted cumulative gain with linear gains (the relevance itself), (Q,).

    Args:
        scores: Similarities (Q, C).
        relevance: See the module's first lines; grades must not be negative.
        k: Cut-off, at least 1; candidates beyond it count for nothing, in the ideal order too.
        ties: As in `ranks`.

    Returns:
        Values in [0, 1].

    Raises:
        NumericalError, ValueError: As `ranks`.

    Reference: Jaervelin and Kekaelaeinen 2002; linear gains as in pytrec_eval's `ndcg_cut`.
    """
    _check_k(k)
    scores_QC, relevance_any = _checked(scores, relevance, ties)
    if relevance_any.ndim == 1:
        rank_Q = ranks(scores_QC, relevance_any, ties)
        return np.where(rank_Q <= k, 1.0 / np.log2(rank_Q + 1.0), 0.0)
    tie_break_QC = relevance_any if ties == "pessimistic" else -relevance_any
    order_QC = np.lexsort((tie_break_QC, -scores_QC), axis=-1)[:, :k]
    discount_K = 1.0 / np.log2(np.arange(order_QC.shape[1]) + 2.0)
    gain_Q = (np.take_along_axis(relevance_any, order_QC, axis=1) * discount_K).sum(1)
    ideal_Q = (-np.sort(-relevance_any, axis=1)[:, :k] * discount_K).sum(1)
    return gain_Q / ideal_Q


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")


def _checked(scores: ArrayLike, relevance: ArrayLike, ties: Ties) -> tuple[NDArray[Any], NDArray[Any]]:
    """The score matrix and the relevance, int (Q,) or float (Q, C), both checked."""
    if ties not in ("pessimistic", "optimistic"):
        raise ValueError(f"ties={ties!r} is unknown; there are 'pessimistic' and 'optimistic'.")
    scores_QC, relevance_any = np.asarray(scores), np.asarray(relevance)
    if scores_QC.ndim != 2 or scores_QC.size == 0:
        raise ValueError(f"scores must be a non-empty (Q, C) matrix, got shape {scores_QC.shape}.")
    bad_Q = ~np.isfinite(scores_QC).all(1)
    if bad_Q.any():
        raise NumericalError(
            f"scores contain NaN or Inf in {int(bad_Q.sum())} of {len(bad_Q)} queries, first in query "
            f"{int(bad_Q.argmax())}: the embeddings are broken, and a rank among them would mean nothing."
        )
    if relevance_any.ndim == 1:
        if not np.issubdtype(relevance_any.dtype, np.integer) or len(relevance_any) != len(scores_QC):
            raise ValueError(
                f"a 1-d relevance must be integer positives ({len(scores_QC)},), "
                f"got {relevance_any.dtype} {relevance_any.shape}."
            )
        if relevance_any.min() < 0 or relevance_any.max() >= scores_QC.shape[1]:
            raise ValueError(
                f"positives lie in {relevance_any.min()}..{relevance_any.max()}, "
                f"but there are {scores_QC.shape[1]} candidates."
            )
        return scores_QC, relevance_any
    if relevance_any.shape != scores_QC.shape:
        raise ValueError(f"relevance {relevance_any.shape} must be (Q,) or the scores' shape {scores_QC.shape}.")
    relevance_QC = relevance_any.astype(np.float64)
    if not np.isfinite(relevance_QC).all() or (relevance_QC < 0).any():
        raise ValueError("relevance grades must be finite and not negative.")
    without_Q = ~(relevance_QC > 0).any(1)
    if without_Q.any():
        raise ValueError(
            f"{int(without_Q.sum())} queries have no relevant candidate, first query {int(without_Q.argmax())}: "
            "leave them out, their metrics are undefined."
        )
    return scores_QC, relevance_QC
