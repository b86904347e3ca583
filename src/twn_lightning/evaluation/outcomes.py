"""What each mode did with each query: ranks, losses and top answers, one record per query.

Shape letters: Q queries of one task, C candidates of the task, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twn_lightning.backbone.encoding import Encoded
from twn_lightning.data.nano.tasks import KINDS
from twn_lightning.errors import DataError
from twn_lightning.gate.labels import outcome_losses
from twn_lightning.metrics import ranks
from twn_lightning.types import Item, Pair


@dataclass
class QueryOutcome:
    """One query under both modes. Ranks start at 1, ties count against the positive."""

    pair: Pair
    rank_discriminative: int
    rank_generative: int
    loss_discriminative: float
    loss_generative: float
    margin: float
    """Top-1 minus top-2 discriminative similarity."""
    top1_discriminative: Item
    top1_generative: Item
    tokens: int
    prompt_tokens: int | None
    """None where the encoder does not say."""
    malformed: bool
    probability: float
    cot: str
    kind: str | None = None
    """What MMEB-nano calls the query: direct, lookalike or steps."""

    @property
    def hit_discriminative(self) -> float:
        return float(self.rank_discriminative == 1)

    @property
    def hit_generative(self) -> float:
        return float(self.rank_generative == 1)


def positive_rows(pairs: Sequence[Pair], candidates: Sequence[Item]) -> Tensor:
    """Row of each pair's positive among the candidates, int64 (Q,).

    Raises:
        DataError: a positive is not a candidate of its task.
    """
    row_of = {item.key: row for row, item in enumerate(candidates)}
    missing = next((pair for pair in pairs if pair.positive.key not in row_of), None)
    if missing is not None:
        raise DataError(
            f"query '{missing.query.key}' of {missing.source}: its positive '{missing.positive.key}' is not among the "
            f"task's {len(candidates)} candidates; the source must list every positive as a candidate"
        )
    return torch.tensor([row_of[pair.positive.key] for pair in pairs])


def kind_of(key: str) -> str | None:
    """What MMEB-nano calls a query: the last part of its key as a pair; None for other sources."""
    last = key.rpartition("/")[2]
    return last if last in KINDS else None


def task_outcomes(
    pairs: Sequence[Pair],
    encoded: Encoded,
    candidates: Sequence[Item],
    candidates_CD: Tensor,
    *,
    label_temperature: float,
    num_negatives: int,
) -> list[QueryOutcome]:
    """Score one task's queries against its whole corpus, without and with their CoTs.

    Args:
        pairs: Q queries with their positives.
        encoded: the queries under mode `generative` (both embeddings; unclosed CoTs already fell back).
        candidates: the corpus, keys unique.
        candidates_CD: discriminative embeddings of the corpus, unit norm.
        label_temperature: of the outcome losses, section 5 of docs/method.md.
        num_negatives: of the outcome losses.

    Returns:
        One record per query, in order.
    """
    positive_Q = positive_rows(pairs, candidates)
    row = torch.arange(len(candidates))
    modes = {"discriminative": encoded.discriminative_ND, "generative": encoded.embedding_ND}
    rank, loss, top, margin_Q = {}, {}, {}, np.zeros(len(pairs))
    for mode, queries_QD in modes.items():
        scores_QC = queries_QD.float() @ candidates_CD.float().T
        rank[mode] = ranks(scores_QC.numpy(), positive_Q.numpy())
        loss[mode] = outcome_losses(
            queries_QD,
            candidates_CD,
            positive_Q,
            positive_Q,
            row,
            temperature=label_temperature,
            num_negatives=num_negatives,
        )
        best = scores_QC.topk(min(2, len(candidates)), dim=1)
        top[mode] = best.indices[:, 0].tolist()
        if mode == "discriminative":
            margin_Q = (best.values[:, 0] - best.values[:, -1]).numpy()
    probability_Q = torch.zeros(len(pairs)) if encoded.probability_N is None else encoded.probability_N
    return [
        QueryOutcome(
            pair=pair,
            rank_discriminative=int(rank["discriminative"][i]),
            rank_generative=int(rank["generative"][i]),
            loss_discriminative=float(loss["discriminative"][i]),
            loss_generative=float(loss["generative"][i]),
            margin=float(margin_Q[i]),
            top1_discriminative=candidates[top["discriminative"][i]],
            top1_generative=candidates[top["generative"][i]],
            tokens=int(encoded.tokens_N[i]),
            prompt_tokens=int(encoded.prompt_tokens_N[i]),
            malformed=bool(encoded.malformed_N[i]),
            probability=float(probability_Q[i]),
            cot=encoded.cot_texts[i] or "",
            kind=kind_of(pair.query.key),
        )
        for i, pair in enumerate(pairs)
    ]
