"""The frozen vision tower: images and videos of a batch in one call, without a Python loop over images.

Shape letters: B rows, L padded prompt length, N visual tokens of the batch, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from twn_lightning.errors import DataError
from twn_lightning.types import PromptBatch


@dataclass
class VisualInputs:
    """Where the visual tokens of a batch are, and what the vision tower says of them, in row order."""

    mask_BL: Tensor
    features: Tensor
    """(N, D) embeddings that replace the placeholders."""
    deepstack: list[Tensor]
    """(N, D) each: added to the hidden states behind the first decoder layers."""

    def padded_mask(self, columns: int) -> Tensor:
        """The mask with further, non-visual columns (CoT, queries) on the right."""
        return F.pad(self.mask_BL, (0, columns - self.mask_BL.shape[1]))


def visual_inputs(tower: Any, prompts: PromptBatch) -> VisualInputs | None:
    """Run the vision tower once over all images and video frames of a batch.

    Args:
        tower: the transformers vision model.
        prompts: prompts with `pixel_values` (P, C), `image_grid_thw` (images, 3), and the same for videos.

    Returns:
        None for text-only prompts.

    Raises:
        DataError: placeholders and features differ in number.
    """
    mask_BL = prompts.mm_token_type_ids_BL > 0
    pixels = [p for p in (prompts.pixel_values, prompts.pixel_values_videos) if p is not None]
    grids = [g for g in (prompts.image_grid_thw, prompts.video_grid_thw) if g is not None]
    tokens = int(mask_BL.sum())
    if not pixels:
        if tokens:
            raise DataError(
                f"{tokens} visual placeholders in the prompts but no pixels: pass the processor's whole batch"
            )
        return None
    output = tower(torch.cat(pixels).to(tower.dtype), grid_thw=torch.cat(grids), return_dict=True)
    features, deepstack = output.pooler_output, list(output.deepstack_features)
    if len(features) != tokens:
        raise DataError(f"{tokens} visual placeholders in the prompts but {len(features)} visual features")
    if prompts.pixel_values is not None and prompts.pixel_values_videos is not None:
        # The tower saw all images, then all videos; the tokens stand in row order.
        order = prompts.mm_token_type_ids_BL[mask_BL].argsort(stable=True).argsort()
        features, deepstack = features[order], [level[order] for level in deepstack]
    return VisualInputs(mask_BL, features, deepstack)


PACKED_ATTENTION = "packed_sdpa_as_flash"
"""transformers hands packed images to a function with `flash` in its name in one call, and loops for all others."""


def pack_vision_attention(tower: Any) -> None:
    """Let the vision tower attend to all images in one call instead of one call per image and layer."""
    AttentionInterface.register(PACKED_ATTENTION, packed_sdpa)
    tower.config._attn_implementation = PACKED_ATTENTION


def project_patches_linearly(tower: Any) -> None:
    """Compute the patch projection as the matrix product it is: its stride is its kernel, and Conv3d is slower."""
    embed = tower.patch_embed

    def project(patches: Tensor) -> Tensor:
        weight = embed.proj.weight
        return F.linear(patches.to(weight.dtype), weight.flatten(1), embed.proj.bias)

    embed.forward = project


def packed_sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention within each image of a packed sequence.

    Args:
        module: the attention module that calls; unused.
        query, key, value: (1, heads, tokens, head_dim), images one after another.
        attention_mask: always None here.
        scaling: softmax scale.
        cu_seq_lens_q: (images + 1,) where images begin and end; None for a single image.

    Returns:
        (1, tokens, heads, head_dim) and None: images of one length together, one call per distinct length.
    """
    bounds = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    heads, head_dim = query.shape[1], query.shape[3]
    if len(set(lengths)) == 1:
        q, k, v = (x[0].unflatten(1, (len(lengths), lengths[0])).transpose(0, 1) for x in (query, key, value))
        output = F.scaled_dot_product_attention(q, k, v, scale=scaling)
        return output.transpose(1, 2).reshape(1, -1, heads, head_dim), None
    output = torch.empty_like(query[0].transpose(0, 1))
    for length in sorted(set(lengths)):
        starts = [start for start, size in zip(bounds, lengths, strict=False) if size == length]
        index = torch.tensor(starts, device=query.device)[:, None] + torch.arange(length, device=query.device)
        q, k, v = (x[0][:, index].transpose(0, 1) for x in (query, key, value))
        output[index] = F.scaled_dot_product_attention(q, k, v, scale=scaling).transpose(1, 2)
    return output[None], None
