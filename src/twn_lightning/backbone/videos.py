"""Videos to patches and time stamps as Qwen3-VL wants them, with or without torchvision.

Where torchvision imports, Hugging Face's processor cuts the patches; elsewhere the torch path below does, and a parity
test holds the two together. The pixel budget is the images', for every frame: one knob for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twn_lightning.backbone.media import Clip
from twn_lightning.backbone.pixels import PatchSettings, check_aspect_ratio, cut_patches
from twn_lightning.patches import Patches


def patchify_videos(clips: Sequence[tuple[str, Clip]], settings: PatchSettings) -> Patches | None:
    """Cut clips into flattened spatio-temporal patches.

    Args:
        clips: (item key, clip) in row order; the key is for error messages.
        settings: patch geometry and the pixel budget of a frame.

    Returns:
        The clips' patches, or None where there are no clips.

    Raises:
        DataError: an aspect ratio beyond Qwen3-VL's limit.
    """
    if not clips:
        return None
    patches, grids = [], []
    huggingface = huggingface_processor()
    for key, clip in clips:
        height, width = clip.frames.shape[1:3]
        check_aspect_ratio(height, width, key)
        frames = _with_full_patch(torch.from_numpy(clip.frames), settings)
        clip_patches, grid = (
            _cut_clip_huggingface(huggingface, frames, settings) if huggingface else _cut_clip(frames, settings)
        )
        patches.append(clip_patches)
        grids.append(grid)
    return settings.as_patches(torch.cat(patches), torch.tensor(grids))


def _with_full_patch(frames: Tensor, settings: PatchSettings) -> Tensor:
    """(F, H, W, 3) -> (F', 3, H, W): a clip shorter than one temporal patch repeats its last frame."""
    missing = max(0, settings.temporal_patch_size - len(frames))
    return torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)]).permute(0, 3, 1, 2)


def _cut_clip(frames_FCHW: Tensor, settings: PatchSettings) -> tuple[Tensor, tuple[int, int, int]]:
    count, _, height, width = frames_FCHW.shape
    size = video_size(count, height, width, settings)
    if size != (height, width):
        # Resizing uint8 rounds where torchvision rounds.
        frames_FCHW = F.interpolate(frames_FCHW, size=size, mode="bicubic", antialias=True)
    grid = (
        -(-count // settings.temporal_patch_size),
        size[0] // settings.patch_size,
        size[1] // settings.patch_size,
    )
    return cut_patches(frames_FCHW.permute(0, 2, 3, 1)[None], settings, settings.temporal_patch_size)[0], grid


def _cut_clip_huggingface(
    processor: Any, frames_FCHW: Tensor, settings: PatchSettings
) -> tuple[Tensor, tuple[int, int, int]]:
    count = len(frames_FCHW)
    # Some releases cap the pixels of a frame by default, some warn when not told; others do not know the argument.
    cap = {"cap_pixels_per_frame": False} if hasattr(processor, "cap_pixels_per_frame") else {}
    output = processor(
        videos=[frames_FCHW],
        do_sample_frames=False,
        size={"shortest_edge": settings.min_pixels * count, "longest_edge": settings.max_pixels * count},
        patch_size=settings.patch_size,
        merge_size=settings.merge_size,
        temporal_patch_size=settings.temporal_patch_size,
        do_rescale=False,
        do_normalize=False,
        return_tensors="pt",
        **cap,
    )
    return output["pixel_values_videos"], tuple(output["video_grid_thw"][0].tolist())


@cache
def huggingface_processor() -> Any | None:
    """Hugging Face's video processor, or None where torchvision is missing or does not fit the installed torch."""
    try:
        import torchvision  # noqa: F401
        from transformers import Qwen3VLVideoProcessor
    except (ImportError, RuntimeError):
        return None
    return Qwen3VLVideoProcessor()


def video_size(frames: int, height: int, width: int, settings: PatchSettings) -> tuple[int, int]:
    """Size to which all frames of a clip are resized; the budget is `min_pixels` to `max_pixels` a frame.

    Reference: `smart_resize` of transformers' Qwen3-VL video processor, which counts the pixels of all frames.
    """
    factor, temporal = settings.factor, settings.temporal_patch_size
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    total = round(frames / temporal) * temporal * new_height * new_width
    smallest, largest = settings.min_pixels * frames, settings.max_pixels * frames
    if total > largest:
        scale = math.sqrt(frames * height * width / largest)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif total < smallest:
        scale = math.sqrt(smallest / (frames * height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def time_stamps(clip: Clip, temporal_patch_size: int) -> list[str]:
    """One stamp per temporal patch, the mean time of its first and last frame: `<0.2 seconds>`."""
    indices = [*clip.indices, *[clip.indices[-1]] * (-len(clip.indices) % temporal_patch_size)]
    times = [index / clip.frames_per_second for index in indices]
    return [
        f"<{(times[i] + times[i + temporal_patch_size - 1]) / 2:.1f} seconds>"
        for i in range(0, len(times), temporal_patch_size)
    ]
