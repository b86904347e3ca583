"""The parts of a stage-1 batch: chunks of its two sides, labels over all ranks, and what to log of the contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twn_lightning.backbone.interface import ReasonerState
from twn_lightning.objectives import (
    CombinedContrastiveOutput,
    RandomState,
    gather_positive_rows,
    gather_with_local_gradient,
)
from twn_lightning.strategy import gather_objects, rank, world_size
from twn_lightning.types import ContrastiveBatch, CotBatch, PromptBatch

Representations = tuple[Tensor, ...]
"""Query e_d, query e_g, candidate e_d, candidate e_g; (0, D) where a chunk or a side has none. Then the CoT loss."""


@dataclass
class Chunk:
    """Rows of one side of a batch that one forward pass holds."""

    is_query: bool
    prompts: PromptBatch
    cots: CotBatch | None
    state: ReasonerState | None = None
    """What pass R left of it, without graph; None until then, and where its cache does not stay in memory."""
    read_B: Tensor | None = None
    """CoT tokens of each row that pass E reads; None: all."""
    first_embeddings: Representations = ()
    """Without graph, where the cache does not stay: pass E reads it once before it goes, and again after pass R."""
    random_state: RandomState | None = None
    """As pass R met it, for the same dropout in that second reading."""


@dataclass
class Labels:
    """Which candidate answers which query, over all ranks."""

    positive_Q: Tensor
    query_hash_Q: Tensor
    candidate_hash_C: Tensor
    is_negative_C: Tensor
    has_cot_C: Tensor | None


def batch_chunks(batch: ContrastiveBatch, chunk_size: int) -> list[Chunk]:
    """Queries, then candidates, in chunks; as many on every rank, for collectives to match."""
    chunks = []
    sides = ((True, batch.queries, batch.query_cots), (False, batch.candidates, batch.candidate_cots))
    for is_query, prompts, cots in sides:
        count = max(gather_objects(-(-len(prompts) // chunk_size)))
        for rows in np.array_split(np.arange(len(prompts)), count):
            picked = rows.tolist()
            chunks.append(Chunk(is_query, prompts.select(picked), None if cots is None else cots.select(picked)))
    return chunks


def cut_some_cots(chunks: Sequence[Chunk], share: float) -> None:
    """Let pass E read only a prefix of some rows' CoTs, for embeddings that are good before a CoT has ended.

    Args:
        chunks: of one batch; the draw does not depend on how it is chunked.
        share: of the rows; a prefix is as likely to have any number of tokens, from 0 to all.
    """
    cots = [chunk.cots for chunk in chunks if chunk.cots is not None]
    if not share or not cots:
        return
    lengths_R = torch.cat([part.lengths_B for part in cots])
    # For the rows of all ranks, of which each holds every world_size-th: two ranks cut what one would.
    cut_R, drawn_R = torch.rand(2, len(lengths_R), world_size())[..., rank()].to(lengths_R.device)
    read_R = torch.where(cut_R < share, (drawn_R * (lengths_R + 1)).long(), lengths_R)
    parts = iter(read_R.split([len(part) for part in cots]))
    for chunk in chunks:
        chunk.read_B = None if chunk.cots is None else next(parts)


def batch_labels(batch: ContrastiveBatch) -> Labels:
    """A batch's labels over all ranks."""
    return gathered_labels(
        batch.positive_B,
        batch.target_hash_Q,
        batch.target_hash_C,
        batch.candidate_is_negative_C,
        batch.candidate_cots,
    )


def gathered_labels(
    positive_Q: Tensor,
    query_hash_Q: Tensor,
    candidate_hash_C: Tensor,
    is_negative_C: Tensor,
    candidate_cots: CotBatch | None,
) -> Labels:
    """One rank's labels over all ranks."""
    has_cot_C = None if candidate_cots is None else gather_with_local_gradient(candidate_cots.mask_BT.any(1))
    return Labels(
        gather_positive_rows(positive_Q, len(candidate_hash_C)),
        gather_with_local_gradient(query_hash_Q),
        gather_with_local_gradient(candidate_hash_C),
        gather_with_local_gradient(is_negative_C),
        has_cot_C,
    )


def contrast_values(output: CombinedContrastiveOutput) -> dict[str, Any]:
    """What to log of the contrastive terms."""
    names = {"query_generative": "cross", "candidate_generative": "cross_candidate"}
    values = {f"train/loss_nce_{names.get(name, name)}": term.loss.detach() for name, term in output.terms.items()}
    if output.distillation is not None:
        values["train/loss_distillation"] = output.distillation.detach()
    generative = output.terms["generative"]
    return {
        **values,
        "train/hit@1_discriminative": output.terms["discriminative"].hit_at_1,
        "train/hit@1_generative": generative.hit_at_1,
        "contrastive/effective_negatives": generative.effective_negatives,
        "contrastive/masked_share": generative.masked_share,
    }
