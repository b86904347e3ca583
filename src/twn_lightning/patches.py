"""Patches of images and video frames: kept and sent as bytes, made numbers where a model reads them.

A byte a pixel instead of four, and an image once where its temporal patch holds it twice: an eighth of the memory
between worker, host and device. Shape letters: P patches, C bytes of a patch, N media.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

CHANNELS = 3
Channels: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class Patches:
    """Flattened patches of some media, one medium after another, in Qwen3-VL's order.

    Raises:
        TypeError: patches that are not uint8, such as normalised ones.
    """

    bytes_PC: Tensor
    """uint8 (P, 3 * frames * patch * patch)."""
    grid_thw: Tensor
    """int64 (N, 3): temporal patches, rows and columns of each medium."""
    mean: Channels
    """Of each channel, of values between 0 and 1."""
    deviation: Channels
    repeats: int = 1
    """How often a patch holds its frame: an image fills a temporal patch with itself."""

    def __post_init__(self) -> None:
        if self.bytes_PC.dtype != torch.uint8:
            raise TypeError(f"patches are kept as bytes and normalised by values(), these are {self.bytes_PC.dtype}")

    def __len__(self) -> int:
        return len(self.bytes_PC)

    def values(self) -> Tensor:
        """What the vision tower reads: fp32 (P, 3 * temporal * patch * patch), normalised, on the patches' device."""
        constants = torch.tensor((self.mean, self.deviation), device=self.bytes_PC.device)
        mean, deviation = constants[:, :, None]
        pixels = self.bytes_PC.unflatten(1, (CHANNELS, -1)).float().div_(255.0).sub_(mean).div_(deviation)
        return pixels.repeat(1, 1, self.repeats).flatten(1)

    def to(self, device: torch.device | str) -> Patches:
        return replace(self, bytes_PC=self.bytes_PC.to(device), grid_thw=self.grid_thw.to(device))

    def select(self, media: Sequence[int]) -> Patches:
        """The patches of some media, at least one, in the order given."""
        each = self.bytes_PC.split(self.grid_thw.prod(-1).tolist())
        chosen = torch.as_tensor(media, dtype=torch.long, device=self.grid_thw.device)
        return replace(self, bytes_PC=torch.cat([each[m] for m in media]), grid_thw=self.grid_thw[chosen])


def concat_patches(parts: Sequence[Patches]) -> Patches:
    """Patches of several batches of one processor, one after another; at least one."""
    return replace(
        parts[0],
        bytes_PC=torch.cat([part.bytes_PC for part in parts]),
        grid_thw=torch.cat([part.grid_thw for part in parts]),
    )
