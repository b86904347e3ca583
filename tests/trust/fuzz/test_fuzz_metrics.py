"""Embeddings, labels and grades that attack the metrics, which are compared with plain loops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.fuzz.cases import check, examples, nothing_left
from tests.trust.fuzz.test_fuzz_rows import JSON
from twn_lightning.data.hard_negatives import Embedded, HardNegatives, mine_hard_negatives
from twn_lightning.errors import TWNError
from twn_lightning.metrics import ranking, routing, statistics
from twn_lightning.metrics.retrieval import ranking_metrics
from twn_lightning.metrics.scoring import score_embeddings

DOCUMENTED = (TWNError, ValueError)
"""Functions of arrays alone raise a ValueError on shapes and labels that do not fit; see their docstrings."""
NUMBERS = st.integers(-2, 2).map(float) | st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30])
GRADES = st.sampled_from([0.0, 1.0, 2.0, 3.5]) | st.sampled_from([-1.0, math.nan, math.inf, 1e9, True])


@pytest.fixture(scope="module", autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left("metrics"):
        yield


@st.composite
def matrices(draw: Any, rows: int, width: int) -> np.ndarray:
    """Small whole numbers, so that ties happen; one matrix in four holds something hostile."""
    values = draw(st.lists(st.integers(-2, 2), min_size=rows * width, max_size=rows * width))
    matrix = np.array(values, np.float32).reshape(rows, width)
    if rows and width and draw(st.integers(0, 3)) == 0:
        matrix[draw(st.integers(0, rows - 1)), draw(st.integers(0, width - 1))] = draw(NUMBERS)
    return matrix


@st.composite
def scoring_tasks(draw: Any) -> dict[str, Any]:
    """Queries, candidates, keys, labels and grades of a task; in half of them something may be out of order."""
    queries, candidates, width = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    keys = draw(st.lists(st.sampled_from("abcdef"), min_size=candidates, max_size=candidates))
    items = []
    if draw(st.booleans()):
        for _ in range(queries):
            labels = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3, unique=True))
            grades = st.none() | st.lists(st.sampled_from([0.0, 1.0, 3.5]), min_size=len(labels), max_size=len(labels))
            own = st.none() | st.lists(st.sampled_from(keys), max_size=4).map(lambda more, own=labels: [*more, *own])
            items.append({"labels": labels, "relevance": draw(grades), "candidate_keys": draw(own)})
        vectors = [draw(matrices(count, width)) for count in (queries, candidates)]
        return {"queries": vectors[0], "candidates": vectors[1], "candidate_keys": keys, "items": items}
    for _ in range(queries):
        labels = draw(st.lists(st.sampled_from([*keys, "a", "z"]), max_size=3, unique=True))
        grades = st.none() | st.lists(GRADES, min_size=len(labels), max_size=len(labels))
        own = st.none() | st.lists(st.sampled_from([*keys, *labels]), max_size=5)
        items.append({"labels": labels, "relevance": draw(grades), "candidate_keys": draw(own)})
    return {
        "queries": draw(matrices(queries, width)),
        "candidates": draw(matrices(candidates + draw(st.sampled_from([0, 0, 0, 1])), width)),
        "candidate_keys": keys,
        "items": items,
    }


def ranked(task: dict[str, Any], query: int) -> list[str]:
    """The distinct candidates of a query, best first; of equal scores the irrelevant first, then lower grades."""
    item = task["items"][query]
    rows = {key: task["candidate_keys"].index(key) for key in item["candidate_keys"] or task["candidate_keys"]}
    grades = dict(zip(item["labels"], item["relevance"] or [1.0] * len(item["labels"]), strict=True))
    scores = {key: float(task["queries"][query] @ task["candidates"][row]) for key, row in rows.items()}
    return sorted(rows, key=lambda key: (-scores[key], (1 + grades[key]) if key in grades else 0))


def plain_metrics(task: dict[str, Any], k: int) -> dict[str, float]:
    """Hit, MRR, recall and NDCG by their definitions, one query at a time."""
    sums = dict.fromkeys(("hit", "mrr", "recall", "ndcg_linear"), 0.0)
    for query, item in enumerate(task["items"]):
        grades = dict(zip(item["labels"], item["relevance"] or [1.0] * len(item["labels"]), strict=True))
        places = {key: place for place, key in enumerate(ranked(task, query), start=1)}
        found = sorted(places[key] for key in grades if places[key] <= k)
        gain = sum(grades[key] / math.log2(places[key] + 1) for key in grades if places[key] <= k)
        ideal = sum(g / math.log2(i + 1) for i, g in enumerate(sorted(grades.values(), reverse=True)[:k], start=1))
        sums["hit"] += bool(found)
        sums["mrr"] += 1 / found[0] if found else 0
        sums["recall"] += len(found) / len(grades)
        sums["ndcg_linear"] += gain / ideal if ideal else 0
    return {f"{name}@{k}": value / len(task["items"]) for name, value in sums.items()}


def is_sound(task: dict[str, Any]) -> bool:
    """Whether a task can be scored at all."""
    if len(task["candidates"]) != len(task["candidate_keys"]):
        return False
    with np.errstate(all="ignore"):
        if not np.isfinite(task["queries"]).all() or not np.isfinite(task["candidates"]).all():
            return False
        if not np.isfinite(task["queries"] @ task["candidates"].T).all():
            return False
    for item in task["items"]:
        grades = item["relevance"] or []
        own = task["candidate_keys"] if item["candidate_keys"] is None else item["candidate_keys"]
        if not own or not item["labels"] or not set(item["labels"]) <= set(own) <= set(task["candidate_keys"]):
            return False
        if not all(math.isfinite(grade) and 0 <= grade <= 1000 for grade in grades):
            return False
    return True


@examples(100, 1200)
@given(task=scoring_tasks())
def test_scores_equal_plain_loops(task: dict[str, Any]) -> None:
    def right(found: dict[str, Any]) -> None:
        assert is_sound(task), "a score of what cannot be scored"
        for name, value in plain_metrics(task, 5).items():
            assert found[name] == pytest.approx(value, abs=1e-9), name
        assert all(0 <= value <= 1 for name, value in found.items() if "@" in name)

    found = check("scores", f"{task}", lambda: score_embeddings(**task), right)
    assert (found is not None) == is_sound(task), f"a sound task was refused: {task}"


@examples(80, 400)
@given(
    predictions=st.lists(st.lists(st.sampled_from("abc"), min_size=1) | JSON, min_size=1, max_size=3),
    labels=st.lists(st.lists(st.sampled_from("abc"), min_size=1, unique=True) | JSON, min_size=1, max_size=3),
    relevance=st.none() | st.lists(st.none() | st.lists(GRADES | JSON, max_size=3) | JSON, min_size=1, max_size=3),
    pairing=st.sampled_from(["correct", "correct", "compat", "other"]),
)
def test_rankings_of_any_json(predictions: list[Any], labels: list[Any], relevance: Any, pairing: Any) -> None:
    def right(found: dict[str, float]) -> None:
        assert all(0 <= value <= 1 for name, value in found.items() if "@" in name)
        firsts = [p[0] if isinstance(p, list) else p for p in predictions]
        hits = [
            first in label if isinstance(label, list) else first == label
            for first, label in zip(firsts, labels, strict=True)
        ]
        assert found["hit@1"] == pytest.approx(sum(hits) / len(hits))

    check(
        "scores",
        f"{predictions} {labels} {relevance} {pairing}",
        lambda: ranking_metrics(predictions, labels, relevance, ndcg_pairing=pairing),
        right,
    )


ARRAYS = st.one_of(
    st.lists(NUMBERS, max_size=4).map(np.array),
    st.tuples(st.integers(0, 3), st.integers(0, 3)).flatmap(lambda shape: matrices(*shape)),
    st.lists(st.integers(-1, 3), max_size=3).map(lambda values: np.array(values, np.int64)),
    st.just(np.array(["a"])),
)


@examples(80, 500)
@given(
    scores=ARRAYS,
    relevance=ARRAYS,
    k=st.integers(-1, 4),
    name=st.sampled_from(["hit_at_k", "mrr_at_k", "ndcg_linear_at_k"]),
)
def test_metrics_of_score_matrices(scores: np.ndarray, relevance: np.ndarray, k: int, name: str) -> None:
    def right(found: np.ndarray) -> None:
        assert np.isfinite(scores).all()
        assert found.shape == (len(scores),)
        assert (found >= 0).all()
        assert (found <= 1 + 1e-12).all()
        if relevance.ndim == 1 and name == "hit_at_k":
            theirs = scores[np.arange(len(scores)), relevance]
            assert (found == ((scores >= theirs[:, None]).sum(1) <= k)).all()

    check("metrics", f"{name} {scores} {relevance}", lambda: getattr(ranking, name)(scores, relevance, k), right,
          errors=DOCUMENTED)  # fmt: skip


@examples(80, 500)
@given(first=ARRAYS, second=ARRAYS, third=ARRAYS, fourth=ARRAYS)
def test_routing_metrics_and_intervals(
    first: np.ndarray, second: np.ndarray, third: np.ndarray, fourth: np.ndarray
) -> None:
    """Numbers out of finite numbers only, NaN where the docstring says that nothing is defined."""
    for name, work in {
        "auroc": lambda: routing.auroc(first, second),
        "ece": lambda: routing.calibration(first, second).ece,
        "oracle_gap": lambda: routing.oracle_gap(first, second, third),
        "curve": lambda: float(routing.quality_token_curve(first, second, third, fourth).quality[-1]),
        "tokens": lambda: routing.tokens_per_query(first, second),
        "interval": lambda: statistics.paired_bootstrap_difference(first, second, samples=20).mean,
        "student": lambda: statistics.student_interval(first).mean,
    }.items():

        def right(found: float, name: str = name) -> None:
            assert np.isfinite(first).all()
            assert math.isfinite(found) or (name == "auroc" and math.isnan(found) and len(set(second.tolist())) == 1)
            if name == "student":
                assert found == pytest.approx(float(np.mean(first)), rel=1e-6)

        check("metrics", f"{name} {first} {second} {third} {fourth}", work, right, errors=DOCUMENTED)


@examples(50, 300)
@given(
    data=st.data(),
    count=st.integers(-1, 3),
    skip=st.integers(-1, 2),
    margin=st.sampled_from([0.95, 1.0, 0.0, math.nan, 2.0]),
)
def test_mined_negatives_are_the_most_similar(data: Any, count: int, skip: int, margin: float) -> None:
    rows, targets = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 5))
    query_D, target_D = data.draw(matrices(rows, 2)), data.draw(matrices(targets, 2))
    names = [f"h{i}" for i in range(targets)]
    rights = data.draw(st.lists(st.sampled_from([*names, "gone"]), min_size=rows, max_size=rows))
    queries = Embedded(query_D, ["s"] * rows, rights, [f"q{i}" for i in range(rows)])
    corpus = Embedded(target_D, ["s"] * targets, names, names)

    def right(found: HardNegatives) -> None:
        for row, negatives in enumerate(found.negative_hashes):
            scores = target_D @ query_D[row]
            positive = scores[names.index(rights[row])]
            limit = positive - np.float32(1 - margin) * abs(positive)
            allowed = [i for i in range(targets) if scores[i] <= limit + 1e-6 and names[i] != rights[row]]
            best = sorted((float(scores[i]) for i in allowed), reverse=True)[skip : skip + count]
            assert found.scores[row] == pytest.approx(best)
            assert rights[row] not in negatives
            assert len(set(negatives)) == len(negatives)

    check(
        "mining",
        f"{query_D} {target_D} {rights} {count} {skip} {margin}",
        lambda: mine_hard_negatives(queries, corpus, count, relative_margin=margin, skip=skip),
        right,
    )
