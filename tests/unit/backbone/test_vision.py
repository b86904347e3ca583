"""Images packed into one attention call against transformers' loop over images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from twn_lightning.backbone.vision import pack_vision_attention, visual_inputs
from twn_lightning.errors import DataError


@torch.no_grad()
@pytest.mark.parametrize("rows", [[0], [0, 0, 0], [0, 1, 2, 3]])
def test_packed_attention_equals_the_loop(tiny_backbone, mixed_items, rows):
    backbone = tiny_backbone()
    tower = backbone.model.model.visual
    prompts = backbone.processor([mixed_items[r] for r in rows])
    pack_vision_attention(tower)
    packed = visual_inputs(tower, prompts)
    tower.config._attn_implementation = "sdpa"
    looped = visual_inputs(tower, prompts)
    torch.testing.assert_close(packed.features, looped.features, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(packed.deepstack[0], looped.deepstack[0], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_linear_patch_projection_equals_the_convolution(tiny_backbone, mixed_items):
    embed = tiny_backbone().model.model.visual.patch_embed
    pixels = tiny_backbone().processor(mixed_items).pixel_values
    torch.testing.assert_close(embed(pixels), type(embed).forward(embed, pixels), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_images_and_videos_of_one_batch_land_on_their_own_tokens(tiny_backbone, mixed_items):
    backbone = tiny_backbone()
    tower = backbone.model.model.visual
    whole = visual_inputs(tower, backbone.processor(mixed_items))
    alone = [visual_inputs(tower, backbone.processor([item])) for item in mixed_items[:-1]]
    torch.testing.assert_close(whole.features, torch.cat([v.features for v in alone]), atol=1e-5, rtol=1e-4)
    clip = backbone.processor([mixed_items[2]])
    video = tower(clip.pixel_values_videos, grid_thw=clip.video_grid_thw, return_dict=True).pooler_output
    torch.testing.assert_close(alone[2].features[: len(video)], video, atol=1e-6, rtol=1e-5)


def test_missing_pixels_are_an_error(tiny_backbone, mixed_items):
    backbone = tiny_backbone()
    prompts = backbone.processor(mixed_items[:1])
    with pytest.raises(DataError, match="4 visual placeholders in the prompts but no pixels"):
        visual_inputs(backbone.model.model.visual, replace(prompts, pixel_values=None, image_grid_thw=None))
