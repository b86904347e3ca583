"""Variable-length attention on a GPU against transformers' loop over images."""

from __future__ import annotations

import pytest
import torch

from twn_lightning.backbone import vision
from twn_lightning.backbone.vision import loop_vision_attention, visual_inputs

pytestmark = pytest.mark.gpu


@torch.no_grad()
@pytest.mark.parametrize("varlen", [True, False])
def test_packed_attention_equals_the_loop_in_bf16(tiny_backbone, mixed_items, monkeypatch, varlen):
    monkeypatch.setattr(vision, "_varlen_pays", lambda tower, lengths: varlen)
    backbone = tiny_backbone().to("cuda")
    tower = backbone.model.model.visual.to(torch.bfloat16)
    prompts = backbone.processor(mixed_items).to("cuda")
    packed = visual_inputs(tower, prompts)
    loop_vision_attention(tower)
    looped = visual_inputs(tower, prompts)
    error = (packed.features - looped.features).norm() / looped.features.norm()
    assert error < 0.02, f"relative error {float(error):.4f}; bf16 rounds to .004"
