"""What a gate can learn from and be judged by: its features and both modes' outcomes, recorded once per query.

Shape letters: N queries, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.encoding import encode
from twn_lightning.data.sources import PairSource, Split
from twn_lightning.evaluation.probes import probed_pairs, query_columns
from twn_lightning.evaluation.recorded_arrays import RecordedArrays
from twn_lightning.evaluation.suite import encode_outcomes
from twn_lightning.settings import GateSettings
from twn_lightning.types import EmbeddingMode


@dataclass
class GateOutcomes(RecordedArrays):
    """One row per query; arrays of equal length (N, ...)."""

    hidden_state_ND: np.ndarray
    """The gate's first features: the last hidden state of the prompt, float16."""
    e_d_ND: np.ndarray
    """Its others: the discriminative embedding, float16."""
    loss_discriminative: np.ndarray
    """Outcome loss without a CoT, in nats."""
    loss_generative: np.ndarray
    rank_discriminative: np.ndarray
    """Of the positive among its task's whole corpus, from 1."""
    rank_generative: np.ndarray
    margin: np.ndarray
    """Top-1 minus top-2 discriminative similarity."""
    tokens: np.ndarray
    """Of the CoT."""

    @property
    def hit_discriminative(self) -> np.ndarray:
        """1 where the positive ranks first without a CoT, else 0."""
        return (self.rank_discriminative == 1).astype(np.float64)

    @property
    def hit_generative(self) -> np.ndarray:
        """1 where the positive ranks first with a CoT, else 0."""
        return (self.rank_generative == 1).astype(np.float64)

    def of_tasks(self, tasks: Sequence[str]) -> np.ndarray:
        """Which queries belong to one of some tasks, bool (N,)."""
        return np.isin(self.task, list(tasks))

    def select(self, rows: np.ndarray) -> GateOutcomes:
        """Some of the queries, by number or by a mask (N,)."""
        return GateOutcomes(**{name: values[rows] for name, values in vars(self).items()})


def record_gate_outcomes(
    backbone: DualLoRABackbone,
    source: PairSource,
    split: Split,
    count: int,
    *,
    max_new_tokens: int,
    batch_size: int,
    gate_settings: GateSettings,
    progress: Callable[[int], None] | None = None,
) -> GateOutcomes:
    """Embed a split's queries without and with a CoT of their own, and rank each task's corpus both ways.

    Args:
        backbone: in the state to measure; candidates are embedded discriminatively.
        source: brings pairs and each task's corpus.
        split: which split.
        count: number of queries.
        max_new_tokens: cap of a CoT.
        batch_size: queries decoded together.
        gate_settings: temperature and negatives of the outcome losses.
        progress: called with the number of queries encoded, after each batch.

    Raises:
        DataError: no queries, or a positive missing from its corpus.
    """
    pairs = probed_pairs(source, split, count)
    encoded = encode(
        backbone,
        [pair.query for pair in pairs],
        EmbeddingMode.GENERATIVE,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    outcomes = encode_outcomes(
        backbone,
        source,
        split,
        pairs,
        gate=None,
        gate_settings=gate_settings,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        encoded=encoded,
    )
    columns = query_columns(pairs)
    hidden_state_ND, e_d_ND = encoded.features_NF.numpy().astype(np.float16).reshape(len(pairs), 2, -1).swapaxes(0, 1)
    return GateOutcomes(
        **{name: columns[name].astype(str) for name in ("query_key", "task", "kind")},
        steps=columns["steps"],
        hidden_state_ND=hidden_state_ND,
        e_d_ND=e_d_ND,
        loss_discriminative=np.array([o.loss_discriminative for o in outcomes]),
        loss_generative=np.array([o.loss_generative for o in outcomes]),
        rank_discriminative=np.array([o.rank_discriminative for o in outcomes]),
        rank_generative=np.array([o.rank_generative for o in outcomes]),
        margin=np.array([o.margin for o in outcomes]),
        tokens=np.array([o.tokens for o in outcomes]),
    )
