"""Evaluated run folders, one per training seed, as arrays over the same queries.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twn_lightning.errors import DataError
from twn_lightning.gate import Outcomes
from twn_lightning.reporting.decisions import read_decisions
from twn_lightning.reporting.read import SUMMARY_FILE, load_decisions
from twn_lightning.run import RunFolder


@dataclass(frozen=True)
class SeedEvaluation:
    """What one training seed's model did with each of N queries.

    Args:
        folder: the evaluation's run folder.
        adapters: what was evaluated.
        outcomes: of both modes, N queries.
        threshold: the gate thinks iff probability > threshold.
        max_tokens: the cap of a CoT.
        kind_N: `direct`, `lookalike` or `steps`; empty where the source has no kinds.
        key_N: the queries' keys, sorted.
    """

    folder: Path
    adapters: str
    outcomes: Outcomes
    threshold: float
    max_tokens: int
    kind_N: NDArray[np.str_]
    key_N: NDArray[np.str_]


def read_seeds(folders: Sequence[Path]) -> list[SeedEvaluation]:
    """Read the evaluations of several training seeds on the same queries.

    Args:
        folders: what `twn evaluate` wrote, one per seed.

    Returns:
        One per folder, all with their queries in the same order.

    Raises:
        DataError: a folder is no evaluation with a gate, two of them evaluate the same adapters or different queries.
    """
    seeds = [read_seed(folder) for folder in folders]
    if not seeds:
        raise DataError("no run folder is given: name one evaluation per training seed.")
    names = [seed.adapters for seed in seeds]
    if len(set(names)) < len(names):
        raise DataError(
            f"{len(names)} evaluations of {len(set(names))} trained models: {sorted(names)}. Name one each."
        )
    for seed in seeds[1:]:
        if not np.array_equal(seed.key_N, seeds[0].key_N):
            shared = len(np.intersect1d(seed.key_N, seeds[0].key_N))
            raise DataError(
                f"{seed.folder} ({len(seed.key_N)} queries) and {seeds[0].folder} ({len(seeds[0].key_N)}) share only "
                f"{shared} of their queries: evaluate every seed with the same data.seed and number of queries."
            )
    return seeds


def read_seed(folder: Path) -> SeedEvaluation:
    """Read one evaluation, its queries sorted by key.

    Raises:
        DataError: the folder lacks its decisions or its summary, a key occurs twice, or there was no gate.
    """
    table = load_decisions(folder)
    decisions = read_decisions(table)
    summary = folder / SUMMARY_FILE
    threshold = json.loads(summary.read_text(encoding="utf-8")).get("threshold") if summary.is_file() else None
    if threshold is None:
        raise DataError(f"{folder} has no {SUMMARY_FILE} with a threshold: evaluate adapters that have a gate.")
    settings = RunFolder(folder).settings()
    key_N = np.asarray(table.column("query_key").to_pylist(), dtype=str)
    order_N = np.argsort(key_N)
    if len(np.unique(key_N)) < len(key_N):
        raise DataError(f"{folder}: {len(key_N) - len(np.unique(key_N))} of {len(key_N)} query keys occur twice.")
    outcomes = Outcomes(
        hit_discriminative=decisions.hit_discriminative_N,
        hit_generative=decisions.hit_generative_N,
        tokens=decisions.tokens_N.astype(np.int64),
        probability=decisions.probability_N,
        margin=table.column("margin").to_numpy(),
        query_length=table.column("query_length").to_numpy(),
        gain=decisions.gain_N,
        steps=decisions.steps_N,
        task=decisions.task_N,
    )
    return SeedEvaluation(
        folder=folder,
        adapters=settings.adapters.init_from or str(folder),
        outcomes=outcomes.select(order_N),
        threshold=float(threshold),
        max_tokens=settings.data.max_new_tokens,
        kind_N=decisions.kind_N[order_N],
        key_N=key_N[order_N],
    )


def groups_of(seed: SeedEvaluation) -> dict[str, NDArray[np.bool_]]:
    """The kinds of queries, those that need steps by how many."""
    steps_N, many_N = seed.outcomes.steps, seed.kind_N == "steps"
    groups = {
        "direct": seed.kind_N == "direct",
        "lookalike": seed.kind_N == "lookalike",
        "1 to 3 steps": many_N & (steps_N >= 1) & (steps_N <= 3),
        "4 and more steps": many_N & (steps_N >= 4),
    }
    return {name: rows_N for name, rows_N in groups.items() if rows_N.any()}
