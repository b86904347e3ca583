"""Embeddings of the first tokens of a CoT, from the cache that the whole CoT left.

Attention is causal: the columns of the first n CoT tokens do not depend on what follows, so reading only those columns
gives the embedding that the model would have after n tokens.

Shape letters: B rows, T CoT tokens, L prompt columns, P cuts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.interface import ReasonerState
from twn_lightning.errors import DataError
from twn_lightning.types import CotBatch


def cut_cots(state: ReasonerState, lengths_B: Tensor) -> ReasonerState:
    """The state as it was when each CoT had at most so many tokens; a view of the same cache, with its graph.

    Args:
        state: with CoTs.
        lengths_B: int64 (B,), at least 0.

    Raises:
        DataError: a state without CoTs, or a negative length.
    """
    cots = state.cots
    if cots is None or bool((lengths_B < 0).any()):
        raise DataError(f"cannot cut at {lengths_B.tolist()} tokens: pass a state with CoTs and lengths of at least 0")
    width = int(torch.minimum(lengths_B, cots.lengths_B).max())
    kept_BT = torch.arange(width, device=lengths_B.device) < lengths_B[:, None]
    kept = CotBatch(
        cots.ids_BT[:, :width], cots.mask_BT[:, :width] * kept_BT, cots.closed_B & (cots.lengths_B <= lengths_B)
    )
    columns = state.prompt_mask_BL.shape[1] + kept.ids_BT.shape[1]
    return replace(
        state,
        layers=[(k[:, :, :columns], v[:, :, :columns]) for k, v in state.layers],
        cot_mask_BT=kept.mask_BT,
        readable_end_B=state.prompt_end_B + kept.lengths_B,
        cot_logits_BTV=None,
        cots=kept,
    )


@torch.no_grad()
def prefix_embeddings(backbone: DualLoRABackbone, state: ReasonerState, cuts: Sequence[int]) -> Tensor:
    """Generative embeddings that read the first tokens of each CoT.

    Args:
        backbone: in eval mode.
        state: with CoTs, from `reason` or grown by the decoder. Not modified.
        cuts: numbers of CoT tokens; a CoT with fewer is read whole.

    Returns:
        (B, P, D) fp32 unit vectors, in the order of the cuts.

    Raises:
        DataError: as `cut_cots`.

    Relations:
        Equals the discriminative embedding at 0 tokens, and the generative one from the CoT's length on.
    """
    found = []
    for cut in cuts:
        lengths_B = torch.full_like(state.prompt_end_B, cut)
        e_g = backbone.embed(cut_cots(state, lengths_B), ["generative"]).generative_BD
        assert e_g is not None
        found.append(e_g)
    return torch.stack(found, dim=1)
