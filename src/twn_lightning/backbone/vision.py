"""The frozen vision tower: images and videos of a batch in one call, without a Python loop over images.

Shape letters: B rows, L padded prompt length, N visual tokens of the batch, D hidden size, P patches of the batch,
M images and videos (media), F frames of one length S (an image is one frame), H heads.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None  # type: ignore[assignment]

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
        prompts: prompts with the patches of their images and videos.

    Returns:
        None for text-only prompts.

    Raises:
        DataError: placeholders and features differ in number.
    """
    mask_BL = prompts.mm_token_type_ids_BL > 0
    media = [patches for patches in (prompts.images, prompts.videos) if patches is not None]
    tokens = int(mask_BL.sum())
    if not media:
        if tokens:
            raise DataError(
                f"{tokens} visual placeholders in the prompts but no pixels: pass the processor's whole batch"
            )
        return None
    pixels = torch.cat([patches.values().to(tower.dtype) for patches in media])
    output = tower(pixels, grid_thw=torch.cat([patches.grid_thw for patches in media]), return_dict=True)
    features, deepstack = output.pooler_output, list(output.deepstack_features)
    if len(features) != tokens:
        raise DataError(f"{tokens} visual placeholders in the prompts but {len(features)} visual features")
    if len(media) == 2:
        # The tower saw all images, then all videos; the tokens stand in row order.
        order = prompts.mm_token_type_ids_BL[mask_BL].argsort(stable=True).argsort()
        features, deepstack = features[order], [level[order] for level in deepstack]
    return VisualInputs(mask_BL, features, deepstack)


PACKED_ATTENTION = "packed_sdpa_as_flash"
"""transformers hands packed images to a function with `flash` in its name in one call, and loops for all others."""

HAS_VARLEN = varlen_attn is not None and "scale" in inspect.signature(varlen_attn).parameters
"""torch 2.11 and later."""

LONG_FRAME = 2048
"""Patches from which on frames are better off in a call per length: measured on an H100, see the vision benchmark."""


def pack_vision_attention(tower: Any) -> None:
    """Let the vision tower attend to all images at once, and compute the positions of their patches at once.

    Args:
        tower: the transformers vision model. Whoever calls it afterwards gets the packed computation;
            `loop_vision_attention` undoes it.
    """
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    tower.config._attn_implementation = PACKED_ATTENTION
    tower.packing_hook = tower.register_forward_pre_hook(_add_packing, with_kwargs=True)


def loop_vision_attention(tower: Any) -> None:
    """Put transformers' own computation back: one attention call, and one grid of positions, per image."""
    tower.packing_hook.remove()
    tower.config._attn_implementation = "sdpa"


def project_patches_linearly(tower: Any) -> None:
    """Compute the patch projection as the matrix product it is: its stride is its kernel, and Conv3d is slower."""
    embed = tower.patch_embed

    def project(patches: Tensor) -> Tensor:
        weight = embed.proj.weight
        return F.linear(patches.to(weight.dtype), weight.flatten(1), embed.proj.bias)

    embed.forward = project


@dataclass(frozen=True)
class FrameGroup:
    """Frames with the same number of patches."""

    frames: int
    length: int
    patches: slice | Tensor
    """Where their patches stand in the packed batch: a slice, or (F * S,) int64."""


@dataclass(frozen=True)
class PackedFrames:
    """The frames of a packed batch, grouped once for all layers."""

    ends: Tensor
    """int32, where frames begin and end."""
    groups: list[FrameGroup]


def frame_groups(lengths: list[int], device: torch.device) -> list[FrameGroup]:
    """The frames of a packed batch by their number of patches.

    Args:
        lengths: patches of each frame, in the order of the batch.
        device: where the patches are.
    """
    starts: dict[int, list[int]] = {}
    position = 0
    for length in lengths:
        starts.setdefault(length, []).append(position)
        position += length
    groups = []
    for length, begin in starts.items():
        patches: slice | Tensor = slice(begin[0], begin[-1] + length)
        if begin[-1] - begin[0] != length * (len(begin) - 1):  # frames of other lengths stand between
            patches = (torch.tensor(begin)[:, None] + torch.arange(length)).flatten().to(device)
        groups.append(FrameGroup(len(begin), length, patches))
    return groups


def patch_positions(grid_M3: Tensor, merge_size: int, patches: int) -> Tensor:
    """Row and column of every patch in its frame, in the order the tower takes them: merged blocks one after another.

    Args:
        grid_M3: int64 frames, rows and columns of patches of each image or video.
        merge_size: patches merged per side into one token.
        patches: how many there are, P.

    Returns:
        (P, 2) int64.

    Reference: equals transformers' `get_vision_position_ids`, which loops over images.
    """
    counts_M = grid_M3.prod(-1)
    firsts_M = counts_M.cumsum(0) - counts_M
    height_P, width_P, first_P = (
        torch.repeat_interleave(values, counts_M, output_size=patches)
        for values in (grid_M3[:, 1], grid_M3[:, 2], firsts_M)
    )
    within_P = (torch.arange(patches, device=grid_M3.device) - first_P) % (height_P * width_P)
    block_P, inside_P = within_P // merge_size**2, within_P % merge_size**2
    blocks_per_row_P = width_P // merge_size
    row_P = block_P // blocks_per_row_P * merge_size + inside_P // merge_size
    column_P = block_P % blocks_per_row_P * merge_size + inside_P % merge_size
    return torch.stack([row_P, column_P], dim=-1)


def _add_packing(tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A hook before the tower's forward: hand it what it would compute in a loop over images, in its own keywords."""
    grid_M3 = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
    lengths = [height * width for frames, height, width in grid_M3.tolist() for _ in range(frames)]
    ends = torch.tensor([0, *lengths], device=grid_M3.device).cumsum(0, dtype=torch.int32)
    packing = {
        "position_ids": patch_positions(grid_M3, tower.spatial_merge_size, sum(lengths)),
        "cu_seqlens": ends,
        "max_seqlen": max(lengths),
        "frames": None if _varlen_pays(tower, lengths) else PackedFrames(ends, frame_groups(lengths, tower.device)),
    }
    return args, {**kwargs, **packing}


def _varlen_pays(tower: Any, lengths: list[int]) -> bool:
    """Whether variable-length attention is there and fits; frames of one length need no more than a batched call."""
    if not HAS_VARLEN or tower.device.type != "cuda" or len(set(lengths)) == 1:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tower.dtype
    head_dim = tower.config.hidden_size // tower.config.num_heads
    fits = dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0
    return (
        fits and torch.cuda.get_device_capability(tower.device) >= (8, 0) and sum(lengths) < LONG_FRAME * len(lengths)
    )


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    frames: PackedFrames | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention within each frame of a packed batch, or within each window of one.

    Args:
        module: the attention module that calls; unused.
        query, key, value: (1, H, P, head_dim), frames one after another.
        attention_mask: always None here.
        scaling: softmax scale.
        cu_seq_lens_q: int32, where frames begin and end, or windows (most layers of Qwen2.5-VL).
        max_length_q: patches of the longest.
        frames: a call for each of their groups; None: one variable-length call.

    Returns:
        (1, P, H, head_dim) and None.
    """
    if frames is None:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        ends, longest = cu_seq_lens_q, max_length_q
        found: Any = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling)
        return found[None], None
    groups = frames.groups
    if cu_seq_lens_q is not frames.ends:
        groups = frame_groups(cu_seq_lens_q.diff().tolist(), query.device)
    if len(groups) == 1:
        return _attend(query, key, value, groups[0], scaling)[None], None
    output = torch.empty_like(query[0].transpose(0, 1))
    for group in groups:
        output[group.patches] = _attend(query, key, value, group, scaling)
    return output[None], None


def _attend(query: Tensor, key: Tensor, value: Tensor, group: FrameGroup, scaling: float | None) -> Tensor:
    """Attention within the frames of one group: (F * S, H, head_dim)."""
    shape = (group.frames, group.length)
    q, k, v = (x[0][:, group.patches].unflatten(1, shape).transpose(0, 1) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, scale=scaling).transpose(1, 2).flatten(0, 1)
