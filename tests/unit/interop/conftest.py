"""Trained adapters in a run folder, with the runs that came before and after it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from twn_lightning.backbone.packaged import packaged_adapters
from twn_lightning.run import RunFolder
from twn_lightning.settings import AdapterSettings, DataSettings, GateStageSettings, Settings


@pytest.fixture
def gate_run(tmp_path: Path) -> Path:
    """A gate run over an SFT run, whose adapters are nano's own."""
    sft = RunFolder(tmp_path / "runs" / "sft")
    settings = Settings(data=DataSettings(train_pairs=24_000, gate_pairs=2_000))
    sft.create(settings, ["experiment=nano_sft", f"paths.run_dir={sft.path}"])
    sft.finish({"headline": {"metric": "val/hit@1_generative", "before": 0.01, "after": 0.95}})
    sft.adapters.mkdir()
    gate = RunFolder(tmp_path / "runs" / "gate")
    settings = replace(settings, stage=GateStageSettings(), adapters=AdapterSettings(init_from=str(sft.adapters)))
    gate.create(settings, ["stage=gate", f"adapters.init_from={sft.adapters}", "gate.price=.3"])
    gate.finish({"headline": {"metric": "gate/auroc", "before": 0.5, "after": 0.97}})
    shutil.copytree(packaged_adapters("nano"), gate.adapters)
    return gate.path


@pytest.fixture
def evaluation(tmp_path: Path, gate_run: Path) -> Path:
    """The summary of an evaluation of that run."""
    threshold = json.loads((gate_run / "adapters" / "twn_config.json").read_text())["gate_threshold"]
    mode = {"hit@1": 0.936, "ci95": [0.932, 0.94], "tokens_per_query": 9.55, "think_rate": 0.4}
    summary = {
        "suite": "nano",
        "num_queries": 4000,
        "modes": {"never": {**mode, "hit@1": 0.682, "think_rate": 0.0}, "adaptive": mode},
        "paired": {"difference": -0.002, "ci95": [-0.004, 0.0]},
        "added_parameter_ratio": {"nano": 0.465},
        "threshold": threshold,
    }
    folder = tmp_path / "runs" / "evaluate"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
