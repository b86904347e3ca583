"""Two-phase stage 1: phi_R first; then phi_E and Q on caches that the frozen phi_R left once.

phi_R and (phi_E, Q) share no gradient under the detached interface, so training them one after the other is sound, and
pass E on stored caches costs K tokens an item.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.interface import ReasonerState
from twn_lightning.data.collate import ContrastiveCollator, target_hash_int64
from twn_lightning.data.corpus import columns_of
from twn_lightning.data.datamodule import ResumableLoader
from twn_lightning.data.sampler import SameSourceSampler
from twn_lightning.settings import DataSettings, SFTSettings
from twn_lightning.strategy import rank, world_size
from twn_lightning.types import ContrastiveBatch, CotBatch, Pair, PromptBatch

logger = logging.getLogger(__name__)


class PhasedLoader:
    """Batches of the first phase, then rows of the stored pairs for the second.

    Args:
        cot_batches: the first phase.
        stored_rows: the second phase.
    """

    def __init__(self, cot_batches: ResumableLoader, stored_rows: SameSourceSampler) -> None:
        self.cot_batches, self.stored_rows = cot_batches, stored_rows

    def __len__(self) -> int:
        return len(self.cot_batches) + len(self.stored_rows)

    def __iter__(self) -> Iterator[ContrastiveBatch | list[int]]:
        yield from self.cot_batches
        for rows in self.stored_rows:
            self.stored_rows.step += 1
            yield rows

    def state_dict(self) -> dict[str, Any]:
        return {"cot_batches": self.cot_batches.state_dict(), "stored_rows": self.stored_rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cot_batches.load_state_dict(state["cot_batches"])
        self.stored_rows.load_state_dict(state["stored_rows"])


def stored_rows_sampler(pairs: Sequence[Pair], stage: SFTSettings, data: DataSettings) -> SameSourceSampler:
    """Same-source batches of the second phase."""
    columns = columns_of(pairs)
    return SameSourceSampler(
        columns.sources,
        columns.target_hashes,
        batch_size=stage.embedding_batch_size,
        rows_per_source=min(data.rows_per_source_global, stage.embedding_batch_size),
        max_steps=stage.embedding_steps,
        seed=data.seed + 1,  # not the order of the first phase
        rank=rank(),
        world_size=world_size(),
        weights=columns.weights,
    )


@dataclass
class StoredBatch:
    """One second-phase batch: states instead of prompts, labels as in `ContrastiveBatch`."""

    queries: ReasonerState
    candidates: ReasonerState
    positive_Q: Tensor
    query_hash_Q: Tensor
    candidate_hash_C: Tensor


@dataclass
class StateStore:
    """What pass R left of the training pairs, once: every query with its CoT, every distinct target."""

    queries: ReasonerState
    candidates: ReasonerState
    positive_N: Tensor
    """Row of each pair's target among the candidates."""
    candidate_hash_C: Tensor

    @classmethod
    @torch.no_grad()
    def build(
        cls, backbone: DualLoRABackbone, pairs: Sequence[Pair], collator: ContrastiveCollator, chunk_size: int
    ) -> StateStore:
        """Run pass R in eval mode over all pairs and over their distinct targets.

        Args:
            backbone: phi_R as the first phase left it.
            pairs: what to store.
            collator: renders prompts and CoTs, as in training.
            chunk_size: rows of one forward pass.
        """
        training = backbone.training
        backbone.eval()
        keeps_pixels = backbone.interface.name == "reencode"
        queries, keys = [], []
        first: dict[tuple[str, str], Pair] = {}
        for start in range(0, len(pairs), chunk_size):
            chunk = [pairs[row] for row in range(start, min(start + chunk_size, len(pairs)))]
            batch = collator(chunk).to(backbone.device)
            queries.append(_read(backbone, batch.queries, batch.query_cots, keeps_pixels))
            for pair in chunk:
                keys.append((pair.target_hash, pair.positive.content_hash()))
                first.setdefault(keys[-1], pair)
        stored_queries = ReasonerState.concat(queries)
        queries.clear()  # before the targets are read: both lists and both states at once would be twice the memory
        # One target may come in several drawings: each is stored, under a key of its own for the collator.
        targets = [replace(pair, target_hash="/".join(key), hard_negatives=()) for key, pair in first.items()]
        candidates = []
        for start in range(0, len(targets), chunk_size):
            batch = collator(targets[start : start + chunk_size]).to(backbone.device)
            candidates.append(_read(backbone, batch.candidates, batch.candidate_cots, keeps_pixels))
        backbone.train(training)
        row_of = {key: row for row, key in enumerate(first)}
        store = cls(
            stored_queries,
            ReasonerState.concat(candidates),
            torch.tensor([row_of[key] for key in keys]),
            torch.tensor([target_hash_int64(target_hash) for target_hash, _ in first]),
        )
        logger.info(
            "stored the caches of %d queries and %d distinct targets: %.0f MB",
            len(keys),
            len(first),
            store.num_bytes / 1e6,
        )
        return store

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(t.numel() * t.element_size() for s in (self.queries, self.candidates) for kv in s.layers for t in kv)

    def batch(self, rows: list[int]) -> StoredBatch:
        """The pairs of some rows with their distinct targets."""
        target_Q = self.positive_N[rows]
        distinct_C, positive_Q = target_Q.unique(return_inverse=True)
        device = self.queries.prompt_mask_BL.device
        hash_C = self.candidate_hash_C[distinct_C].to(device)
        positive_Q = positive_Q.to(device)
        return StoredBatch(
            self.queries.select(rows),
            self.candidates.select(distinct_C.tolist()),
            positive_Q,
            hash_C[positive_Q],
            hash_C,
        )


def _read(backbone: DualLoRABackbone, prompts: PromptBatch, cots: CotBatch | None, keeps_pixels: bool) -> ReasonerState:
    state = backbone.reason(prompts, cots)
    if keeps_pixels:
        return state
    bare = replace(prompts, images=None, videos=None, images_per_row=(), videos_per_row=())
    return replace(state, prompts=bare)
