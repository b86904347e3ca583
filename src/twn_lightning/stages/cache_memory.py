"""Whether the caches of a stage-1 step stay on the device until pass E, or are read again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from twn_lightning.strategy import sum_over_ranks

BACKWARD = 1.25
"""A backward pass holds somewhat more than the forward pass left."""
RESERVE = 0.08
"""Share of a device's memory that stays free: the allocator cannot use every byte."""


@dataclass
class CacheMemory:
    """The memory of one rank's device during a step. A CPU's is taken to suffice."""

    device: torch.device
    pass_bytes: int = 0
    """The most that a forward pass with gradient has left so far."""

    def held(self) -> int:
        """Bytes in use."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def note_pass(self, held_before: int) -> None:
        """Call between a forward pass and its backward."""
        self.pass_bytes = max(self.pass_bytes, self.held() - held_before)

    def has_room(self) -> bool:
        """Whether what is held now may stay through another pass. All ranks agree: reading again communicates."""
        return float(sum_over_ranks(float(not self._fits()), self.device)) == 0

    def _fits(self) -> bool:
        if self.device.type != "cuda":
            return True
        free, total = torch.cuda.mem_get_info(self.device)
        usable = free + torch.cuda.memory_reserved(self.device) - RESERVE * total
        return self.held() + BACKWARD * self.pass_bytes <= usable
