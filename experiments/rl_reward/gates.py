"""The gate before RL, the same gate after it, and one trained anew: quality and tokens on the test queries.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.studies.runs import SeedEvaluation, read_seeds
from experiments.studies.study import Claim, as_dict, judged
from twn_lightning.errors import DataError
from twn_lightning.metrics import bootstrap_over_seeds, paired_bootstrap_over_seeds

ARMS = ("before", "old gate", "refit")
MODES = ("never", "always", "adaptive")

FloatArray = NDArray[np.float64]
Arms = Mapping[str, Sequence[SeedEvaluation]]


def read_arms(folders: Mapping[str, Sequence[Path]]) -> Arms:
    """The evaluations of every arm, one per seed, in the same order in all arms.

    Raises:
        DataError: arms of different sizes or on different queries; and as `read_seeds`.
    """
    arms = {name: read_seeds(folders[name]) for name in ARMS}
    first = arms[ARMS[0]]
    for name, seeds in arms.items():
        if len(seeds) != len(first) or not np.array_equal(seeds[0].key_N, first[0].key_N):
            raise DataError(
                f"'{name}' has {len(seeds)} evaluations of {len(seeds[0].key_N)} queries, '{ARMS[0]}' {len(first)} of "
                f"{len(first[0].key_N)}: evaluate the same seeds in every arm, on the same queries."
            )
    return arms


def thinks(seeds: Sequence[SeedEvaluation], mode: str) -> NDArray[np.bool_]:
    """Which queries think, (S, N)."""
    if mode == "adaptive":
        return np.stack([seed.outcomes.probability > seed.threshold for seed in seeds])
    return np.full((len(seeds), len(seeds[0].outcomes)), mode == "always")


def quality(seeds: Sequence[SeedEvaluation], mode: str) -> FloatArray:
    """Every query's quality, (S, N)."""
    outcomes = [seed.outcomes for seed in seeds]
    found = [
        np.where(think_N, o.hit_generative, o.hit_discriminative)
        for think_N, o in zip(thinks(seeds, mode), outcomes, strict=True)
    ]
    return np.stack(found).astype(np.float64)


def tokens(seeds: Sequence[SeedEvaluation], mode: str) -> FloatArray:
    """Every query's CoT tokens, (S, N)."""
    return thinks(seeds, mode) * np.stack([seed.outcomes.tokens for seed in seeds]).astype(np.float64)


def gate_numbers(arms: Arms) -> dict[str, Any]:
    """Quality of every mode, and what the gate spends, arm by arm."""
    return {
        name: {
            **{mode: as_dict(bootstrap_over_seeds(np.asarray, quality(seeds, mode))) for mode in MODES},
            "think_rate": as_dict(bootstrap_over_seeds(np.asarray, thinks(seeds, "adaptive"))),
            "token_share": as_dict(bootstrap_over_seeds(np.divide, tokens(seeds, "adaptive"), tokens(seeds, "always"))),
        }
        for name, seeds in arms.items()
    }


def gate_claims(arms: Arms) -> list[Claim]:
    """What RL is worth behind a gate, and whether the gate must be trained again."""
    adaptive = {name: quality(seeds, "adaptive") for name, seeds in arms.items()}
    n_seeds, n_queries = adaptive["refit"].shape
    size = {"n_seeds": n_seeds, "n_queries": n_queries}
    return [
        judged(
            "adaptive_rises",
            "Behind a refit gate, RL raises the quality of adaptive thinking by at least half a point",
            paired_bootstrap_over_seeds(adaptive["refit"], adaptive["before"]),
            at_least=0.005,
            **size,
        ),
        judged(
            "refit_pays",
            "After RL, a refit gate is at least half a point above the gate from before",
            paired_bootstrap_over_seeds(adaptive["refit"], adaptive["old gate"]),
            at_least=0.005,
            **size,
        ),
        judged(
            "refit_tokens",
            "After RL, a refit gate spends at most the tokens of the gate from before",
            bootstrap_over_seeds(np.divide, tokens(arms["refit"], "adaptive"), tokens(arms["old gate"], "adaptive")),
            at_most=1.0,
            unit="percent",
            **size,
        ),
    ]
