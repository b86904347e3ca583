"""Run folders of `twn probe prefixes`, one per training seed, as outcomes of the same queries.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twn_lightning.errors import DataError
from twn_lightning.evaluation.prefix_outcomes import PrefixOutcomes
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings


@dataclass(frozen=True)
class PrefixRun:
    """What one training seed's model retrieves after every few CoT tokens.

    Args:
        folder: the probe's run folder.
        settings: of the probe; `adapters.init_from` is what was probed.
        threshold: the gate thinks iff probability > threshold.
        gate: outcomes of the split that gates learn from.
        calibration: of the split that choices are made on.
        test: of the split that is reported.
    """

    folder: Path
    settings: Settings
    threshold: float
    gate: PrefixOutcomes
    calibration: PrefixOutcomes
    test: PrefixOutcomes

    @property
    def think_of(self) -> dict[str, np.ndarray]:
        """What the gate decides on each split, bool (N,)."""
        splits = {"calibration": self.calibration, "test": self.test}
        return {name: split.probability_N > self.threshold for name, split in splits.items()}


def read_prefix_runs(folders: Sequence[Path]) -> list[PrefixRun]:
    """Read the probes of several training seeds on the same queries.

    Raises:
        DataError: no folder, one that is no such probe or had no gate, two of the same adapters, or two that differ in
            queries or stride.
    """
    runs = [_read(folder) for folder in folders]
    if not runs:
        raise DataError("no run folder is given: name one probe per training seed.")
    names = [run.settings.adapters.init_from for run in runs]
    if len(set(names)) < len(names):
        raise DataError(f"{len(names)} probes of {len(set(names))} trained models: {sorted(map(str, names))}.")
    for run in runs[1:]:
        for name in ("query_key", "cuts_P"):
            if not np.array_equal(getattr(run.test, name), getattr(runs[0].test, name)):
                raise DataError(
                    f"{run.folder} and {runs[0].folder} differ in {name}: probe every seed with the same data.seed, "
                    "data.test_pairs, data.max_new_tokens and --stride."
                )
    return runs


def _read(folder: Path) -> PrefixRun:
    splits = {}
    for name in ("gate", "calibration", "test"):
        path = folder / "prefixes" / f"{name}.npz"
        if not path.is_file():
            raise DataError(f"{folder} is no run folder of `twn probe prefixes`: it has no {path.name}.")
        splits[name] = PrefixOutcomes.read(path)
    if np.isnan(splits["test"].probability_N).any():
        raise DataError(f"{folder}: the adapters that were probed have no gate; train one with stage=gate.")
    run = RunFolder(folder)
    return PrefixRun(folder, run.settings(), float(run.metrics()["threshold"]), **splits)
