from __future__ import annotations

import math

import numpy as np
import pytest

from twn_lightning.metrics import bootstrap_mean, paired_bootstrap_difference, statistics


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
