"""Prompts of loaded tasks in the styles of other embedders, and what the mirror's first rows say in them."""

from __future__ import annotations

from pathlib import Path

from tests.support.mmeb_files import annotation_path, write_image, write_jsonl
from tests.support.mmeb_fixtures import MirrorPaths
from twn_lightning.backbone.pixels import PatchSettings
from twn_lightning.backbone.tiny import tiny_tokenizer
from twn_lightning.benchmark import EvalTask, get_task, load_task
from twn_lightning.evaluation.encoders.preprocessing import StyledProcessor
from twn_lightning.evaluation.encoders.styles import QWEN3VL_EMBEDDING, VLM2VEC
from twn_lightning.types import Item

PATCHES = PatchSettings(14, 2, 2, 28 * 28 * 4, 28 * 28 * 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
ASKED = "What is at № 0, près de l'étoile 星? "
"""Text of the first image query; its last blank survives, as the line break is added after blanks were dropped."""
CHOOSE = (
    "Given a video and a question, select the most accurate answer from the provided candidates. "
    "Return only the exact text of your chosen answer."
)
OPTIONS = (
    "(A) a man slices an onion 0 (0)\n(B) ein Hund läuft über die Straße 1 (1)\n(C) 两只猫在沙发上睡觉 2 (2)\n"
    '(D) she says "hello", then waves 👋 3 (3)\n(E)   a caption with outer blanks\n 4 (4)'
)
LETTERED = (
    "A. a man slices an onion 0 (0). B. ein Hund läuft über die Straße 1 (1). C. 两只猫在沙发上睡觉 2 (2). "
    'D. she says "hello", then waves 👋 3 (3). E.   a caption with outer blanks\n 4 (4).'
)
BLOCK = (
    "A. a man slices an onion 0 (0).\nB. ein Hund läuft über die Straße 1 (1).\nC. 两只猫在沙发上睡觉 2 (2).\n"
    'D. she says "hello", then waves 👋 3 (3).'
)
LONG_NAME = "a long name a long name a long name a long name a long name a long name 0.jpg"
SEEN, WATCHED = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"


def load(name: str, mirror: MirrorPaths, protocol: str = "vlm2vec") -> EvalTask:
    return load_task(name, mirror.annotations_root, mirror.media_root, protocol, strict_counts=False)


def candidate(task: EvalTask, key: str) -> Item:
    return next(item for item in task.candidates if item.key == key)


def vlm2vec(item: Item) -> str:
    """The item's prompt in the style of VLM2Vec."""
    return StyledProcessor(tiny_tokenizer(), PATCHES, VLM2VEC, "qwen2_vl", 8).render(item)


def qwen3(item: Item) -> str:
    """The item's prompt in the style of Qwen3-VL-Embedding."""
    return StyledProcessor(tiny_tokenizer(), PATCHES, QWEN3VL_EMBEDDING, "qwen3_vl", 8).render(item)


def turns(system: str, user: str) -> str:
    """A prompt of Qwen3-VL-Embedding from its two messages."""
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def write_captioned(root: Path) -> MirrorPaths:
    """WebQA with two rows: a caption followed by an empty one, and a blank one followed by a caption."""
    task, mirror = get_task("WebQA"), MirrorPaths(root / "annotations", root / "media")
    rows = [
        {"qry_inst": "Find", "qry_text": "it", "tgt_inst": "Show:", "tgt_text": texts, "tgt_img_path": paths}
        for texts, paths in (([" a \n", ""], ["0.png", "1.png"]), ([" ", "b "], ["2.png", "3.png"]))
    ]
    for number in range(4):
        write_image(mirror.media_root / task.media / f"{number}.png")
    write_jsonl(annotation_path(mirror.annotations_root, task, suffix=".jsonl"), rows)
    return mirror
