"""The completions that stage 3 sampled: rollouts.parquet by prompt, and what separates good completions from bad."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twn_lightning.errors import DataError
from twn_lightning.metrics import paired_bootstrap_difference
from twn_lightning.reporting.tables import TextTable, percent
from twn_lightning.run import RunFolder

REWARD_TERMS = ("reward_format", "reward_rank", "reward_gap")
"""The columns whose weighted sum is the reward."""


@dataclass(frozen=True)
class RolloutGroup:
    """The completions of one prompt at one step.

    Args:
        step: training step.
        task: the source and its task.
        query_text: instruction and text of the query.
        positive: what should be retrieved.
        completions: rows of rollouts.parquet, the highest reward first.
    """

    step: int
    task: str
    query_text: str
    positive: str
    completions: list[dict[str, Any]]

    def values(self, name: str) -> np.ndarray:
        """A numeric column of the completions, float64."""
        return np.array([row[name] for row in self.completions], dtype=np.float64)

    @property
    def spread(self) -> float:
        """The highest reward minus the lowest: 0 where the group teaches nothing."""
        return float(np.ptp(self.values("reward")))


def load_rollouts(folder: Path) -> list[RolloutGroup]:
    """Read a run's rollouts.parquet.

    Args:
        folder: a run folder of stage `rl`.

    Returns:
        The groups in the order that they were sampled.

    Raises:
        DataError: the run has no rollouts, or the file is not parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = RunFolder(folder).rollouts
    if not path.is_file():
        raise DataError(f"{folder} has no {path.name}: only stage `rl` samples completions. Train with stage=rl.")
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not readable parquet ({error}). Train again with stage=rl.") from error
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["step"], row["query_key"]), []).append(row)
    return [_group(step, members) for (step, _), members in groups.items()]


def _group(step: int, rows: list[dict[str, Any]]) -> RolloutGroup:
    first, best_first = rows[0], sorted(rows, key=lambda row: -row["reward"])
    return RolloutGroup(step, first["task"], first["query_text"], first["positive"], best_first)


def rollouts_table(groups: list[RolloutGroup]) -> TextTable:
    """Step x (groups, those with a spread, mean reward, its terms, CoT tokens, CoTs that did not close)."""
    rows = []
    for step in sorted({group.step for group in groups}):
        chosen = [group for group in groups if group.step == step]
        means = {name: _mean(chosen, name) for name in ("reward", *REWARD_TERMS, "tokens", "closed")}
        rows.append(
            [
                str(step),
                str(len(chosen)),
                str(sum(group.spread > 0 for group in chosen)),
                *(f"{means[name]:.3f}" for name in ("reward", *REWARD_TERMS)),
                f"{means['tokens']:.1f}",
                percent(1 - means["closed"]),
            ]
        )
    header = ["Step", "Groups", "with spread", "reward", "format", "rank", "gap", "Tokens", "not closed"]
    return TextTable("Rollouts by step", header, [row[0] for row in rows], rows)


def _mean(groups: list[RolloutGroup], name: str) -> float:
    return float(np.concatenate([group.values(name) for group in groups]).mean())


def spread_table(groups: list[RolloutGroup]) -> TextTable:
    """Reward term x (mean, spread between groups, spread within a group): only the last moves the policy.

    A term's advantage is its distance from the mean of its group, so what all completions of a prompt share cancels.
    """
    rows = []
    for name in ("reward", *REWARD_TERMS, "tokens"):
        values = [group.values(name) for group in groups]
        between = float(np.std([value.mean() for value in values]))
        within = float(np.sqrt(np.mean([value.var() for value in values])))
        rows.append([name, f"{_mean(groups, name):.3f}", f"{between:.3f}", f"{within:.3f}"])
    header = ["Term", "Mean", "Std between groups", "Std within a group"]
    return TextTable("What tells completions apart", header, [row[0] for row in rows], rows)


def held_out_table(folder: Path) -> TextTable:
    """Reward term x (before, after, paired change with a 95 % interval) on the run's validation queries.

    Raises:
        DataError: the run has not measured them before and after.
    """
    import pyarrow.parquet as pq

    path = RunFolder(folder).held_out
    rows = pq.read_table(path).to_pylist() if path.is_file() else []
    steps = sorted({row["step"] for row in rows})
    if len(steps) < 2:
        raise DataError(f"{folder} has rewards of {len(steps)} step(s) in {path.name}; a finished stage `rl` has two.")
    before, after = ({row["query_key"]: row for row in rows if row["step"] == step} for step in (steps[0], steps[-1]))
    lines = []
    for name in ("reward", *REWARD_TERMS, "hit_generative", "tokens"):
        first_N, last_N = (np.array([half[key][name] for key in before], np.float64) for half in (before, after))
        change = paired_bootstrap_difference(last_N, first_N)
        means = f"{first_N.mean():.4f}", f"{last_N.mean():.4f}", f"{change.mean:+.4f}"
        lines.append([name, *means, f"{change.low:+.4f} to {change.high:+.4f}"])
    header = ["Term", f"Step {steps[0]}", f"Step {steps[-1]}", "Change", "95 % interval"]
    return TextTable(f"Greedy CoTs of {len(before)} validation queries", header, [line[0] for line in lines], lines)
