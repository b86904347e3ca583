"""A local Hugging Face vision-language model that writes chains of thought, for `twn annotate`.

Qwen3-VL goes through this package's own processor, which needs no torchvision; every other model through its own. A
video is shown to those as its frames, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from twn_lightning.backbone.media import load_image, load_video
from twn_lightning.backbone.processor import ANSWER_CLOSE, DEFAULT_MAX_FRAMES, PromptProcessor
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.types import Item

TEACHER_PROMPT_VERSION = 1
TEACHER_PROMPT = (
    "The input above is to be found, or to find something, in a search. First reason step by step, in at most 200 "
    "words, about what it shows and what it asks for: <think>your reasoning</think>. Then name in one short sentence "
    "what it stands for: <answer>your summary</answer>. Write nothing before <think> and nothing after </answer>."
)
THINK_OPEN = "<think>"
_OWN_PROCESSOR = ("qwen3_vl",)


@dataclass(frozen=True)
class TeacherSettings:
    """Which teacher, and how it generates."""

    origin: str
    """A local folder or a hub id."""
    revision: str | None = None
    dtype: str = "auto"
    device: str = "cpu"
    max_new_tokens: int = 512
    max_frames: int = DEFAULT_MAX_FRAMES
    max_pixels: int | None = None
    """Of an image or a frame; Qwen3-VL only."""


class Prompts(Protocol):
    """Items to model inputs."""

    tokenizer: Any

    def texts(self, items: Sequence[Item]) -> list[str]:
        """The rendered prompts."""

    def batches(self, items: Sequence[Item]) -> list[tuple[list[int], dict[str, Tensor]]]:
        """Rows and model inputs, left-padded; rows that cannot share a call are in several."""


class HuggingFaceTeacher:
    """Writes CoTs with any model that `AutoModelForImageTextToText` loads from safetensors.

    Args:
        settings: which model, and how it generates.

    Raises:
        ConfigError: the model or its processor cannot be loaded; nothing that needs remote code is.
    """

    def __init__(self, settings: TeacherSettings) -> None:
        self.settings = settings
        local = Path(settings.origin).is_dir()
        if not local and settings.origin.startswith((".", "/", "~")):
            raise ConfigError(f"teacher {settings.origin}: there is no such folder")
        options: dict[str, Any] = {"revision": None if local else settings.revision, "trust_remote_code": False}
        dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
        try:
            config = AutoConfig.from_pretrained(settings.origin, **options)
            own = config.model_type in _OWN_PROCESSOR
            self.prompts: Prompts = _qwen_prompts(settings) if own else _ModelPrompts(settings, options)
            model = AutoModelForImageTextToText.from_pretrained(
                settings.origin, dtype=dtype, use_safetensors=True, **options
            )
        except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"teacher {settings.origin} (revision {settings.revision or 'default'}) cannot be loaded: {first}. It "
                "must be an image-text-to-text model in Hugging Face layout, with safetensors and without remote code; "
                "some processors need the extra `vision`"
            ) from error
        self.model = model.to(settings.device).eval()
        self._revision = getattr(config, "_commit_hash", None) or settings.revision

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its CoTs besides the item and the random numbers, as plain values."""
        return {
            "origin": self.settings.origin,
            "revision": self._revision,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "max_new_tokens": self.settings.max_new_tokens,
            "max_frames": self.settings.max_frames,
            "max_pixels": self.settings.max_pixels,
            "prompt_version": TEACHER_PROMPT_VERSION,
        }

    def count_tokens(self, text: str) -> int:
        """Length of a text in the teacher's tokens."""
        return len(self.prompts.tokenizer(text, add_special_tokens=False)["input_ids"])

    def generate(self, items: Sequence[Item], temperature: float = 0.0, seed: int = 0) -> list[str]:
        """One text per item, as generated: from `<think>` to `</answer>` where the model keeps to the format.

        Args:
            items: what to think about, each by itself.
            temperature: 0 is greedy.
            seed: of sampling; the caller's random state is left alone.

        Raises:
            DataError: an item whose media cannot be read.
        """
        texts: list[str] = [""] * len(items)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        # Where the template opens the tag itself, the model continues inside it.
        opened = [text.rstrip().endswith(THINK_OPEN) for text in self.prompts.texts(items)]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            for rows, inputs in self.prompts.batches(items):
                width = inputs["input_ids"].shape[1]
                generated = self.model.generate(
                    **{name: value.to(self.model.device) for name, value in inputs.items()},
                    max_new_tokens=self.settings.max_new_tokens,
                    stop_strings=[ANSWER_CLOSE],
                    tokenizer=self.prompts.tokenizer,
                    **sampling,
                )
                written = self.prompts.tokenizer.batch_decode(generated[:, width:], skip_special_tokens=False)
                for row, text in zip(rows, written, strict=True):
                    texts[row] = THINK_OPEN + text if opened[row] else text
        return texts


def _qwen_prompts(settings: TeacherSettings) -> _QwenPrompts:
    revision = None if Path(settings.origin).is_dir() else settings.revision
    loaded = PromptProcessor.from_folder(
        settings.origin, revision, max_pixels=settings.max_pixels, max_frames=settings.max_frames
    )
    return _QwenPrompts(loaded.tokenizer, loaded.patches, loaded.max_frames)


class _QwenPrompts(PromptProcessor):
    """This package's own prompts, with the teacher's sentence in place of the model's."""

    def _apply_template(self, kinds: tuple[str, ...]) -> str:
        content = [{"type": kind} for kind in kinds]
        content.append({"type": "text", "text": f"\x00\n\n{TEACHER_PROMPT}"})
        messages = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def texts(self, items: Sequence[Item]) -> list[str]:
        return [self.render(item) for item in items]

    def batches(self, items: Sequence[Item]) -> list[tuple[list[int], dict[str, Tensor]]]:
        prompts = self(items)
        inputs = {
            "input_ids": prompts.input_ids_BL,
            "attention_mask": prompts.attention_mask_BL,
            "mm_token_type_ids": prompts.mm_token_type_ids_BL,
            "pixel_values": prompts.pixel_values,
            "image_grid_thw": prompts.image_grid_thw,
            "pixel_values_videos": prompts.pixel_values_videos,
            "video_grid_thw": prompts.video_grid_thw,
        }
        return [(list(range(len(items))), {name: value for name, value in inputs.items() if value is not None})]


class _ModelPrompts:
    """Prompts through the model's own processor and chat template."""

    def __init__(self, settings: TeacherSettings, options: dict[str, Any]) -> None:
        self.processor = AutoProcessor.from_pretrained(settings.origin, **options)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.max_frames = settings.max_frames

    def texts(self, items: Sequence[Item]) -> list[str]:
        return [self._text(item, len(self._images(item))) for item in items]

    def batches(self, items: Sequence[Item]) -> list[tuple[list[int], dict[str, Tensor]]]:
        """Rows with equally many images share a call: processors differ in how they take others."""
        images = [self._images(item) for item in items]
        groups: dict[int, list[int]] = {}
        for row, found in enumerate(images):
            groups.setdefault(len(found), []).append(row)
        batches = []
        for count, rows in groups.items():
            text = [self._text(items[row], count) for row in rows]
            given = {"images": [images[row] for row in rows]} if count else {}
            # The chat template has written the tokens that begin a text.
            inputs = self.processor(text=text, **given, padding=True, return_tensors="pt", add_special_tokens=False)
            batches.append((rows, dict(inputs)))
        return batches

    def _text(self, item: Item, images: int) -> str:
        body = f"{item.instruction} {item.text}".strip()
        for token in self.tokenizer.all_special_tokens:
            if token in body:
                raise DataError(f"item '{item.key}': its text contains the special token {token}; remove it")
        content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": f"{body}\n\n{TEACHER_PROMPT}"}]
        messages = [{"role": "user", "content": content}]
        rendered: str = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return rendered

    def _images(self, item: Item) -> list[Image.Image]:
        """The item's images, and the frames of its videos."""
        found = []
        for media in item.media:
            if media.kind == "image":
                found.append(Image.fromarray(load_image(media, item.key)))
            else:
                found += [Image.fromarray(frame) for frame in load_video(media, item.key, self.max_frames).frames]
        return found
