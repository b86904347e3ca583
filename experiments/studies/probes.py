"""What `twn probe` recorded of several training seeds, as arrays over the queries that all of them have.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twn_lightning.errors import DataError
from twn_lightning.evaluation.probes import Columns, read_columns, rows_of
from twn_lightning.run import RunFolder

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ProbedSeeds:
    """The same probe of S trained models.

    Args:
        columns: one per seed, all over the same N queries in the same order.
        metrics: the probes' own scores, one per seed.
        shared: share of each seed's queries that all seeds have; mean over seeds.
    """

    columns: list[Columns]
    metrics: list[dict[str, Any]]
    shared: float

    @property
    def size(self) -> tuple[int, int]:
        """S and N."""
        return len(self.columns), len(self.columns[0]["query_key"])

    def values(self, name: str) -> FloatArray:
        """One column of every seed, (S, N)."""
        return np.stack([columns[name].astype(np.float64) for columns in self.columns])

    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """All queries, those of each kind, and those that need steps by how many; empty groups are left out."""
        kind_N, steps_N = self.columns[0]["kind"], self.columns[0]["steps"]
        groups = {
            "all": np.full(len(steps_N), True),
            "direct": kind_N == "direct",
            "lookalike": kind_N == "lookalike",
            "1 to 3 steps": (steps_N >= 1) & (steps_N <= 3),
            "4 and more steps": steps_N >= 4,
        }
        return {name: rows_N for name, rows_N in groups.items() if rows_N.any()}


def read_probes(folders: Sequence[Path], file: str) -> ProbedSeeds:
    """Read the same probe of several trained models.

    Args:
        folders: what `twn probe` wrote, one per training seed.
        file: the name of its parquet file.

    Raises:
        DataError: no folder, a folder without the file, two probes of the same adapters, or no query in common.
    """
    missing = [str(folder) for folder in folders if not (folder / file).is_file()]
    if missing or not folders:
        raise DataError(f"no {file} in {', '.join(missing) or 'any folder'}: name run folders of `twn probe`.")
    adapters = [RunFolder(folder).settings().adapters.init_from for folder in folders]
    if len(set(adapters)) < len(adapters):
        raise DataError(f"{len(adapters)} probes of {len(set(adapters))} trained models: {adapters}. Name one each.")
    found = [read_columns(folder / file) for folder in folders]
    keys = sorted(set.intersection(*(set(columns["query_key"]) for columns in found)))
    if not keys:
        raise DataError(f"the {len(folders)} probes share no query: use the same data.seed and data.test_pairs.")
    aligned = [rows_of(columns, _places(columns["query_key"], keys)) for columns in found]
    shared = float(np.mean([len(keys) / len(columns["query_key"]) for columns in found]))
    return ProbedSeeds(aligned, [RunFolder(folder).metrics() for folder in folders], shared)


def _places(key_N: NDArray[Any], keys: Sequence[str]) -> NDArray[np.int64]:
    place_of = {key: place for place, key in enumerate(key_N)}
    return np.array([place_of[key] for key in keys])
