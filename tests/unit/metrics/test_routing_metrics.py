"""Routing metrics by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from twn_lightning.metrics import (
    auroc,
    calibration,
    gate_scores,
    oracle_gap,
    quality_token_curve,
    think_at_equal_tokens,
    think_rate,
    tokens_per_query,
)


def test_cost_of_decisions() -> None:
    think = np.array([True, False, True, False])
    assert think_rate(think) == 0.5
    assert tokens_per_query(think, np.array([10, 99, 30, 99])) == 10


def test_equal_tokens_spend_on_the_highest_scores() -> None:
    score, tokens = np.array([0.1, 0.9, 0.5, 0.7]), np.array([8, 4, 6, 10])
    assert think_at_equal_tokens(score, tokens, 3.5).tolist() == [False, True, False, True]
    assert think_at_equal_tokens(score, tokens, 1.2).tolist() == [False, True, False, False]
    assert think_at_equal_tokens(score, tokens, 0.0).sum() == 0
    assert think_at_equal_tokens(score, tokens, 99.0).all()


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_auroc_equals_scikit_learn_with_and_without_ties(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    score, label = rng.random(200).round(decimals), rng.integers(0, 2, size=200)
    assert auroc(score, label) == pytest.approx(roc_auc_score(label, score))
    assert auroc(-score, label) == pytest.approx(1 - roc_auc_score(label, score))


def test_auroc_extremes() -> None:
    assert auroc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1
    assert auroc([0.5, 0.5, 0.5], [0, 1, 1]) == 0.5
    assert math.isnan(auroc([0.1, 0.2], [1, 1]))


def test_calibration_by_hand() -> None:
    result = calibration([0.0, 0.1, 0.9, 1.0], [0, 1, 1, 1], num_bins=2)
    low, high = result.bins
    assert (low.low, low.high, low.count, low.mean_probability, low.share_positive) == (0, 0.5, 2, 0.05, 0.5)
    assert (high.count, high.share_positive) == (2, 1)
    assert result.ece == pytest.approx((2 * 0.45 + 2 * 0.05) / 4)


def test_calibration_of_edges_and_empty_bins() -> None:
    result = calibration([0.5, 1.0], [0, 1], num_bins=4)
    assert [b.count for b in result.bins] == [0, 0, 1, 1], "an edge belongs to the bin above, 1 to the last"
    assert math.isnan(result.bins[0].mean_probability)
    assert result.ece == pytest.approx(0.25)


def test_a_calibrated_gate_has_an_error_near_zero() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(50_000)
    label = (rng.random(50_000) < probability).astype(int)
    assert calibration(probability, label).ece < 0.01
    assert calibration(1 - probability, label).ece > 0.4


def test_oracle_gap() -> None:
    discriminative, generative = [1, 0, 1, 0], [1, 1, 0, 0]
    assert oracle_gap(discriminative, discriminative, generative) == 0.25
    assert oracle_gap(generative, discriminative, generative) == 0.25
    assert oracle_gap([1, 1, 1, 0], discriminative, generative) == 0


def test_gate_scores_looks_apart_at_queries_that_one_mode_gets_right() -> None:
    scores = gate_scores([0.9, 0.2, 0.8, 0.1], [1, 0, 0, 0], [0, 1, 1, 1], [1, 0, 1, 1])
    assert scores["auroc"] == 1
    assert scores["auroc_one_right"] == 1
    assert scores["share_one_right"] == 0.5
    assert scores["ece"] == pytest.approx((0.1 + 0.2 + 0.8 + 0.1) / 4)
    assert math.isnan(gate_scores([0.9, 0.2], [1, 0], [1, 1], [1, 1])["auroc_one_right"])


def test_curve_by_hand() -> None:
    curve = quality_token_curve([0.9, 0.9, 0.4, 0.1], [0, 0, 1, 1], [1, 1, 0, 1], [10, 20, 30, 40])
    assert curve.think_rate.tolist() == [0, 0.5, 0.75, 1]
    assert curve.quality.tolist() == [0.5, 1, 0.75, 0.75]
    assert curve.tokens_per_query.tolist() == [0, 7.5, 15, 25]
    assert curve.threshold == pytest.approx([1, 0.65, 0.25, 0])


def test_every_point_of_the_curve_is_what_its_threshold_gives() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(60).round(1)  # ties, exact zeros and ones
    probability[:2] = 0, 1
    discriminative, generative, tokens = rng.integers(0, 2, 60), rng.integers(0, 2, 60), rng.integers(1, 50, 60)
    curve = quality_token_curve(probability, discriminative, generative, tokens)
    assert len(curve.threshold) == len(np.unique(probability)) + 1
    for i, threshold in enumerate(curve.threshold):
        think = probability > threshold
        assert curve.think_rate[i] == pytest.approx(think.mean())
        assert curve.tokens_per_query[i] == pytest.approx(tokens_per_query(think, tokens))
        assert curve.quality[i] == pytest.approx(np.where(think, generative, discriminative).mean())
    assert curve.think_rate[0] == 0
    assert curve.think_rate[-1] == 1


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match="probability 2, label 3"):
        auroc([0.1, 0.2], [0, 1, 1])
    with pytest.raises(ValueError, match="not against soft labels"):
        auroc([0.1, 0.2], [0.3, 1])
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        calibration([0.1, 1.2], [0, 1])
    with pytest.raises(ValueError, match="probability: 1 of 2 entries are NaN"):
        auroc([0.1, math.nan], [0, 1])
    with pytest.raises(ValueError, match="non-empty"):
        think_rate([])
