"""Rewards as tables: what comes in, what it is worth."""

from __future__ import annotations

import math

import pytest
import torch

from twn_lightning.errors import ConfigError, DataError
from twn_lightning.objectives import (
    combine_rewards,
    format_reward,
    is_well_formed,
    reciprocal_rank,
    share_of_positives_in_top,
    similarity_gap,
)


@pytest.mark.parametrize(
    ("cot", "expected"),
    [
        ("<think> go right </think><answer> red 3 </answer>", True),
        ("\n<think>\na\nb\n</think>\n\n<answer>red 3</answer>\n", True),
        ("<think> a </think> <answer> </answer>", False),
        ("<think></think><answer>red 3</answer>", False),
        ("<think> a </think><answer> red 3", False),
        ("<answer> red 3 </answer><think> a </think>", False),
        ("<think> a <think> b </think><answer> red 3 </answer>", False),
        ("<think> a </think><answer> x </answer><answer> y </answer>", False),
        ("so: <think> a </think><answer> x </answer>", False),
        ("<think> a </think> then <answer> x </answer>", False),
        ("red 3", False),
        ("", False),
    ],
)
def test_format(cot: str, expected: bool) -> None:
    assert is_well_formed(cot) is expected


def test_an_unclosed_completion_earns_no_format_reward() -> None:
    good = "<think> a </think><answer> b </answer>"
    assert format_reward([good, good, "a"]).tolist() == [1, 1, 0]
    assert format_reward([good, good, "a"], torch.tensor([True, False, True])).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("positive", "negatives", "valid", "expected"),
    [
        (0.9, [0.1, 0.2, 0.3], [1, 1, 1], 1.0),
        (0.25, [0.1, 0.2, 0.3], [1, 1, 1], 1 / 2),
        (0.0, [0.1, 0.2, 0.3], [1, 1, 1], 1 / 4),
        (0.3, [0.1, 0.2, 0.3], [1, 1, 1], 1 / 2),  # ties count against the positive
        (0.25, [0.1, 0.2, 0.3], [1, 1, 0], 1.0),  # the better one is the target itself
    ],
)
def test_reciprocal_rank(positive: float, negatives: list[float], valid: list[int], expected: float) -> None:
    reward = reciprocal_rank(torch.tensor([positive]), torch.tensor([negatives]), torch.tensor([valid]).bool())
    assert reward.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        ([0.9, 0.8], [0.1, 0.2], 1.0),
        ([0.9, 0.1], [0.5, 0.2], 1 / 2),
        ([0.1, 0.9], [0.5, 0.2], 1 / 2),  # the order of the group does not matter
        ([0.3, 0.1], [0.9, 0.8], 0.0),
        ([0.9, 0.5], [0.5, 0.2], 1 / 2),  # ties count against the positive
        ([0.9, 0.8, 0.7, 0.6], [0.85, 0.65], 3 / 4),
        ([0.9, 0.8], [1.0], 1 / 2),
    ],
)
def test_share_of_positives_in_top(positives: list[float], negatives: list[float], expected: float) -> None:
    reward = share_of_positives_in_top(torch.tensor([positives]), torch.tensor([negatives]))
    assert reward.item() == pytest.approx(expected)


def test_share_of_one_positive_is_hit_at_1_and_masked_negatives_do_not_count() -> None:
    positive, negatives = torch.tensor([[0.5], [0.5]]), torch.tensor([[0.9], [0.9]])
    valid = torch.tensor([[True], [False]])
    assert share_of_positives_in_top(positive, negatives, valid).tolist() == [0, 1]


def test_gap_to_equal_negatives_is_the_difference() -> None:
    assert similarity_gap(torch.tensor([0.9]), torch.full((1, 7), 0.2)).item() == pytest.approx(0.7)


def test_gap_weighs_negatives_by_softmax() -> None:
    negatives = torch.tensor([[0.1, 0.3]])
    hard = 1 / (1 + math.exp(-0.2 / 0.05))
    expected = 0.5 - (hard * 0.3 + (1 - hard) * 0.1)
    assert similarity_gap(torch.tensor([0.5]), negatives).item() == pytest.approx(expected, abs=1e-6)
    assert similarity_gap(torch.tensor([0.5]), negatives, temperature=1e-3).item() == pytest.approx(0.2, abs=1e-6)
    assert similarity_gap(torch.tensor([0.5]), negatives, temperature=1e3).item() == pytest.approx(0.3, abs=1e-4)


def test_gap_ignores_masked_negatives_and_needs_one() -> None:
    valid = torch.tensor([[True, False]])
    assert similarity_gap(torch.tensor([0.5]), torch.tensor([[0.1, 0.9]]), valid_BN=valid).item() == pytest.approx(0.4)
    with pytest.raises(DataError, match=r"stage\.pool_size"):
        similarity_gap(torch.tensor([0.5]), torch.tensor([[0.1, 0.9]]), valid_BN=torch.zeros_like(valid))


@pytest.mark.parametrize(
    ("combination", "format_", "rank", "gap", "expected"),
    [
        ("sum", 1.0, 1.0, 0.6, 0.1 + 0.5 + 0.3),
        ("sum", 1.0, 0.5, -0.2, 0.1 + 0.25 - 0.1),
        ("sum", 0.0, 1.0, 0.6, 0.0),
        ("product", 1.0, 0.5, 0.6, 0.1 + 0.3),
        ("product", 1.0, 1.0, -0.2, 0.1),
        ("product", 0.0, 1.0, 0.6, 0.0),
    ],
)
def test_combination(combination: str, format_: float, rank: float, gap: float, expected: float) -> None:
    reward = combine_rewards(
        torch.tensor([format_]),
        torch.tensor([rank]),
        torch.tensor([gap]),
        combination=combination,  # type: ignore[arg-type]
    )
    assert reward.item() == pytest.approx(expected)


def test_a_malformed_completion_earns_zero_even_where_its_embedding_is_broken() -> None:
    reward = combine_rewards(torch.tensor([0.0]), torch.tensor([math.nan]), torch.tensor([math.nan]))
    assert reward.tolist() == [0]


def test_an_unknown_combination_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'product'"):
        combine_rewards(torch.ones(1), torch.ones(1), torch.ones(1), combination="produkt")  # type: ignore[arg-type]
