"""The rules as they are used: calibrated on the split that the gate stage recorded, measured on the evaluated queries.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.studies.runs import SeedEvaluation
from experiments.studies.study import as_dict
from experiments.token_budgets.rules import RULES, TARGETS, choose
from twn_lightning.errors import DataError
from twn_lightning.gate import Outcomes, RoutingGate
from twn_lightning.metrics import bootstrap_over_seeds
from twn_lightning.stages.labelled_split import LabelledSplit


def calibration_outcomes(adapters: Path) -> Outcomes | None:
    """Outcomes of the calibration split, as the gate of an export decides it.

    Args:
        adapters: what was evaluated, `<run folder of the gate stage>/adapters`.

    Returns:
        What a threshold needs (the columns that only routers read are 0); None where the run folder is not there.
    """
    recorded = adapters.parent / "gate_labels" / "calibration.safetensors"
    if not recorded.is_file():
        return None
    split = LabelledSplit.load(recorded)
    gate = RoutingGate.from_state(torch.load(adapters / "gate_mlp.pt", weights_only=True))
    nothing_N = np.zeros(len(split), dtype=np.int64)
    return Outcomes(
        hit_discriminative=split.hit_discriminative_N.numpy(),
        hit_generative=split.hit_generative_N.numpy(),
        tokens=split.tokens_N.numpy(),
        probability=gate.decide(split.features_NF).probability_B.numpy(),
        margin=nothing_N,
        query_length=nothing_N,
        gain=nothing_N,
        steps=nothing_N,
        task=nothing_N,
    )


def deployed_cells(seeds: Sequence[SeedEvaluation]) -> list[dict[str, Any]]:
    """One entry for every target, level and rule; none where a seed's calibration split is not recorded."""
    found = [calibration_outcomes(Path(seed.adapters)) for seed in seeds]
    recorded = [outcomes for outcomes in found if outcomes is not None]
    if len(recorded) < len(seeds):
        return []
    return [
        {"target": target, "level": level, "rule": rule, "num_calibration": len(recorded[0])}
        | _measured(seeds, recorded, target=target, level=level, rule=rule)
        for target, levels in TARGETS.items()
        for level in levels
        for rule in RULES
    ]


def _measured(seeds: Sequence[SeedEvaluation], recorded: Sequence[Outcomes], **asked: Any) -> dict[str, Any]:
    lost, spent = [], []
    for seed, calibration in zip(seeds, recorded, strict=True):
        try:
            threshold = choose(calibration, max_tokens=seed.max_tokens, **asked)
        except DataError:
            return {"quality_loss": None, "token_share": None}
        think_N = seed.outcomes.probability > threshold
        lost.append(np.where(think_N, 0, seed.outcomes.hit_generative - seed.outcomes.hit_discriminative))
        spent.append(think_N * seed.outcomes.tokens)
    tokens = [seed.outcomes.tokens for seed in seeds]
    return {
        "quality_loss": as_dict(bootstrap_over_seeds(np.asarray, lost)),
        "token_share": as_dict(bootstrap_over_seeds(np.divide, spent, tokens)),
    }
