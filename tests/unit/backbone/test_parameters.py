from __future__ import annotations

import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLVisionModel

from twn_lightning.backbone.parameters import (
    SHAPES,
    VISION_SHAPES,
    VisionShape,
    added_parameter_ratio_for,
    added_parameters,
)
from twn_lightning.errors import ConfigError
from twn_lightning.settings import AdapterSettings, LoraSettings


@pytest.mark.parametrize(("name", "billions", "percent"), [("qwen3vl_4b", 4.02, 4.9), ("qwen3vl_8b", 8.19, 3.2)])
@pytest.mark.parametrize("ranks", [(32, 64), (64, 32), (48, 48)])
def test_a_rank_sum_of_96_is_the_papers_share(name, billions, percent, ranks):
    adapters = AdapterSettings(reasoning=LoraSettings(ranks[0]), embedding=LoraSettings(ranks[1]), num_queries=16)
    assert SHAPES[name].parameters / 1e9 == pytest.approx(billions, abs=0.005)
    assert round(100 * added_parameter_ratio_for(name, adapters), 1) == percent


@pytest.mark.parametrize("arrangement", ["dual", "shared"])
def test_counts_from_shapes_equal_the_parameters_there_are(tiny_backbone, arrangement):
    backbone = tiny_backbone(arrangement=arrangement)
    counts = backbone.added_parameters()
    groups = {g: sum(p.numel() for p in backbone.group_parameters(g)) for g in ("reasoning", "embedding", "queries")}
    assert groups == {"embedding": 0} | {k: counts[k] for k in groups if k in counts}
    base = [p for n, p in backbone.model.model.language_model.named_parameters() if "lora_" not in n]
    assert counts["language_model"] == sum(p.numel() for p in base)
    assert backbone.added_parameter_ratio() == sum(groups.values()) / counts["language_model"]


def test_shared_costs_what_dual_costs():
    shape = SHAPES["qwen3vl_4b"]
    dual, shared = (added_parameters(shape, AdapterSettings(arrangement=a))["added"] for a in ("dual", "shared"))
    assert dual == shared


def test_unknown_size_lists_the_known():
    with pytest.raises(ConfigError, match="did you mean 'qwen3vl_4b'"):
        added_parameter_ratio_for("qwen3vl_4", AdapterSettings())


def test_vision_parameters_are_those_of_the_tower(tiny_backbone):
    model = tiny_backbone().model
    counted = VisionShape.from_config(model.config).parameters
    assert counted == sum(p.numel() for p in model.model.visual.parameters())


def test_the_largest_tower_is_transformers_default():
    config = Qwen3VLConfig(vision_config={"out_hidden_size": SHAPES["qwen3vl_8b"].hidden})
    assert VisionShape.from_config(config) == VISION_SHAPES["qwen3vl_8b"]
    with torch.device("meta"):
        tower = Qwen3VLVisionModel(config.vision_config)
    assert VISION_SHAPES["qwen3vl_8b"].parameters == sum(p.numel() for p in tower.parameters())
