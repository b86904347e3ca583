"""Images packed into one attention call against transformers' loop over images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen3_vl import modeling_qwen3_vl

from twn_lightning.backbone import vision
from twn_lightning.backbone.vision import (
    frame_groups,
    loop_vision_attention,
    pack_vision_attention,
    patch_positions,
    visual_inputs,
)
from twn_lightning.errors import DataError


def same_features(first, second):
    torch.testing.assert_close(first.features, second.features, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(first.deepstack[0], second.deepstack[0], atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rows", [[0], [0, 0, 0], [0, 1, 2, 3], [0, 1, 0, 2]])
def test_packed_attention_equals_the_loop(tiny_backbone, mixed_items, rows):
    backbone = tiny_backbone()
    tower = backbone.model.model.visual
    prompts = backbone.processor([mixed_items[r] for r in rows])
    packed = visual_inputs(tower, prompts)
    loop_vision_attention(tower)
    looped = visual_inputs(tower, prompts)
    same_features(packed, looped)
    pack_vision_attention(tower)
    same_features(visual_inputs(tower, prompts), packed)


@torch.no_grad()
def test_nothing_is_computed_image_by_image(tiny_backbone, mixed_items, monkeypatch):
    backbone = tiny_backbone()
    calls, groupings = [], []
    original, group = F.scaled_dot_product_attention, vision.frame_groups
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or original(*a, **k))
    monkeypatch.setattr(vision, "frame_groups", lambda *a: groupings.append(1) or group(*a))

    def computed_positions(*args, kwargs, **options):
        assert "position_ids" in kwargs, "transformers no longer takes positions that are computed already"
        return kwargs.pop("position_ids")

    monkeypatch.setattr(modeling_qwen3_vl, "get_vision_position_ids", computed_positions)
    tower = backbone.model.model.visual
    visual_inputs(tower, backbone.processor([mixed_items[0]] * 5 + [mixed_items[1]] * 3))
    assert len(calls) == tower.config.depth * 2, "one call for each of the two image sizes and each layer"
    assert len(groupings) == 1, "frames are grouped once for all layers"


@torch.no_grad()
def test_variable_length_attention_gets_the_same_frames(tiny_backbone, mixed_items, monkeypatch):
    def reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale):
        assert max_q == max_k == int(cu_seq_q.diff().max())
        frames = zip(*(x.split(cu_seq_q.diff().tolist()) for x in (query, key, value)), strict=True)
        attended = [F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in f), scale=scale) for f in frames]
        return torch.cat([x.transpose(0, 1) for x in attended])

    backbone = tiny_backbone()
    tower = backbone.model.model.visual
    prompts = backbone.processor(mixed_items)
    grouped = visual_inputs(tower, prompts)
    monkeypatch.setattr(vision, "varlen_attn", reference)
    monkeypatch.setattr(vision, "_varlen_pays", lambda tower, lengths: True)
    same_features(visual_inputs(tower, prompts), grouped)


def test_positions_equal_those_of_the_loop():
    grids = torch.tensor([[1, 4, 6], [3, 2, 4], [1, 8, 2], [1, 4, 6]])
    looped = modeling_qwen3_vl.get_vision_position_ids(grids, 2)
    assert torch.equal(patch_positions(grids, 2, len(looped)), looped)


def test_frames_are_grouped_by_length():
    groups = frame_groups([4, 4, 6, 4, 6], torch.device("cpu"))
    assert [(g.frames, g.length) for g in groups] == [(3, 4), (2, 6)]
    assert groups[0].patches.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 14, 15, 16, 17]
    assert groups[1].patches.tolist() == [8, 9, 10, 11, 12, 13, 18, 19, 20, 21, 22, 23]
    assert [g.patches for g in frame_groups([4, 4, 6], torch.device("cpu"))] == [slice(0, 8), slice(8, 14)]


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
        visual_inputs(backbone.model.model.visual, replace(prompts, images=None))
