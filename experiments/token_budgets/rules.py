"""The rules that the study compares: how each takes a threshold from calibration outcomes."""

from __future__ import annotations

from twn_lightning.gate import Outcomes, calibrate_threshold, conformal_threshold
from twn_lightning.metrics import quality_token_curve

TOLERANCES = (0.01, 0.02, 0.05)
BUDGETS = (0.25, 0.4, 0.5)
DELTA = 0.1
RULES = ("read off the curve", "conformal", f"Hoeffding-Bentkus, delta {DELTA}")
TARGETS = {"quality": TOLERANCES, "tokens": BUDGETS}
"""What a rule promises, with the levels that it is asked for."""


def choose(outcomes: Outcomes, *, target: str, rule: str, level: float, max_tokens: int) -> float:
    """The threshold that a rule takes from calibration outcomes."""
    arrays = (outcomes.probability, outcomes.hit_discriminative, outcomes.hit_generative, outcomes.tokens)
    levels = {"quality_tolerance": level, "token_budget": level}
    if rule == RULES[0]:
        method = "quality_tolerance" if target == "quality" else "token_budget"
        return calibrate_threshold(quality_token_curve(*arrays), method, **levels)
    method = "conformal_quality" if target == "quality" else "conformal_budget"
    delta = DELTA if rule == RULES[2] else None
    return conformal_threshold(method, *arrays, max_tokens=max_tokens, delta=delta, **levels)
