from __future__ import annotations

import math

import numpy as np
import pytest

from twn_lightning.metrics import (
    bootstrap_mean,
    bootstrap_over_seeds,
    paired_bootstrap_difference,
    paired_bootstrap_over_seeds,
    statistics,
    student_interval,
)


def test_interval_of_a_mean_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(0).random(2000)
    interval = bootstrap_mean(values, samples=4000)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_coverage_is_near_its_level() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        interval = bootstrap_mean(rng.random(100) < 0.3, samples=400, level=0.8, seed=trial)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.70 < covered / 200 < 0.90


def test_constant_values_have_no_width() -> None:
    assert bootstrap_mean(np.full(10, 0.25)) == (0.25, 0.25, 0.25)


def test_seeded() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_blocks_cover_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large inputs are resampled block by block; the same stream of draws gives the same interval."""
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_mean(values, samples=101)
    monkeypatch.setattr(statistics, "_VALUES_AT_ONCE", 50 * 7)
    assert bootstrap_mean(values, samples=101) == whole


def test_pairing_removes_the_variance_the_systems_share() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=500)
    better = difficulty + 0.1
    interval = paired_bootstrap_difference(better, difficulty)
    assert interval == pytest.approx((0.1, 0.1, 0.1))
    unpaired = paired_bootstrap_difference(better, rng.permutation(difficulty))
    assert unpaired.low < 0 < unpaired.high
    reverse = paired_bootstrap_difference(difficulty, better)
    assert reverse.mean == pytest.approx(-interval.mean)


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match="same queries: got 2 and 3"):
        paired_bootstrap_difference([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="values: 1 of 2 entries"):
        bootstrap_mean([0, math.nan])
    with pytest.raises(ValueError, match="non-empty"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="level=1"):
        bootstrap_mean([0, 1], level=1)


def test_one_seed_is_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(800), rng.random(800)
    over_seeds = paired_bootstrap_over_seeds(first[None], second[None], samples=4000)
    assert over_seeds == pytest.approx(paired_bootstrap_difference(first, second, samples=4000), abs=2e-3)


def test_seeds_that_disagree_widen_the_interval() -> None:
    queries = np.random.default_rng(0).random(500)
    agreeing = paired_bootstrap_over_seeds(np.stack([queries] * 5), np.zeros((5, 500)))
    shifted = np.stack([queries + shift for shift in (-0.2, -0.1, 0.0, 0.1, 0.2)])
    disagreeing = paired_bootstrap_over_seeds(shifted, np.zeros((5, 500)))
    assert disagreeing.mean == pytest.approx(agreeing.mean)
    assert disagreeing.high - disagreeing.low > 3 * (agreeing.high - agreeing.low)


def test_queries_are_shared_between_seeds() -> None:
    """Ten copies of one seed's values hold no more information than one of them."""
    values = np.random.default_rng(0).random((1, 300))
    one = paired_bootstrap_over_seeds(values, np.zeros_like(values), samples=4000)
    ten = paired_bootstrap_over_seeds(np.repeat(values, 10, 0), np.zeros((10, 300)), samples=4000)
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=0.1)


def test_coverage_over_seeds_and_queries_is_near_its_level() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = rng.normal(0, 0.3, (8, 1)) + rng.normal(0, 1, (1, 60)) + rng.normal(0, 1, (8, 60))
        interval = bootstrap_over_seeds(lambda mean: mean, values, samples=300, level=0.8, seed=trial)
        covered += interval.low <= 0 <= interval.high
    assert 0.70 < covered / 200 < 0.92


def test_a_ratio_is_resampled_as_a_whole() -> None:
    rng = np.random.default_rng(0)
    cost = rng.integers(10, 30, (3, 400)).astype(float)
    share = bootstrap_over_seeds(np.divide, 0.5 * cost, cost)
    assert share == pytest.approx((0.5, 0.5, 0.5))


def test_blocks_over_seeds_cover_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((3, 50))
    whole = bootstrap_over_seeds(np.negative, values, samples=2000)
    monkeypatch.setattr(statistics, "_VALUES_AT_ONCE", 50 * 7)
    assert bootstrap_over_seeds(np.negative, values, samples=2000) == pytest.approx(whole)


def test_bad_input_over_seeds_is_explained() -> None:
    with pytest.raises(ValueError, match=r"\[\(2, 3\), \(2, 4\)\]"):
        paired_bootstrap_over_seeds(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"\(S, N\)"):
        bootstrap_over_seeds(np.negative, np.zeros(3))
    with pytest.raises(ValueError, match="1 of 6 values"):
        bootstrap_over_seeds(np.negative, [[0, 1, math.nan], [0, 0, 0]])
    with pytest.raises(ValueError, match="samples=0"):
        bootstrap_over_seeds(np.negative, np.zeros((1, 2)), samples=0)


def test_students_interval_matches_tables() -> None:
    # t within which 95 % lie with 1 and 2 degrees of freedom: 12.706 and 4.303
    assert student_interval([0.0, 2.0]) == pytest.approx((1.0, 1 - 12.706, 1 + 12.706), abs=1e-3)
    assert student_interval([0.0, 1.0, 2.0]) == pytest.approx(
        (1.0, 1 - 4.3027 / math.sqrt(3), 1 + 4.3027 / math.sqrt(3)), abs=1e-4
    )


def test_students_interval_keeps_its_level_with_three_seeds() -> None:
    draws = np.random.default_rng(0).normal(size=(400, 3))
    covered = [interval.low <= 0 <= interval.high for interval in map(student_interval, draws)]
    assert 0.92 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize(("values", "level"), [([1.0], 0.95), ([1.0, 2.0], 1.0), ([1.0, math.nan], 0.95)])
def test_students_interval_explains_bad_input(values: list[float], level: float) -> None:
    with pytest.raises(ValueError, match=r"needs 2 values|NaN"):
        student_interval(values, level=level)
