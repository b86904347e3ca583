"""Stage 1, dual-LoRA supervised fine-tuning (docs/method.md, section 4).

`L = L_CE + L_NCE(e_d) + L_NCE(e_g) + w_qc L_NCE(query e_g, candidate e_d) + w_cq L_NCE(query e_d, candidate e_g)`,
and `w_distill KL(query e_g -> query e_d)` where that weight is not 0.
L_CE reaches phi_R; the contrastive terms reach phi_E and Q (and phi_R only where the interface lets them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from twn_lightning.backbone.interface import ReasonerState, cot_targets
from twn_lightning.backbone.prefixes import cut_cots
from twn_lightning.objectives import (
    CombinedContrastiveOutput,
    RandomState,
    combined_contrastive,
    cot_cross_entropy,
    gather_with_local_gradient,
    grad_cache_backward,
)
from twn_lightning.settings import SFTSettings
from twn_lightning.stages.base import TWNStage
from twn_lightning.stages.cache_memory import CacheMemory
from twn_lightning.stages.contrast import (
    Chunk,
    Labels,
    Representations,
    batch_chunks,
    batch_labels,
    contrast_values,
    cut_some_cots,
    gathered_labels,
)
from twn_lightning.stages.held_out import held_out_values
from twn_lightning.stages.optim import Group
from twn_lightning.stages.phases import PhasedLoader, StateStore, stored_rows_sampler
from twn_lightning.strategy import average_over_ranks, sum_over_ranks, world_size
from twn_lightning.types import ContrastiveBatch, CotBatch, EmbeddingOutput, Pair


class DualLoRASFT(TWNStage):
    """Trains phi_R on CoTs, phi_E and the queries by contrast; jointly, or one after the other on stored caches."""

    stage_name = "sft"
    trained_groups = ("reasoning", "embedding", "queries")
    monitor = ("val/hit@1_generative", "max")
    headline = "val/hit@1_generative"
    exports = "best"
    progress_values = ("train/loss_cot", "train/loss_nce_generative", "val/hit@1_generative")

    _store: StateStore | None = None
    _phase: str = "joint"

    @property
    def stage(self) -> SFTSettings:
        return cast(SFTSettings, self.settings.stage)

    @property
    def two_phase(self) -> bool:
        return self.stage.schedule == "two_phase"

    @property
    def warmup_ratio(self) -> float:
        return self.stage.warmup_ratio

    @property
    def total_steps(self) -> int:
        return self.stage.max_steps + (self.stage.embedding_steps if self.two_phase else 0)

    @property
    def contrast_reaches_reasoner(self) -> bool:
        """Whether pass R needs the contrastive gradient: the joint cache, or a prefix that phi_E writes."""
        interface, prefix = self.backbone.interface.name, self.backbone.settings.prefix
        return interface == "kv_joint" or (interface == "kv_detached" and prefix == "embedding")

    def optimizer_groups(self) -> list[Group]:
        stage = self.stage
        start, steps, rate = 0, stage.max_steps, stage.learning_rate
        if self.two_phase:
            start, steps, rate = stage.max_steps, stage.embedding_steps, stage.embedding_learning_rate or rate
        adapters, decay = self.backbone.group_parameters, stage.weight_decay
        return [
            Group("reasoning", adapters("reasoning"), stage.learning_rate, decay, stage.max_steps),
            Group("embedding", adapters("embedding"), rate, decay, steps, start),
            Group("queries", adapters("queries"), stage.query_learning_rate, 0.0, steps, start),
        ]

    def trains_now(self, group: str) -> bool:
        return self._phase == "joint" or (group == "reasoning") == (self._phase == "cot")

    def train_dataloader(self) -> Any:
        batches = self.data.train_dataloader()
        if not self.two_phase:
            return batches
        return PhasedLoader(batches, stored_rows_sampler(self._stored_pairs, self.stage, self.settings.data))

    @cached_property
    def _stored_pairs(self) -> Sequence[Pair]:
        return self.data.pairs("train")[: self.stage.stored_pairs]

    # --- one step ----------------------------------------------------------------------------------------------------

    def train_on(self, batch: ContrastiveBatch | list[int], step: int) -> dict[str, Any]:
        if isinstance(batch, ContrastiveBatch):
            self._phase = "cot" if self.two_phase else "joint"
            values = self.cot_step(batch) if self.two_phase else self.joint_step(batch)
        else:
            self._phase = "embedding"
            values = self.embedding_step(batch)
        return {**values, **self.apply_gradients(self.stage.clip_norm)}

    def joint_step(self, batch: ContrastiveBatch) -> dict[str, Any]:
        """All losses of one batch, chunk by chunk."""
        chunks = batch_chunks(batch, self.stage.chunk_size)
        cut_some_cots(chunks, self.stage.cut_cot_share)
        labels, num_tokens = batch_labels(batch), self.count_cot_tokens(chunks)
        if self.contrast_reaches_reasoner:
            return self.learn_together(chunks, labels, num_tokens)
        loss_cot = self.learn_cots(chunks, num_tokens)
        return {"train/loss_cot": loss_cot, **self.learn_embeddings(chunks, labels)}

    def cot_step(self, batch: ContrastiveBatch) -> dict[str, Any]:
        """First of two phases: phi_R on L_CE alone."""
        chunks = [chunk for chunk in batch_chunks(batch, self.stage.chunk_size) if chunk.cots is not None]
        return {"train/loss_cot": self.learn_cots(chunks, self.count_cot_tokens(chunks))}

    def embedding_step(self, rows: list[int]) -> dict[str, Any]:
        """Second of two phases: phi_E and Q on the stored caches."""
        if self._store is None:
            self._store = StateStore.build(self.backbone, self._stored_pairs, self.data.collator, self.stage.chunk_size)
        batch = self._store.batch(rows)
        chunks = [
            Chunk(is_query, state.prompts, state.cots, state)
            for is_query, state in ((True, batch.queries), (False, batch.candidates))
        ]
        cut_some_cots(chunks, self.stage.cut_cot_share)
        labels = gathered_labels(
            batch.positive_Q,
            batch.query_hash_Q,
            batch.candidate_hash_C,
            torch.zeros_like(batch.candidate_hash_C, dtype=torch.bool),
            batch.candidates.cots,
        )
        return self.learn_embeddings(chunks, labels, at_once=True)

    # --- pass R ------------------------------------------------------------------------------------------------------

    def count_cot_tokens(self, chunks: Sequence[Chunk]) -> Tensor:
        """Targets of L_CE a rank, averaged over ranks: gradients are averaged too, so the mean is over all tokens."""
        count = sum(int((self.targets(chunk.cots) >= 0).sum()) for chunk in chunks if chunk.cots is not None)
        return sum_over_ranks(float(count), self.device) / world_size()

    def targets(self, cots: CotBatch) -> Tensor:
        return cot_targets(cots, self.backbone.processor.eot_id)

    def learn_cots(self, chunks: Sequence[Chunk], num_tokens: Tensor) -> float:
        """Pass R; each chunk's share of L_CE goes backward at once, its cache stays without graph where it fits."""
        total = torch.zeros((), device=self.device)
        memory = self.cache_memory()
        for chunk in chunks:
            held, chunk.random_state = memory.held(), RandomState.capture()
            if chunk.cots is None:
                with torch.no_grad():
                    state = self.backbone.reason(chunk.prompts)
            else:
                state = self.backbone.reason(chunk.prompts, chunk.cots, want_logits=True)
                loss = self.cot_loss(state, num_tokens)
                memory.note_pass(held)
                self.manual_backward(self.stage.cot_weight * loss)
                total += loss.detach()
            self.keep(chunk, replace(state.detach(), cot_logits_BTV=None), memory)
        return average_over_ranks(total)

    def cache_memory(self) -> CacheMemory:
        return CacheMemory(self.device)

    def keep(self, chunk: Chunk, state: ReasonerState, memory: CacheMemory) -> None:
        """Keep a chunk's state for pass E; where its cache does not fit, the embeddings that the loss will ask for."""
        if self._phase == "cot":
            return
        if self.backbone.interface.name == "reencode":
            chunk.state = replace(state, layers=[])  # pass E reads tokens
        elif memory.has_room():
            chunk.state = state
        else:
            with torch.no_grad():
                chunk.first_embeddings = self.embed_chunk(chunk.is_query, state, chunk.read_B)

    def embed_kept(self, chunk: Chunk) -> Representations:
        """Pass E over a chunk's cache; pass R reads again, with the same dropout, where that is gone."""
        if chunk.state is not None:
            return self.embed_chunk(chunk.is_query, chunk.state, chunk.read_B)
        if not torch.is_grad_enabled():
            return chunk.first_embeddings
        assert chunk.random_state is not None
        with chunk.random_state.replayed():
            with torch.no_grad():
                state = self.backbone.reason(chunk.prompts, chunk.cots)
            return self.embed_chunk(chunk.is_query, state, chunk.read_B)

    def cot_loss(self, state: ReasonerState, num_tokens: Tensor) -> Tensor:
        """A chunk's share of L_CE."""
        assert state.cots is not None
        assert state.cot_logits_BTV is not None
        return cot_cross_entropy(state.cot_logits_BTV, self.targets(state.cots), num_tokens=num_tokens).float()

    # --- pass E ------------------------------------------------------------------------------------------------------

    def learn_embeddings(self, chunks: Sequence[Chunk], labels: Labels, at_once: bool = False) -> dict[str, Any]:
        """Pass E over the chunks' caches, with cached representations where there are several chunks.

        Args:
            chunks: with their states.
            labels: over all ranks.
            at_once: hold all chunks' activations together.
        """
        found: list[CombinedContrastiveOutput] = []

        def encode(group: Sequence[Chunk]) -> Representations:
            return tuple(torch.cat(tensors) for tensors in zip(*map(self.embed_kept, group), strict=True))

        def loss(representations: Representations) -> Tensor:
            found.append(self.contrast(representations, labels))
            return found[-1].loss * world_size()  # every rank computes the full loss, and gradients are averaged

        one_pass = at_once or len(chunks) == 2
        grad_cache_backward(
            encode, [chunks] if one_pass else [[chunk] for chunk in chunks], loss, backward=self.manual_backward
        )
        return contrast_values(found[-1])

    def learn_together(self, chunks: Sequence[Chunk], labels: Labels, num_tokens: Tensor) -> dict[str, Any]:
        """One graph per chunk through both passes, where the contrastive gradient continues into pass R.

        L_CE rides along as one more representation, so cached gradients carry it.
        """
        found: list[CombinedContrastiveOutput] = []
        cot_losses: list[Tensor] = []

        def encode(chunk: Chunk) -> Representations:
            state = self.backbone.reason(chunk.prompts, chunk.cots, want_logits=chunk.cots is not None)
            cot = [] if chunk.cots is None else [self.cot_loss(state, num_tokens)]
            loss_cot = torch.stack(cot) if cot else torch.zeros(0, device=self.device)
            return (*self.embed_chunk(chunk.is_query, state, chunk.read_B), loss_cot)

        def encode_all(group: Sequence[Chunk]) -> Representations:
            return tuple(torch.cat(tensors) for tensors in zip(*map(encode, group), strict=True))

        def loss(representations: Representations) -> Tensor:
            *embeddings, loss_cot = representations
            found.append(self.contrast(tuple(embeddings), labels))
            cot_losses.append(loss_cot.detach().sum())
            return found[-1].loss * world_size() + self.stage.cot_weight * loss_cot.sum()

        groups = [chunks] if len(chunks) == 2 else [[chunk] for chunk in chunks]
        grad_cache_backward(encode_all, groups, loss, backward=self.manual_backward)
        return {"train/loss_cot": average_over_ranks(cot_losses[-1]), **contrast_values(found[-1])}

    def embed_chunk(self, is_query: bool, state: ReasonerState, read_B: Tensor | None = None) -> Representations:
        """Pass E in both modes, or in one where the side does not think; over `read_B` CoT tokens, or all."""
        modes = ("discriminative",) if state.cots is None else ("discriminative", "generative")
        state = state if read_B is None else cut_cots(state, read_B)
        output = self.backbone.embed(state, modes)
        e_d = cast(Tensor, output.discriminative_BD)
        none = e_d.new_zeros(0, e_d.shape[1])
        e_g = none if output.generative_BD is None else output.generative_BD
        return (e_d, e_g, none, none) if is_query else (none, none, e_d, e_g)

    def contrast(self, embeddings: Representations, labels: Labels) -> CombinedContrastiveOutput:
        """The contrastive terms over the embeddings of all ranks; this rank's carry gradient."""
        query_d, query_g, candidate_d, candidate_g = (gather_with_local_gradient(part) for part in embeddings)
        stage = self.stage
        return combined_contrastive(
            EmbeddingOutput(query_d, query_g if len(query_g) else None),
            EmbeddingOutput(candidate_d, candidate_g if len(candidate_g) else None),
            labels.positive_Q,
            labels.query_hash_Q,
            labels.candidate_hash_C,
            temperature=stage.temperature,
            cross_query_generative=stage.cross_query_generative,
            cross_candidate_generative=stage.cross_candidate_generative,
            distill_weight=stage.distill_weight,
            margin=stage.margin_mask,
            matryoshka_dims=stage.matryoshka_dims,
            candidate_is_negative_C=labels.is_negative_C,
            candidate_has_cot_C=labels.has_cot_C,
        )

    # --- validation --------------------------------------------------------------------------------------------------

    def validate(self) -> dict[str, float]:
        return held_out_values(self.backbone, self.data, self.settings)
