"""The completions of one step: scored, in chunks for the updates, and as rows to read later.

Shape letters: B completions (prompt-major, groups of G), T completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from twn_lightning.atomic import whole_file
from twn_lightning.stages.rewards import HeldOutReward, RewardTerms
from twn_lightning.strategy import sum_over_ranks
from twn_lightning.types import CotBatch, Pair, PromptBatch, Rollout


@dataclass
class ScoredRollout:
    """Everything that the updates of one step need of it, and that is logged."""

    rollout: Rollout
    """With rewards and advantages."""
    reference_log_probs_BT: Tensor
    terms: RewardTerms
    texts: list[str]
    degenerate_groups: int

    @property
    def advantages_B(self) -> Tensor:
        assert self.rollout.advantages_B is not None
        return self.rollout.advantages_B

    def log_values(self) -> dict[str, float]:
        """Means over the completions of all ranks; groups whose rewards differ are counted, and those whose do not."""
        cots = self.rollout.cots
        sums = {
            **self.terms.sums(),
            "rl/cot_tokens": cots.mask_BT.sum(),
            "rl/malformed_cot_rate": (~cots.closed_B).sum(),
        }
        counts = [len(cots), self.degenerate_groups]
        vector = torch.stack([*sums.values(), *torch.tensor(counts).to(cots.ids_BT)]).double()
        *totals, completions, degenerate = sum_over_ranks(vector, vector.device).tolist()
        means = {name: total / completions for name, total in zip(sums, totals, strict=True)}
        groups = completions / self.rollout.group_size
        return {**means, "rl/degenerate_groups": degenerate, "rl/live_groups": groups - degenerate}


@dataclass
class Reading:
    """What a forward pass makes of completions that were sampled before."""

    log_probs_BT: Tensor
    """fp32 log-probabilities of the tokens at the sampling temperature."""
    embeddings_BD: Tensor | None
    """Generative embeddings; None: not asked for."""
    dtype: torch.dtype
    """What the pass computed in."""


@dataclass
class CompletionChunk:
    """Prompts with all their completions, as many as one forward pass holds."""

    rows: slice
    """Which completions of the rollout."""
    prompts: PromptBatch
    cots: CotBatch

    def of(self, values_BT: Tensor) -> Tensor:
        """This chunk's part of a (B, T) tensor."""
        return values_BT[self.rows, : self.cots.ids_BT.shape[1]]


def completion_chunks(
    prompts: PromptBatch, cots: CotBatch, group_size: int, chunk_size: int
) -> Iterator[CompletionChunk]:
    """Completions in chunks, each as wide as its longest.

    Args:
        prompts: the prompts, each once.
        cots: `group_size` completions of each, prompt-major.
        group_size: completions per prompt; they stay together, since they share one reading of the prompt.
        chunk_size: most completions per chunk, but at least one prompt's.
    """
    together = max(1, chunk_size // group_size)
    for start in range(0, len(prompts), together):
        chosen_prompts = range(start, min(start + together, len(prompts)))
        rows = range(chosen_prompts.start * group_size, chosen_prompts.stop * group_size)
        chosen = cots.select(list(rows))
        width = max(int(chosen.lengths_B.max()), 1)
        trimmed = CotBatch(chosen.ids_BT[:, :width], chosen.mask_BT[:, :width], chosen.closed_B)
        yield CompletionChunk(slice(rows.start, rows.stop), prompts.select(list(chosen_prompts)), trimmed)


@dataclass
class RolloutRow:
    """One completion, as `rollouts.parquet` keeps it."""

    task: str
    query_key: str
    query_text: str
    positive: str
    cot: str
    reward: float
    reward_format: float
    reward_rank: float
    reward_gap: float
    advantage: float
    tokens: int
    closed: bool


def rollout_rows(pairs: Sequence[Pair], scored: ScoredRollout) -> list[RolloutRow]:
    """The completions of the rollout's first prompts: those of `pairs`."""
    cots, group_size = scored.rollout.cots, scored.rollout.group_size
    rows = []
    for i in range(len(pairs) * group_size):
        pair = pairs[i // group_size]
        rows.append(
            RolloutRow(
                task=pair.source,
                query_key=pair.query.key,
                query_text=f"{pair.query.instruction} {pair.query.text}".strip(),
                positive=pair.positive.text or pair.positive.key,
                cot=scored.texts[i],
                **{name: float(value[i]) for name, value in vars(scored.terms).items()},
                advantage=float(scored.advantages_B[i]),
                tokens=int(cots.lengths_B[i]),
                closed=bool(cots.closed_B[i]),
            )
        )
    return rows


def append_rows(path: Path, step: int, rows: Sequence[RolloutRow | HeldOutReward]) -> None:
    """Add one step's rows to a parquet file, in place of what an interrupted run wrote from that step on.

    Args:
        path: the file; its first column is the step.
        step: training batches that are complete, as in metrics.jsonl.
        rows: what is added.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    earlier = [row for row in pq.read_table(path).to_pylist() if row["step"] < step] if path.exists() else []
    added = [{"step": step, **asdict(row)} for row in rows]
    with whole_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist([*earlier, *added]), temporary)
