"""Prompts to the letter, and pixels as the Qwen2-VL family's own image processor cuts them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from twn_lightning.backbone.pixels import PatchSettings
from twn_lightning.backbone.tiny import tiny_tokenizer
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.encoders.preprocessing import StyledProcessor
from twn_lightning.evaluation.encoders.styles import QWEN3VL_EMBEDDING, UME_R1, UME_R1_PROMPT, VLM2VEC
from twn_lightning.types import Item, Media

PATCHES = PatchSettings(14, 2, 2, 28 * 28 * 4, 28 * 28 * 64, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
IMAGE, VIDEO = Media("image", np.zeros((28, 28, 3), np.uint8)), Media("video", np.zeros((2, 28, 28, 3), np.uint8))


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint("qwen2_vl"))


@pytest.fixture
def processor(tokenizer):
    def make(style=VLM2VEC, architecture="qwen2_vl", patches=PATCHES):
        return StyledProcessor(tokenizer, patches, style, architecture, max_frames=8)

    return make


def run(processor: StyledProcessor, *items: Item):
    return processor(items, [processor.tokenise(processor.render(item)) for item in items])


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


SEEN, WATCHED = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
ANSWER = "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (Item("q", "Find a page:", "blue", (IMAGE,)), "<|image_pad|> Find a page: blue"),
        (Item("q", "\nIdentify the country\n", "", (IMAGE,)), "<|image_pad|>\nIdentify the country\n"),
        (Item("q", "\nAnswer:", "Who?\n", (IMAGE,)), "<|image_pad|>\nAnswer: Who?\n"),
        (Item("q", "Watch.", "", (VIDEO,)), "<|video_pad|> Watch."),
        (Item("q", "", "", (IMAGE,)), "<|image_pad|>"),
        (Item("q", "", "a cat"), "a cat"),
        (Item("q", "Compare", "them", (VIDEO, IMAGE)), "<|video_pad|> <|image_pad|> Compare them"),
    ],
)
def test_vlm2vec_prompts(item, expected, processor):
    assert processor().render(item) == expected


@pytest.mark.parametrize(
    ("item", "system", "user"),
    [
        (Item("q", "Find a page", "blue", (IMAGE,)), "Find a page.", f"{SEEN}blue"),
        (Item("q", " Who is it? ", "", (IMAGE, VIDEO)), "Who is it?", f"{WATCHED}{SEEN}"),
        (Item("q", "", "a cat"), "Represent the user's input.", "a cat"),
        (Item("q", "", ""), "Represent the user's input.", "NULL"),
    ],
)
def test_qwen3vl_embedding_prompts(item, system, user, processor):
    found = processor(QWEN3VL_EMBEDDING, "qwen3_vl").render(item)
    assert found == turn("system", system) + turn("user", user) + ANSWER


def test_ume_r1_prompts(processor):
    found = processor(UME_R1).render(Item("q", "\nFind", "blue\n", (IMAGE,)))
    assert found == turn("user", f"{SEEN}Find blue\n<disc_emb>\n{UME_R1_PROMPT}") + ANSWER


def test_what_cannot_be_rendered_is_refused(processor, tokenizer):
    with pytest.raises(DataError, match=r"item 'q': its text contains the special token <\|image_pad\|>"):
        processor().render(Item("q", "Find", "<|image_pad|> this"))
    with pytest.raises(DataError, match="item 'q': its text contains the special token <gen_emb>"):
        processor(UME_R1).render(Item("q", "Find", "<gen_emb>"))
    with pytest.raises(DataError, match="item 'q': it has neither text nor media"):
        processor().render(Item("q", "", " "))
    textual = processor(QWEN3VL_EMBEDDING)
    textual.tokenizer = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    textual.tokenizer.chat_template = "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}"
    with pytest.raises(ConfigError, match=r"has 1 media for <.image_pad.> and its prompt has 0"):
        textual.render(Item("q", "Find", "it", (IMAGE,)))
    textual.tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template, which style 'qwen3vl_embedding' needs"):
        textual.render(Item("q", "Find", "it"))


@pytest.mark.parametrize("size", [(28, 28), (56, 84), (50, 75), (300, 29), (700, 500)], ids=str)
def test_images_equal_hugging_face(size, processor):
    image = pixels(*size)
    inputs = run(processor(QWEN3VL_EMBEDDING), Item("q", "Find", "it", (Media("image", image),)))
    theirs = Qwen2VLImageProcessorPil(
        size={"shortest_edge": PATCHES.min_pixels, "longest_edge": PATCHES.max_pixels},
        image_mean=list(PATCHES.image_mean),
        image_std=list(PATCHES.image_std),
    )([image], return_tensors="pt")
    assert torch.equal(inputs.prompts.image_grid_thw, theirs["image_grid_thw"])
    torch.testing.assert_close(inputs.prompts.pixel_values, theirs["pixel_values"], atol=1e-5, rtol=0)
    tokens = int(theirs["image_grid_thw"].prod()) // 4
    assert int((inputs.prompts.mm_token_type_ids_BL == 1).sum()) == tokens


def test_a_clip_is_its_frames_cut_as_images_side_by_side_in_time(processor):
    clip = pixels(3, 50, 75)
    inputs = run(processor(), Item("q", "Watch", "", (Media("video", clip),)))
    assert inputs.prompts.video_grid_thw.tolist()[0][0] == 2
    alone = [run(processor(), Item("q", "", "", (Media("image", f),))).prompts.pixel_values for f in clip]
    first, second = (inputs.prompts.pixel_values_videos.chunk(2)[i].view(-1, 3, 2, 14, 14) for i in (0, 1))
    for patches, slot, frame in ((first, 0, 0), (first, 1, 1), (second, 0, 2), (second, 1, 2)):
        torch.testing.assert_close(patches[:, :, slot], alone[frame].view(-1, 3, 2, 14, 14)[:, :, slot])


@pytest.mark.parametrize("size", [(27, 300), (1, 1), (5, 2000)], ids=str)
def test_vlm2vec_enlarges_slivers_to_a_square(size, processor):
    sliver = pixels(*size)
    found = run(processor(), Item("q", "", "x", (Media("image", sliver),))).prompts
    square = np.asarray(Image.fromarray(sliver).resize((56, 56)))
    expected = run(processor(), Item("q", "", "x", (Media("image", square),))).prompts
    assert found.image_grid_thw.tolist() == [[1, 4, 4]]
    assert torch.equal(found.pixel_values, expected.pixel_values)


def test_other_styles_refuse_what_the_model_refuses(processor):
    with pytest.raises(DataError, match="item 'q': 2000 x 5 pixels have an aspect ratio above 200"):
        run(processor(QWEN3VL_EMBEDDING), Item("q", "", "x", (Media("image", pixels(5, 2000)),)))


def test_frames_share_the_budget_of_a_video():
    patches = replace(PATCHES, max_pixels=10**9)
    tokens = [
        QWEN3VL_EMBEDDING.frame_settings(patches, frames).max_pixels // patches.factor**2 for frames in (1, 8, 64, 500)
    ]
    assert tokens == [768, 768, 240, 134]
    assert UME_R1.frame_settings(patches, 500).max_pixels // patches.factor**2 == 768
    assert VLM2VEC.frame_settings(patches, 500) == patches
    assert QWEN3VL_EMBEDDING.frame_settings(PATCHES, 8).max_pixels == PATCHES.max_pixels


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_videos_are_one_run_or_stamped_frames(architecture, processor, tokenizer):
    clip = Item("q", "", "x", (Media("video", pixels(4, 56, 56)),))
    prompts = run(processor(VLM2VEC, architecture), clip).prompts
    text = tokenizer.decode(prompts.input_ids_BL[0])
    run_of = "<|video_pad|>" * 4
    if architecture == "qwen3_vl":
        frame = f"<|vision_start|>{run_of}<|vision_end|>"
        assert text == f"<0.2 seconds>{frame}<1.2 seconds>{frame} x"
    else:
        assert text == f"{run_of * 2} x"


@pytest.mark.parametrize(("frames", "expected"), [(4, 1.0), (8, 1.0), (15, 2.0)])
def test_seconds_of_a_temporal_patch_follow_the_sampling(frames, expected, processor):
    inputs = run(processor(), Item("q", "", "x", (Media("video", pixels(frames, 28, 28)),)))
    assert inputs.seconds_per_grid.tolist() == [expected]


def test_rows_are_padded_on_the_left_and_media_counted(processor):
    short, long = Item("a", "", "x", (IMAGE,)), Item("b", "", "many words", (VIDEO, IMAGE))
    prompts = run(processor(), short, long).prompts
    assert prompts.attention_mask_BL[:, -1].tolist() == [1, 1]
    assert prompts.attention_mask_BL[0, 0] == 0
    assert (prompts.images_per_row, prompts.videos_per_row) == ((1, 1), (0, 1))


def test_a_tokenizer_without_the_tokens_is_refused():
    found = StyledProcessor(tiny_tokenizer(), PATCHES, UME_R1, "qwen2_vl", 8)
    with pytest.raises(ConfigError, match="no token <disc_emb>, which style 'ume_r1' needs"):
        found.token_id("<disc_emb>")
