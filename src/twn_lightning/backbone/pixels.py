"""Images to patches in Qwen3-VL's order, in plain torch and Pillow.

Images of one size are cut together, so a batch of small images costs one pass instead of one call per image.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_base import ImageProcessingMixin

from twn_lightning.backbone.media import load_image
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.patches import Patches
from twn_lightning.types import Media

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class PatchSettings:
    """What `preprocessor_config.json` says of patches, plus the pixel budget."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    @property
    def factor(self) -> int:
        """Both sides of a resized image are multiples of this."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_folder(
        cls, folder: str | Path, revision: str | None, *, min_pixels: int | None, max_pixels: int | None
    ) -> PatchSettings:
        """Read the settings of a Hugging Face id or local folder; given pixel bounds replace the stored ones."""
        # The dictionary, not the processor: some releases of transformers cannot make one without torchvision.
        config, _ = ImageProcessingMixin.get_image_processor_dict(folder, revision=revision)
        size = config.get("size", {})
        try:
            return cls(
                patch_size=config["patch_size"],
                merge_size=config["merge_size"],
                temporal_patch_size=config["temporal_patch_size"],
                min_pixels=min_pixels or size.get("shortest_edge") or config["min_pixels"],
                max_pixels=max_pixels or size.get("longest_edge") or config["max_pixels"],
                image_mean=tuple(config["image_mean"]),
                image_std=tuple(config["image_std"]),
            )
        except KeyError as error:
            raise ConfigError(
                f"the image processor of {folder} has no {error}; it has {', '.join(sorted(config))}. "
                "Is it a Qwen-VL model?"
            ) from error

    def as_patches(self, bytes_PC: Tensor, grid_thw: Tensor, repeats: int = 1) -> Patches:
        """Cut patches with the normalisation that they are to be read with."""
        return Patches(bytes_PC, grid_thw, self.image_mean, self.image_std, repeats)

    def save(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json`."""
        config: dict[str, Any] = {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "patch_size": self.patch_size,
            "merge_size": self.merge_size,
            "temporal_patch_size": self.temporal_patch_size,
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }
        Path(folder, "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n")


def image_size(height: int, width: int, settings: PatchSettings) -> tuple[int, int]:
    """Nearest size whose sides are multiples of the factor and whose area is within the pixel budget.

    Reference: `smart_resize` of transformers' Qwen2-VL image processor.
    """
    factor = settings.factor
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > settings.max_pixels:
        scale = math.sqrt(height * width / settings.max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < settings.min_pixels:
        scale = math.sqrt(settings.min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def check_aspect_ratio(height: int, width: int, key: str) -> None:
    """Refuse media that Qwen3-VL refuses.

    Raises:
        DataError: one side is over 200 times the other; names the item.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise DataError(
            f"item '{key}': {width} x {height} pixels have an aspect ratio above {MAX_ASPECT_RATIO}, which Qwen3-VL "
            "refuses. Crop or drop it"
        )


def patchify_images(media: Sequence[tuple[str, Media]], settings: PatchSettings) -> Patches | None:
    """Cut images into flattened patches.

    Args:
        media: (item key, image) in row order; the key is for error messages.
        settings: patch geometry.

    Returns:
        The images' patches, or None where there are no images.

    Raises:
        DataError: an image that cannot be read, or is too long and thin.
    """
    if not media:
        return None
    arrays = [load_resized(key, image, settings) for key, image in media]
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, array in enumerate(arrays):
        by_size[array.shape[0], array.shape[1]].append(i)
    patches: list[Tensor] = [torch.empty(0)] * len(arrays)
    grids = torch.empty((len(arrays), 3), dtype=torch.long)
    for (height, width), rows in by_size.items():
        batch = torch.from_numpy(np.stack([arrays[r] for r in rows]))
        cut = cut_patches(batch[:, None], settings, temporal=1)
        grids[rows] = torch.tensor((1, height // settings.patch_size, width // settings.patch_size))
        if len(by_size) == 1:
            return settings.as_patches(cut.flatten(0, 1), grids, repeats=settings.temporal_patch_size)
        for row, row_patches in zip(rows, cut, strict=True):
            patches[row] = row_patches
    return settings.as_patches(torch.cat(patches), grids, repeats=settings.temporal_patch_size)


def load_resized(key: str, image: Media, settings: PatchSettings) -> np.ndarray:
    """An image at the size its patches are cut from: uint8 RGB (height, width, 3).

    Args:
        key: the item, for messages.
        image: pixels, a file, or an encoded image.
        settings: patch geometry and pixel budget.

    Raises:
        DataError: an image that cannot be read, or is too long and thin.
    """
    pixels = load_image(image, key)
    height, width = pixels.shape[:2]
    check_aspect_ratio(height, width, key)
    size = image_size(height, width, settings)
    if size == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))


def cut_patches(frames: Tensor, settings: PatchSettings, temporal: int) -> Tensor:
    """Cut frames into patches, merge blocks of them kept together.

    Frames that do not fill a temporal patch are filled up with the last one.

    Args:
        frames: uint8 (N, frames, H, W, 3), H and W multiples of the settings' factor.
        settings: patch geometry.
        temporal: frames of a patch.

    Returns:
        uint8 (N, patches, 3 * temporal * patch * patch).
    """
    patch, merge = settings.patch_size, settings.merge_size
    missing = -frames.shape[1] % temporal
    if missing:
        frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
    count, total, height, width, _ = frames.shape
    rows, columns = height // patch // merge, width // patch // merge
    blocks = frames.reshape(count, total // temporal, temporal, rows, merge, patch, columns, merge, patch, 3)
    # (n, t, tp, gh, mh, ph, gw, mw, pw, c) -> (n, t, gh, gw, mh, mw, c, tp, ph, pw)
    return blocks.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8).reshape(count, -1, 3 * temporal * patch * patch)
