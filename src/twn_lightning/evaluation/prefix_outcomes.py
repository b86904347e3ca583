"""What every query retrieves after each number of CoT tokens: recorded once, for early exit and graded thinking.

Each CoT is generated once; pass E then reads its first tokens, which equals stopping there. An unclosed CoT falls back
to the discriminative embedding at its end, as everywhere.

Shape letters: N queries, P cuts, F gate features, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twn_lightning.backbone.decoding import decode_cots
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.prefixes import prefix_embeddings
from twn_lightning.data.sources import PairSource, Split
from twn_lightning.errors import DataError
from twn_lightning.evaluation.probes import evaluating, probed_pairs, query_columns, task_corpora
from twn_lightning.evaluation.recorded_arrays import RecordedArrays
from twn_lightning.evaluation.suite import encode_candidates
from twn_lightning.gate import RoutingGate, outcome_losses
from twn_lightning.settings import GateSettings
from twn_lightning.types import Item, Pair


@dataclass
class PrefixOutcomes(RecordedArrays):
    """One row per query, one column per cut; arrays of equal length (N, ...)."""

    cuts_P: np.ndarray
    """CoT tokens read, rising: 0 first, the cap last."""
    hit_NP: np.ndarray
    """1 where the positive ranks first."""
    loss_NP: np.ndarray
    """Outcome losses in nats."""
    moved_NP: np.ndarray
    """`1 - cosine` to the embedding one cut before; 0 in the first column."""
    tokens_N: np.ndarray
    """Of the whole CoT."""
    probability_N: np.ndarray
    """The gate's, NaN without one."""
    features_NF: np.ndarray
    """The gate's."""

    @property
    def spent_NP(self) -> np.ndarray:
        """CoT tokens generated to get to each cut."""
        return np.minimum(self.cuts_P[None, :], self.tokens_N[:, None])

    def column(self, tokens: int) -> int:
        """The column of a cut.

        Raises:
            DataError: there is no such cut; names those there are.
        """
        found = np.flatnonzero(self.cuts_P == tokens)
        if len(found) == 0:
            raise DataError(f"no embedding after {tokens} tokens was recorded, only after {self.cuts_P.tolist()}")
        return int(found[0])


def cuts_up_to(cap: int, stride: int) -> list[int]:
    """0, every `stride` tokens, and the cap."""
    return [*range(0, cap, stride), cap]


def record_prefixes(
    backbone: DualLoRABackbone,
    source: PairSource,
    split: Split,
    count: int,
    *,
    stride: int,
    max_new_tokens: int,
    batch_size: int,
    gate: RoutingGate | None,
    gate_settings: GateSettings,
    progress: Callable[[int], None] | None = None,
) -> PrefixOutcomes:
    """Generate a split's CoTs and rank each task's corpus after every `stride` tokens of them.

    Args:
        backbone: in the state to measure; candidates are embedded discriminatively.
        source: brings pairs and each task's corpus.
        split: which split.
        count: number of queries.
        stride: tokens between cuts.
        max_new_tokens: cap of a CoT, and the last cut.
        batch_size: queries decoded together.
        gate: gives `probability_N`.
        gate_settings: temperature and negatives of the outcome losses.
        progress: called with the number of queries encoded, after each batch.

    Raises:
        DataError: no queries, or a positive missing from its corpus.
    """
    pairs = probed_pairs(source, split, count)
    cuts = cuts_up_to(max_new_tokens, stride)
    with evaluating(backbone):
        parts = []
        for start in range(0, len(pairs), batch_size):
            batch = [pair.query for pair in pairs[start : start + batch_size]]
            parts.append(_embed(backbone, batch, cuts))
            if progress is not None:
                progress(len(batch))
        e_NPD, tokens_N, features_NF = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        hit_NP, loss_NP = _rank(backbone, source, split, pairs, e_NPD, batch_size, gate_settings)
        probability_N = torch.full(tokens_N.shape, torch.nan)
        if gate is not None:
            probability_N = gate(features_NF.to(gate.feature_mean.device)).sigmoid().cpu()
    moved_NP = torch.zeros(e_NPD.shape[:2])
    moved_NP[:, 1:] = 1 - (e_NPD[:, 1:] * e_NPD[:, :-1]).sum(-1)
    columns = {name: values.astype(str) for name, values in query_columns(pairs).items() if name != "steps"}
    return PrefixOutcomes(
        **columns,
        steps=np.array([-1 if pair.steps is None else pair.steps for pair in pairs]),
        cuts_P=np.array(cuts),
        hit_NP=hit_NP,
        loss_NP=loss_NP,
        moved_NP=moved_NP.numpy(),
        tokens_N=tokens_N.numpy(),
        probability_N=probability_N.numpy(),
        features_NF=features_NF.numpy(),
    )


def _embed(backbone: DualLoRABackbone, items: Sequence[Item], cuts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings after each cut (B, P, D), CoT lengths (B,) and gate features (B, F), on the CPU."""
    state = backbone.reason(backbone.processor(items).to(backbone.device))
    decoded = decode_cots(backbone, state, max_new_tokens=cuts[-1])
    e_BPD = prefix_embeddings(backbone, decoded.state, cuts)
    lengths_B = decoded.cots.lengths_B
    at_end_BP = torch.tensor(cuts, device=e_BPD.device) >= lengths_B[:, None]
    unclosed_BP = at_end_BP & ~decoded.cots.closed_B[:, None]
    e_BPD = torch.where(unclosed_BP[..., None], e_BPD[:, :1], e_BPD)
    return e_BPD.cpu(), lengths_B.cpu(), backbone.gate_features(state, e_BPD[:, 0]).cpu()


def _rank(
    backbone: DualLoRABackbone,
    source: PairSource,
    split: Split,
    pairs: Sequence[Pair],
    e_NPD: Tensor,
    batch_size: int,
    settings: GateSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Hits and outcome losses after each cut, both (N, P)."""
    hit_NP, loss_NP = np.zeros(e_NPD.shape[:2]), np.zeros(e_NPD.shape[:2])
    for corpus in task_corpora(pairs, source, split):
        candidates_CD = encode_candidates(backbone, corpus.candidates, batch_size)
        for cut in range(e_NPD.shape[1]):
            hit_NP[corpus.rows, cut] = corpus.hits(e_NPD[:, cut], candidates_CD)
            loss_NP[corpus.rows, cut] = outcome_losses(
                e_NPD[corpus.rows, cut],
                candidates_CD,
                corpus.positive_R,
                corpus.positive_R,
                torch.arange(len(corpus.candidates)),
                temperature=settings.label_temperature,
                num_negatives=settings.num_negatives,
            ).numpy()
    return hit_NP, loss_NP
