"""A gate on tasks that it never saw, against the gate that saw them, at equal tokens.

Shape letters: N test queries, M of them in one group of tasks, S training seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.gate_ablation.routing import (
    TOKEN_SHARES,
    FloatArray,
    Scores,
    at_share,
    calibrated_threshold,
    merged,
    over_seeds,
    quality_of,
    random_quality,
    scores_of,
)
from experiments.gate_ablation.runs import GateRun
from experiments.gate_ablation.training import hard_labels, train_variant
from experiments.gate_ablation.variants import DEFAULT
from experiments.studies.study import as_dict
from twn_lightning.benchmark.registry import MODALITIES, NANO_SUITE, meta_tasks, selections
from twn_lightning.evaluation.gate_outcomes import GateOutcomes
from twn_lightning.metrics import auroc, bootstrap_over_seeds, paired_bootstrap_over_seeds


class Transfer(NamedTuple):
    """Both gates on the M test queries of tasks that one of them never saw; with a leading dimension S, of all seeds.

    The gate that saw them is at its own calibrated threshold; the others spend the same tokens on these tasks.
    """

    never_M: FloatArray
    always_M: FloatArray
    random_M: FloatArray
    margin_M: FloatArray
    seen_M: FloatArray
    unseen_M: FloatArray
    seen_tokens_M: FloatArray
    always_tokens_M: FloatArray
    seen_area_M: FloatArray
    """Quality, mean over `TOKEN_SHARES` of what always spends on these tasks."""
    unseen_area_M: FloatArray
    calibrated_M: FloatArray
    """The unseen gate at the threshold that was calibrated without these tasks."""
    calibrated_tokens_M: FloatArray
    seen_auroc: float
    unseen_auroc: float


def groups() -> dict[str, list[str]]:
    """What is left out: each meta-task, and each modality of several meta-tasks, with its tasks as sources."""
    named = selections(NANO_SUITE)
    modalities = [name for name in MODALITIES if named[name] not in meta_tasks(NANO_SUITE).values()]
    return {name: [f"{NANO_SUITE}/{task}" for task in named[name]] for name in [*meta_tasks(NANO_SUITE), *modalities]}


def transfer(run: GateRun, seen: Scores, tasks: Sequence[str], seed: int) -> Transfer:
    """Train a gate without some tasks and put both gates to them.

    Args:
        run: one training seed.
        seen: scores of the gate trained on all tasks with the same gate seed.
        tasks: left out.
        seed: of the gate.
    """
    gate = train_variant(run, DEFAULT, seed, without=tuple(tasks))
    scores = scores_of(gate, run, DEFAULT)
    others_M = ~run.calibration.of_tasks(tasks)
    own_threshold = calibrated_threshold(run.calibration.select(others_M), scores.calibration_M[others_M])
    seen_threshold = calibrated_threshold(run.calibration, seen.calibration_M)
    rows_M = run.test.of_tasks(tasks)
    test, seen_M, unseen_M = run.test.select(rows_M), seen.test_N[rows_M], scores.test_N[rows_M]
    label_M = hard_labels(test, DEFAULT.price, run.mean_tokens).numpy()
    seen_think_M, calibrated_think_M = seen_M > seen_threshold, unseen_M > own_threshold
    share = float((seen_think_M * test.tokens).sum() / test.tokens.sum())
    return Transfer(
        never_M=test.hit_discriminative,
        always_M=test.hit_generative,
        random_M=random_quality(test, share),
        margin_M=quality_of(test, at_share(test, -test.margin, share)),
        seen_M=quality_of(test, seen_think_M),
        unseen_M=quality_of(test, at_share(test, unseen_M, share)),
        seen_tokens_M=seen_think_M * test.tokens,
        always_tokens_M=test.tokens.astype(np.float64),
        seen_area_M=area(test, seen_M),
        unseen_area_M=area(test, unseen_M),
        calibrated_M=quality_of(test, calibrated_think_M),
        calibrated_tokens_M=calibrated_think_M * test.tokens,
        seen_auroc=auroc(seen_M, label_M),
        unseen_auroc=auroc(unseen_M, label_M),
    )


def area(outcomes: GateOutcomes, score_N: FloatArray) -> FloatArray:
    """Quality of each query, mean over `TOKEN_SHARES`; (N,)."""
    return np.mean([quality_of(outcomes, at_share(outcomes, score_N, share)) for share in TOKEN_SHARES], axis=0)


def transfers(runs: Sequence[GateRun], seen: Sequence[Sequence[Scores]]) -> dict[str, Transfer]:
    """Every group of tasks left out once.

    Args:
        runs: the training seeds.
        seen: of each of them the scores of the default gate with each gate seed.

    Returns:
        Of each group all training seeds, means over the gate seeds.
    """
    return {
        name: over_seeds(
            [transfer(run, scores, tasks, seed) for seed, scores in enumerate(gates)]
            for run, gates in zip(runs, seen, strict=True)
        )
        for name, tasks in groups().items()
    }


def joined(groups: Iterable[Transfer]) -> Transfer:
    """The queries of several groups; AUROCs are means over groups."""

    def join(values: Sequence[FloatArray]) -> FloatArray:
        return np.concatenate(values, axis=1) if values[0].ndim == 2 else np.mean(values, axis=0)

    return merged(groups, join)


def of_meta_tasks(found: Mapping[str, Transfer]) -> dict[str, Transfer]:
    """The groups that are meta-tasks: together they hold every query once."""
    return {name: found[name] for name in meta_tasks(NANO_SUITE)}


def transfer_numbers(found: Transfer) -> dict[str, Any]:
    """One group of tasks over all seeds."""
    systems = ("never", "always", "random", "margin", "seen", "unseen", "calibrated")
    quality = {name: getattr(found, f"{name}_M") for name in systems}
    return {
        "num_queries": found.seen_M.shape[1],
        **{name: as_dict(bootstrap_over_seeds(np.asarray, values)) for name, values in quality.items()},
        **{
            f"{name}_minus_seen": as_dict(paired_bootstrap_over_seeds(quality[name], found.seen_M))
            for name in ("random", "margin", "unseen", "calibrated")
        },
        "area_minus_seen": as_dict(paired_bootstrap_over_seeds(found.unseen_area_M, found.seen_area_M)),
        "token_share": as_dict(bootstrap_over_seeds(np.divide, found.seen_tokens_M, found.always_tokens_M)),
        "calibrated_token_share": as_dict(
            bootstrap_over_seeds(np.divide, found.calibrated_tokens_M, found.always_tokens_M)
        ),
        "auroc_seen": float(np.mean(found.seen_auroc)),
        "auroc_unseen": float(np.mean(found.unseen_auroc)),
    }
