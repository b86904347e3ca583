"""Prompts `P(x)`: wrapper, padding, placeholder expansion, CoT ids."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from twn_lightning.backbone.processor import PROMPT_SUFFIX, PromptProcessor
from twn_lightning.backbone.tiny import build_tiny
from twn_lightning.errors import DataError
from twn_lightning.types import Item, Media

COT = "<think> it is red </think><answer> red </answer>"


@pytest.fixture(scope="module")
def processor() -> PromptProcessor:
    return build_tiny()[1]


def image(height: int = 16, width: int = 16) -> Media:
    return Media("image", np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8))


def video(frames: int, height: int = 16, width: int = 16) -> Media:
    return Media("video", np.random.default_rng(frames).integers(0, 255, (frames, height, width, 3), dtype=np.uint8))


def test_renders_one_user_turn_with_media_in_order(processor):
    item = Item("q", "Find it.", "a red cell", (image(), video(2), image()))
    vision = "<|vision_start|><|{}_pad|><|vision_end|>"
    media = "".join(vision.format(kind) for kind in ("image", "video", "image"))
    assert processor.render(item) == (
        f"<|im_start|>user\n{media}Find it. a red cell\n{PROMPT_SUFFIX}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_rows_are_left_padded_and_independent_of_their_batch(processor):
    items = [
        Item("short", "Find it.", "red"),
        Item("image", "Find it.", "a cell that is red", (image(24, 16),)),
        Item("video", "Find it.", "red", (video(4), image(8, 40))),
    ]
    batch = processor(items)
    for row, item in enumerate(items):
        alone = processor([item])
        kept = batch.attention_mask_BL[row].bool()
        assert not kept[: len(kept) - kept.sum()].any()
        assert torch.equal(batch.input_ids_BL[row][kept], alone.input_ids_BL[0])
        assert torch.equal(batch.mm_token_type_ids_BL[row][kept], alone.mm_token_type_ids_BL[0])
        selected = batch.select([row])
        for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
            ours, theirs = getattr(selected, name), getattr(alone, name)
            assert ours is theirs is None or torch.equal(ours, theirs)
    assert batch.images_per_row == (0, 1, 1)
    assert batch.videos_per_row == (0, 0, 1)


def test_placeholders_are_as_many_as_merged_patches(processor):
    batch = processor([Item("q", "", "x", (image(24, 16), video(3)))])
    merge = processor.patches.merge_size**2
    types = batch.mm_token_type_ids_BL
    assert (types == 1).sum() == batch.image_grid_thw.prod(-1).sum() // merge
    assert (types == 2).sum() == batch.video_grid_thw.prod(-1).sum() // merge


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>"])
def test_text_must_not_contain_the_templates_tokens(processor, token):
    with pytest.raises(DataError, match="item 'q': its text contains the special token"):
        processor([Item("q", "Find it.", f"x {token} y")])
    processor([Item("q", "Find it.", "x <|image_1|> y")])


def test_no_items(processor):
    with pytest.raises(DataError, match="batch is empty"):
        processor([])


def test_cots_are_right_padded_and_none_is_an_empty_row(processor):
    cots = processor.encode_cots([COT, None, COT.replace("it is", "the cell seems")])
    assert cots.lengths_B.tolist()[1] == 0
    assert cots.closed_B.tolist() == [True, False, True]
    assert processor.decode_cots(cots) == [COT, "", COT.replace("it is", "the cell seems")]
    assert (cots.mask_BT.diff(dim=1) <= 0).all()


def test_a_cot_must_end_in_its_closing_tag(processor):
    with pytest.raises(DataError, match="must end in </answer>, this one ends in"):
        processor.encode_cots([COT + " and more"])


def test_survives_pickling_and_saving(processor, tmp_path):
    item = Item("q", "Find it.", "red", (image(), video(2)))
    processor.save(tmp_path)
    for other in (pickle.loads(pickle.dumps(processor)), PromptProcessor.from_folder(tmp_path)):
        assert other.patches == processor.patches
        assert torch.equal(other([item]).input_ids_BL, processor([item]).input_ids_BL)


def test_pixel_bounds_replace_the_stored_ones(processor, tmp_path):
    processor.save(tmp_path)
    patches = PromptProcessor.from_folder(tmp_path, min_pixels=64, max_pixels=4096).patches
    assert (patches.min_pixels, patches.max_pixels) == (64, 4096)
