from __future__ import annotations

import numpy as np
import pytest

from twn_lightning.errors import ConfigError
from twn_lightning.gate import calibrate_threshold
from twn_lightning.metrics import QualityTokenCurve, quality_token_curve

PROBABILITY = np.array([0.9, 0.7, 0.5, 0.3])
TOKENS = np.array([10, 10, 10, 10])
CURVE = quality_token_curve(PROBABILITY, np.array([0, 0, 1, 1]), np.array([1, 1, 1, 0]), TOKENS)
"""Quality from never to always: .5, .75, 1, 1, .75."""


def think(threshold: float) -> list[bool]:
    return (threshold < PROBABILITY).tolist()


def test_fixed_is_the_threshold_given() -> None:
    assert calibrate_threshold(CURVE, "fixed", threshold=0.42) == 0.42


@pytest.mark.parametrize(
    ("tolerance", "expected"),
    [
        (0.0, [True, False, False, False]),  # .75, as always, at a quarter of its tokens
        (0.3, [False, False, False, False]),
    ],
)
def test_quality_tolerance_takes_the_fewest_tokens(tolerance: float, expected: list[bool]) -> None:
    assert think(calibrate_threshold(CURVE, "quality_tolerance", quality_tolerance=tolerance)) == expected


def test_quality_tolerance_falls_back_to_always_where_every_thought_pays() -> None:
    curve = quality_token_curve(PROBABILITY, np.zeros(4), np.ones(4), TOKENS)
    assert think(calibrate_threshold(curve, "quality_tolerance", quality_tolerance=0.0)) == [True] * 4


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0.0, [False, False, False, False]),
        (0.25, [True, False, False, False]),
        (0.49, [True, False, False, False]),
        (0.5, [True, True, False, False]),
        (1.0, [True, True, False, False]),  # the cheaper of two equals, and better than always
    ],
)
def test_token_budget_takes_the_best_it_can_pay(budget: float, expected: list[bool]) -> None:
    assert think(calibrate_threshold(CURVE, "token_budget", token_budget=budget)) == expected


def test_random_outcomes_keep_the_promise() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        probability = rng.random(50).round(1)
        discriminative, generative = rng.integers(0, 2, 50), rng.integers(0, 2, 50)
        tokens = rng.integers(1, 40, 50)
        curve = quality_token_curve(probability, discriminative, generative, tokens)
        tolerant = probability > calibrate_threshold(curve, "quality_tolerance", quality_tolerance=0.05)
        assert np.where(tolerant, generative, discriminative).mean() >= generative.mean() - 0.05 - 1e-9
        frugal = probability > calibrate_threshold(curve, "token_budget", token_budget=0.4)
        assert tokens[frugal].sum() <= 0.4 * tokens.sum()


def test_rounding_does_not_hide_an_equal_quality() -> None:
    curve = QualityTokenCurve(
        np.array([1.0, 0.5, 0.0]), np.array([0.0, 0.3 - 1e-16, 0.3]), np.array([0.0, 1.0, 2.0]), np.array([0, 0.5, 1])
    )
    assert calibrate_threshold(curve, "quality_tolerance", quality_tolerance=0.0) == 0.5


def test_bad_settings_are_explained() -> None:
    with pytest.raises(ConfigError, match="did you mean 'token_budget'"):
        calibrate_threshold(CURVE, "token_budgt")
    with pytest.raises(ValueError, match="quality_tolerance must not be negative"):
        calibrate_threshold(CURVE, "quality_tolerance", quality_tolerance=-0.1)
    with pytest.raises(ValueError, match="share of always"):
        calibrate_threshold(CURVE, "token_budget", token_budget=20)
