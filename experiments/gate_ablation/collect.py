"""Study 3, ablations of the gate: its features, its label, its price, and tasks that it never saw.

    python -m experiments.gate_ablation.collect RUN RUN RUN

Each RUN is a run folder of `twn probe gate`, one per training seed, all on the same queries. The gates are trained
here, on the recorded outcomes. Writes results.json, the figures and the table of README.md.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.gate_ablation.claims import claims_of
from experiments.gate_ablation.figures import draw_figures
from experiments.gate_ablation.routing import (
    BUDGET,
    TOKEN_SHARES,
    FloatArray,
    Routed,
    Scores,
    margin_scores,
    over_seeds,
    quality_of,
    random_quality,
    routed,
    scores_of,
)
from experiments.gate_ablation.runs import GateRun, read_gate_runs
from experiments.gate_ablation.tables import table
from experiments.gate_ablation.training import train_variant
from experiments.gate_ablation.transfer import joined, of_meta_tasks, transfer_numbers, transfers
from experiments.gate_ablation.variants import DEFAULT, FEATURE_SETS, LABELS, MARGIN, Variant
from experiments.studies.study import Claim, as_dict, write_study
from twn_lightning.metrics import bootstrap_over_seeds, paired_bootstrap_over_seeds, think_at_equal_tokens

FOLDER = Path(__file__).parent
GATE_SEEDS = 3
"""Gates trained for each training seed; every number is their mean."""

AllScores = list[list[Scores]]
"""Of each training seed, the scores of its gates."""


def trained_scores(runs: Sequence[GateRun], variant: Variant) -> AllScores:
    """Train a variant on every training seed with every gate seed."""
    return [[scores_of(train_variant(run, variant, seed), run, variant) for seed in range(GATE_SEEDS)] for run in runs]


def routed_seeds(runs: Sequence[GateRun], scores: AllScores, price: float = DEFAULT.price) -> Routed:
    """What the scores do, over all seeds."""
    return over_seeds([routed(run, each, price) for each in gates] for run, gates in zip(runs, scores, strict=True))


def moved_quality(run: GateRun, own: Scores, other: Scores) -> FloatArray:
    """Quality of a gate whose threshold is moved to spend what another one spends at .5; (N,)."""
    tokens = float(((other.test_N > 0.5) * run.test.tokens).mean())
    return quality_of(run.test, think_at_equal_tokens(own.test_N, run.test.tokens, tokens))


def moved_seeds(runs: Sequence[GateRun], scores: AllScores, other: AllScores) -> FloatArray:
    """The same over all seeds, (S, N); means over gates."""
    return np.stack(
        [
            np.mean([moved_quality(run, *pair) for pair in zip(gates, others, strict=True)], axis=0)
            for run, gates, others in zip(runs, scores, other, strict=True)
        ]
    )


def mean_of(values_SN: FloatArray) -> dict[str, Any]:
    """Mean over seeds and queries with its interval."""
    return as_dict(bootstrap_over_seeds(np.asarray, values_SN))


def reference_numbers(runs: Sequence[GateRun]) -> dict[str, Any]:
    """Quality without any gate: never, always, random at the budget, and the oracle with its share of the tokens."""
    never_SN, always_SN = (
        np.stack([getattr(run.test, f"hit_{mode}") for run in runs]) for mode in ("discriminative", "generative")
    )
    tokens_SN = np.stack([run.test.tokens for run in runs])
    return {
        "never": mean_of(never_SN),
        "always": mean_of(always_SN),
        "random": mean_of(np.stack([random_quality(run.test, BUDGET) for run in runs])),
        "oracle": mean_of(np.maximum(never_SN, always_SN)),
        "oracle_token_share": as_dict(bootstrap_over_seeds(np.divide, (always_SN > never_SN) * tokens_SN, tokens_SN)),
    }


def common_numbers(found: Routed, default: Routed) -> dict[str, Any]:
    """What is reported of every score, and its paired differences to the default gate."""
    return {
        **{name: float(np.mean(getattr(found, name))) for name in ("auroc", "auroc_one_right", "ece")},
        "budget": mean_of(found.budget_N),
        "budget_minus_default": as_dict(paired_bootstrap_over_seeds(found.budget_N, default.budget_N)),
        "area": mean_of(found.area_N),
        "area_minus_default": as_dict(paired_bootstrap_over_seeds(found.area_N, default.area_N)),
        "curve": found.curve_P.mean(0),
    }


def feature_numbers(found: Routed, default: Routed, tokens_SN: FloatArray) -> dict[str, Any]:
    """One set of features, with its gate at the calibrated threshold."""
    return {
        **common_numbers(found, default),
        "calibrated": mean_of(found.calibrated_N),
        "calibrated_token_share": as_dict(bootstrap_over_seeds(np.divide, found.calibrated_tokens_N, tokens_SN)),
    }


def label_numbers(
    variant: Variant, found: Routed, default: Routed, moved_SN: FloatArray, runs: Sequence[GateRun]
) -> dict[str, Any]:
    """One label rule, with its gate at the threshold .5.

    Args:
        variant: label and price.
        found: its gates.
        default: the default gates.
        moved_SN: quality of the default gates at the tokens that these spend at .5.
        runs: the training seeds.
    """
    tokens_SN = np.stack([run.test.tokens for run in runs])
    steps_N = runs[0].test.steps
    return {
        "label": variant.label,
        "price": variant.price,
        **common_numbers(found, default),
        "fixed": mean_of(found.fixed_N),
        "fixed_token_share": as_dict(bootstrap_over_seeds(np.divide, found.fixed_tokens_N, tokens_SN)),
        "fixed_minus_moved_default": as_dict(paired_bootstrap_over_seeds(found.fixed_N, moved_SN)),
        "think_rate": {
            name: mean_of(found.fixed_think_N[:, rows_N])
            for name, rows_N in (("no steps", steps_N == 0), ("steps", steps_N > 0))
        },
    }


def collect(folders: Sequence[Path]) -> tuple[dict[str, Any], list[Claim]]:
    """The numbers and the claims of the study."""
    runs = read_gate_runs(folders)
    tokens_SN = np.stack([run.test.tokens for run in runs])
    variants = dict.fromkeys([*FEATURE_SETS.values(), *LABELS])
    scores = {variant: trained_scores(runs, variant) for variant in variants}
    found = {variant: routed_seeds(runs, gates, variant.price) for variant, gates in scores.items()}
    margin = routed_seeds(runs, [[margin_scores(run)] for run in runs])
    moved = {variant: moved_seeds(runs, scores[DEFAULT], scores[variant]) for variant in LABELS}
    left_out = transfers(runs, scores[DEFAULT])
    by_name = {name: found[variant] for name, variant in FEATURE_SETS.items()} | {MARGIN: margin}
    numbers = {
        "n_seeds": len(runs),
        "n_gates": GATE_SEEDS,
        "n_queries": len(runs[0].test),
        "budget": BUDGET,
        "token_shares": TOKEN_SHARES,
        "references": reference_numbers(runs),
        "features": {name: feature_numbers(each, found[DEFAULT], tokens_SN) for name, each in by_name.items()},
        "labels": [label_numbers(variant, found[variant], found[DEFAULT], moved[variant], runs) for variant in LABELS],
        "transfer": {name: transfer_numbers(each) for name, each in left_out.items()},
        "transfer_pooled": transfer_numbers(joined(of_meta_tasks(left_out).values())),
    }
    del numbers["features"][MARGIN]["ece"]  # a margin is no probability
    return numbers, claims_of(runs, by_name, found, moved, left_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    numbers, claims = collect(parser.parse_args().runs)
    draw_figures(numbers, FOLDER)
    write_study(FOLDER, numbers, claims, table)


if __name__ == "__main__":
    main()
