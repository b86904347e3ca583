"""`twn probe gate`: three splits recorded for the study of the gate, and both modes printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_adapters import save_fresh_adapters
from twn_lightning import cli
from twn_lightning.evaluation.gate_outcomes import GateOutcomes
from twn_lightning.run import RunFolder

SIZES = {"gate": 5, "calibration": 4, "test": 6}


def test_three_splits_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapters = save_fresh_adapters(tmp_path / "adapters", 0.25)
    sizes = [f"data.{split}_pairs={count}" for split, count in SIZES.items()]
    words = ["model=tiny", *sizes, "data.max_new_tokens=3", f"adapters.init_from={adapters}"]
    assert cli.main(["probe", "gate", *words, f"paths.run_dir={tmp_path / 'run'}"]) == 0
    run = RunFolder(tmp_path / "run")
    metrics = run.metrics()
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    for split, count in SIZES.items():
        found = GateOutcomes.read(run.path / "gate_outcomes" / f"{split}.npz")
        never = found.hit_discriminative.mean()
        assert metrics[split] == {
            "queries": count,
            "never": never,
            "always": found.hit_generative.mean(),
            "tokens_per_cot": 3.0,
        }
        assert any(cells[:3] == [split, str(count), f"{100 * never:.1f}"] for cells in printed)
