"""Items to model inputs in another embedder's style; torchvision is not needed.

Shape letters: B rows, L padded prompt length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from twn_lightning.backbone.media import Clip, load_image, load_video
from twn_lightning.backbone.pixels import PatchSettings, check_aspect_ratio, cut_patches, image_size, patchify_images
from twn_lightning.backbone.processor import IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START
from twn_lightning.backbone.videos import time_stamps
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encoders.styles import PromptStyle
from twn_lightning.patches import Patches
from twn_lightning.types import Item, Media, PromptBatch

STAMPED_FRAMES = ("qwen3_vl",)
"""Architectures that write a time stamp and a vision pair around each frame; the others write a video as one run."""


@dataclass
class ModelInputs:
    """A batch of prompts and what else its positions need."""

    prompts: PromptBatch
    seconds_per_grid: Tensor | None
    """(videos,) seconds that one temporal patch covers; Qwen2.5-VL spaces time by it."""

    def to(self, device: torch.device) -> ModelInputs:
        seconds = self.seconds_per_grid
        return ModelInputs(self.prompts.to(device), None if seconds is None else seconds.to(device))


class StyledProcessor:
    """Renders, tokenises and cuts items for a Qwen-VL model of any generation.

    Args:
        tokenizer: the checkpoint's.
        patches: patch geometry and the pixel budget of images.
        style: prompt and media conventions.
        architecture: `model_type` of the checkpoint: qwen2_vl, qwen2_5_vl or qwen3_vl.
        max_frames: frames taken of a video that is not frames already.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        patches: PatchSettings,
        style: PromptStyle,
        architecture: str,
        max_frames: int,
    ) -> None:
        self.tokenizer, self.patches, self.style = tokenizer, patches, style
        self.architecture, self.max_frames = architecture, max_frames
        self.image_id, self.video_id, self.start_id, self.end_id = (
            self.token_id(token) for token in (IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END)
        )
        self.pad_id = tokenizer.pad_token_id

    def token_id(self, token: str) -> int:
        """The id of a special token.

        Raises:
            ConfigError: the tokenizer does not have it.
        """
        found = self.tokenizer.get_vocab().get(token)
        if found is None:
            raise ConfigError(
                f"the tokenizer has no token {token}, which style '{self.style.name}' needs: was this checkpoint "
                "trained in that style?"
            )
        return int(found)

    def render(self, item: Item) -> str:
        """The prompt as text, with one placeholder per image or video.

        Raises:
            DataError: reserved tokens in the item's text, or nothing to embed.
            ConfigError: the chat template drops or repeats media.
        """
        text = self.style.render(item, self._template)
        kinds = [media.kind for media in item.media]
        for token, wanted in ((IMAGE_PAD, kinds.count("image")), (VIDEO_PAD, kinds.count("video"))):
            if text.count(token) != wanted:
                raise ConfigError(
                    f"item '{item.key}' has {wanted} media for {token} and its prompt has {text.count(token)}: the "
                    "tokenizer's chat template is not that of a vision-language model"
                )
        return text

    def _template(self, messages: list[dict[str, Any]]) -> str:
        if self.tokenizer.chat_template is None:
            raise ConfigError(f"the tokenizer has no chat template, which style '{self.style.name}' needs")
        rendered: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return rendered

    def tokenise(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, with what the checkpoint's tokenizer adds at its ends."""
        return list(self.tokenizer(text)["input_ids"])

    def __call__(self, items: Sequence[Item], ids_N: Sequence[Sequence[int]]) -> ModelInputs:
        """Decode media and left-pad prompts.

        Args:
            items: of one batch.
            ids_N: their prompts from `tokenise`.

        Raises:
            DataError: media that cannot be read; names the item.
        """
        ordered = [(item.key, media) for item in items for media in self.style.media(item)]
        images = [(key, self._image(media, key)) for key, media in ordered if media.kind == "image"]
        clips = [(key, load_video(m, key, self.max_frames)) for key, m in ordered if m.kind == "video"]
        image_patches, video_patches = patchify_images(images, self.patches), self._patchify_clips(clips)
        expansions = {
            self.image_id: self._image_runs(image_patches),
            self.video_id: self._video_runs(clips, video_patches),
        }
        rows = [
            [t for token in ids for t in (next(expansions[token]) if token in expansions else (token,))]
            for ids in ids_N
        ]
        input_ids, mask = self._left_padded(rows)
        prompts = PromptBatch(
            input_ids,
            mask,
            (input_ids == self.image_id).long() + 2 * (input_ids == self.video_id).long(),
            image_patches,
            video_patches,
            images_per_row=tuple(sum(m.kind == "image" for m in item.media) for item in items),
            videos_per_row=tuple(sum(m.kind == "video" for m in item.media) for item in items),
        )
        seconds = [self.patches.temporal_patch_size / _sampled_rate(clip) for _, clip in clips]
        return ModelInputs(prompts, torch.tensor(seconds) if seconds else None)

    def _image(self, media: Media, key: str) -> Media:
        """Pixels of an image, enlarged where the style does so."""
        pixels = load_image(media, key)
        if self.style.enlarge_slivers and min(pixels.shape[:2]) < self.patches.factor:
            side = 2 * self.patches.factor
            pixels = np.asarray(Image.fromarray(pixels).resize((side, side)))
        return Media("image", pixels)

    def _patchify_clips(self, clips: Sequence[tuple[str, Clip]]) -> Patches | None:
        """Frames resized one by one, as qwen-vl-utils and Qwen2-VL's image processor do, and cut."""
        if not clips:
            return None
        patches, grids = [], []
        for key, clip in clips:
            count, height, width = clip.frames.shape[:3]
            check_aspect_ratio(height, width, key)
            settings = self.style.frame_settings(self.patches, count)
            size = image_size(height, width, settings)
            frames = clip.frames if size == (height, width) else _resized(clip.frames, size)
            patches.append(cut_patches(torch.from_numpy(frames)[None], settings, settings.temporal_patch_size)[0])
            side = settings.patch_size
            grids.append((-(-count // settings.temporal_patch_size), size[0] // side, size[1] // side))
        return self.patches.as_patches(torch.cat(patches), torch.tensor(grids))

    def _image_runs(self, patches: Patches | None) -> Iterator[list[int]]:
        grids = patches.grid_thw.tolist() if patches else []
        return iter([[self.image_id] * self._merged(*grid) for grid in grids])

    def _video_runs(self, clips: Sequence[tuple[str, Clip]], patches: Patches | None) -> Iterator[list[int]]:
        """What replaces each video's placeholder."""
        grids = patches.grid_thw.tolist() if patches else []
        if self.architecture not in STAMPED_FRAMES:
            return iter([[self.video_id] * self._merged(*grid) for grid in grids])
        runs = []
        for (_, clip), (_, height, width) in zip(clips, grids, strict=True):
            frame = [self.start_id, *[self.video_id] * self._merged(1, height, width), self.end_id]
            stamps = self.tokenizer(time_stamps(clip, self.patches.temporal_patch_size), add_special_tokens=False)
            runs.append([token for stamp in stamps["input_ids"] for token in (*stamp, *frame)])
        return iter(runs)

    def _merged(self, time: int, height: int, width: int) -> int:
        return time * height * width // self.patches.merge_size**2

    def _left_padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
            mask[i, width - len(row) :] = 1
        return ids, mask


def _resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(f).resize(size[::-1], Image.Resampling.BICUBIC)) for f in frames])


def _sampled_rate(clip: Clip) -> float:
    """Frames a second after sampling."""
    span = clip.indices[-1] - clip.indices[0]
    return clip.frames_per_second * (len(clip.indices) - 1) / span if span else clip.frames_per_second
