"""Every query mode against every candidate mode: what it costs when the two sides do not think alike.

Both sides are encoded once, with the CoTs that the model writes itself; the adaptive embedding is the generative or the
discriminative one as the gate says. Shape letters: Q queries, C candidates of a task, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.encoding import Encoded, encode
from twn_lightning.data.sources import PairSource, Split
from twn_lightning.evaluation.probes import (
    Columns,
    grouped_scores,
    plain_interval,
    probed_pairs,
    query_columns,
    task_corpora,
)
from twn_lightning.gate.routing_gate import RoutingGate
from twn_lightning.metrics import bootstrap_mean, paired_bootstrap_difference
from twn_lightning.types import EmbeddingMode, Side

BASELINE = (EmbeddingMode.DISCRIMINATIVE.value, EmbeddingMode.DISCRIMINATIVE.value)


@dataclass
class ModeMatrix:
    """Hits of every pair of modes, and what each side thought."""

    columns: Columns
    """`query_columns`, `hit/<query mode>/<candidate mode>`, `tokens` and `think` (the gate's decision) of the query."""
    candidates: dict[str, dict[str, float]]
    """Per task: how many, their CoT tokens, the share malformed, and the share that the gate lets think."""

    def scores(self) -> dict[str, Any]:
        """What the candidates thought, and the scores of every pair of modes."""
        return {"candidates": self.candidates, **grouped_scores(self.columns, matrix_scores)}


def mode_matrix(
    backbone: DualLoRABackbone,
    source: PairSource,
    split: Split,
    count: int,
    *,
    gate: RoutingGate | None,
    threshold: float,
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> ModeMatrix:
    """Rank each task's corpus under every pair of query mode and candidate mode.

    A model trained with `data.think_sides=query` has never written a candidate's CoT: its generative candidates are
    what the reasoning adapter makes of an input it does not know, discriminative where that does not close.

    Args:
        backbone: in the state to probe.
        source: brings pairs and each task's corpus.
        split: which split.
        count: number of queries.
        gate: None leaves out the adaptive mode.
        threshold: think iff probability > threshold.
        batch_size: rows encoded together.
        max_new_tokens: cap of a CoT.
        progress: called with the number of queries encoded, after each batch.

    Raises:
        DataError: no queries, or a positive that is not a candidate.
    """
    pairs = probed_pairs(source, split, count)
    both = partial(
        encode,
        backbone,
        mode=EmbeddingMode.GENERATIVE,
        gate=gate,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    has_sides = gate is not None and gate.side is not None
    queries = both([pair.query for pair in pairs], side=Side.QUERY if has_sides else None, progress=progress)
    query_modes = embeddings_by_mode(queries, threshold)
    columns = query_columns(pairs) | {
        "tokens": queries.tokens_N.double().numpy(),
        "think": _thinks(queries, threshold).double().numpy(),
    }
    candidates = {}
    for corpus in task_corpora(pairs, source, split):
        encoded = both(corpus.candidates, side=Side.CANDIDATE if has_sides else None)
        candidates[corpus.task] = _side_values(encoded, threshold)
        for (query_mode, e_QD), (candidate_mode, e_CD) in product(
            query_modes.items(), embeddings_by_mode(encoded, threshold).items()
        ):
            column = columns.setdefault(f"hit/{query_mode}/{candidate_mode}", np.full(len(pairs), np.nan))
            column[corpus.rows] = corpus.hits(e_QD, e_CD)
    return ModeMatrix(columns, candidates)


def embeddings_by_mode(encoded: Encoded, threshold: float) -> dict[str, Tensor]:
    """The embedding of each mode (N, D), from items encoded generatively; adaptive where a gate was given."""
    found = {
        EmbeddingMode.DISCRIMINATIVE.value: encoded.discriminative_ND,
        EmbeddingMode.GENERATIVE.value: encoded.embedding_ND,
    }
    if encoded.probability_N is not None:
        think_N1 = _thinks(encoded, threshold)[:, None]
        found[EmbeddingMode.ADAPTIVE.value] = torch.where(think_N1, encoded.embedding_ND, encoded.discriminative_ND)
    return found


def matrix_scores(columns: Columns) -> dict[str, Any]:
    """hit@1 of every pair of modes, and its paired difference to both sides discriminative."""
    baseline_Q = columns["hit/" + "/".join(BASELINE)]
    found: dict[str, Any] = {
        "queries": len(baseline_Q),
        "tokens": float(columns["tokens"].mean()),
        "think_rate": float(columns["think"].mean()),
    }
    for name, hit_Q in columns.items():
        if name.startswith("hit/"):
            found[name.removeprefix("hit/")] = {
                "hit@1": plain_interval(bootstrap_mean(hit_Q)),
                "minus_discriminative": plain_interval(paired_bootstrap_difference(hit_Q, baseline_Q)),
            }
    return found


def _thinks(encoded: Encoded, threshold: float) -> Tensor:
    if encoded.probability_N is None:
        return torch.zeros(len(encoded), dtype=torch.bool)
    return encoded.probability_N > threshold


def _side_values(encoded: Encoded, threshold: float) -> dict[str, float]:
    return {
        "candidates": len(encoded),
        "tokens": float(encoded.tokens_N.double().mean()),
        "malformed_cot_rate": float(encoded.malformed_N.double().mean()),
        "think_rate": float(_thinks(encoded, threshold).double().mean()),
    }
