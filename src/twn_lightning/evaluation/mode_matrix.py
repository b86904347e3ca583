"""Every query mode against every candidate mode: the quality of each pair of modes, and the CoT tokens it costs.

Both sides are encoded once, with the CoTs that the model writes itself; the adaptive embedding is the generative or the
discriminative one as the gate says, by the same gate and threshold on both sides. Candidates that are short texts never
think (`data.corpus.is_label_like`), as in training.

A query's CoT is paid for each query, a candidate's once for the index. An index is reused r times where r queries are
asked of it for each candidate that it holds; a query then costs `query tokens + candidate tokens / r`.

Shape letters: Q queries, C candidates of a task, N inputs of one side, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.encoding import Encoded, encode
from twn_lightning.data.corpus import is_label_like
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
from twn_lightning.types import EmbeddingMode, Item, Side

DISCRIMINATIVE, GENERATIVE, ADAPTIVE = (mode.value for mode in EmbeddingMode)
REUSES = (1, 10, 100)
"""Queries per candidate of an index, at which its tokens are shared out."""


@dataclass(frozen=True)
class SideModes:
    """The N inputs of one side in every mode; `adaptive` is there where a gate was given."""

    embeddings_ND: dict[str, Tensor]
    """Unit norm; a CoT that did not close leaves the discriminative embedding."""
    tokens_N: dict[str, Tensor]
    """CoT tokens that the mode has written."""
    think_N: Tensor
    """What the gate decides; False throughout without a gate."""
    malformed_N: Tensor
    """True where the CoT had not closed by the cap."""

    def summary(self) -> dict[str, float]:
        """How many inputs there are; in generative mode their mean CoT tokens and the share malformed; think rate."""
        return {
            "candidates": len(self.think_N),
            "tokens": float(self.tokens_N[GENERATIVE].mean()),
            "malformed_cot_rate": float(self.malformed_N.double().mean()),
            "think_rate": float(self.think_N.double().mean()),
        }


@dataclass
class ModeMatrix:
    """Hits of every pair of modes, and what each side thought."""

    columns: Columns
    """`query_columns`, `hit/<query mode>/<candidate mode>`, `think` (the gate's decision on the query),
    `tokens/<query mode>` of the query, `candidate_tokens/<candidate mode>`: mean over the candidates of its task."""
    candidates: dict[str, dict[str, float]]
    """`SideModes.summary` of each task's candidates."""
    gate_trained_on: str | None
    """`query`, or `both` where the gate knows the sides apart; None: there is no gate."""

    def scores(self) -> dict[str, Any]:
        """What the candidates thought, and the scores of every pair of modes."""
        return {
            "gate_trained_on": self.gate_trained_on,
            "candidates": self.candidates,
            **grouped_scores(self.columns, matrix_scores),
        }


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
    what the reasoning adapter makes of an input it does not know. A gate without a side embedding was trained on
    queries, and decides on candidates by what it learnt there.

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
    knows_sides = gate is not None and gate.side is not None

    def in_every_mode(
        side: Side, items: Sequence[Item], may_think: Sequence[bool], progress: Callable[[int], None] | None = None
    ) -> SideModes:
        encode_as = partial(
            encode,
            backbone,
            gate=gate,
            side=side if knows_sides else None,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )
        return side_modes(items, may_think, encode_as, threshold)

    queries = in_every_mode(Side.QUERY, [pair.query for pair in pairs], [True] * len(pairs), progress)
    columns = query_columns(pairs) | {"think": queries.think_N.double().numpy()}
    columns |= {f"tokens/{mode}": tokens_N.numpy() for mode, tokens_N in queries.tokens_N.items()}
    found: dict[str, dict[str, float]] = {}
    for corpus in task_corpora(pairs, source, split):
        may_think = [not is_label_like(item) for item in corpus.candidates]
        candidates = in_every_mode(Side.CANDIDATE, corpus.candidates, may_think)
        found[corpus.task] = candidates.summary()
        for mode, tokens_C in candidates.tokens_N.items():
            _column(columns, f"candidate_tokens/{mode}")[corpus.rows] = float(tokens_C.mean())
        for (query_mode, e_QD), (candidate_mode, e_CD) in product(
            queries.embeddings_ND.items(), candidates.embeddings_ND.items()
        ):
            _column(columns, f"hit/{query_mode}/{candidate_mode}")[corpus.rows] = corpus.hits(e_QD, e_CD)
    return ModeMatrix(columns, found, None if gate is None else "both" if knows_sides else "query")


def _column(columns: Columns, name: str) -> np.ndarray:
    return columns.setdefault(name, np.full(len(columns["query_key"]), np.nan))


def side_modes(
    items: Sequence[Item], may_think: Sequence[bool], encode_as: Callable[..., Encoded], threshold: float
) -> SideModes:
    """Encode one side once and derive every mode.

    Args:
        items: N queries or candidates.
        may_think: which of them may think at all; the others have no CoT in any mode.
        encode_as: (items, mode) to their encoding.
        threshold: think iff probability > threshold.
    """
    rows_by_mode = {
        EmbeddingMode.GENERATIVE: [row for row, allowed in enumerate(may_think) if allowed],
        EmbeddingMode.DISCRIMINATIVE: [row for row, allowed in enumerate(may_think) if not allowed],
    }
    parts = [encode_as([items[row] for row in rows], mode=mode) for mode, rows in rows_by_mode.items() if rows]
    order_N = torch.tensor([row for rows in rows_by_mode.values() for row in rows]).argsort()

    def joined(field: str) -> Tensor:
        return torch.cat([getattr(part, field) for part in parts])[order_N]

    e_d, e_g, tokens_N = joined("discriminative_ND"), joined("embedding_ND"), joined("tokens_N").double()
    embeddings = {DISCRIMINATIVE: e_d, GENERATIVE: e_g}
    tokens = {DISCRIMINATIVE: torch.zeros_like(tokens_N), GENERATIVE: tokens_N}
    think_N = torch.zeros(len(items), dtype=torch.bool)
    if parts[0].probability_N is not None:
        think_N = (joined("probability_N") > threshold) & torch.tensor(may_think)
        embeddings[ADAPTIVE] = torch.where(think_N[:, None], e_g, e_d)
        tokens[ADAPTIVE] = tokens_N * think_N
    return SideModes(embeddings, tokens, think_N, joined("malformed_N"))


def matrix_scores(columns: Columns) -> dict[str, Any]:
    """hit@1 of every pair of modes, its paired difference to both sides discriminative, and its CoT tokens."""
    baseline_Q = columns[f"hit/{DISCRIMINATIVE}/{DISCRIMINATIVE}"]
    found: dict[str, Any] = {"queries": len(baseline_Q), "think_rate": float(columns["think"].mean())}
    for name, hit_Q in columns.items():
        if not name.startswith("hit/"):
            continue
        _, query_mode, candidate_mode = name.split("/")
        per_query = float(columns[f"tokens/{query_mode}"].mean())
        per_candidate = float(columns[f"candidate_tokens/{candidate_mode}"].mean())
        found[f"{query_mode}/{candidate_mode}"] = {
            "hit@1": plain_interval(bootstrap_mean(hit_Q)),
            "minus_discriminative": plain_interval(paired_bootstrap_difference(hit_Q, baseline_Q)),
            "tokens_per_query": per_query,
            "tokens_per_candidate": per_candidate,
            "tokens_at_reuse": {str(reuse): per_query + per_candidate / reuse for reuse in REUSES},
        }
    return found
