"""What a training step has to compute, and what a device could compute at best: the two sides of MFU."""

from __future__ import annotations

from dataclasses import replace

import torch

from twn_lightning.planning.constants import Items, items_of, usual_device
from twn_lightning.planning.layout import world_of
from twn_lightning.planning.shapes import ModelShape
from twn_lightning.planning.stages import StageWork
from twn_lightning.settings import Settings, SFTSettings
from twn_lightning.types import ContrastiveBatch, PromptBatch

PEAK_TFLOPS = {"H200": 989.0, "H100 NVL": 835.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0}
"""Dense bf16 by NVIDIA's data sheets; the first name that is part of the card's counts."""


def peak_flops(device: torch.device, settings: Settings) -> float | None:
    """Operations a second that a device is specified for; None: not known, or the run is not in bf16."""
    if device.type != "cuda" or settings.trainer.precision == "32-true":
        return None
    card = torch.cuda.get_device_name(device)
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if name in card), None)


def step_operations(shape: ModelShape, settings: Settings, batch: object) -> float | None:
    """Operations of one stage-1 step on this rank, counted as `twn plan` does, on the batch's own lengths.

    Padding is not counted, nor what is computed a second time to save memory.

    Args:
        shape: of the backbone.
        settings: of the run.
        batch: one step's, of this rank.

    Returns:
        Operations, two for a multiplication with an addition; None in other stages, which also decode, and for stored
        pairs.
    """
    stage = settings.stage
    if not isinstance(stage, SFTSettings) or not isinstance(batch, ContrastiveBatch):
        return None
    rows = len(batch.queries) * world_of(settings)
    # In one chunk nothing is computed twice.
    settings = replace(settings, stage=replace(stage, batch_size=rows, chunk_size=rows))
    phase = StageWork(shape, settings, usual_device(settings.model), _lengths(batch, settings)).phases()[0]
    return sum(load.operations for load in phase.work.values())


def _lengths(batch: ContrastiveBatch, settings: Settings) -> Items:
    """Mean lengths of a batch; `hard_negatives` makes up the candidates per query, of which twins are read once."""
    cots = [part for part in (batch.query_cots, batch.candidate_cots) if part is not None]
    written = sum(int(part.mask_BT.sum()) for part in cots)
    text, visual = _prompt_lengths(batch.queries)
    candidate_text, candidate_visual = _prompt_lengths(batch.candidates)
    return replace(
        items_of(settings.model),
        text_tokens=text,
        visual_tokens=visual,
        candidate_text_tokens=candidate_text,
        candidate_visual_tokens=candidate_visual,
        cot_tokens=written / max(1, sum(map(len, cots))),
        longest_cot=1.0,
        hard_negatives=len(batch.candidates) / len(batch.queries) - 1,
    )


def _prompt_lengths(prompts: PromptBatch) -> tuple[float, float]:
    """Mean text and visual tokens of a prompt."""
    visual = int((prompts.mm_token_type_ids_BL * prompts.attention_mask_BL > 0).sum())
    return (int(prompts.attention_mask_BL.sum()) - visual) / len(prompts), visual / len(prompts)
