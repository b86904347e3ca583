"""What the study decides. Bars were set before it ran, except of `unseen_calibrated`: see README.md.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.gate_ablation.routing import FloatArray, Routed
from experiments.gate_ablation.runs import GateRun
from experiments.gate_ablation.transfer import Transfer, joined, of_meta_tasks
from experiments.gate_ablation.variants import (
    DEFAULT,
    FEATURE_SETS,
    MARGIN,
    PRICES,
    SOFT,
    SOFT_WITHOUT_PRICE,
    Variant,
)
from experiments.studies.study import Claim, judged
from twn_lightning.metrics import Interval, bootstrap_over_seeds, paired_bootstrap_over_seeds

ABOVE = 1e-9
"""A difference of exactly 0 is not above."""
BOTH, HIDDEN, E_D, WITH_MARGIN = FEATURE_SETS

CLAIMS: dict[str, tuple[str, dict[str, Any]]] = {
    "e_d_adds": ("At half of always' tokens, e_d adds something to the hidden state", {"at_least": ABOVE}),
    "hidden_state_adds": ("At half of always' tokens, the hidden state adds something to e_d", {"at_least": ABOVE}),
    "margin_adds_little": (
        "The top-1 margin, known after a search only, adds at most half a point to both",
        {"at_most": 0.005},
    ),
    "above_margin": ("At half of always' tokens, the gate is above the top-1 margin", {"at_least": ABOVE}),
    "hard_not_below_soft": (
        "At half of always' tokens, hard labels lose at most half a point to soft ones of the same price",
        {"at_least": -0.005},
    ),
    "soft_without_price_overthinks": (
        "At threshold .5, soft labels without a price make the gate think on at least 20 points more of the queries "
        "without steps than hard labels with one",
        {"at_least": 0.2},
    ),
    "price_spends_less": (
        "From price 0 to 2, the tokens spent at threshold .5 fall by at least 20 points of always'",
        {"at_most": -0.2},
    ),
    "one_gate_is_enough": (
        "A gate of price .5 whose threshold is moved loses at most half a point to gates trained at other prices",
        {"at_least": -0.005},
    ),
    "unseen_meta_task": (
        "On a meta-task that it never saw, a gate loses at most 1 point to one that did, at equal tokens",
        {"at_least": -0.01},
    ),
    "worst_meta_task": (
        "On the meta-task where it loses most, a gate that never saw it loses at most 3 points, at equal tokens",
        {"at_least": -0.03},
    ),
    "unseen_above_random": (
        "On a meta-task that it never saw, a gate is at least 5 points above random at equal tokens",
        {"at_least": 0.05},
    ),
    "unseen_modality": (
        "On a modality that it never saw (image, video), a gate loses at most 2 points at equal tokens",
        {"at_least": -0.02},
    ),
    "unseen_calibrated": (
        "With a threshold that was calibrated on other meta-tasks, too, it loses at most 1 point",
        {"at_least": -0.01},
    ),
    "unseen_budget": (
        "A threshold calibrated for half of always' tokens on other meta-tasks spends at most 55 % on a new one",
        {"at_most": 0.55, "unit": "percent"},
    ),
}
"""Id -> statement and bar."""


def claims_of(
    runs: Sequence[GateRun],
    features: Mapping[str, Routed],
    labels: Mapping[Variant, Routed],
    moved: Mapping[Variant, FloatArray],
    left_out: Mapping[str, Transfer],
) -> list[Claim]:
    """The claims with their verdicts.

    Args:
        runs: the training seeds.
        features: what each set of features does.
        labels: what each label rule and price does.
        moved: quality of the default gates at the tokens that each label rule spends at .5, (S, N).
        left_out: of each group of tasks, gates that saw them and gates that did not.
    """
    intervals = _feature_intervals(features) | _label_intervals(runs, labels, moved) | _transfer_intervals(left_out)
    sizes = {
        "soft_without_price_overthinks": int((runs[0].test.steps == 0).sum()),
        "worst_meta_task": _worst(left_out).seen_M.shape[1],
        "unseen_modality": _of_modalities(left_out).seen_M.shape[1],
    }
    return [
        judged(id, text, intervals[id], n_seeds=len(runs), n_queries=sizes.get(id, len(runs[0].test)), **bar)
        for id, (text, bar) in CLAIMS.items()
    ]


def _feature_intervals(features: Mapping[str, Routed]) -> dict[str, Interval]:
    def above(first: str, second: str) -> Interval:
        return paired_bootstrap_over_seeds(features[first].budget_N, features[second].budget_N)

    return {
        "e_d_adds": above(BOTH, HIDDEN),
        "hidden_state_adds": above(BOTH, E_D),
        "margin_adds_little": above(WITH_MARGIN, BOTH),
        "above_margin": above(BOTH, MARGIN),
    }


def _label_intervals(
    runs: Sequence[GateRun], labels: Mapping[Variant, Routed], moved: Mapping[Variant, FloatArray]
) -> dict[str, Interval]:
    without_N = runs[0].test.steps == 0
    tokens_SN = np.stack([run.test.tokens for run in runs])
    least, most = (labels[Variant(price=price)] for price in (PRICES[0], PRICES[-1]))
    others = [Variant(price=price) for price in PRICES if price != DEFAULT.price]
    return {
        "hard_not_below_soft": paired_bootstrap_over_seeds(labels[DEFAULT].budget_N, labels[SOFT].budget_N),
        "soft_without_price_overthinks": paired_bootstrap_over_seeds(
            labels[SOFT_WITHOUT_PRICE].fixed_think_N[:, without_N],
            labels[DEFAULT].fixed_think_N[:, without_N],
        ),
        "price_spends_less": bootstrap_over_seeds(np.divide, most.fixed_tokens_N - least.fixed_tokens_N, tokens_SN),
        "one_gate_is_enough": paired_bootstrap_over_seeds(
            np.mean([moved[variant] for variant in others], axis=0),
            np.mean([labels[variant].fixed_N for variant in others], axis=0),
        ),
    }


def _transfer_intervals(left_out: Mapping[str, Transfer]) -> dict[str, Interval]:
    every = joined(of_meta_tasks(left_out).values())
    return {
        "unseen_meta_task": _lost(every),
        "worst_meta_task": _lost(_worst(left_out)),
        "unseen_above_random": paired_bootstrap_over_seeds(every.unseen_M, every.random_M),
        "unseen_modality": _lost(_of_modalities(left_out)),
        "unseen_calibrated": paired_bootstrap_over_seeds(every.calibrated_M, every.seen_M),
        "unseen_budget": bootstrap_over_seeds(np.divide, every.calibrated_tokens_M, every.always_tokens_M),
    }


def _lost(found: Transfer) -> Interval:
    return paired_bootstrap_over_seeds(found.unseen_M, found.seen_M)


def _worst(left_out: Mapping[str, Transfer]) -> Transfer:
    """The meta-task where the gate that never saw it loses most."""
    return min(of_meta_tasks(left_out).values(), key=lambda found: float((found.unseen_M - found.seen_M).mean()))


def _of_modalities(left_out: Mapping[str, Transfer]) -> Transfer:
    return joined(found for name, found in left_out.items() if name not in of_meta_tasks(left_out))
