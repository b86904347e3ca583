"""Ranking metrics by hand, under ties, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from twn_lightning.errors import NumericalError
from twn_lightning.metrics import hit_at_k, mrr_at_k, ndcg_linear_at_k, ranks

SCORES = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
POSITIVES = np.array([0, 1, 2])


def test_by_hand() -> None:
    assert ranks(SCORES, POSITIVES).tolist() == [1, 2, 3]
    assert hit_at_k(SCORES, POSITIVES).tolist() == [1, 0, 0]
    assert hit_at_k(SCORES, POSITIVES, k=2).tolist() == [1, 1, 0]
    assert mrr_at_k(SCORES, POSITIVES, k=2).tolist() == [1, 1 / 2, 0]
    assert ndcg_linear_at_k(SCORES, POSITIVES, k=2) == pytest.approx([1, 1 / math.log2(3), 0])


def test_a_constant_scorer_earns_nothing_unless_ties_are_optimistic() -> None:
    constant = np.zeros((2, 4))
    assert ranks(constant, np.array([0, 3])).tolist() == [4, 4]
    assert ranks(constant, np.array([0, 3]), ties="optimistic").tolist() == [1, 1]
    graded = np.array([[0, 2, 1, 0], [0, 0, 0, 1]])
    assert ndcg_linear_at_k(constant, graded, k=2).tolist() == [0, 0]
    assert ndcg_linear_at_k(constant, graded, k=2, ties="optimistic") == pytest.approx([1, 1])


def test_positives_equal_their_one_hot_relevance() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, size=(50, 9)).astype(float)  # many ties
    positives = rng.integers(0, 9, size=50)
    one_hot = np.eye(9)[positives]
    for ties in ("pessimistic", "optimistic"):
        assert (ranks(scores, positives, ties) == ranks(scores, one_hot, ties)).all()
        assert ndcg_linear_at_k(scores, positives, 3, ties) == pytest.approx(ndcg_linear_at_k(scores, one_hot, 3, ties))


def test_the_best_of_several_relevant_counts() -> None:
    relevance = np.array([[0, 1, 3]])
    assert ranks(SCORES[:1], relevance).tolist() == [2]
    # Two relevant ones tied on top are not each other's rivals.
    assert ranks(np.array([[0.5, 0.5, 0.1]]), np.array([[1, 1, 0]])).tolist() == [1]


@pytest.mark.parametrize("k", [1, 3, 20])
def test_ndcg_equals_scikit_learn_without_ties(k: int) -> None:
    rng = np.random.default_rng(1)
    scores, relevance = rng.normal(size=(30, 8)), rng.integers(0, 4, size=(30, 8))
    relevance[:, 0] += 1
    assert ndcg_linear_at_k(scores, relevance, k).mean() == pytest.approx(ndcg_score(relevance, scores, k=k))


def test_monotone_transformations_change_nothing_and_k_is_monotone() -> None:
    rng = np.random.default_rng(2)
    scores, positives = rng.normal(size=(40, 12)), rng.integers(0, 12, size=40)
    assert (ranks(scores, positives) == ranks(np.exp(scores) * 3, positives)).all()
    hits = [hit_at_k(scores, positives, k).mean() for k in range(1, 13)]
    assert hits == sorted(hits)
    assert hits[-1] == 1
    mrr = mrr_at_k(scores, positives, 12)
    assert ((hit_at_k(scores, positives, 1) <= mrr) & (mrr <= 1)).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", [hit_at_k, mrr_at_k, ndcg_linear_at_k])
def test_non_finite_scores_are_refused(metric, value: float) -> None:
    scores = SCORES.copy()
    scores[1, 2] = value
    with pytest.raises(NumericalError, match="1 of 3 queries, first in query 1"):
        metric(scores, POSITIVES)


@pytest.mark.parametrize(
    ("relevance", "message"),
    [
        (np.array([0, 1, 3]), "but there are 3 candidates"),
        (np.array([0, 1]), r"integer positives \(3,\)"),
        (np.array([0.0, 1.0, 2.0]), "integer positives"),
        (np.zeros((3, 3)), "3 queries have no relevant candidate"),
        (np.eye(3) * -1, "not negative"),
        (np.ones((3, 2)), "must be"),
    ],
)
def test_bad_relevance_is_explained(relevance: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hit_at_k(SCORES, relevance)


def test_bad_k_and_ties_are_explained() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        hit_at_k(SCORES, POSITIVES, k=0)
    with pytest.raises(ValueError, match="'optimistic'"):
        ranks(SCORES, POSITIVES, ties="random")  # type: ignore[arg-type]
