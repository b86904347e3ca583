"""Items to prompts: render `P(x)`, tokenise it, cut media into patches. No torchvision needed.

The wrapper is fixed (docs/method.md, Formats): one user turn, media in order, `instruction + " " + text`, one constant
sentence, the assistant header. Changing any of it means a new PROMPT_VERSION, because trained adapters depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from twn_lightning.backbone.media import Clip, load_video
from twn_lightning.backbone.pixels import PatchSettings, patchify_images
from twn_lightning.backbone.videos import patchify_videos, time_stamps
from twn_lightning.errors import DataError
from twn_lightning.patches import Patches
from twn_lightning.types import CotBatch, Item, PromptBatch

PROMPT_VERSION = 1
PROMPT_SUFFIX = "Reason in <think></think>, then summarise in <answer></answer>."
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
START_OF_TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"
RESERVED = (IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END, START_OF_TURN, END_OF_TURN, "<|endoftext|>")
ANSWER_CLOSE = "</answer>"
DEFAULT_MAX_FRAMES = 8
_LONGEST_KEPT = 20_000
"""Characters of a text whose tokens are remembered."""


class PromptProcessor:
    """Renders items with a tokenizer's chat template and cuts their media into patches.

    Args:
        tokenizer: a tokenizer with a chat template and Qwen3-VL's special tokens.
        patches: how pixels become patches (size, merge, normalisation, pixel budget).
        max_frames: frames taken of a video.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, patches: PatchSettings, max_frames: int = DEFAULT_MAX_FRAMES
    ) -> None:
        self.tokenizer = tokenizer
        self.patches = patches
        self.max_frames = max_frames
        self.pad_id = tokenizer.pad_token_id
        self.eot_id = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        self.image_id = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        self.video_id = tokenizer.convert_tokens_to_ids(VIDEO_PAD)
        self.vision_start_id = tokenizer.convert_tokens_to_ids(VISION_START)
        self.vision_end_id = tokenizer.convert_tokens_to_ids(VISION_END)
        self._template = lru_cache(maxsize=4096)(self._apply_template)
        self._tokenise = lru_cache(maxsize=65_536)(self._encode)

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes get a processor with fresh caches, which cannot be pickled."""
        return type(self), (self.tokenizer, self.patches, self.max_frames)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        revision: str | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_frames: int = DEFAULT_MAX_FRAMES,
    ) -> PromptProcessor:
        """Load tokenizer and patch settings from a Hugging Face id or a local folder."""
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
        patches = PatchSettings.from_folder(folder, revision, min_pixels=min_pixels, max_pixels=max_pixels)
        return cls(tokenizer, patches, max_frames)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer, chat template and preprocessor_config.json in Hugging Face's layout."""
        self.tokenizer.save_pretrained(folder)
        self.patches.save(folder)

    def render(self, item: Item) -> str:
        """The prompt `P(x)` as text, with one placeholder per image or video.

        Raises:
            DataError: the item's text contains a special token of the template.
        """
        body = f"{item.instruction} {item.text}".strip()
        if "<|" in body and (found := [token for token in RESERVED if token in body]):
            raise DataError(f"item '{item.key}': its text contains the special token {found[0]}; remove it")
        return self._template(tuple(m.kind for m in item.media)).replace("\x00", body)

    def _apply_template(self, kinds: tuple[str, ...]) -> str:
        content = [{"type": kind} for kind in kinds]
        content.append({"type": "text", "text": f"\x00\n{PROMPT_SUFFIX}"})
        messages = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _tokens(self, text: str) -> tuple[int, ...]:
        """Token ids; those of long texts, which seldom come again, are not kept."""
        return self._tokenise(text) if len(text) <= _LONGEST_KEPT else self._encode(text)

    def __call__(self, items: Sequence[Item]) -> PromptBatch:
        """Render, tokenise and left-pad items; flatten their media in row order.

        Raises:
            DataError: no items, an item whose media cannot be read, or a prompt longer than the backbone reads.
        """
        if not items:
            raise DataError("no items to encode: the batch is empty")
        images = [(item.key, m) for item in items for m in item.media if m.kind == "image"]
        clips = [
            (item.key, load_video(m, item.key, self.max_frames))
            for item in items
            for m in item.media
            if m.kind == "video"
        ]
        image_patches = patchify_images(images, self.patches)
        video_patches = patchify_videos(clips, self.patches)
        expansions = {
            self.image_id: iter(self._image_tokens(image_patches)),
            self.video_id: iter(self._video_tokens([clip for _, clip in clips], video_patches)),
        }
        rows = []
        for item in items:
            row: list[int] = []
            for token in self._tokens(self.render(item)):
                row.extend(next(expansions[token]) if token in expansions else (token,))
            if len(row) > self.tokenizer.model_max_length:
                raise DataError(
                    f"item '{item.key}': its prompt has {len(row):,} tokens, the backbone takes at most "
                    f"{self.tokenizer.model_max_length:,}. Shorten its text, or lower model.max_pixels or "
                    "model.max_frames"
                )
            rows.append(row)
        input_ids, mask = self._pad(rows, left=True)
        token_types = (input_ids == self.image_id).long() + 2 * (input_ids == self.video_id).long()
        return PromptBatch(
            input_ids,
            mask,
            token_types,
            image_patches,
            video_patches,
            images_per_row=tuple(sum(m.kind == "image" for m in item.media) for item in items),
            videos_per_row=tuple(sum(m.kind == "video" for m in item.media) for item in items),
        )

    def _image_tokens(self, patches: Patches | None) -> list[list[int]]:
        """What replaces each image's placeholder: one per merged patch."""
        if patches is None:
            return []
        return [[self.image_id] * count for count in (patches.grid_thw.prod(-1) // self.patches.merge_size**2).tolist()]

    def _video_tokens(self, clips: Sequence[Clip], patches: Patches | None) -> list[list[int]]:
        """What replaces each video's placeholder: per temporal patch a time stamp and its own vision pair.

        The pair around the placeholder stays, as in Hugging Face's processor.
        """
        if patches is None:
            return []
        tokens = []
        for clip, (_, height, width) in zip(clips, patches.grid_thw.tolist(), strict=True):
            frame = [
                self.vision_start_id,
                *[self.video_id] * (height * width // self.patches.merge_size**2),
                self.vision_end_id,
            ]
            stamps = time_stamps(clip, self.patches.temporal_patch_size)
            tokens.append([token for stamp in stamps for token in (*self._tokenise(stamp), *frame)])
        return tokens

    def _pad(self, rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
        """Token rows to padded ids and their mask, int64."""
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for i, row in enumerate(rows):
            span = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, span] = row
            mask[i, span] = 1
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def count_tokens(self, text: str) -> int:
        """Length of a text in tokens, without special tokens around it."""
        return len(self._tokens(text))

    def encode_cots(self, texts: Sequence[str | None]) -> CotBatch:
        """Teacher CoTs as right-padded ids.

        Args:
            texts: CoTs ending in `</answer>` (data.corpus.normalise_cot), or None for an input that has none.

        Returns:
            One row a text; the row of a None is empty: its mask is 0 throughout and it counts as not closed.

        Raises:
            DataError: a text that does not end in `</answer>`.
        """
        for text in texts:
            if text is not None and not text.endswith(ANSWER_CLOSE):
                raise DataError(f"a CoT must end in {ANSWER_CLOSE}, this one ends in {text[-40:]!r}")
        ids, mask = self._pad([self._tokens(text) if text else () for text in texts], left=False)
        return CotBatch(ids, mask, torch.tensor([text is not None for text in texts]))

    def decode_cots(self, cots: CotBatch) -> list[str]:
        """CoT ids back to text, for people: no path feeds this text to the model again."""
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(cots.ids_BT, cots.mask_BT, strict=True)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
