"""Teachers for annotation: Qwen3-VL through this package's processor, others through their own, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from twn_lightning.backbone.teacher import TEACHER_PROMPT, HuggingFaceTeacher, TeacherSettings
from twn_lightning.backbone.tiny import build_tiny, tiny_tokenizer
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.types import Item, Media


@pytest.fixture(scope="module")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    model, processor = build_tiny()
    model.save_pretrained(folder)
    processor.save(folder)
    return folder


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)


ITEMS = [
    Item("image", "Find", "this", (Media("image", pixels(16, 16)),)),
    Item("text", "", "words"),
    Item("video", "", "it", (Media("video", pixels(4, 16, 16)),)),
]


def test_a_qwen3vl_teacher_sees_media_and_samples_by_its_seed(tiny_teacher: Path) -> None:
    teacher = HuggingFaceTeacher(TeacherSettings(str(tiny_teacher), max_new_tokens=12))
    prompt = teacher.prompts.texts(ITEMS)[0]
    assert TEACHER_PROMPT in prompt
    assert "<|image_pad|>" in prompt
    greedy = teacher.generate(ITEMS)
    assert teacher.generate(ITEMS) == greedy
    state = torch.random.get_rng_state()
    sampled = teacher.generate(ITEMS, 0.9, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert teacher.generate(ITEMS, 0.9, seed=3) == sampled
    assert teacher.generate(ITEMS, 0.9, seed=4) != sampled
    with pytest.raises(DataError, match="special token"):
        teacher.generate([Item("x", "", "<|im_end|>")])


def test_a_teacher_stops_behind_its_answer_and_continues_an_open_tag(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = HuggingFaceTeacher(TeacherSettings(str(tiny_teacher), max_new_tokens=40))
    ids = teacher.prompts.tokenizer(" so </think><answer> x </answer> and more")["input_ids"]

    def forced(batch: int, prefix: torch.Tensor) -> list[int]:
        written = len(prefix) - width
        return [ids[min(written, len(ids) - 1)]]

    width = next(iter(teacher.prompts.batches(ITEMS[1:2])))[1]["input_ids"].shape[1]
    original = teacher.model.generate
    monkeypatch.setattr(teacher.model, "generate", lambda **inputs: original(**inputs, prefix_allowed_tokens_fn=forced))
    written = teacher.generate(ITEMS[1:2])[0]
    assert written.startswith(" so </think><answer> x </answer>")
    assert "more" not in written
    opened = [text + "<think>\n" for text in teacher.prompts.texts(ITEMS[1:2])]
    monkeypatch.setattr(teacher.prompts, "texts", lambda items: opened)
    assert teacher.generate(ITEMS[1:2])[0] == "<think>" + written


def test_other_models_go_through_their_own_processor(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", special=True)]})
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, **vision},
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 2, **text},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    template = tokenizer.chat_template.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    LlavaProcessor(
        CLIPImageProcessorPil(**size), tokenizer, patch_size=8, chat_template=template, num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    ).save_pretrained(tmp_path)  # fmt: skip
    teacher = HuggingFaceTeacher(TeacherSettings(str(tmp_path), max_new_tokens=4, max_frames=2))
    assert [text.count("<image>") for text in teacher.prompts.texts(ITEMS)] == [1, 0, 2]
    together = teacher.generate(ITEMS)
    assert together == [teacher.generate([item])[0] for item in ITEMS]
    with pytest.raises(DataError, match="special token <image>"):
        teacher.generate([Item("x", "", "an <image> here")])


@pytest.mark.parametrize("origin", ["./nowhere", "nobody/nothing"])
def test_a_teacher_that_cannot_be_had(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"no such folder|cannot be loaded"):
        HuggingFaceTeacher(TeacherSettings(origin))
