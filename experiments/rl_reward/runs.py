"""Run folders of the RL study: what stage 3 did to every validation query, by variant and seed.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twn_lightning.errors import DataError
from twn_lightning.run import RunFolder
from twn_lightning.settings import RLSettings

BASE = "base"
MOMENTS = ("before", "after")
METRICS = ("reward", "hit_generative", "hit_discriminative", "tokens", "malformed")
"""Of every query, before and after; the reward is that of `standard_reward` whatever a run was rewarded for."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class RLRun:
    """One run of stage 3.

    Args:
        folder: its run folder.
        seed: of the run, and of the stage 1 it started from.
        stage: its settings.
        key_N: the validation queries' keys, sorted.
        steps_N: reasoning steps that each query takes.
        values: (moment, metric) -> one value per query.
        kl: to the adapter it started from, mean over the last tenth of the logged steps.
        live_share: share of the groups whose rewards differ, mean over the logged steps.
    """

    folder: Path
    seed: int
    stage: RLSettings
    key_N: NDArray[np.str_]
    steps_N: NDArray[np.int64]
    values: Mapping[tuple[str, str], FloatArray]
    kl: float
    live_share: float


@dataclass(frozen=True)
class Variant:
    """The runs of one setting, one per seed, in the order of their seeds."""

    name: str
    runs: Sequence[RLRun]

    def values(self, moment: str, metric: str) -> FloatArray:
        """One metric of all seeds, (S, N)."""
        return np.stack([run.values[moment, metric] for run in self.runs])


def standard_reward(rows: Mapping[str, FloatArray]) -> FloatArray:
    """The reward with its default weights (N,), 0 where a completion is malformed: runs with other weights compare."""
    terms = RLSettings()
    total = terms.format_weight * rows["reward_format"]
    total += terms.rank_weight * rows["reward_rank"] + terms.gap_weight * rows["reward_gap"]
    return np.where(rows["reward_format"] > 0, total, 0.0)


def read_run(folder: Path) -> RLRun:
    """Read one run of stage 3.

    Raises:
        DataError: it has no held-out rewards from before and after training.
    """
    run = RunFolder(folder)
    if not run.held_out.is_file():
        raise DataError(f"{folder} has no {run.held_out.name}: name run folders of stage=rl.")
    table = pq.read_table(run.held_out)
    step_R = table.column("step").to_numpy()
    if step_R.min() == step_R.max():
        raise DataError(f"{folder} has held-out rewards of step {step_R.max()} only: the run has not finished.")
    values = {}
    for moment, step in zip(MOMENTS, (step_R.min(), step_R.max()), strict=True):
        rows = table.filter(step_R == step).sort_by("query_key")
        columns = {name: rows.column(name).to_numpy(zero_copy_only=False) for name in rows.column_names}
        columns["reward"] = standard_reward(columns)
        values |= {(moment, metric): columns[metric].astype(np.float64) for metric in METRICS}
    settings = run.settings()
    assert isinstance(settings.stage, RLSettings)
    logged = [line for line in run.history() if "rl/live_groups" in line]
    kls = [line["rl/kl"] for line in logged if "rl/kl" in line]
    return RLRun(
        folder=folder,
        seed=settings.seed,
        stage=settings.stage,
        key_N=columns["query_key"].astype(str),
        steps_N=columns["steps"].astype(np.int64),
        values=values,
        kl=float(np.mean(kls[-max(1, len(kls) // 10) :])) if kls else 0.0,
        live_share=float(np.mean([line["rl/live_groups"] for line in logged])) / settings.stage.prompts_per_step,
    )


def read_variants(folders: Sequence[Path]) -> dict[str, Variant]:
    """Runs by what their settings change of the most frequent ones, the base first.

    Args:
        folders: run folders of stage 3, the same seeds of every variant.

    Returns:
        Name -> variant; the name lists the settings that differ: `kl=0.2`.

    Raises:
        DataError: no run, a variant without a seed that others have or with two runs of one, or different queries.
    """
    runs = sorted((read_run(folder) for folder in folders), key=lambda run: run.seed)
    base = base_settings(runs)
    named: dict[str, list[RLRun]] = {BASE: []}
    for run in runs:
        changed = [f"{key}={value}" for key, value in asdict(run.stage).items() if value != base[key]]
        named.setdefault(", ".join(changed) or BASE, []).append(run)
    all_seeds = sorted({run.seed for run in runs})
    for name, chosen in named.items():
        seeds = [run.seed for run in chosen]
        if seeds != all_seeds:
            raise DataError(f"'{name}' has runs of the seeds {seeds}: run every variant once with each of {all_seeds}.")
    for run in runs:
        if not np.array_equal(run.key_N, runs[0].key_N):
            raise DataError(
                f"{run.folder} ({len(run.key_N)} queries) and {runs[0].folder} ({len(runs[0].key_N)}) were "
                "validated on different queries: use the same data.seed and data.val_pairs."
            )
    return {name: Variant(name, chosen) for name, chosen in named.items()}


def base_settings(runs: Sequence[RLRun]) -> dict[str, Any]:
    """Of every setting, the value that most runs have.

    Raises:
        DataError: there is no run.
    """
    if not runs:
        raise DataError("no run of stage 3 is given.")
    tables = [asdict(run.stage) for run in runs]
    return {key: max((table[key] for table in tables), key=[t[key] for t in tables].count) for key in tables[0]}
