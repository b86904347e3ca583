"""Thresholds that come with a finite-sample guarantee: conformal risk control on calibration outcomes.

A rule that reads the best threshold off a calibration curve keeps its promise on that curve, not on new queries. The
rules here leave room for what calibration cannot show. With N calibration queries that are exchangeable with the test
query and were not used to train or select the gate:

- `conformal_quality`: E[quality of always - quality of adaptive] <= tolerance. What is controlled is the regret,
  max(0, quality with CoT - quality without) where the gate does not think. It bounds the signed difference from above,
  and is the least loss that does and is monotone in the threshold, as conformal risk control demands: for one query,
  the largest signed loss at this or any lower threshold. Queries that a CoT would have hurt earn no credit.
- `conformal_budget`: E[tokens spent] <= budget * E[tokens of always]. The loss is tokens * (1[think] - budget), to be
  at most 0 in expectation; the unknown mean of always need not be estimated.

Expectations are over calibration and test together. With `delta`, the bound holds for the test queries' expectation
itself, with probability at least 1 - delta over the calibration queries (Hoeffding-Bentkus).

Shape letters: N calibration queries, P thresholds (every distinct one).

Reference: Angelopoulos et al. 2022, Conformal Risk Control; Bates et al. 2021, Distribution-Free, Risk-Controlling
Prediction Sets; Angelopoulos et al. 2021, Learn then Test.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twn_lightning.errors import ConfigError, DataError, unknown_name

FloatArray = NDArray[np.float64]

CONFORMAL = ("conformal_quality", "conformal_budget")
"""Values of `gate.calibration` that guarantee what they promise."""

_ROUNDING = 1e-9
"""Losses are sums: equal ones may differ in the last digits."""


@dataclass(frozen=True)
class ThresholdRisk:
    """The loss of N calibration queries at every distinct threshold, from the safest on; it never falls along the way.

    Args:
        threshold_P: Thresholds.
        total_P: Loss summed over the calibration queries.
        lowest: The least that one query can lose.
        highest: The most that one query can lose.
        level: What the mean loss may be.
        num_queries: N.
    """

    threshold_P: FloatArray
    total_P: FloatArray
    lowest: float
    highest: float
    level: float
    num_queries: int


def quality_risk(
    probability: ArrayLike, quality_discriminative: ArrayLike, quality_generative: ArrayLike, tolerance: float
) -> ThresholdRisk:
    """Regret against always at every threshold, from always thinking to never.

    Args:
        probability: The gate's probabilities in [0, 1] (N,).
        quality_discriminative: Quality without thinking in [0, 1], such as hit@1 (N,).
        quality_generative: Quality with thinking in [0, 1] (N,).
        tolerance: In units of quality, .01 = one point of hit@1.

    Returns:
        `ThresholdRisk`, losses in [0, 1].

    Raises:
        DataError: On a quality outside [0, 1].
    """
    gained_N = _vector(quality_generative) - _vector(quality_discriminative)
    if np.abs(gained_N).max() > 1:
        raise DataError(
            f"a query's quality changes by {np.abs(gained_N).max():.3g} with its CoT, and the guarantee needs "
            "qualities in [0, 1]: use hit@1 or NDCG."
        )
    order_N, threshold_P, ends = _ascending(_vector(probability))
    total_P = np.concatenate([[0.0], np.cumsum(np.maximum(gained_N, 0)[order_N])])[ends]
    return ThresholdRisk(threshold_P, total_P, 0.0, 1.0, tolerance, len(order_N))


def token_risk(probability: ArrayLike, tokens: ArrayLike, budget: float, max_tokens: int) -> ThresholdRisk:
    """Tokens spent beyond the budget's share of always' at every threshold, from never thinking to always.

    Args:
        probability: The gate's probabilities in [0, 1] (N,).
        tokens: CoT tokens of each query if it thinks (N,).
        budget: Share of the tokens that always spends, in (0, 1].
        max_tokens: The cap of a CoT: no query, of calibration or test, can take more.

    Returns:
        `ThresholdRisk`; a query loses tokens / max_tokens * (1[think] - budget), the level is 0.

    Raises:
        DataError: When a CoT is longer than the cap.
    """
    tokens_N = _vector(tokens)
    if tokens_N.max() > max_tokens:
        raise DataError(
            f"a CoT has {tokens_N.max():.0f} tokens, more than the cap of {max_tokens} that the guarantee rests on: "
            "set data.max_new_tokens to the cap that the CoTs were decoded with."
        )
    order_N, threshold_P, ends = _ascending(_vector(probability))
    spent_P = (tokens_N.sum() - np.concatenate([[0.0], np.cumsum(tokens_N[order_N])]))[ends]
    total_P = (spent_P - budget * tokens_N.sum()) / max_tokens
    return ThresholdRisk(threshold_P[::-1], total_P[::-1], -budget, 1 - budget, 0.0, len(order_N))


def control_risk(risk: ThresholdRisk, delta: float | None = None) -> float:
    """The last threshold, counted from the safest, at which the risk is controlled.

    Args:
        risk: From `quality_risk` or `token_risk`.
        delta: None bounds the expectation over calibration and test queries; a number the expectation over test
            queries, with probability at least 1 - delta over the calibration queries.

    Returns:
        The threshold: the gate thinks iff probability > threshold.

    Raises:
        DataError: When there are too few calibration queries to control the level anywhere.
    """

    def exceeds(point: int) -> bool:
        if delta is None:
            return bool(risk.total_P[point] + risk.highest > (risk.num_queries + 1) * risk.level + _ROUNDING)
        span = risk.highest - risk.lowest
        mean = (risk.total_P[point] / risk.num_queries - risk.lowest) / span
        return hoeffding_bentkus(mean, risk.num_queries, (risk.level - risk.lowest) / span) > delta

    controlled = bisect_left(range(len(risk.total_P)), True, key=exceeds)
    if controlled == 0:
        raise DataError(
            f"{risk.num_queries} calibration queries are too few: even at the safest threshold, where they lose "
            f"{risk.total_P[0] / risk.num_queries:.4g} on average, a new query that loses {risk.highest:.4g} would "
            f"exceed the level of {risk.level:.4g}"
            + ("" if delta is None else f" with a probability above gate.delta={delta:g}")
            + ". Raise data.calibration_pairs, gate.quality_tolerance or gate.token_budget."
        )
    return float(risk.threshold_P[controlled - 1])


def conformal_threshold(
    method: str,
    probability: ArrayLike,
    quality_discriminative: ArrayLike,
    quality_generative: ArrayLike,
    tokens: ArrayLike,
    *,
    quality_tolerance: float,
    token_budget: float,
    max_tokens: int,
    delta: float | None = None,
) -> float:
    """The threshold of `gate.calibration=conformal_quality` or `conformal_budget`.

    Args:
        method: `conformal_quality` takes the highest threshold that is controlled, hence the fewest tokens;
            `conformal_budget` the one of best calibration quality among those that are controlled (all from a lowest
            one on, so choosing among them costs nothing), the cheapest of equals.
        probability: The gate's probabilities (N,) on queries that neither trained nor selected it.
        quality_discriminative: Quality without thinking in [0, 1] (N,).
        quality_generative: Quality with thinking in [0, 1] (N,).
        tokens: CoT tokens of each query if it thinks (N,).
        quality_tolerance: Of `conformal_quality`.
        token_budget: Of `conformal_budget`.
        max_tokens: The cap of a CoT.
        delta: As `control_risk`.

    Returns:
        The threshold: the gate thinks iff probability > threshold.

    Raises:
        ConfigError: On an unknown method.
        DataError: On too few queries, and on values outside their bounds.
    """
    if method == "conformal_quality":
        risk = quality_risk(probability, quality_discriminative, quality_generative, quality_tolerance)
        return control_risk(risk, delta)
    if method == "conformal_budget":
        lowest = control_risk(token_risk(probability, tokens, token_budget, max_tokens), delta)
        return _best_from(lowest, probability, quality_discriminative, quality_generative)
    raise ConfigError(unknown_name("conformal calibration", method, CONFORMAL))


def hoeffding_bentkus(mean: float, num_queries: int, level: float) -> float:
    """p-value of the hypothesis that losses in [0, 1] have an expectation above `level`, given the mean of N of them.

    Args:
        mean: Mean loss.
        num_queries: N independent losses.
        level: In [0, 1].

    Reference: Bates et al. 2021, equation 9.
    """
    if mean >= level:
        return 1.0
    hoeffding = math.exp(-num_queries * _binary_divergence(mean, level))
    bentkus = math.e * _binomial_cdf(math.ceil(num_queries * mean - _ROUNDING), num_queries, level)
    return min(hoeffding, bentkus)


def _best_from(
    lowest: float, probability: ArrayLike, quality_discriminative: ArrayLike, quality_generative: ArrayLike
) -> float:
    """The threshold of best mean quality among the distinct ones from `lowest` on; the highest of equals."""
    order_N, threshold_P, ends = _ascending(_vector(probability))
    gained_N = (_vector(quality_generative) - _vector(quality_discriminative))[order_N]
    lost_P = np.concatenate([[0.0], np.cumsum(gained_N)])[ends]
    lost_P[threshold_P < lowest] = np.inf
    return float(threshold_P[np.flatnonzero(lost_P <= lost_P.min() + _ROUNDING)[-1]])


def _ascending(probability_N: FloatArray) -> tuple[NDArray[np.int64], FloatArray, NDArray[np.int64]]:
    """Order of the queries, every distinct threshold ascending, and how many queries each leaves without a CoT.

    Thresholds lie halfway between neighbouring probabilities, which is on the safe side of both risks' own.
    """
    order_N = np.argsort(probability_N, kind="stable")
    sorted_N = probability_N[order_N]
    steps = np.flatnonzero(np.diff(sorted_N)) + 1
    always = 0.0 if sorted_N[0] > 0 else -1.0
    between = (sorted_N[steps - 1] + sorted_N[steps]) / 2
    threshold_P = np.concatenate([[always], between, [max(1.0, sorted_N[-1])]])
    return order_N, threshold_P, np.concatenate([[0], steps, [len(sorted_N)]])


def _vector(values: ArrayLike) -> FloatArray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
        raise ValueError(f"calibration needs one finite value per query, got {vector.shape} with NaN, Inf or none.")
    return vector


def _binary_divergence(first: float, second: float) -> float:
    """Kullback-Leibler divergence between two coins; `first` below `second`."""
    tails = (1 - first) * math.log((1 - first) / (1 - second)) if second < 1 else math.inf
    return tails + (first * math.log(first / second) if first > 0 else 0.0)


def _binomial_cdf(count: int, trials: int, chance: float) -> float:
    """P(Binomial(trials, chance) <= count)."""
    if count >= trials or chance <= 0:
        return 1.0
    if chance >= 1:
        return 0.0
    k = np.arange(count)
    ratios = np.log((trials - k) / (k + 1)) + math.log(chance / (1 - chance))
    logs = trials * math.log1p(-chance) + np.concatenate([[0.0], np.cumsum(ratios)])
    return float(np.exp(logs).sum())
