"""How well a gate decides, what its decisions cost, and how far they are from the best possible. N queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class CalibrationBin:
    """Inputs whose predicted probability fell in [low, high) (the last bin includes 1)."""

    low: float
    high: float
    count: int
    mean_probability: float
    """NaN for an empty bin, as is `share_positive`."""
    share_positive: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error with its reliability table."""

    ece: float
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class QualityTokenCurve:
    """Every distinct operating point of a gate, from never (first) to always (last).

    Point i thinks where `probability > threshold[i]`. Thresholds halve the distance between neighbouring
    probabilities, so that one chosen here behaves the same under rounding.
    """

    threshold: FloatArray
    quality: FloatArray
    tokens_per_query: FloatArray
    think_rate: FloatArray


def think_rate(think: ArrayLike) -> float:
    """Share of inputs that think."""
    return float(_vector(think, "think").mean())


def tokens_per_query(think: ArrayLike, tokens: ArrayLike) -> float:
    """Mean CoT tokens spent per input; an input that does not think spends none.

    Args:
        think: Decisions, bool (N,).
        tokens: CoT tokens of each input if it thinks (N,).
    """
    think_N, tokens_N = _same_length(think=think, tokens=tokens)
    return float((think_N * tokens_N).mean())


def think_at_equal_tokens(score: ArrayLike, tokens: ArrayLike, tokens_per_query: float) -> NDArray[np.bool_]:
    """Which inputs think when the highest scores think first, and spending stops as near to a budget as it can.

    Args:
        score: Probability of thinking, any monotone scale (N,).
        tokens: CoT tokens of each input if it thinks (N,).
        tokens_per_query: Mean tokens to spend per input.

    Returns:
        Decisions, bool (N,): a gate's at the threshold that spends what another router spends.

    Raises:
        ValueError: On unequal lengths or NaN.
    """
    score_N, tokens_N = _same_length(score=score, tokens=tokens)
    order_N = np.argsort(-score_N, kind="stable")
    spent_N = np.concatenate([[0.0], np.cumsum(tokens_N[order_N])]) / len(score_N)
    think_N = np.zeros(len(score_N), dtype=bool)
    think_N[order_N[: int(np.abs(spent_N - tokens_per_query).argmin())]] = True
    return think_N


def auroc(probability: ArrayLike, label: ArrayLike) -> float:
    """Area under the ROC curve by ranks, ties counting half.

    Args:
        probability: Scores, any monotone scale (N,).
        label: Hard labels, 0 or 1 (N,).

    Returns:
        The probability that a random positive scores above a random negative; NaN where one class is absent.

    Raises:
        ValueError: On labels other than 0 and 1, NaN, or unequal lengths.
    """
    probability_N, label_N = _same_length(probability=probability, label=label)
    _check_hard(label_N)
    positives, negatives = label_N.sum(), (1 - label_N).sum()
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse_N, counts = np.unique(probability_N, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = (mid_ranks[inverse_N] * label_N).sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def calibration(probability: ArrayLike, label: ArrayLike, num_bins: int = 10) -> Calibration:
    """Expected calibration error over equal-width bins, with the reliability table.

    Args:
        probability: Predicted probabilities in [0, 1] (N,).
        label: Hard labels, 0 or 1 (N,).
        num_bins: Bins of equal width.

    Returns:
        `Calibration`; `ece` is the count-weighted mean of |mean probability - share positive|.

    Raises:
        ValueError: On probabilities outside [0, 1], labels other than 0 and 1, or fewer than 1 bin.

    Reference: Naeini et al. 2015; Guo et al. 2017.
    """
    probability_N, label_N = _same_length(probability=probability, label=label)
    _check_hard(label_N)
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}.")
    if probability_N.min() < 0 or probability_N.max() > 1:
        raise ValueError(f"probabilities lie in {probability_N.min():.3g}..{probability_N.max():.3g}, not in [0, 1].")
    edges = np.linspace(0, 1, num_bins + 1)
    bin_N = np.clip(np.searchsorted(edges, probability_N, side="right") - 1, 0, num_bins - 1)
    bins, error = [], 0.0
    for index in range(num_bins):
        inside_N = bin_N == index
        count = int(inside_N.sum())
        mean = float(probability_N[inside_N].mean()) if count else float("nan")
        share = float(label_N[inside_N].mean()) if count else float("nan")
        error += count * abs(mean - share) / len(label_N) if count else 0.0
        bins.append(CalibrationBin(float(edges[index]), float(edges[index + 1]), count, mean, share))
    return Calibration(error, tuple(bins))


def oracle_gap(hit_routed: ArrayLike, hit_discriminative: ArrayLike, hit_generative: ArrayLike) -> float:
    """Hit rate of the oracle minus that of a router.

    The oracle thinks iff the generative embedding does better, so it is as good as the better one of the two.
    """
    routed_N, discriminative_N, generative_N = _same_length(
        hit_routed=hit_routed, hit_discriminative=hit_discriminative, hit_generative=hit_generative
    )
    return float((np.maximum(discriminative_N, generative_N) - routed_N).mean())


def verdicts(think: ArrayLike, quality_discriminative: ArrayLike, quality_generative: ArrayLike) -> NDArray[np.str_]:
    """The verdict on each decision.

    Args:
        think: Decisions, bool (N,).
        quality_discriminative: Per-query quality without thinking, such as hit@1 (N,).
        quality_generative: Per-query quality with thinking (N,).

    Returns:
        `helped`, `hurt` or `wasted` of the queries that thought; `missed` or `skipped` of the others (N,).
    """
    think_N = np.asarray(think, dtype=bool)
    discriminative_N, generative_N = np.asarray(quality_discriminative), np.asarray(quality_generative)
    rescued, spoiled = generative_N > discriminative_N, generative_N < discriminative_N
    cases = [think_N & rescued, think_N & spoiled, think_N, rescued]
    return np.select(cases, ["helped", "hurt", "wasted", "missed"], default="skipped")


def gate_scores(
    probability: ArrayLike, label: ArrayLike, hit_discriminative: ArrayLike, hit_generative: ArrayLike
) -> dict[str, float]:
    """AUROC and ECE against the hard label, and AUROC where exactly one mode is right (NaN where undefined).

    Args:
        probability: Gate probabilities (N,).
        label: Hard labels `1[gain > 0]` (N,).
        hit_discriminative: 1 where the discriminative embedding hits (N,).
        hit_generative: 1 where the generative embedding hits (N,).

    Returns:
        `auroc`, `ece`, `auroc_one_right`, `share_one_right`.
    """
    probability_N, label_N, discriminative_N, generative_N = _same_length(
        probability=probability, label=label, hit_discriminative=hit_discriminative, hit_generative=hit_generative
    )
    one_right_N = discriminative_N != generative_N
    decided = one_right_N.any()
    return {
        "auroc": auroc(probability_N, label_N),
        "ece": calibration(probability_N, label_N).ece,
        "auroc_one_right": auroc(probability_N[one_right_N], label_N[one_right_N]) if decided else float("nan"),
        "share_one_right": float(one_right_N.mean()),
    }


def quality_token_curve(
    probability: ArrayLike, quality_discriminative: ArrayLike, quality_generative: ArrayLike, tokens: ArrayLike
) -> QualityTokenCurve:
    """Quality and tokens at every distinct threshold.

    Args:
        probability: Gate probabilities in [0, 1] (N,).
        quality_discriminative: Per-query quality without thinking, such as hit@1 (N,).
        quality_generative: Per-query quality with thinking (N,).
        tokens: CoT tokens of each query if it thinks (N,).

    Returns:
        `QualityTokenCurve`; thresholds fall, think rate rises from 0 to 1.

    Raises:
        ValueError: On unequal lengths or NaN.
    """
    probability_N, discriminative_N, generative_N, tokens_N = _same_length(
        probability=probability,
        quality_discriminative=quality_discriminative,
        quality_generative=quality_generative,
        tokens=tokens,
    )
    order_N = np.argsort(-probability_N, kind="stable")
    sorted_N = probability_N[order_N]
    ends = np.append(np.flatnonzero(np.diff(sorted_N)), len(sorted_N) - 1)
    gained_N = np.cumsum((generative_N - discriminative_N)[order_N])
    spent_N = np.cumsum(tokens_N[order_N])
    between = (sorted_N[ends[:-1]] + sorted_N[ends[:-1] + 1]) / 2
    # p > 0 would leave out inputs at exactly 0, so "always" then needs a threshold below every probability.
    always = 0.0 if sorted_N[-1] > 0 else -1.0
    count = len(sorted_N)
    return QualityTokenCurve(
        threshold=np.concatenate([[max(1.0, sorted_N[0])], between, [always]]),
        quality=discriminative_N.mean() + np.concatenate([[0.0], gained_N[ends]]) / count,
        tokens_per_query=np.concatenate([[0.0], spent_N[ends]]) / count,
        think_rate=np.concatenate([[0.0], ends + 1.0]) / count,
    )


def _vector(values: ArrayLike, name: str) -> FloatArray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name} must be a non-empty (N,) array, got shape {vector.shape}.")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name}: {int((~np.isfinite(vector)).sum())} of {len(vector)} entries are NaN or Inf.")
    return vector


def _same_length(**named: ArrayLike) -> list[FloatArray]:
    vectors = {name: _vector(values, name) for name, values in named.items()}
    if len({len(vector) for vector in vectors.values()}) > 1:
        lengths = ", ".join(f"{name} {len(vector)}" for name, vector in vectors.items())
        raise ValueError(f"one value per query is needed everywhere, got lengths: {lengths}.")
    return list(vectors.values())


def _check_hard(label_N: FloatArray) -> None:
    if not np.isin(label_N, (0.0, 1.0)).all():
        raise ValueError("labels must be hard, 0 or 1: compare against 1[gain > 0], not against soft labels.")
