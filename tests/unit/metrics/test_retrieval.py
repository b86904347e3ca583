"""Retrieval metrics of ranked keys: by hand, against independent implementations, their properties, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_precision,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from twn_lightning.errors import ConfigError, DataError
from twn_lightning.metrics import per_query_metrics, ranking_metrics

EXACT = 1e-9


def made_queries(seed: int, graded: bool) -> tuple[list[list[str]], list[list[str]], list[list[float]] | None]:
    """40 random rankings of 12 keys with 1 to 5 labels, and grades from 1 to 4."""
    rng = np.random.default_rng(seed)
    keys = [f"d{i}" for i in range(12)]
    predictions = [[keys[i] for i in rng.permutation(12)] for _ in range(40)]
    labels = [[keys[i] for i in rng.choice(12, size=rng.integers(1, 6), replace=False)] for _ in range(40)]
    grades = [[float(g) for g in rng.integers(1, 5, size=len(right))] for right in labels]
    return predictions, labels, grades if graded else None


def naive(prediction: list[str], labels: list[str], grades: list[float], k: int) -> dict[str, float]:
    """The definitions word by word, one query and one cut-off."""
    grade_of = dict(zip(labels, grades, strict=True))
    top = prediction[:k]
    found = [key for key in top if key in labels]
    precision, recall = len(found) / k, len(found) / len(labels)
    average = sum(
        sum(key in labels for key in top[: rank + 1]) / (rank + 1) for rank, key in enumerate(top) if key in labels
    )
    values = {
        "hit": float(bool(found)),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if found else 0.0,
        "map": average / min(len(labels), k),
        "mrr": 1 / (top.index(found[0]) + 1) if found else 0.0,
    }
    for name, gain in (("ndcg_linear", lambda g: g), ("ndcg_exponential", lambda g: 2**g - 1)):
        dcg = sum(gain(grade_of.get(key, 0)) / math.log2(rank + 2) for rank, key in enumerate(top))
        ideal = sum(gain(g) / math.log2(rank + 2) for rank, g in enumerate(sorted(grades, reverse=True)[:k]))
        values[name] = dcg / ideal
    return values


def test_by_hand() -> None:
    metrics = ranking_metrics([["a", "b", "c", "d"]], [["b", "d"]], [[1, 3]], ks=(1, 2, 4))
    assert metrics["hit@1"] == metrics["mrr@1"] == metrics["f1@1"] == 0
    assert metrics["hit@2"] == 1
    assert metrics["precision@2"] == 1 / 2
    assert metrics["recall@2"] == 1 / 2
    assert metrics["f1@4"] == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert metrics["map@4"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert metrics["mrr@4"] == 1 / 2
    linear = (1 / math.log2(3) + 3 / math.log2(5)) / (3 + 1 / math.log2(3))
    exponential = (1 / math.log2(3) + 7 / math.log2(5)) / (7 + 1 / math.log2(3))
    assert metrics["ndcg_linear@4"] == pytest.approx(linear, abs=EXACT)
    assert metrics["ndcg_exponential@4"] == pytest.approx(exponential, abs=EXACT)


def test_names_are_those_of_the_published_score_files() -> None:
    names = ["hit", "ndcg_linear", "ndcg_exponential", "precision", "recall", "f1", "map", "mrr"]
    metrics = ranking_metrics([["a", "b"]], [["a"]])
    assert list(metrics) == [f"{name}@{k}" for name in names for k in (1, 5, 10)] + ["num_pred", "num_data"]
    assert metrics["num_pred"] == metrics["num_data"] == 1


@pytest.mark.parametrize("graded", [False, True])
def test_every_value_equals_the_definitions_word_by_word(graded: bool) -> None:
    for seed in range(5):
        predictions, labels, grades = made_queries(seed, graded)
        values = per_query_metrics(predictions, labels, grades, ks=(1, 3, 5, 10))
        for query in range(40):
            own = grades[query] if grades else [1.0] * len(labels[query])
            for k in (1, 3, 5, 10):
                for name, expected in naive(predictions[query], labels[query], own, k).items():
                    assert values[f"{name}@{k}"][query] == pytest.approx(expected, abs=EXACT), (name, k, query)


def test_equals_scikit_learn_and_torchmetrics_where_definitions_agree() -> None:
    predictions, labels, grades = made_queries(11, graded=True)
    assert grades is not None
    graded, binary = per_query_metrics(predictions, labels, grades), per_query_metrics(predictions, labels, ks=(5, 12))
    for query, (prediction, right, own) in enumerate(zip(predictions, labels, grades, strict=True)):
        score = np.arange(12.0, 0.0, -1.0)
        relevance = np.array([dict(zip(right, own, strict=True)).get(key, 0.0) for key in prediction])
        assert graded["ndcg_linear@5"][query] == pytest.approx(ndcg_score([relevance], [score], k=5), abs=EXACT)
        gains = 2**relevance - 1
        assert graded["ndcg_exponential@10"][query] == pytest.approx(ndcg_score([gains], [score], k=10), abs=EXACT)
        assert binary["map@12"][query] == pytest.approx(average_precision_score(relevance > 0, score), abs=EXACT)
        scores_C, relevant_C = torch.from_numpy(score), torch.from_numpy(relevance > 0)
        for name, metric in (
            ("hit", retrieval_hit_rate),
            ("precision", retrieval_precision),
            ("recall", retrieval_recall),
            ("mrr", retrieval_reciprocal_rank),
            ("ndcg_linear", retrieval_normalized_dcg),
        ):
            # torchmetrics computes in fp32
            expected = metric(scores_C, relevant_C, top_k=5).item()
            assert binary[f"{name}@5"][query] == pytest.approx(expected, abs=1e-6), name


def test_properties_hold_for_random_rankings() -> None:
    for seed in range(10):
        predictions, labels, grades = made_queries(seed, graded=True)
        values = per_query_metrics(predictions, labels, grades, ks=range(1, 13))
        assert all((value >= 0).all() and (value <= 1 + EXACT).all() for value in values.values())
        for name in ("hit", "recall", "mrr"):
            assert (np.diff([values[f"{name}@{k}"] for k in range(1, 13)], axis=0) >= 0).all(), name
        assert (values["recall@12"] == 1).all()
        assert (values["hit@1"] == values["precision@1"]).all()
        cut = per_query_metrics([ranked[:5] for ranked in predictions], labels, grades, ks=(5,))
        assert (cut["ndcg_linear@5"] == values["ndcg_linear@5"]).all()
        perfect = [sorted(ranked, key=lambda d: -dict(zip(r, g, strict=True)).get(d, 0))
                   for ranked, r, g in zip(predictions, labels, grades, strict=True)]  # fmt: skip
        best = ranking_metrics(perfect, labels, grades)
        assert best["ndcg_linear@5"] == best["ndcg_exponential@10"] == best["map@10"] == pytest.approx(1)


def test_a_key_listed_twice_is_one_candidate_where_it_is_first() -> None:
    doubled = ranking_metrics([["a", "a", "b", "a", "c"]], [["b"]], ks=(1, 2, 3))
    assert doubled == ranking_metrics([["a", "b", "c"]], [["b"]], ks=(1, 2, 3))
    assert doubled["hit@2"] == 1
    assert ranking_metrics([["a", "b"]], [["b", "b"]], ks=(2,))["recall@2"] == 1


def test_labels_may_be_one_key_numbers_or_arrays_and_grades_a_mapping() -> None:
    listed = ranking_metrics([["a", "b"], ["b", "a"]], [["a"], ["a"]])
    assert ranking_metrics([["a", "b"], ["b", "a"]], ["a", "a"]) == listed
    assert ranking_metrics(np.array([[7, 8], [8, 7]]), torch.tensor([7, 7])) == listed
    graded = ranking_metrics([["a", "b"]], [["b", "a"]], [[1, 2]])
    assert ranking_metrics([["a", "b"]], [["b", "a"]], [{"a": 2, "b": 1, "c": 0}]) == graded
    assert ranking_metrics([["a", "b"]], [["b", "a", "b"]], [[1, 2, 0]]) == graded


def test_queries_without_grades_stand_beside_graded_ones_and_zero_grades_gain_nothing() -> None:
    values = per_query_metrics([["a", "b"]] * 3, [["b"], ["b", "a"], ["b"]], [None, [1, 3], [0]], ks=(2,))
    assert values["ndcg_linear@2"].tolist() == pytest.approx([1 / math.log2(3), 1.0, 0.0])


def test_compat_pairs_grades_with_labels_as_the_reference_evaluator_does() -> None:
    # A perfect ranking over pages 120..143: the specification measured 0.855 with the reference's own class.
    pages = list(range(120, 144))
    grades = [[3] + [2] * 23]
    assert ranking_metrics([pages], [pages], grades)["ndcg_linear@5"] == pytest.approx(1)
    set_order = list(set(pages))
    assert set_order != pages
    paired = dict(zip(set_order, grades[0], strict=True))
    expected = ranking_metrics([pages], [pages], [[paired[page] for page in pages]])
    compat = ranking_metrics([pages], [pages], grades, ndcg_pairing="compat")
    assert compat == expected
    assert compat["ndcg_linear@5"] < 0.999
    as_text = [str(page) for page in pages]
    assert ranking_metrics([as_text], [as_text], grades, ndcg_pairing="compat") == compat


def test_compat_needs_integers_only_where_the_order_matters() -> None:
    with pytest.raises(ConfigError, match=r"query 1 has 'page\.png'.*use correct"):
        ranking_metrics([["1"], ["1"]], [["1"], ["page.png", "2"]], [[2], [1, 2]], ndcg_pairing="compat")
    with pytest.raises(ConfigError, match="query 0 has '007'"):
        ranking_metrics([["007"]], [["007", "8"]], [[1, 2]], ndcg_pairing="compat")
    equal_grades = ranking_metrics([["x"]], [["x", "y"]], [[1, 1]], ndcg_pairing="compat")
    assert equal_grades == ranking_metrics([["x"]], [["x", "y"]])
    with pytest.raises(DataError, match="query 0: a label is listed twice"):
        ranking_metrics([[1]], [[1, 1, 2]], [[1, 1, 2]], ndcg_pairing="compat")
    with pytest.raises(ConfigError, match="did you mean 'compat'"):
        ranking_metrics([[1]], [[1]], ndcg_pairing="compta")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "relevance", "message"),
    [
        ([["a"], []], None, "query 1 has no label"),
        ([["a"]], None, "2 predictions, 1 label lists and 1 relevance lists: query 1 lacks"),
        ([["a"], ["b"]], [[1]], "1 relevance lists"),
        ([["a"], ["a", "b"]], [[1], [1]], "query 1 has 2 labels but 1 relevance grades"),
        ([["a"], ["a"]], [[1], [math.nan]], "query 1: the relevance of label 'a' is nan"),
        ([["a"], ["a"]], [[math.inf], [1]], "query 0: the relevance of label 'a' is inf"),
        ([["a"], ["a"]], [[1], [-1]], "query 1: the relevance of label 'a' is -1"),
        ([["a"], ["a"]], [[1], ["high"]], "query 1: the relevance of label 'a' is 'high', which is not a number"),
        ([["a"], ["a"]], [{"a": 1}, {"b": 0}], "query 1: relevance has no grade for its label 'a'"),
        ([["a"], ["a"]], [{"a": 1}, {"a": 1, "b": 2}], "query 1: relevance grades 'b'"),
        ([["a"], {"a", "b"}], [[1], [1, 2]], "query 1: labels are a set"),
    ],
)
def test_bad_labels_and_grades_name_the_query(labels, relevance, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ranking_metrics([["a", "b"], ["b", "a"]], labels, relevance)


def test_empty_predictions_no_queries_and_bad_cut_offs_are_refused() -> None:
    with pytest.raises(DataError, match="query 1 has an empty prediction list"):
        ranking_metrics([["a"], []], [["a"], ["a"]])
    with pytest.raises(DataError, match="no queries"):
        ranking_metrics([], [])
    with pytest.raises(DataError, match=r"at least 1, got \[0, 5\]"):
        ranking_metrics([["a"]], [["a"]], ks=(0, 5))
    with pytest.raises(DataError, match="at least 1, got 5"):
        ranking_metrics([["a"]], [["a"]], ks=5)  # type: ignore[arg-type]
    assert ranking_metrics([["a"]], [["a"]], ks=np.array([1, 3])) == ranking_metrics([["a"]], [["a"]], ks=(1, 3))
