"""Self-supervised labels: did thinking pay, measured on the model's own retrieval outcome?

Shape letters: Q queries, C candidates of one source, D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from twn_lightning.errors import ConfigError, DataError, NumericalError, unknown_name

_ROWS_AT_ONCE = 512
"""Bounds the (rows, C) matrices held at a time."""


def outcome_losses(
    queries_QD: Tensor,
    candidates_CD: Tensor,
    positive_Q: Tensor,
    query_hash_Q: Tensor,
    candidate_hash_C: Tensor,
    *,
    temperature: float = 0.05,
    num_negatives: int = 1023,
    seed: int = 0,
) -> Tensor:
    """`min(-log p(positive | positive + negatives), log(1 + number of negatives))` for every query.

    Negatives are candidates of other hashes, each hash once: all of them, or `num_negatives` drawn by `seed`. The draw
    does not depend on the embeddings, so calls for the two modes with one seed contrast with the same negatives.

    Args:
        queries_QD: Query embeddings of one mode (Q, D), unit norm.
        candidates_CD: Embeddings of one source's candidates (C, D), unit norm.
        positive_Q: Row of each query's positive, int64 (Q,).
        query_hash_Q: Hash of each query's target, int64 (Q,).
        candidate_hash_C: Hash of each candidate, int64 (C,).
        temperature: Label temperature.
        num_negatives: At most this many negatives per query.
        seed: Of the draw.

    Returns:
        Losses in nats, fp32 (Q,). The cap is chance level: an embedding worse than a guess is not punished further,
        so that a wildly wrong mode does not dominate the gain.

    Raises:
        DataError: When a query has no negative.
        ValueError: When num_negatives < 1.
        NumericalError: When embeddings contain NaN or Inf.

    Relations:
        Equals log(1 + number of negatives) for all-zero embeddings, and 0 in the limit of a perfect one.
    """
    if num_negatives < 1:
        raise ValueError(f"gate.num_negatives must be at least 1, got {num_negatives}.")
    for name, tensor in (("queries", queries_QD), ("candidates", candidates_CD)):
        if not bool(torch.isfinite(tensor).all()):
            raise NumericalError(f"outcome_losses: {name} contain NaN or Inf.")
    order_C = torch.randperm(len(candidates_CD), generator=torch.Generator().manual_seed(seed))
    order_C = order_C.to(candidates_CD.device)
    shuffled_CD, shuffled_hash_C = candidates_CD[order_C].float(), candidate_hash_C[order_C]
    distinct_C = _first_of_each(shuffled_hash_C)
    losses = []
    for start in range(0, len(queries_QD), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        eligible_RC = distinct_C & (shuffled_hash_C[None, :] != query_hash_Q[rows, None])
        chosen_RC = eligible_RC & (eligible_RC.cumsum(1) <= num_negatives)
        count_R = chosen_RC.sum(1)
        if not bool((count_R > 0).all()):
            raise DataError(f"a query has no candidate of another target among {len(candidates_CD)}.")
        queries_RD = queries_QD[rows].float()
        negatives_RC = (queries_RD @ shuffled_CD.T / temperature).masked_fill(~chosen_RC, -torch.inf)
        positive_R = (queries_RD * candidates_CD[positive_Q[rows]].float()).sum(-1) / temperature
        loss_R = torch.logaddexp(negatives_RC.logsumexp(1), positive_R) - positive_R
        losses.append(torch.minimum(loss_R, torch.log1p(count_R.float())))
    return torch.cat(losses) if losses else queries_QD.new_zeros(0, dtype=torch.float32)


def thinking_gain(
    loss_discriminative_Q: Tensor,
    loss_generative_Q: Tensor,
    tokens_Q: Tensor,
    *,
    price: float = 0.5,
    mean_tokens: float | None = None,
) -> Tensor:
    """`l_d - l_g - price * tokens / mean_tokens`, fp32 (Q,): what thinking bought, less what it cost.

    Args:
        loss_discriminative_Q: Outcome losses without thinking (Q,).
        loss_generative_Q: Outcome losses with thinking (Q,).
        tokens_Q: CoT tokens (Q,).
        price: Nats an average CoT must earn; it decides ties against thinking.
        mean_tokens: Length of the average CoT. None takes it from `tokens_Q`; pass the training split's when labelling
            another split.

    Raises:
        ValueError: When price or mean_tokens is not usable.
    """
    mean = float(tokens_Q.float().mean()) if mean_tokens is None else mean_tokens
    if price < 0 or not math.isfinite(mean) or mean <= 0:
        raise ValueError(f"gate.price={price} must not be negative and the mean CoT length ({mean}) must be above 0.")
    return loss_discriminative_Q.float() - loss_generative_Q.float() - price * tokens_Q.float() / mean


def gate_labels(gain_Q: Tensor, kind: Literal["hard", "soft"] = "hard", *, soft_scale: float = 0.25) -> Tensor:
    """Think labels, fp32 (Q,): `1[gain > 0]`, or `sigmoid(gain / soft_scale)`.

    Raises:
        ConfigError: On an unknown kind.
        ValueError: On a scale not above 0.

    Relations: A soft label is above .5 exactly where the hard label is 1.
    """
    if kind == "hard":
        return (gain_Q > 0).float()
    if kind != "soft":
        raise ConfigError(unknown_name("gate.label", kind, ("hard", "soft")))
    if soft_scale <= 0:
        raise ValueError(f"gate.soft_scale must be above 0, got {soft_scale}.")
    return torch.sigmoid(gain_Q.float() / soft_scale)


def graded_labels(loss_QM: Tensor, tokens_QM: Tensor, *, price: float = 0.5, mean_tokens: float) -> Tensor:
    """The budget whose loss and cost are least together, int64 (Q,); the first of equals.

    Args:
        loss_QM: Outcome losses under M budgets, from none to the full CoT (Q, M).
        tokens_QM: CoT tokens spent under each (Q, M).
        price: Nats an average CoT must earn.
        mean_tokens: Length of the average full CoT.

    Raises:
        ValueError: On mismatched shapes, or when price or mean_tokens is not usable.

    Relations:
        With the budgets none and full it is `gate_labels` of `thinking_gain`.
    """
    if loss_QM.shape != tokens_QM.shape or loss_QM.ndim != 2:
        raise ValueError(f"losses {tuple(loss_QM.shape)} and tokens {tuple(tokens_QM.shape)} must both be (Q, M).")
    if price < 0 or not math.isfinite(mean_tokens) or mean_tokens <= 0:
        raise ValueError(f"gate.price={price} must not be negative and the mean CoT length ({mean_tokens}) above 0.")
    return (loss_QM.float() + price * tokens_QM.float() / mean_tokens).argmin(-1)


def _first_of_each(hash_C: Tensor) -> Tensor:
    """True at the first occurrence of every hash, bool (C,)."""
    _, inverse_C = torch.unique(hash_C, return_inverse=True)
    positions_C = torch.arange(len(hash_C), device=hash_C.device)
    first_U = torch.full((int(inverse_C.max()) + 1,), len(hash_C), device=hash_C.device)
    first_U = first_U.scatter_reduce(0, inverse_C, positions_C, reduce="amin")
    return first_U[inverse_C] == positions_C
