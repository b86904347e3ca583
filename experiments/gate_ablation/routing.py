"""What a score of "think" is worth: quality at equal tokens, over all budgets, and at a calibrated threshold.

Shape letters: N test queries, P token budgets, S training seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from experiments.gate_ablation.runs import GateRun
from experiments.gate_ablation.training import hard_labels, labelled_split
from experiments.gate_ablation.variants import DEFAULT, Variant
from twn_lightning.evaluation.gate_outcomes import GateOutcomes
from twn_lightning.gate import RoutingGate, calibrate_threshold
from twn_lightning.metrics import gate_scores, quality_token_curve, think_at_equal_tokens

FloatArray = NDArray[np.float64]
Record = TypeVar("Record", bound=tuple[Any, ...])

TOKEN_SHARES = np.linspace(0, 1, 21)
"""Budgets, as shares of always' tokens, at which curves are read."""
BUDGET = 0.5
"""The share of always' tokens at which gates are compared, and that thresholds are calibrated for."""


class Scores(NamedTuple):
    """How much each query of two splits should think, in [0, 1]."""

    calibration_M: FloatArray
    test_N: FloatArray


class Routed(NamedTuple):
    """What a score does with the test queries of one seed; with a leading dimension S, of all seeds."""

    budget_N: FloatArray
    """Quality at `BUDGET` of always' test tokens."""
    area_N: FloatArray
    """Quality, mean over `TOKEN_SHARES`: the area under the quality-token curve."""
    curve_P: FloatArray
    """Mean quality at each of `TOKEN_SHARES`."""
    calibrated_N: FloatArray
    """Quality at the threshold that calibration chose for `BUDGET`."""
    calibrated_tokens_N: FloatArray
    fixed_N: FloatArray
    """Quality at the threshold .5."""
    fixed_tokens_N: FloatArray
    fixed_think_N: FloatArray
    auroc: float
    """Against the hard label of the price that the gate was trained at, as the next two."""
    auroc_one_right: float
    """The same among queries that exactly one mode gets right."""
    ece: float


def scores_of(gate: RoutingGate, run: GateRun, variant: Variant) -> Scores:
    """A gate's probabilities."""
    splits = (labelled_split(split, variant.features) for split in (run.calibration, run.test))
    return Scores(*(gate.decide(split.features_NF).probability_B.double().numpy() for split in splits))


def margin_scores(run: GateRun) -> Scores:
    """The heuristic that lets the queries of the least margin think first; a margin is at most 2."""
    return Scores(1 - run.calibration.margin / 2, 1 - run.test.margin / 2)


def quality_of(outcomes: GateOutcomes, think_N: NDArray[np.bool_]) -> FloatArray:
    """hit@1 of the embeddings that were chosen, (N,)."""
    return np.where(think_N, outcomes.hit_generative, outcomes.hit_discriminative)


def at_share(outcomes: GateOutcomes, score_N: FloatArray, share: float) -> NDArray[np.bool_]:
    """Who thinks when the highest scores think first, for a share of always' tokens."""
    return think_at_equal_tokens(score_N, outcomes.tokens, share * float(outcomes.tokens.mean()))


def random_quality(outcomes: GateOutcomes, share: float) -> FloatArray:
    """Expected quality when every query thinks with the same probability, which is the share of tokens spent; (N,)."""
    return (1 - share) * outcomes.hit_discriminative + share * outcomes.hit_generative


def calibrated_threshold(outcomes: GateOutcomes, score_M: FloatArray) -> float:
    """The threshold of best calibration quality within `BUDGET`."""
    curve = quality_token_curve(score_M, outcomes.hit_discriminative, outcomes.hit_generative, outcomes.tokens)
    return calibrate_threshold(curve, "token_budget", token_budget=BUDGET)


def routed(run: GateRun, scores: Scores, price: float = DEFAULT.price) -> Routed:
    """Everything that one score does on one seed."""
    test = run.test
    label_N = hard_labels(test, price, run.mean_tokens).numpy()
    found = gate_scores(scores.test_N, label_N, test.hit_discriminative, test.hit_generative)
    quality_PN = np.stack([quality_of(test, at_share(test, scores.test_N, share)) for share in TOKEN_SHARES])
    calibrated_N = scores.test_N > calibrated_threshold(run.calibration, scores.calibration_M)
    fixed_N = scores.test_N > 0.5
    return Routed(
        budget_N=quality_of(test, at_share(test, scores.test_N, BUDGET)),
        area_N=quality_PN.mean(0),
        curve_P=quality_PN.mean(1),
        calibrated_N=quality_of(test, calibrated_N),
        calibrated_tokens_N=calibrated_N * test.tokens,
        fixed_N=quality_of(test, fixed_N),
        fixed_tokens_N=fixed_N * test.tokens,
        fixed_think_N=fixed_N.astype(np.float64),
        auroc=found["auroc"],
        auroc_one_right=found["auroc_one_right"],
        ece=found["ece"],
    )


def merged(records: Iterable[Record], how: Callable[[Sequence[Any]], Any]) -> Record:
    """Several records of one kind as one, field by field.

    Args:
        records: at least one.
        how: the values of one field -> one value, such as their mean.
    """
    first, *others = records
    return type(first)(*(how(values) for values in zip(first, *others, strict=True)))


def over_seeds(seeds: Iterable[Sequence[Record]]) -> Record:
    """Means over the gates of each training seed, and training seeds side by side: a leading dimension S."""
    return merged([merged(gates, partial(np.mean, axis=0)) for gates in seeds], np.stack)
