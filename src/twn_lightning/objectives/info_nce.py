"""Bidirectional InfoNCE with positives and false negatives told apart by target hashes.

Shape letters: Q queries, C candidates, D width. `positive_Q[i]` is the row of the candidates holding query i's
positive; distinct targets are encoded once, so several queries may share a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from twn_lightning.errors import NumericalError


@dataclass
class InfoNCEOutput:
    """The loss and what to log with it; everything but `loss` is detached."""

    loss: Tensor
    hit_at_1: Tensor
    """Share of queries whose positive scores strictly above every candidate of another hash."""
    effective_negatives: Tensor
    """Mean number of unmasked negatives of a query, query -> candidate."""
    masked_share: Tensor
    """Share of the non-positive entries of both directions masked by hash or margin."""
    margin_masked_share: Tensor
    """Share masked by the margin alone."""
    hard_negative_mass: Tensor | None = None
    """Mean softmax mass of the mined hard negatives, query -> candidate; None when they were not pointed out."""


def info_nce(
    queries_QD: Tensor,
    candidates_CD: Tensor,
    positive_Q: Tensor,
    query_hash_Q: Tensor,
    candidate_hash_C: Tensor,
    temperature: float,
    margin: float | None = None,
    matryoshka_dims: Sequence[int] = (),
    candidate_is_negative_C: Tensor | None = None,
    candidate_excluded_C: Tensor | None = None,
) -> InfoNCEOutput:
    """Mean of the query -> candidate and the candidate -> query InfoNCE, in fp32 whatever autocast says.

    Query -> candidate contrasts query i with all candidates. Candidate -> query is taken once per query: the scores of
    all queries against candidate p(i), with query i as the answer. Entries with the hash of i's target are masked in
    both directions, and a target that occurs in several rows (gathered from several ranks) counts once as a negative;
    a row's own positive is never masked.

    Args:
        queries_QD: Query embeddings (Q, D), unit norm.
        candidates_CD: Candidate embeddings (C, D), unit norm: positives and hard negatives.
        positive_Q: Row of the candidates with each query's positive, int64 (Q,).
        query_hash_Q: Hash of each query's target, int64 (Q,).
        candidate_hash_C: Hash of each candidate, int64 (C,).
        temperature: Softmax temperature, above 0.
        margin: Mask negatives scoring above the positive by more than this (likely false negatives), judged on
            detached similarities; None keeps all.
        matryoshka_dims: Further widths; prefixes are normalised again and the losses of all widths averaged.
        candidate_is_negative_C: Marks mined hard negatives, for `hard_negative_mass` only; bool (C,).
        candidate_excluded_C: Candidates that are nobody's negative in this loss; bool (C,).

    Returns:
        `InfoNCEOutput` with scalar tensors; its statistics are those of the full width.

    Raises:
        ValueError: On inconsistent shapes, rows or hashes, a width outside 1..D, or a temperature not above 0.
        NumericalError: When queries or candidates contain NaN or Inf; names which.

    Reference: van den Oord et al. 2018 (arXiv 1807.03748); margin mask after Qwen3-VL-Embedding.

    Relations:
        Equals log(number of unmasked columns) for all-zero embeddings, and the symmetric CLIP loss when every query
        has its own candidate, all hashes differ and neither margin nor further widths are set.
    """
    _check_inputs(queries_QD, candidates_CD, positive_Q, query_hash_Q, candidate_hash_C, temperature, matryoshka_dims)
    masks = _hash_masks(positive_Q, query_hash_Q, candidate_hash_C, candidate_excluded_C)
    width = queries_QD.shape[1]
    with torch.autocast(device_type=queries_QD.device.type, enabled=False):
        contrasts = [
            _contrast(_scores(queries_QD, candidates_CD, dim), positive_Q, masks, temperature, margin)
            for dim in (width, *matryoshka_dims)
        ]
        loss = torch.stack([contrast.loss for contrast in contrasts]).mean()
        return _output(loss, contrasts[0], positive_Q, masks, candidate_is_negative_C)


@dataclass
class _HashMasks:
    """Which entries are a row's own positive, and which are masked by hash, for both directions."""

    own_QC: Tensor
    own_QQ: Tensor
    masked_QC: Tensor
    masked_QQ: Tensor


@dataclass
class _Contrast:
    """Both directions at one width."""

    loss: Tensor
    scores_QC: Tensor
    logits_QC: Tensor
    over_margin: tuple[Tensor, Tensor]


def _hash_masks(
    positive_Q: Tensor, query_hash_Q: Tensor, candidate_hash_C: Tensor, candidate_excluded_C: Tensor | None
) -> _HashMasks:
    num_queries, num_candidates = len(query_hash_Q), len(candidate_hash_C)
    own_QC = torch.arange(num_candidates, device=positive_Q.device)[None, :] == positive_Q[:, None]
    own_QQ = torch.eye(num_queries, dtype=torch.bool, device=positive_Q.device)
    hidden_C = _repeated_or_excluded(candidate_hash_C, candidate_excluded_C)
    return _HashMasks(
        own_QC,
        own_QQ,
        masked_QC=((query_hash_Q[:, None] == candidate_hash_C[None, :]) | hidden_C[None, :]) & ~own_QC,
        masked_QQ=(query_hash_Q[:, None] == query_hash_Q[None, :]) & ~own_QQ,
    )


def _repeated_or_excluded(hash_C: Tensor, excluded_C: Tensor | None) -> Tensor:
    """True where the candidate is excluded, or where an earlier candidate that is not has the same hash."""
    if excluded_C is None:
        excluded_C = torch.zeros_like(hash_C, dtype=torch.bool)
    earlier_CC = ((hash_C[:, None] == hash_C[None, :]) & ~excluded_C[None, :]).tril(-1)
    return excluded_C | earlier_CC.any(1)


def _scores(queries_QD: Tensor, candidates_CD: Tensor, dim: int) -> Tensor:
    queries, candidates = queries_QD.float(), candidates_CD.float()
    if dim < queries.shape[1]:
        queries, candidates = F.normalize(queries[:, :dim], dim=-1), F.normalize(candidates[:, :dim], dim=-1)
    return queries @ candidates.T


def _contrast(
    scores_QC: Tensor, positive_Q: Tensor, masks: _HashMasks, temperature: float, margin: float | None
) -> _Contrast:
    rows_Q = torch.arange(len(scores_QC), device=scores_QC.device)
    positive_scores_Q = scores_QC[rows_Q, positive_Q]
    scores_QQ = scores_QC[:, positive_Q].T
    over_QC = _over_margin(scores_QC, positive_scores_Q, masks.own_QC, margin)
    over_QQ = _over_margin(scores_QQ, positive_scores_Q, masks.own_QQ, margin)
    logits_QC = (scores_QC / temperature).masked_fill(masks.masked_QC | over_QC, -torch.inf)
    logits_QQ = (scores_QQ / temperature).masked_fill(masks.masked_QQ | over_QQ, -torch.inf)
    loss = (F.cross_entropy(logits_QC, positive_Q) + F.cross_entropy(logits_QQ, rows_Q)) / 2
    return _Contrast(loss, scores_QC.detach(), logits_QC.detach(), (over_QC, over_QQ))


def _over_margin(scores: Tensor, positive_scores: Tensor, own: Tensor, margin: float | None) -> Tensor:
    if margin is None:
        return torch.zeros_like(own)
    return (scores.detach() > positive_scores.detach()[:, None] + margin) & ~own


def _output(
    loss: Tensor,
    contrast: _Contrast,
    positive_Q: Tensor,
    masks: _HashMasks,
    candidate_is_negative_C: Tensor | None,
) -> InfoNCEOutput:
    """The loss with the statistics of one width's contrast."""
    positive_Q1 = positive_Q[:, None]
    rivals_QC = contrast.scores_QC.masked_fill(masks.masked_QC | masks.own_QC, -torch.inf)
    beaten_Q = contrast.scores_QC.gather(1, positive_Q1).squeeze(1) > rivals_QC.max(-1).values
    by_hash = (masks.masked_QC, masks.masked_QQ)
    num_entries = max(sum(mask.numel() - len(mask) for mask in by_hash), 1)
    masked = torch.stack([(h | o).sum() for h, o in zip(by_hash, contrast.over_margin, strict=True)]).sum()
    over = torch.stack([(o & ~h).sum() for h, o in zip(by_hash, contrast.over_margin, strict=True)]).sum()
    mass = None
    if candidate_is_negative_C is not None:
        softmax_QC = contrast.logits_QC.softmax(-1).scatter(1, positive_Q1, 0.0)
        mass = (softmax_QC * candidate_is_negative_C).sum(-1).mean()
    return InfoNCEOutput(
        loss=loss,
        hit_at_1=beaten_Q.float().mean(),
        effective_negatives=(contrast.logits_QC > -torch.inf).sum(-1).float().mean() - 1,
        masked_share=masked / num_entries,
        margin_masked_share=over / num_entries,
        hard_negative_mass=mass,
    )


def _check_inputs(
    queries_QD: Tensor,
    candidates_CD: Tensor,
    positive_Q: Tensor,
    query_hash_Q: Tensor,
    candidate_hash_C: Tensor,
    temperature: float,
    matryoshka_dims: Sequence[int],
) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; .02 to .1 are usual.")
    if queries_QD.ndim != 2 or candidates_CD.ndim != 2 or queries_QD.shape[1] != candidates_CD.shape[1]:
        raise ValueError(
            f"queries {tuple(queries_QD.shape)} and candidates {tuple(candidates_CD.shape)} must be (Q, D) and (C, D)."
        )
    num_queries, num_candidates, width = len(queries_QD), len(candidates_CD), queries_QD.shape[1]
    if num_queries == 0 or len(positive_Q) != num_queries or len(query_hash_Q) != num_queries:
        raise ValueError(
            f"{num_queries} queries (at least 1) need as many positive rows and target hashes, "
            f"got {len(positive_Q)} and {len(query_hash_Q)}."
        )
    if len(candidate_hash_C) != num_candidates:
        raise ValueError(f"{num_candidates} candidates need as many hashes, got {len(candidate_hash_C)}.")
    if int(positive_Q.min()) < 0 or int(positive_Q.max()) >= num_candidates:
        raise ValueError(
            f"positive rows lie in {int(positive_Q.min())}..{int(positive_Q.max())}, "
            f"but there are {num_candidates} candidates; gather them with gather_positive_rows."
        )
    wrong = int((candidate_hash_C[positive_Q] != query_hash_Q).sum())
    if wrong:
        raise ValueError(f"{wrong} of {num_queries} queries have a target hash that differs from their positive's.")
    outside = [dim for dim in matryoshka_dims if not 1 <= dim <= width]
    if outside:
        raise ValueError(f"matryoshka_dims {outside} lie outside 1..{width}, the embedding width.")
    for name, tensor in (("queries", queries_QD), ("candidates", candidates_CD)):
        bad = ~torch.isfinite(tensor).all(-1)
        if bool(bad.any()):
            raise NumericalError(
                f"{name}: {int(bad.sum())} of {len(tensor)} embeddings contain NaN or Inf, first at row "
                f"{int(bad.nonzero()[0, 0])}. Usual causes: a learning rate too high, or a prompt of padding only."
            )
