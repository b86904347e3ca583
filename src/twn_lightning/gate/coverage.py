"""Does a calibration rule keep its promise on new queries? Measured on recorded outcomes.

Shape letters: N queries, R random splits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twn_lightning.gate.routers import Outcomes

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """What a rule chose on R random calibration splits, and what that did to the queries left over; arrays (R,)."""

    threshold_R: FloatArray
    quality_loss_R: FloatArray
    """Quality of always minus quality of adaptive."""
    regret_R: FloatArray
    """Mean of max(0, quality with CoT - quality without) over the queries, 0 where they think."""
    token_share_R: FloatArray
    """Tokens spent over tokens of always."""


def measure_coverage(
    choose: Callable[[Outcomes], float], outcomes: Outcomes, *, num_calibration: int, draws: int = 200, seed: int = 0
) -> Coverage:
    """Test a rule's promise: calibrate it on random queries again and again, and measure it on the others.

    Args:
        choose: Calibration outcomes -> threshold.
        outcomes: Recorded outcomes, more than `num_calibration`.
        num_calibration: Queries that calibrate, drawn without replacement.
        draws: R.
        seed: Of the splits; equal seeds draw equal splits for every rule.

    Returns:
        `Coverage`.

    Raises:
        ValueError: When no query is left for the test.
        DataError: As `choose`.
    """
    if not 0 < num_calibration < len(outcomes):
        raise ValueError(f"num_calibration={num_calibration} must leave some of {len(outcomes)} outcomes for the test.")
    rng = np.random.default_rng(seed)
    gained_N = outcomes.hit_generative - outcomes.hit_discriminative
    measured = []
    for _ in range(draws):
        order_N = rng.permutation(len(outcomes))
        threshold = choose(outcomes.select(order_N[:num_calibration]))
        test = order_N[num_calibration:]
        skipped, tokens = outcomes.probability[test] <= threshold, outcomes.tokens[test]
        lost = gained_N[test] * skipped
        measured.append(
            (threshold, lost.mean(), np.maximum(lost, 0).mean(), 1 - (tokens * skipped).sum() / tokens.sum())
        )
    return Coverage(*np.array(measured).T)
