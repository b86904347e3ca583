"""Run folders of `twn probe gate`, one per training seed, on the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twn_lightning.errors import DataError
from twn_lightning.evaluation.gate_outcomes import GateOutcomes
from twn_lightning.probe import RECORDED_SPLITS
from twn_lightning.run import RunFolder
from twn_lightning.settings import GateSettings


@dataclass(frozen=True)
class GateRun:
    """What a gate of one training seed's model can learn from and be judged by.

    Args:
        adapters: what was probed.
        settings: the gate's, of the probe.
        gate: outcomes of the split that gates learn from.
        calibration: of the split that stops their training and chooses thresholds.
        test: of the split that is reported.
    """

    adapters: str
    settings: GateSettings
    gate: GateOutcomes
    calibration: GateOutcomes
    test: GateOutcomes

    @property
    def mean_tokens(self) -> float:
        """Length of the average CoT of the gate split, which prices count against."""
        return max(float(self.gate.tokens.mean()), 1.0)


def read_gate_runs(folders: Sequence[Path]) -> list[GateRun]:
    """Read the probes of several training seeds on the same queries.

    Raises:
        DataError: no folder, one that is no such probe, two of the same adapters, or two that differ in queries.
    """
    runs = [_read(folder) for folder in folders]
    if not runs:
        raise DataError("no run folder is given: name one probe per training seed.")
    names = [run.adapters for run in runs]
    if len(set(names)) < len(names):
        raise DataError(f"{len(names)} probes of {len(set(names))} trained models: {sorted(names)}. Name one each.")
    for folder, run in zip(folders, runs, strict=True):
        if not np.array_equal(run.test.query_key, runs[0].test.query_key):
            raise DataError(
                f"{folder} and {folders[0]} have other test queries: probe every seed with the same data.seed and "
                "data.test_pairs."
            )
    return runs


def _read(folder: Path) -> GateRun:
    splits = {}
    for split in RECORDED_SPLITS:
        path = folder / "gate_outcomes" / f"{split}.npz"
        if not path.is_file():
            raise DataError(f"{folder} is no run folder of `twn probe gate`: it has no gate_outcomes/{path.name}.")
        splits[split] = GateOutcomes.read(path)
    settings = RunFolder(folder).settings()
    return GateRun(settings.adapters.init_from or str(folder), settings.gate, **splits)
