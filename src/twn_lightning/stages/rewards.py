"""What completions are worth: their rewards, the pool of targets they are ranked against, and held-out rewards.

Shape letters: B completions, C columns (targets), D embedding width, N held-out queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.encoding import encode
from twn_lightning.data.collate import target_hash_int64
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.data.sources import PairSource
from twn_lightning.evaluation.outcomes import positive_rows
from twn_lightning.evaluation.output_checks import check_embeddings
from twn_lightning.evaluation.suite import encode_candidates
from twn_lightning.metrics import hit_at_k
from twn_lightning.objectives import (
    combine_rewards,
    format_reward,
    gather_with_local_gradient,
    reciprocal_rank,
    similarity_gap,
)
from twn_lightning.settings import RLSettings, Settings
from twn_lightning.strategy import gather_objects, interleave, rank, world_size
from twn_lightning.types import EmbeddingMode, Item, Pair


@dataclass
class RewardTerms:
    """Rewards of B completions and what they are made of, each fp32 (B,)."""

    reward: Tensor
    reward_format: Tensor
    reward_rank: Tensor
    reward_gap: Tensor

    def sums(self) -> dict[str, Tensor]:
        """The sum of each over the completions, by its name in the logs."""
        return {f"rl/{name}": value.sum() for name, value in vars(self).items()}


def score_completions(
    embeddings_BD: Tensor,
    targets_CD: Tensor,
    positive_B: Tensor,
    valid_BC: Tensor,
    cots: list[str],
    closed_B: Tensor,
    stage: RLSettings,
) -> RewardTerms:
    """Rewards of completions by what their embeddings retrieve (docs/method.md, section 6).

    Args:
        embeddings_BD: generative embeddings of the completions, unit norm.
        targets_CD: discriminative embeddings of the targets, unit norm.
        positive_B: column of each completion's positive.
        valid_BC: True where a column is a negative of that completion.
        cots: the completions as text.
        closed_B: True where the completion ended before the cap.
        stage: weights, combination and temperature.

    Raises:
        DataError: a completion without any negative.
    """
    with torch.autocast(device_type=embeddings_BD.device.type, enabled=False):
        scores_BC = embeddings_BD.float() @ targets_CD.float().T
        own_B = scores_BC.gather(1, positive_B[:, None])[:, 0]
        format_B = format_reward(cots, closed_B)
        rank_B = reciprocal_rank(own_B, scores_BC, valid_BC)
        gap_B = similarity_gap(own_B, scores_BC, temperature=stage.reward_temperature, valid_BN=valid_BC)
        reward_B = combine_rewards(
            format_B,
            rank_B,
            gap_B,
            format_weight=stage.format_weight,
            rank_weight=stage.rank_weight,
            gap_weight=stage.gap_weight,
            combination=stage.reward_combination,
        )
    return RewardTerms(reward_B, format_B, rank_B, gap_B)


def distinct_targets(embeddings_CD: Tensor, hash_C: Tensor) -> tuple[Tensor, Tensor]:
    """The targets of all ranks, in rank order, and their hashes; one that several ranks have as the first has it.

    Args:
        embeddings_CD: this rank's.
        hash_C: their target hashes, int64; distinct within a rank.
    """
    embeddings_CD, hash_C = gather_with_local_gradient(embeddings_CD), gather_with_local_gradient(hash_C)
    first_C = (hash_C[:, None] == hash_C).int().argmax(1)
    kept = (first_C == torch.arange(len(hash_C), device=hash_C.device)).nonzero()[:, 0]
    return embeddings_CD[kept], hash_C[kept]


@dataclass
class _PoolEntry:
    """One task's share of the pool."""

    identities: list[set[str]]
    embeddings_CD: Tensor
    step: int
    """When the embeddings were made."""


class TargetPool:
    """Per task, discriminative embeddings of distinct targets that the completions of a step compete with.

    RL moves the caches that embeddings are read from, so they are made again every few steps. Between two such steps
    they belong to older weights: that is why they are part of a checkpoint.

    Args:
        source: where candidates of the split `rl` come from.
        size: most targets of a task.
        refresh_steps: age, in steps, at which they are encoded again.
        batch_size: rows encoded together.
        seed: which targets, where a task has more than `size`.
    """

    def __init__(self, source: PairSource, size: int, refresh_steps: int, batch_size: int, seed: int) -> None:
        self.source, self.size, self.refresh_steps = source, size, refresh_steps
        self.batch_size, self.seed = batch_size, seed
        self._items: dict[str, list[Item]] = {}
        self._entries: dict[str, _PoolEntry] = {}

    def rivals(self, backbone: DualLoRABackbone, task: str, step: int, taken: Iterable[Item]) -> Tensor:
        """Embeddings (C, D) of the task's pool without the targets in any rank's `taken`, which the batch has itself.

        Every rank must call this for the same task.
        """
        entry = self._entries.get(task)
        if entry is None or step - entry.step >= self.refresh_steps:
            entry = self._entries[task] = self._encoded(backbone, task, step)
        own = set().union(*gather_objects({name for item in taken for name in _identity(item)}))
        kept = [row for row, identity in enumerate(entry.identities) if not identity & own]
        return entry.embeddings_CD[kept]

    def _encoded(self, backbone: DualLoRABackbone, task: str, step: int) -> _PoolEntry:
        items = self._chosen(task)
        mine = items[rank() :: world_size()]
        share = list(encode_candidates(backbone, mine, self.batch_size)) if mine else []
        return _PoolEntry([_identity(item) for item in items], torch.stack(interleave(gather_objects(share))), step)

    def _chosen(self, task: str) -> list[Item]:
        """Up to `size` candidates of distinct content, the same ones throughout a run."""
        if task not in self._items:
            candidates = self.source.candidates("rl", task)
            chosen: dict[str, Item] = {}
            for row in np.random.default_rng(self.seed).permutation(len(candidates)):
                chosen.setdefault(candidates[row].content_hash(), candidates[row])
                if len(chosen) == self.size:
                    break
            self._items[task] = list(chosen.values())
        return self._items[task]

    def state_dict(self) -> dict[str, Any]:
        """The embeddings of every task, and their age."""
        return {task: {"step": e.step, "embeddings": e.embeddings_CD} for task, e in self._entries.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._entries = {
            task: _PoolEntry([_identity(item) for item in self._chosen(task)], saved["embeddings"], saved["step"])
            for task, saved in state.items()
        }


def _identity(item: Item) -> set[str]:
    """Two items are the same target if they share a key or their content."""
    return {f"key:{item.key}", f"content:{item.content_hash()}"}


@dataclass(frozen=True)
class HeldOutReward:
    """One validation query: the reward of its greedy CoT with its terms, and what retrieval made of it."""

    task: str
    query_key: str
    steps: int | None
    reward: float
    reward_format: float
    reward_rank: float
    reward_gap: float
    hit_discriminative: float
    hit_generative: float
    tokens: int
    malformed: bool
    cot: str = ""


class HeldOutRewards:
    """Rewards on the validation pairs, against each task's whole corpus, everything encoded anew.

    Args:
        data: the run's pairs.
        settings: stage weights, cap and batch size.
    """

    def __init__(self, data: TWNDataModule, settings: Settings) -> None:
        assert isinstance(settings.stage, RLSettings)
        self.data, self.settings, self.stage = data, settings, settings.stage
        self._hashes: dict[str, Tensor] = {}

    def measure(self, backbone: DualLoRABackbone) -> list[HeldOutReward]:
        """Records in the pairs' order; ranks share the work."""
        pairs = self.data.pairs("val")
        mine = [pairs[row] for row in range(rank(), len(pairs), world_size())]
        return interleave(gather_objects(self._measured(backbone, mine) if mine else []))

    def _measured(self, backbone: DualLoRABackbone, pairs: Sequence[Pair]) -> list[HeldOutReward]:
        batch_size = self.settings.evaluation.batch_size
        encoded = encode(
            backbone,
            [pair.query for pair in pairs],
            EmbeddingMode.GENERATIVE,
            max_new_tokens=self.settings.data.max_new_tokens,
            batch_size=batch_size,
        )
        records: dict[int, HeldOutReward] = {}
        for task in dict.fromkeys(pair.source for pair in pairs):
            rows = [row for row, pair in enumerate(pairs) if pair.source == task]
            found = encoded.select(rows)
            candidates = self.data.source.candidates("val", task)
            candidates_CD = encode_candidates(backbone, candidates, batch_size)
            check_embeddings(candidates_CD, f"task '{task}', candidates")
            positive_N = positive_rows([pairs[row] for row in rows], candidates)
            hash_C = self._hash_of(task, candidates)
            texts = [text or "" for text in found.cot_texts]
            terms = score_completions(
                found.embedding_ND,
                candidates_CD,
                positive_N,
                hash_C[None] != hash_C[positive_N][:, None],
                texts,
                ~found.malformed_N,
                self.stage,
            )
            hits = [
                hit_at_k((queries_ND.float() @ candidates_CD.float().T).numpy(), positive_N.numpy()).tolist()
                for queries_ND in (found.discriminative_ND, found.embedding_ND)
            ]
            rewards = [value.tolist() for value in vars(terms).values()]
            columns = (*rewards, *hits, found.tokens_N.tolist(), found.malformed_N.tolist(), texts)
            for row, *values in zip(rows, *columns, strict=True):
                records[row] = HeldOutReward(task, pairs[row].query.key, pairs[row].steps, *values)
        return [records[row] for row in range(len(pairs))]

    def _hash_of(self, task: str, candidates: Sequence[Item]) -> Tensor:
        if task not in self._hashes:
            self._hashes[task] = torch.tensor([target_hash_int64(item.content_hash()) for item in candidates])
        return self._hashes[task]
