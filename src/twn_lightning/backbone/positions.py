"""Multimodal rotary positions (mRoPE) for a batch of prompts, without a Python loop over rows.

A text token advances the position by one on all three axes; a run of visual tokens shares one start, spreads over its
(time, height, width) grid, and advances by max(height, width), not by its number of tokens.

Shape letters: B rows, L padded prompt length, S visual segments (one per image, one per video frame).
"""

from __future__ import annotations

import torch
from torch import Tensor

from twn_lightning.errors import DataError
from twn_lightning.types import PromptBatch


def prompt_positions(prompts: PromptBatch, merge_size: int) -> tuple[Tensor, Tensor]:
    """Positions of every prompt token, and where the next token would go.

    Args:
        prompts: left- or right-padded prompts; media in row order.
        merge_size: vision patches merged per side into one token.

    Returns:
        positions (3, B, L) int64, 0 at padding; prompt_end (B,) int64 = 1 + the row's largest position.

    Raises:
        DataError: the visual tokens do not match the grids.

    Reference: equals transformers' `Qwen3VLModel.get_rope_index` on every token that is not padding.
    """
    valid_BL = prompts.attention_mask_BL.bool()
    types_BL = prompts.mm_token_type_ids_BL.masked_fill(~valid_BL, 0)
    if prompts.image_grid_thw is None and prompts.video_grid_thw is None:
        through_BL = valid_BL.long().cumsum(-1)
        return (through_BL - 1).clamp(min=0).expand(3, -1, -1), through_BL[:, -1]
    visual_BL = types_BL > 0
    previous_BL = torch.nn.functional.pad(types_BL[:, :-1], (1, 0))
    start_BL = visual_BL & (types_BL != previous_BL)
    grids_S3 = _segment_grids(prompts, types_BL[start_BL], merge_size)
    _check_token_counts(visual_BL, start_BL, grids_S3)
    segment_BL = (start_BL.flatten().long().cumsum(0) - 1).clamp(min=0).view_as(types_BL)
    span_S = grids_S3[:, 1:].amax(-1)
    grid_BL3 = grids_S3[segment_BL]
    span_BL = span_S[segment_BL]
    advance_BL = torch.where(visual_BL, torch.where(start_BL, span_BL, 0), valid_BL.long())
    through_BL = advance_BL.cumsum(-1)
    base_BL = through_BL - torch.where(visual_BL, span_BL, 1)
    columns_L = torch.arange(types_BL.shape[1], device=types_BL.device)
    first_BL = torch.where(start_BL, columns_L, 0).cummax(-1).values
    offset_BL = torch.where(visual_BL, columns_L - first_BL, 0)
    height_BL, width_BL = grid_BL3[..., 1], grid_BL3[..., 2]
    axes = torch.stack([offset_BL // (height_BL * width_BL), offset_BL // width_BL % height_BL, offset_BL % width_BL])
    return (base_BL + axes).masked_fill(~valid_BL, 0), through_BL[:, -1]


def _segment_grids(prompts: PromptBatch, kind_S: Tensor, merge_size: int) -> Tensor:
    """The merged (time, height, width) grid of each segment, in the order the segments stand in the batch."""
    grids_S3 = torch.ones(len(kind_S), 3, dtype=torch.long, device=kind_S.device)
    for kind, name, grid in ((1, "image", prompts.image_grid_thw), (2, "video", prompts.video_grid_thw)):
        chosen_S = kind_S == kind
        if grid is None:
            grid = torch.empty(0, 3, dtype=torch.long, device=kind_S.device)
        if kind == 2:
            # Qwen3-VL separates frames by timestamps: each frame is a segment of its own.
            grid = torch.repeat_interleave(grid, grid[:, 0], dim=0)
            grid = torch.cat([torch.ones_like(grid[:, :1]), grid[:, 1:]], dim=-1)
        if len(grid) != int(chosen_S.sum()):
            raise DataError(
                f"{int(chosen_S.sum())} runs of {name} tokens in the prompts but {len(grid)} {name} grids: "
                "each image, and each video frame, needs exactly one run of placeholders"
            )
        merged = torch.stack([grid[:, 0], grid[:, 1] // merge_size, grid[:, 2] // merge_size], dim=-1)
        grids_S3[chosen_S] = merged.to(grids_S3)
    return grids_S3


def _check_token_counts(visual_BL: Tensor, start_BL: Tensor, grids_S3: Tensor) -> None:
    """A segment whose length is not its grid's area would shift every later position silently."""
    ordinal = start_BL.flatten().long().cumsum(0)[visual_BL.flatten()] - 1
    tokens_S = torch.bincount(ordinal, minlength=len(grids_S3))
    if not torch.equal(tokens_S, grids_S3.prod(-1)):
        raise DataError(
            f"visual placeholders per segment {tokens_S.tolist()} do not match the grids' {grids_S3.prod(-1).tolist()}"
        )
