"""Our vectorised mRoPE positions against transformers' loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from twn_lightning.backbone.positions import prompt_positions
from twn_lightning.errors import DataError


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [0], [2], [4], [4, 4], [3, 2, 0]])
def test_equals_get_rope_index(tiny_backbone, mixed_items, rows):
    backbone = tiny_backbone()
    prompts = backbone.processor([mixed_items[r] for r in rows])
    positions, ends = prompt_positions(prompts, backbone.merge_size)
    expected, deltas = backbone.model.model.get_rope_index(
        prompts.input_ids_BL,
        prompts.mm_token_type_ids_BL,
        prompts.image_grid_thw,
        prompts.video_grid_thw,
        prompts.attention_mask_BL,
    )
    valid = prompts.attention_mask_BL.bool()
    assert torch.equal(positions[:, valid], expected[:, valid])
    assert torch.equal(ends, deltas[:, 0] + valid.sum(-1))


def test_a_large_image_advances_by_its_longer_side_only(tiny_backbone, mixed_items):
    backbone = tiny_backbone()
    prompts = backbone.processor([mixed_items[1]])
    _, height, width = (prompts.image_grid_thw[0] // backbone.merge_size).tolist()
    _, end = prompt_positions(prompts, backbone.merge_size)
    assert end.item() == prompts.input_ids_BL.shape[1] - height * width + max(height, width)


def test_grids_that_do_not_match_the_placeholders_are_refused(tiny_backbone, mixed_items):
    backbone = tiny_backbone()
    prompts = backbone.processor(mixed_items[:2])
    one, turned = prompts.images.select([0]), prompts.images.select([1, 0])
    with pytest.raises(DataError, match="2 runs of image tokens in the prompts but 1 image grids"):
        prompt_positions(replace(prompts, images=one), backbone.merge_size)
    with pytest.raises(DataError, match="do not match the grids"):
        prompt_positions(replace(prompts, images=turned), backbone.merge_size)
