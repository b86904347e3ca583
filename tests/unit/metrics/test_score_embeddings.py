"""Scores of embeddings: ties, duplicates, collapsed encoders, local and global candidates, bad input."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch

from twn_lightning.errors import ConfigError, DataError, NumericalError
from twn_lightning.metrics import rank_candidates, ranking_metrics, score_embeddings
from twn_lightning.metrics.tied_ranks import TIES
from twn_lightning.types import RankingItem

KEYS = [f"c{i}" for i in range(40)]


def unit(rng: np.random.Generator, rows: int, width: int = 16) -> np.ndarray:
    vectors = rng.normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def one_label_each(count: int, first_in_own_list: bool = False) -> list[RankingItem]:
    """Query i is right about candidate i, of all, or of a list of all that begins with it."""
    return [
        RankingItem((key,), candidate_keys=(key, *(k for k in KEYS if k != key)) if first_in_own_list else None)
        for key in KEYS[:count]
    ]


def tied_task(seed: int) -> tuple[np.ndarray, np.ndarray, list[str], list[dict[str, Any]]]:
    """Few distinct small integer vectors (exact scores, many ties), repeated keys, several graded labels."""
    rng = np.random.default_rng(seed)
    queries = rng.integers(-1, 2, size=(9, 3)).astype(np.float32)
    candidates = rng.integers(-1, 2, size=(25, 3)).astype(np.float32)
    keys = [f"k{i}" for i in rng.integers(0, 25, size=25)]
    known = list(dict.fromkeys(keys))
    items = []
    for query in range(9):
        labels = [known[i] for i in rng.permutation(len(known))[: rng.integers(1, 4)]]
        relevance = [float(g) for g in rng.integers(0, 4, size=len(labels))] if query % 3 else None
        listed = [known[i] for i in rng.permutation(len(known))[: rng.integers(1, len(known))]] + labels
        items.append({"labels": labels, "relevance": relevance, "candidate_keys": listed if query % 2 else None})
    return queries, candidates, keys, items


def sorted_keys(task: tuple[np.ndarray, np.ndarray, list[str], list[dict[str, Any]]], ties: str) -> list[list[str]]:
    """Every query's candidates in the order of the tie rule, by plain sorting."""
    queries, candidates, keys, items = task
    first_row = {key: row for row, key in reversed(list(enumerate(keys)))}
    ranked = []
    for query, item in zip(queries, items, strict=True):
        grades = item["relevance"] or [1.0] * len(item["labels"])
        merit = {key: 1 + grade for key, grade in zip(item["labels"], grades, strict=True)}
        sign = {"pessimistic": 1, "optimistic": -1, "first": 0}[ties]
        listed = list(dict.fromkeys(item["candidate_keys"] or keys))
        ranked.append(sorted(listed, key=lambda k: (-(query @ candidates[first_row[k]]), sign * merit.get(k, 0))))
    return ranked


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("chunk_size", [1, 4, 256])
def test_equals_sorting_and_ranking_metrics_under_every_tie_rule(ties: Any, chunk_size: int) -> None:
    for seed in range(20):
        task = tied_task(seed)
        expected = sorted_keys(task, ties)
        scores = score_embeddings(*task, ties, chunk_size=chunk_size)
        labels, relevance = [item["labels"] for item in task[3]], [item["relevance"] for item in task[3]]
        for name, value in ranking_metrics(expected, labels, relevance).items():
            assert scores[name] == pytest.approx(value, abs=1e-12), name
        best = list(rank_candidates(*task, ties, chunk_size=chunk_size, top_k=5))
        top = [entry.keys for entry in best]
        assert ranking_metrics(top, labels, relevance, ks=(5,))["ndcg_linear@5"] == scores["ndcg_linear@5"]
        if ties == "first":
            assert top == [keys[:5] for keys in expected]
        assert [entry.query for entry in best] == list(range(9))
        assert all(entry.scores == sorted(entry.scores, reverse=True) for entry in best)


def test_pessimistic_is_at_most_first_is_at_most_optimistic() -> None:
    spread = 0
    for seed in range(30):
        task = tied_task(seed)
        low, middle, high = (score_embeddings(*task, ties) for ties in ("pessimistic", "first", "optimistic"))
        for name in ("hit@1", "hit@5", "ndcg_linear@5", "ndcg_exponential@10", "recall@5", "map@10", "mrr@10"):
            assert low[name] <= middle[name] + 1e-12 <= high[name] + 2e-12, name
        spread += low["hit@1"] < high["hit@1"]
    assert spread > 20


def test_the_order_of_candidates_does_not_matter_without_ties() -> None:
    rng = np.random.default_rng(0)
    queries, candidates, items = unit(rng, 30), unit(rng, 40), one_label_each(30)
    scores = score_embeddings(queries, candidates, KEYS, items)
    assert 0 < scores["hit@10"] < 1
    assert scores["tie_rate"] == 0
    for _ in range(5):
        order = rng.permutation(40)
        shuffled = [KEYS[i] for i in order]
        local = [RankingItem(item.labels, candidate_keys=tuple(rng.permutation(KEYS).tolist())) for item in items]
        for ties in TIES:
            assert score_embeddings(queries, candidates[order], shuffled, items, ties) == scores
            assert score_embeddings(queries, candidates, KEYS, local, ties) == scores


@pytest.mark.parametrize("noise", [0.0, 1e-7])
@pytest.mark.parametrize("local", [False, True])
def test_a_collapsed_encoder_scores_nothing_although_labels_come_first(local: bool, noise: float, caplog) -> None:
    rng = np.random.default_rng(1)
    queries, one = unit(rng, 20, 1024), unit(rng, 1, 1024)
    candidates = np.repeat(one, 40, axis=0)
    candidates[::2] += np.float32(noise)  # batches that round differently
    items = one_label_each(20, first_in_own_list=local)
    with caplog.at_level(logging.WARNING):
        scores = score_embeddings(queries, candidates, KEYS, items)
    assert scores["hit@10"] == scores["mrr@10"] == scores["ndcg_linear@10"] == 0
    assert scores["tie_rate"] == 1
    assert scores["constant_candidates"]
    assert not scores["constant_queries"]
    assert "all candidate embeddings are the same" in caplog.text
    if local:
        assert score_embeddings(queries, candidates, KEYS, items, "first")["hit@1"] == 1  # as in the reference


def test_constant_queries_score_at_chance_and_are_named(caplog) -> None:
    rng = np.random.default_rng(2)
    queries = np.repeat(unit(rng, 1), 40, axis=0)
    with caplog.at_level(logging.WARNING):
        scores = score_embeddings(queries, unit(rng, 40), KEYS, one_label_each(40))
    assert scores["constant_queries"]
    assert not scores["constant_candidates"]
    assert [scores[f"hit@{k}"] for k in (1, 5, 10)] == pytest.approx([1 / 40, 5 / 40, 10 / 40])
    assert "all query embeddings are the same" in caplog.text


def test_equal_vectors_tie_wherever_they_stand() -> None:
    # Widths and positions at which matrix products round the same dot product differently.
    rng = np.random.default_rng(3)
    for width in (7, 129, 1000):
        queries, candidates = unit(rng, 13, width), unit(rng, 40, width)
        candidates[0, 0] = 0.0
        candidates[1::2] = candidates[0]
        candidates[39, 0] = -0.0  # the same vector
        items = [RankingItem(("c1",)), *(RankingItem((KEYS[i],)) for i in range(3, 27, 2))]
        scores = score_embeddings(queries, candidates, KEYS, items)
        assert scores["tie_rate"] == 1
        assert scores["hit@10"] == 0  # twenty rivals of the same vector come first
        for entry in rank_candidates(queries, candidates, KEYS, items, top_k=40):
            assert len({score for key, score in zip(entry.keys, entry.scores, strict=True) if int(key[1:]) % 2}) == 1


def test_rows_with_one_key_are_one_candidate_and_never_tie() -> None:
    queries = np.array([[1.0, 0.0]])
    candidates = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 0.0]])
    keys = ["yes", "yes", "no", "no"]
    for own in (None, ["yes", "no", "yes"]):
        scores = score_embeddings(queries, candidates, keys, [{"labels": "yes", "candidate_keys": own}])
        assert scores["hit@1"] == 1
        assert scores["tie_rate"] == 0
        assert scores["num_candidates"] == 2


def test_tied_labels_are_not_each_others_rivals() -> None:
    item = {"labels": ["a", "b"], "relevance": [1, 3]}
    task = (np.ones((1, 2)), np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]), ["a", "b", "c"], [item])
    assert score_embeddings(*task)["tie_rate"] == 0
    assert score_embeddings(*task)["hit@1"] == 1
    assert score_embeddings(*task)["ndcg_linear@1"] == pytest.approx(1 / 3)  # the lower grade first
    assert score_embeddings(*task, "optimistic")["ndcg_linear@1"] == 1


def test_tensors_half_precision_and_objects_score_like_arrays() -> None:
    rng = np.random.default_rng(4)
    queries, candidates = torch.from_numpy(unit(rng, 20)).bfloat16(), torch.from_numpy(unit(rng, 40)).bfloat16()
    expected = score_embeddings(queries.float().numpy(), candidates.float().numpy(), KEYS, one_label_each(20))
    assert score_embeddings(queries.requires_grad_(), candidates, np.array(KEYS), one_label_each(20)) == expected
    assert expected["num_queries"] == expected["num_pred"] == 20
    assert expected["num_candidates"] == 40


def test_pairing_and_cut_offs_are_passed_on() -> None:
    pages = [str(page) for page in range(120, 144)]
    candidates = np.eye(24) * np.arange(24, 0, -1)[:, None]
    item = RankingItem(tuple(pages), tuple([3.0] + [2.0] * 23))
    task = (np.ones((1, 24)), candidates, pages, [item])
    compat = score_embeddings(*task, ndcg_pairing="compat", ks=(5,))
    of_keys = ranking_metrics([pages], [pages], [item.relevance], ks=(5,), ndcg_pairing="compat")
    assert compat["ndcg_linear@5"] == of_keys["ndcg_linear@5"]
    assert compat["ndcg_linear@5"] < score_embeddings(*task, ks=(5,))["ndcg_linear@5"] == pytest.approx(1)
    assert "hit@1" not in compat


def test_chunks_bound_the_scores_held_at_once(monkeypatch) -> None:
    from twn_lightning.metrics import similarity

    monkeypatch.setattr(similarity, "MOST_SCORES", 100)
    monkeypatch.setattr(similarity, "_BLOCK", 7)
    rng = np.random.default_rng(5)
    queries, candidates, items = unit(rng, 20), unit(rng, 40), one_label_each(20, first_in_own_list=True)
    task = similarity.Similarities(queries, candidates, KEYS, items, "correct")
    sizes = [scores.size for _, _, scores in task.chunks(256)]
    assert max(sizes) <= 100
    assert sum(sizes) == 20 * 40
    small = score_embeddings(queries, candidates, KEYS, items)
    monkeypatch.undo()
    assert small == score_embeddings(queries, candidates, KEYS, items)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_embeddings_that_are_not_finite_are_refused_by_row_and_key(value: float) -> None:
    rng = np.random.default_rng(6)
    queries, candidates = unit(rng, 5), unit(rng, 40)
    broken = candidates.copy()
    broken[[7, 30], 3] = value
    with pytest.raises(NumericalError, match=r"2 of 40 candidate rows, first in candidate 7 \('c7'\)"):
        score_embeddings(queries, broken, KEYS, one_label_each(5))
    queries[4, 0] = value
    with pytest.raises(NumericalError, match="1 of 5 query rows, first in query 4"):
        score_embeddings(queries, candidates, KEYS, one_label_each(5))


def test_scores_that_overflow_are_refused() -> None:
    with pytest.raises(NumericalError, match="overflow fp32"):
        score_embeddings(np.full((1, 2), 3e38), np.eye(2) * 3e38, ["a", "b"], [{"labels": ["a"]}])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"labels": ["x"]}, "query 1: its label 'x' is not among the 3 candidates of the task"),
        ({"labels": ["a"], "candidate_keys": ["b", "c"]}, "query 1: its label 'a' is not among its own 2 candidates"),
        ({"labels": ["a"], "candidate_keys": ["a", "x"]}, "query 1: its candidate 'x' is not among the 3 candidates"),
        ({"labels": ["a"], "candidate_keys": []}, "query 1 has an empty candidate list"),
        ({"labels": []}, "query 1 has no label"),
        ({"candidate_keys": ["a"]}, r"query 1: its item \(dict\) has no labels"),
        ({"labels": ["a"], "relevance": [math.nan]}, "query 1: the relevance of label 'a' is nan"),
    ],
)
def test_bad_items_name_query_and_key(item: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_embeddings(np.eye(3)[:2], np.eye(3), ["a", "b", "c"], [{"labels": ["a"]}, item])


@pytest.mark.parametrize(
    ("queries", "candidates", "keys", "message"),
    [
        (np.ones((1, 4)), np.ones((2, 3)), ["a", "b"], "queries are 4 wide and candidates 3"),
        (np.ones((2, 3)), np.ones((2, 3)), ["a", "b"], "2 query embeddings but 1 items"),
        (np.ones((1, 3)), np.ones((2, 3)), ["a"], "2 candidate embeddings but 1 keys"),
        (np.ones(3), np.ones((2, 3)), ["a", "b"], r"queries must be a non-empty matrix.*\(3,\)"),
        (np.ones((1, 3)), np.ones((0, 3)), [], "candidates must be a non-empty matrix"),
    ],
)
def test_shapes_that_do_not_fit_are_explained(queries, candidates, keys, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_embeddings(queries, candidates, keys, [{"labels": ["a"]}])


def test_unknown_tie_rule() -> None:
    with pytest.raises(ConfigError, match="did you mean 'first'"):
        score_embeddings(np.eye(2), np.eye(2), ["a", "b"], [{"labels": ["a"]}] * 2, "frist")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown tie rule"):
        next(rank_candidates(np.eye(2), np.eye(2), ["a", "b"], [{"labels": ["a"]}] * 2, "random"))  # type: ignore[arg-type]
