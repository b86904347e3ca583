"""Both modes' outcomes on the same queries, and the groups of queries that the study looks at.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.studies.runs import SeedEvaluation, groups_of
from twn_lightning.errors import DataError
from twn_lightning.reporting.read import load_decisions

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Modes:
    """Quality of the same queries in both modes, (S, N) each."""

    discriminative_SN: FloatArray
    generative_SN: FloatArray

    @property
    def helped_SN(self) -> FloatArray:
        """What thinking gained where it gained: the oracle's headroom over never."""
        return np.maximum(self.generative_SN - self.discriminative_SN, 0)

    @property
    def hurt_SN(self) -> FloatArray:
        """What thinking lost where it lost: the oracle's headroom over always."""
        return np.maximum(self.discriminative_SN - self.generative_SN, 0)

    @property
    def oracle_SN(self) -> FloatArray:
        """The better mode of each query and seed."""
        return np.maximum(self.discriminative_SN, self.generative_SN)

    def chosen_by_other_seeds_SN(self) -> FloatArray:
        """Quality if a query thinks unless the other seeds' models are better without a CoT on it, on average.

        What hurts the same query in every model is a property of the query, which a gate could know; the rest of the
        oracle's headroom is not.

        Raises:
            DataError: one seed has no others.
        """
        if len(self.generative_SN) < 2:
            raise DataError("one evaluation has no other seeds to choose by: name at least two.")
        gain_SN = self.generative_SN - self.discriminative_SN
        others_SN = gain_SN.sum(0) - gain_SN
        return np.where(others_SN < -1e-9, self.discriminative_SN, self.generative_SN)

    def of(self, rows_N: BoolArray) -> Modes:
        """Some of the queries."""
        return Modes(self.discriminative_SN[:, rows_N], self.generative_SN[:, rows_N])


def modes_of(seeds: Sequence[SeedEvaluation]) -> Modes:
    """Both modes' quality of every seed."""
    outcomes = [seed.outcomes for seed in seeds]
    return Modes(np.stack([o.hit_discriminative for o in outcomes]), np.stack([o.hit_generative for o in outcomes]))


def levels_of(seed: SeedEvaluation) -> dict[str, BoolArray]:
    """Queries of no step by kind, then those of each number of steps, each (N,)."""
    steps_N = seed.outcomes.steps
    levels = {name: rows_N for name, rows_N in groups_of(seed).items() if "step" not in name}
    for steps in sorted(set(steps_N[steps_N > 0].tolist())):
        levels["1 step" if steps == 1 else f"{steps} steps"] = steps_N == steps
    return levels


def tasks_of(seed: SeedEvaluation) -> dict[str, BoolArray]:
    """Queries of each task, each (N,)."""
    task_N = np.array([name.rpartition("/")[2].removeprefix("Nano") for name in seed.outcomes.task])
    return {str(task): task_N == task for task in np.unique(task_N)}


def repeated(hurt_SN: FloatArray) -> float | None:
    """Share of the queries that thinking hurts in one seed's model that it also hurts in another's, mean of the pairs.

    Returns:
        None where thinking hurts no query, or there is one seed.
    """
    hurt_SN = (hurt_SN > 0).astype(np.float64)
    total = (len(hurt_SN) - 1) * hurt_SN.sum()
    both = hurt_SN.sum(0) ** 2 - (hurt_SN**2).sum(0)
    return float(both.sum() / total) if total else None


def right_first(seed: SeedEvaluation, mode: str) -> BoolArray:
    """Whether a mode ranks the right candidate first, whatever else counts in the task's own metric, (N,).

    Args:
        seed: an evaluation.
        mode: discriminative or generative.
    """
    table = load_decisions(seed.folder)
    names = ("query_key", "positive", f"top1_{mode}")
    key_N, right_N, first_N = (np.asarray(table.column(name).to_pylist(), dtype=str) for name in names)
    return (right_N == first_N)[np.argsort(key_N)]


def graded_tasks_of(seed: SeedEvaluation) -> dict[str, BoolArray]:
    """Queries of the tasks whose quality is not only 0 or 1, each (N,)."""
    quality_N = seed.outcomes.hit_generative
    return {name: rows_N for name, rows_N in tasks_of(seed).items() if not np.isin(quality_N[rows_N], (0, 1)).all()}
