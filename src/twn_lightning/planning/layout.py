"""How a run lies on its devices: how many share the work, what is sharded, how wide values are, what is read."""

from __future__ import annotations

from dataclasses import dataclass

from twn_lightning.planning.constants import Device, Items
from twn_lightning.settings import Settings

NF4_BYTES = 0.56
"""4 bits, and the doubly quantised scales."""


def value_bytes(settings: Settings, device: Device) -> int:
    """Bytes of an activation or a cached value."""
    precision = settings.trainer.precision
    return 4 if precision == "32-true" or (precision == "auto" and device.name == "cpu") else 2


def weight_bytes(settings: Settings) -> float:
    """Bytes of a frozen weight."""
    if settings.model.quantization == "nf4":
        return NF4_BYTES
    return 4 if settings.model.dtype == "float32" else 2


def world_of(settings: Settings) -> int:
    return settings.trainer.devices * settings.trainer.num_nodes


def is_sharded(settings: Settings) -> bool:
    """Whether FSDP2 spreads the weights."""
    strategy = settings.trainer.strategy
    cuda = settings.trainer.accelerator != "cpu"
    return world_of(settings) > 1 and (strategy == "fsdp2" or (strategy == "auto" and cuda))


@dataclass(frozen=True)
class Span:
    """One side of a pair in stage 1."""

    rows_per_pair: float
    prompt: float
    visual: float
    cot: float
    """Columns of the padded CoTs; 0 where the side does not think."""
    tokens: float
    """Prompt and CoT, without padding."""

    @property
    def columns(self) -> float:
        return self.prompt + self.cot


def sides(settings: Settings, items: Items) -> list[Span]:
    """Queries and candidates as stage 1 reads them."""
    thinks = settings.data.think_sides
    negatives = min(settings.data.hard_negatives, items.hard_negatives)
    longest = min(items.padded_cot, settings.data.max_cot_tokens)
    written = min(items.cot_tokens, settings.data.max_cot_tokens)
    found = []
    for rows, prompt, visual, cots in (
        (1.0, items.prompt_tokens, items.visual_tokens, thinks != "candidate"),
        (1.0 + negatives, items.candidate_tokens, items.candidate_visual_tokens, thinks != "query"),
    ):
        found.append(Span(rows, prompt, visual, cots * longest, prompt + cots * written))
    return found
