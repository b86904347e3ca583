"""Choosing the gate's threshold on validation outcomes.

`curve` is what `metrics.quality_token_curve` returns; it is described by a protocol here because the gate and the
metrics do not import each other.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twn_lightning.errors import ConfigError, unknown_name

_ROUNDING = 1e-9
"""Qualities are means of sums: equal ones may differ in the last digits."""


class OperatingPoints(Protocol):
    """Points of a gate from never (first) to always (last); arrays of one length."""

    @property
    def threshold(self) -> NDArray[np.float64]: ...
    @property
    def quality(self) -> NDArray[np.float64]: ...
    @property
    def tokens_per_query(self) -> NDArray[np.float64]: ...


def calibrate_threshold(
    curve: OperatingPoints,
    method: str = "fixed",
    *,
    threshold: float = 0.5,
    quality_tolerance: float = 0.01,
    token_budget: float = 0.5,
) -> float:
    """Choose when to think; `budgets.conformal_threshold` is the choice with a guarantee.

    Args:
        curve: The gate's operating points on validation outcomes.
        method: "fixed" keeps `threshold`; "quality_tolerance" takes the point of fewest tokens whose quality is at
            most `quality_tolerance` below always; "token_budget" the best quality within the budget (the cheapest of
            equals).
        threshold: Of "fixed".
        quality_tolerance: In units of quality, .01 = one point of hit@1; not negative.
        token_budget: Share of the tokens that always spends, in [0, 1].

    Returns:
        The threshold: the gate thinks iff probability > threshold.

    Raises:
        ConfigError: On an unknown method.
        ValueError: On a tolerance or budget out of range.
    """
    if method == "fixed":
        return threshold
    if method == "quality_tolerance":
        if quality_tolerance < 0:
            raise ValueError(f"gate.quality_tolerance must not be negative, got {quality_tolerance}.")
        allowed = curve.quality >= curve.quality[-1] - quality_tolerance - _ROUNDING
        index = int(np.where(allowed, curve.tokens_per_query, np.inf).argmin())
    elif method == "token_budget":
        if not 0 <= token_budget <= 1:
            raise ValueError(f"gate.token_budget is a share of always' tokens in [0, 1], got {token_budget}.")
        affordable = curve.tokens_per_query <= token_budget * curve.tokens_per_query[-1] + _ROUNDING
        reachable = np.where(affordable, curve.quality, -np.inf)
        index = int((reachable >= reachable.max() - _ROUNDING).argmax())
    else:
        raise ConfigError(unknown_name("gate.calibration", method, ("fixed", "quality_tolerance", "token_budget")))
    return float(curve.threshold[index])
