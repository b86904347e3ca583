"""2 x 4 steps with an interrupt between them = 8 steps, bit for bit, for every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stage_runs import InterruptAfter, StageRun, tiny_settings
from twn_lightning.errors import CheckpointError
from twn_lightning.settings import GateStageSettings, RLSettings, SFTSettings

STAGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sft_joint": (SFTSettings(batch_size=8, chunk_size=4, max_steps=8), {"adapters": {"dropout": 0.1}}),
    "sft_two_phase": (
        SFTSettings(
            schedule="two_phase",
            batch_size=4,
            chunk_size=8,
            max_steps=3,
            embedding_steps=5,
            embedding_batch_size=8,
            stored_pairs=16,
        ),
        {"adapters": {"dropout": 0.1}},
    ),
    "gate": (GateStageSettings(batch_size=12, max_epochs=2, patience=5), {}),
    "rl": (RLSettings(prompts_per_step=2, completions_per_prompt=2, max_steps=8, pool_refresh_steps=3), {}),
}


def weights_of(checkpoint: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    optimizer = checkpoint["optimizer_states"][0]["state"]
    moments = [(f"{i}/{k}", v) for i, s in optimizer.items() for k, v in s.items() if isinstance(v, torch.Tensor)]
    return [*checkpoint["state_dict"].items(), *moments]


@pytest.mark.parametrize("name", STAGES)
def test_interrupted_and_resumed_equals_straight(name: str, tmp_path: Path) -> None:
    stage, sections = STAGES[name]
    straight = StageRun(tiny_settings(stage, tmp_path / "straight", **sections)).fit()
    assert straight.stage.total_steps == 8

    settings = tiny_settings(stage, tmp_path / "resumed", **sections)
    interrupted = StageRun(settings, callbacks=(InterruptAfter(4),))
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit()
    torch.manual_seed(1234)  # whatever the new process drew before
    resumed = StageRun(settings).fit(resume=tmp_path / "resumed")

    expected, found = straight.last_checkpoint(), resumed.last_checkpoint()
    for (key, left), (other, right) in zip(weights_of(expected), weights_of(found), strict=True):
        assert key == other
        assert torch.equal(left, right), f"{key} differs by {(left - right).abs().max()}"
    assert expected["lr_schedulers"] == found["lr_schedulers"]
    steps = [line["step"] for line in resumed.run_folder.history() if any(k.startswith("train/") for k in line)]
    logged = [line["step"] for line in straight.run_folder.history() if any(k.startswith("train/") for k in line)]
    assert steps == logged


def test_a_checkpoint_holds_no_backbone(tmp_path: Path) -> None:
    stage, sections = STAGES["sft_joint"]
    run = StageRun(tiny_settings(stage, tmp_path, **sections)).fit()
    names = run.last_checkpoint()["state_dict"]
    trained = run.backbone.trainable_state()
    assert {name.removeprefix("backbone.") for name in names} == set(trained)


def test_a_missing_checkpoint_says_where_it_looked(tmp_path: Path) -> None:
    run = StageRun(tiny_settings(STAGES["gate"][0], tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*last\.ckpt"):
        run.fit(resume=tmp_path)
