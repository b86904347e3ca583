"""Calibration with a guarantee: it holds on new queries, where reading the curve's best point does not."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from twn_lightning.errors import ConfigError, DataError
from twn_lightning.gate import (
    CONFORMAL,
    Coverage,
    Outcomes,
    calibrate_threshold,
    conformal_threshold,
    measure_coverage,
)
from twn_lightning.gate.budgets import control_risk, hoeffding_bentkus, quality_risk, token_risk
from twn_lightning.gate_rules import smallest_level
from twn_lightning.metrics import quality_token_curve

CAP = 64
DRAWS = 400


def made_outcomes(count: int, seed: int = 0) -> Outcomes:
    """Half of the queries need a CoT; it hurts some of the others; the gate is informative but noisy."""
    rng = np.random.default_rng(seed)
    needs = rng.random(count) < 0.5
    return Outcomes(
        hit_discriminative=(rng.random(count) < np.where(needs, 0.2, 0.9)).astype(float),
        hit_generative=(rng.random(count) < np.where(needs, 0.95, 0.85)).astype(float),
        tokens=np.where(needs, rng.integers(15, 40, count), rng.integers(8, 20, count)),
        probability=1 / (1 + np.exp(-rng.normal(np.where(needs, 1.0, -1.0), 1.0))),
        margin=rng.random(count),
        query_length=rng.integers(5, 9, count),
        gain=np.zeros(count),
        steps=np.where(needs, 3, 0),
        task=np.full(count, "made"),
    )


def conformal(
    outcomes: Outcomes, method: str, *, tolerance: float = 0.05, budget: float = 0.5, delta: float | None = None
) -> float:
    arrays = (outcomes.probability, outcomes.hit_discriminative, outcomes.hit_generative, outcomes.tokens)
    return conformal_threshold(
        method, *arrays, quality_tolerance=tolerance, token_budget=budget, max_tokens=CAP, delta=delta
    )


def uncorrected(outcomes: Outcomes, *, tolerance: float) -> float:
    """The highest threshold whose mean regret on the calibration queries is within the tolerance."""
    risk = quality_risk(outcomes.probability, outcomes.hit_discriminative, outcomes.hit_generative, tolerance)
    within_P = risk.total_P / risk.num_queries <= tolerance
    return float(risk.threshold_P[np.flatnonzero(within_P)[-1]])


def covered(choose: object, num_calibration: int = 60) -> Coverage:
    """Test results pooled over independent draws of calibration and test queries."""
    parts = [
        measure_coverage(choose, made_outcomes(2000, seed), num_calibration=num_calibration, draws=DRAWS // 20)  # type: ignore[arg-type]
        for seed in range(20)
    ]
    return Coverage(*(np.concatenate([getattr(part, name) for part in parts]) for name in Coverage.__annotations__))


def standard_error(values: np.ndarray) -> float:
    return float(values.std() / np.sqrt(len(values)))


@pytest.mark.parametrize("tolerance", [0.05, 0.1])
def test_expected_regret_on_new_queries_keeps_to_the_tolerance(tolerance: float) -> None:
    result = covered(partial(conformal, method="conformal_quality", tolerance=tolerance))
    error = standard_error(result.regret_R)
    assert result.regret_R.mean() <= tolerance + 2 * error
    assert result.regret_R.mean() >= tolerance - 2 / 61 - 3 * error, "tight up to the correction"
    assert (result.quality_loss_R <= result.regret_R).all()


def test_the_uncorrected_rule_breaks_the_same_promise() -> None:
    tolerance = 0.05
    result = covered(partial(uncorrected, tolerance=tolerance))
    assert result.regret_R.mean() > tolerance + 4 * standard_error(result.regret_R)


@pytest.mark.parametrize("budget", [0.3, 0.5])
def test_expected_tokens_on_new_queries_keep_to_the_budget(budget: float) -> None:
    result = covered(partial(conformal, method="conformal_budget", budget=budget))
    assert result.token_share_R.mean() <= budget + 2 * standard_error(result.token_share_R)
    assert result.token_share_R.mean() >= budget - 0.1


@pytest.mark.parametrize(("method", "level"), [("conformal_quality", 0.1), ("conformal_budget", 0.5)])
def test_with_delta_most_calibrations_are_within_the_level(method: str, level: float) -> None:
    result = covered(partial(conformal, method=method, tolerance=0.1, budget=0.5, delta=0.1), num_calibration=200)
    measured_R = result.regret_R if method == "conformal_quality" else result.token_share_R
    test_noise = 0.01
    assert (measured_R <= level + test_noise).mean() >= 0.9
    assert measured_R.mean() > level / 3, "the bound is not vacuous"


@pytest.mark.parametrize("method", CONFORMAL)
def test_delta_is_the_more_cautious(method: str) -> None:
    outcomes = made_outcomes(500)
    expected, confident = (conformal(outcomes, method, tolerance=0.1, delta=delta) for delta in (None, 0.05))
    assert confident < expected if method == "conformal_quality" else confident > expected


def test_regret_is_the_least_monotone_bound_of_the_quality_lost() -> None:
    outcomes = made_outcomes(40)
    risk = quality_risk(outcomes.probability, outcomes.hit_discriminative, outcomes.hit_generative, 0.1)
    lost_PN = np.where(
        outcomes.probability <= risk.threshold_P[:, None], outcomes.hit_generative - outcomes.hit_discriminative, 0
    )
    assert risk.total_P == pytest.approx(np.maximum.accumulate(lost_PN, axis=0).sum(1))
    assert (np.diff(risk.total_P) >= 0).all()


def test_token_risk_is_zero_where_the_budget_is_spent() -> None:
    risk = token_risk([0.2, 0.6, 0.9], [10, 10, 20], 0.5, 20)
    assert risk.threshold_P == pytest.approx([1.0, 0.75, 0.4, 0.0])
    assert risk.total_P * 20 == pytest.approx([-20, 0, 10, 20])


def test_equal_probabilities_think_together() -> None:
    risk = quality_risk([0.5, 0.5, 0.7], [0, 0, 0], [1, 1, 1], 0.1)
    assert risk.threshold_P == pytest.approx([0.0, 0.6, 1.0])
    assert risk.total_P == pytest.approx([0, 2, 3])


def test_always_and_never_are_reached_at_the_ends_of_the_scale() -> None:
    risk = quality_risk([0.0, 1.0], [0, 0], [1, 1], 0.1)
    assert risk.threshold_P[0] < 0
    assert risk.threshold_P[-1] == 1


def test_a_budget_that_more_thinking_cannot_use_is_not_spent() -> None:
    """Thinking hurts below .5: the best quality within the budget leaves tokens over."""
    probability = np.linspace(0.01, 0.99, 400)
    needs = (probability > 0.5).astype(float)
    threshold = conformal_threshold(
        "conformal_budget",
        probability,
        1 - needs,
        needs,
        np.full(400, 10),
        quality_tolerance=0.0,
        token_budget=0.9,
        max_tokens=10,
    )
    assert threshold == pytest.approx(0.5, abs=0.01)


def test_more_calibration_queries_leave_less_unused() -> None:
    thresholds = [
        np.mean([conformal(made_outcomes(count, seed), "conformal_quality", tolerance=0.03) for seed in range(20)])
        for count in (50, 200, 2000)
    ]
    assert thresholds == sorted(thresholds)


@pytest.mark.parametrize("delta", [None, 0.1])
@pytest.mark.parametrize("count", [20, 200])
def test_the_smallest_level_is_where_too_few_queries_become_enough(count: int, delta: float | None) -> None:
    outcomes, least = made_outcomes(count), smallest_level(count, delta)
    conformal(outcomes, "conformal_quality", tolerance=least * 1.001, delta=delta)
    with pytest.raises(DataError, match=f"{count} calibration queries are too few"):
        conformal(outcomes, "conformal_quality", tolerance=least * 0.999, delta=delta)
    full_length = (outcomes.probability, np.full(count, CAP))
    control_risk(token_risk(*full_length, least * 1.001, CAP), delta)
    with pytest.raises(DataError, match="too few"):
        control_risk(token_risk(*full_length, least * 0.999, CAP), delta)


def test_p_values_are_valid_and_sharpen_with_queries() -> None:
    rng = np.random.default_rng(0)
    means = rng.binomial(200, 0.1, 4000) / 200
    p_values = np.array([hoeffding_bentkus(mean, 200, 0.1) for mean in means])
    assert (p_values <= 0.1).mean() <= 0.1
    assert (p_values <= 0.1).any()
    assert hoeffding_bentkus(0.05, 2000, 0.1) < hoeffding_bentkus(0.05, 200, 0.1) < 1
    assert hoeffding_bentkus(0.1, 200, 0.1) == 1


def test_bentkus_is_the_binomial_tail() -> None:
    """Near the level, e times P(Binomial(5, .5) <= 1) = 6 / 32 is below Hoeffding's bound or above it."""
    hoeffding = np.exp(-5 * (0.2 * np.log(0.4) + 0.8 * np.log(1.6)))
    assert hoeffding_bentkus(0.2, 5, 0.5) == pytest.approx(min(hoeffding, np.e * 6 / 32))


def test_splits_are_the_same_for_every_rule_and_disjoint() -> None:
    outcomes = made_outcomes(50)
    seen: list[np.ndarray] = []

    def remember(part: Outcomes) -> float:
        seen.append(np.sort(part.probability))
        return 0.5

    first, again = (measure_coverage(remember, outcomes, num_calibration=20, draws=3, seed=1) for _ in range(2))
    assert (first.quality_loss_R == again.quality_loss_R).all()
    assert all((a == b).all() and len(a) == 20 for a, b in zip(seen[:3], seen[3:], strict=True))
    test = ~np.isin(outcomes.probability, seen[0])
    think = outcomes.probability[test] > 0.5
    share = outcomes.tokens[test][think].sum() / outcomes.tokens[test].sum()
    assert first.token_share_R[0] == pytest.approx(share)


def test_the_guaranteed_tolerance_thinks_more_than_the_curve() -> None:
    outcomes = made_outcomes(400)
    curve = quality_token_curve(
        outcomes.probability, outcomes.hit_discriminative, outcomes.hit_generative, outcomes.tokens
    )
    plain = calibrate_threshold(curve, "quality_tolerance", quality_tolerance=0.05)
    assert conformal(outcomes, "conformal_quality", tolerance=0.05) < plain


def test_bad_input_is_explained() -> None:
    with pytest.raises(ConfigError, match="did you mean 'conformal_quality'"):
        conformal(made_outcomes(50), "conformal_qualty")
    with pytest.raises(DataError, match=r"qualities in \[0, 1\]"):
        quality_risk([0.5], [0.0], [3.0], 0.1)
    with pytest.raises(DataError, match="65 tokens, more than the cap of 64"):
        token_risk([0.5], [65], 0.5, 64)
    with pytest.raises(ValueError, match="one finite value per query"):
        quality_risk([0.5, np.nan], [0, 0], [1, 1], 0.1)
    with pytest.raises(ValueError, match="num_calibration=50 must leave some of 50"):
        measure_coverage(lambda _: 0.5, made_outcomes(50), num_calibration=50)
