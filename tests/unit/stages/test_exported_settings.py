"""What an export keeps of its run: how the backbone was loaded, and the trained widths, through all stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twn_lightning.backbone.packaged import packaged_adapters
from twn_lightning.settings import (
    AdapterSettings,
    GateStageSettings,
    ModelSettings,
    RLSettings,
    Settings,
    SFTSettings,
)
from twn_lightning.stages.checkpoint_content import exported_settings


def test_stage_1_keeps_its_widths_and_the_backbone() -> None:
    model = ModelSettings(name="qwen3vl_4b", path="/weights", dtype="bfloat16", max_pixels=9, revision="abc")
    found = exported_settings(Settings(stage=SFTSettings(matryoshka_dims=[32, 64]), model=model))
    assert found["stage"] == "sft"
    assert found["matryoshka_dims"] == [32, 64]
    assert found["model"] == {
        "revision": "abc",
        "dtype": "bfloat16",
        "min_pixels": None,
        "max_pixels": 9,
        "max_frames": 8,
    }


@pytest.mark.parametrize("stage", [GateStageSettings(), RLSettings()])
def test_later_stages_hand_the_widths_on(stage: GateStageSettings | RLSettings, tmp_path: Path) -> None:
    packaged = json.loads((packaged_adapters("nano") / "twn_config.json").read_text())
    (tmp_path / "twn_config.json").write_text(json.dumps({**packaged, "matryoshka_dims": [16]}))
    start = AdapterSettings(init_from=str(tmp_path))
    assert exported_settings(Settings(stage=stage, adapters=start))["matryoshka_dims"] == [16]
    assert exported_settings(Settings(stage=stage))["matryoshka_dims"] == []
