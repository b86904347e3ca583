"""CoT normalisation and filters, columns, hash splits."""

from __future__ import annotations

from collections import Counter

import pytest

from twn_lightning.data.corpus import (
    SPLIT_SHARES,
    PairColumns,
    columns_of,
    cot_problem,
    filter_cots,
    normalise_cot,
    require_pairs,
    split_by_hash,
)
from twn_lightning.errors import DataError
from twn_lightning.types import Item, Pair

GOOD = "<think> up down </think><answer> blue 3 </answer>"


def pair(cot: str | None, candidate_cot: str | None = None) -> Pair:
    return Pair(Item("q", "", "x", cot=cot), Item("c", "", "y", cot=candidate_cot), "made", "0")


def count_words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"\n {GOOD}  <|im_end|>", GOOD),
        (GOOD + GOOD, GOOD),
        ("  <think> never closed ", "<think> never closed"),
        ("", ""),
    ],
)
def test_normalised_cots_end_in_the_first_closing_tag(text, expected):
    assert normalise_cot(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GOOD, None),
        ("<think> x </think>\n\n<answer> y </answer>", None),
        ("<think> x </think>", "format"),
        ("<think></think><answer> y </answer>", "format"),
        ("<think> x </think><answer>   </answer>", "format"),
        ("x <think> x </think><answer> y </answer>", "format"),
        ("<think> <think> x </think></think><answer> y </answer>", "format"),
        (f"<think> {'and so it goes on and on ' * 9}</think><answer> y </answer>", "repetition"),
        (f"<think> {' '.join(map(str, range(60)))} </think><answer> y </answer>", "length"),
    ],
)
def test_finds_what_is_wrong_with_a_cot(text, problem):
    assert cot_problem(text, count_words, 50) == problem


def test_filters_with_counts_and_keeps_order():
    long = f"<think> {' '.join(map(str, range(60)))} </think><answer> y </answer>"
    pairs = [pair(GOOD), pair("nonsense"), pair(long), pair(None), pair(GOOD + " tail")]
    kept, report = filter_cots(pairs, "query", count_words, 50)
    assert [p.query.cot for p in kept] == [GOOD, None, GOOD + " tail"]
    assert [p.query.cot for p in kept[1:]] == [None, GOOD + " tail"]
    assert columns_of(kept).query_cots == [GOOD, None, GOOD + " tail"]
    assert report.dropped == {"query format": 1, "query length": 1}
    assert str(report) == "kept 3 of 5 pairs; dropped: 1 query format, 1 query length"


def test_filters_only_sides_that_think():
    pairs = [pair("nonsense", GOOD), pair(GOOD, "nonsense")]
    assert filter_cots(pairs, "candidate", count_words, 50)[1].dropped == {"candidate format": 1}
    assert filter_cots(pairs, "both", count_words, 50)[1].kept == 0
    untouched, report = filter_cots(pairs[1:], "query", count_words, 50)
    assert list(untouched) == pairs[1:]
    assert report.kept == 1


def test_columns_come_from_the_sequence_where_it_has_them():
    class Lazy(list):
        def __iter__(self):
            raise AssertionError("no pair should be built")

        def columns(self):
            return PairColumns(["s"], ["t"], [GOOD], [None])

    assert columns_of(Lazy([1])).sources == ["s"]


def test_hash_splits_are_stable_and_follow_their_shares():
    splits = Counter(split_by_hash(f"target{i}") for i in range(20_000))
    for name, share in SPLIT_SHARES.items():
        assert splits[name] / 20_000 == pytest.approx(share, abs=0.005)
    # Frozen: a target that moved would leak from training into the gate's or the test split.
    assert [split_by_hash(t, {"a": 0.5, "b": 0.5}) for t in "0123456789"] == list("abaaaabbba")
    with pytest.raises(ValueError, match=r"sum to 1, these sum to 0\.5"):
        split_by_hash("0", {"train": 0.5})


def test_an_empty_dataset_names_source_and_split():
    with pytest.raises(DataError, match=r"source 'made', split 'gate' has 0 pairs.*data\.gate_pairs"):
        require_pairs([], "made", "gate")
    _, report = filter_cots([pair("bad")], "query", count_words, 50)
    with pytest.raises(DataError, match="kept 0 of 1 pairs; dropped: 1 query format"):
        require_pairs([], "made", "train", report)
