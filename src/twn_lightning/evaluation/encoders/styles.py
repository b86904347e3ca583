"""How other embedders word their prompts and size their media: what their published checkpoints were trained on.

Sources, read as reference: TIGER-AI-Lab/VLM2Vec 6e1e1d4 (src/model/processor.py and its Qwen2-VL);
QwenLM/Qwen3-VL-Embedding 8ce3aab (src/models/qwen3_vl_embedding.py); UME-R1 through the evaluation that
haoxiangzhao12138/PLUME 18db7e4 ships.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from twn_lightning.backbone.pixels import PatchSettings
from twn_lightning.backbone.processor import IMAGE_PAD, RESERVED, VIDEO_PAD
from twn_lightning.errors import DataError
from twn_lightning.types import Item, Media

DEFAULT_INSTRUCTION = "Represent the user's input."
EMPTY_INPUT = "NULL"
DISC_EMB, GEN_EMB = "<disc_emb>", "<gen_emb>"
UME_R1_PROMPT = (
    "Represent the above input text, images, videos, or any combination of the three as embeddings. First output the "
    "thinking process in <think> </think> tags and then summarize the entire input in a word or sentence. Finally, use "
    "the <gen_emb> tag to represent the entire input."
)
FRAME_TOKENS = (128, 768)
"""Fewest and most tokens of a frame in qwen-vl-utils, which the chat styles load their videos with."""
VIDEO_TOKENS = 7680
"""Tokens of a video in Qwen3-VL-Embedding's loader; a pair of frames gets an even share."""

Template = Callable[[list[dict[str, Any]]], str]
"""Chat messages to the rendered prompt, the assistant's header included."""


@dataclass(frozen=True)
class PromptStyle:
    """One embedder's conventions."""

    name: str
    version: int
    """Raised whenever the rendered prompt or the preprocessing of a style changes."""
    render: Callable[[Item, Template], str]
    """The prompt as text, with one placeholder per image or video."""
    positions: Literal["text", "multimodal"]
    """Whether visual tokens count one by one, as text does, or get the model's (time, height, width) positions."""
    frame_tokens: tuple[int, int] | None
    """Fewest and most tokens of a video frame; None: the pixel budget of images."""
    video_tokens: int | None = None
    """Tokens that a clip's frames share evenly; None: no common budget."""
    generates: bool = False
    """Whether the model writes a CoT, for which its language-model head must be in the checkpoint."""
    enlarge_slivers: bool = False
    """Whether an image with a side below one token becomes a square of two by two tokens."""

    def media(self, item: Item) -> Sequence[Media]:
        """The item's media in the order of its placeholders: chat styles put videos before images."""
        return item.media if self.positions == "text" else sorted(item.media, key=lambda m: m.kind != "video")

    def frame_settings(self, patches: PatchSettings, frames: int) -> PatchSettings:
        """The pixel budget of each frame of a clip."""
        if self.frame_tokens is None:
            return patches
        smallest, largest = (tokens * patches.factor**2 for tokens in self.frame_tokens)
        if self.video_tokens is not None:
            share = self.video_tokens * patches.factor**2 * patches.temporal_patch_size // frames
            largest = max(min(largest, share), int(smallest * 1.05))
        largest = min(largest, patches.max_pixels)
        return replace(patches, min_pixels=min(smallest, largest), max_pixels=largest)


def checked_text(item: Item, *parts: str) -> str:
    """The non-empty parts joined by a blank.

    Raises:
        DataError: a special token of the template in them.
    """
    text = " ".join(part for part in parts if part)
    found = [token for token in (*RESERVED, DISC_EMB, GEN_EMB) if token in text]
    if found:
        raise DataError(f"item '{item.key}': its text contains the special token {found[0]}; remove it")
    return text


def _render_vlm2vec(item: Item, template: Template) -> str:
    """`<|image_pad|> instruction text`: no chat template, no vision_start. White space of the text is kept."""
    text = checked_text(item, item.instruction, item.text)
    pads = " ".join(VIDEO_PAD if media.kind == "video" else IMAGE_PAD for media in item.media)
    # The reference writes "<token> " and collapses " \n": a body that begins with a line break follows at once.
    prompt = pads + ("" if not pads or not text or text[0].isspace() else " ") + text
    if not prompt.strip():
        raise DataError(f"item '{item.key}': it has neither text nor media, so there is nothing to embed; drop the row")
    return prompt


def _render_qwen3vl_embedding(item: Item, template: Template) -> str:
    """The instruction as the system message; videos, images, then text in the user turn."""
    instruction = checked_text(item, item.instruction).strip()
    if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
        instruction += "."
    content: list[dict[str, Any]] = [{"type": media.kind} for media in QWEN3VL_EMBEDDING.media(item)]
    text = checked_text(item, item.text)
    if text or not content:
        content.append({"type": "text", "text": text or EMPTY_INPUT})
    system = [{"type": "text", "text": instruction or DEFAULT_INSTRUCTION}]
    return template([{"role": "system", "content": system}, {"role": "user", "content": content}])


def _render_ume_r1(item: Item, template: Template) -> str:
    """One user turn: media, the body, `<disc_emb>`, and the request to think and end in `<gen_emb>`."""
    body = checked_text(item, item.instruction, item.text).strip()
    content: list[dict[str, Any]] = [{"type": media.kind} for media in UME_R1.media(item)]
    content.append({"type": "text", "text": f"{body}\n{DISC_EMB}\n{UME_R1_PROMPT}"})
    return template([{"role": "user", "content": content}])


VLM2VEC = PromptStyle("vlm2vec", 1, _render_vlm2vec, "text", frame_tokens=None, enlarge_slivers=True)
"""Without `<|vision_start|>` VLM2Vec's own Qwen2-VL finds no image to lay out, so all its positions are text positions;
newer transformers would lay the same prompt out in two dimensions, which its checkpoints have never seen."""
QWEN3VL_EMBEDDING = PromptStyle(
    "qwen3vl_embedding", 1, _render_qwen3vl_embedding, "multimodal", FRAME_TOKENS, VIDEO_TOKENS
)
"""Not verified: whether its tokenizer ends a prompt with `<|endoftext|>`. The checkpoint's own tokenizer decides, as it
does in the reference."""
UME_R1 = PromptStyle("ume_r1", 1, _render_ume_r1, "multimodal", FRAME_TOKENS, generates=True)
"""Not verified against UME-R1's own collator: the line break that its training data puts behind an image is left out,
as in the evaluation that PLUME ships."""
