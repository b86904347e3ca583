"""Rewards of embedding-guided RL: is the completion well formed, and does its embedding retrieve?

Shape letters: B completions, G completions of the other side, N negatives. Similarities are cosines.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor

from twn_lightning.errors import ConfigError, DataError, unknown_name

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_WELL_FORMED = re.compile(r"\s*<think>.*\S.*</think>\s*<answer>.*\S.*</answer>\s*", re.DOTALL)


def is_well_formed(cot: str) -> bool:
    """True for `<think> ... </think><answer> ... </answer>`: each tag once, in order, neither part empty."""
    return all(cot.count(tag) == 1 for tag in _TAGS) and _WELL_FORMED.fullmatch(cot) is not None


def format_reward(cots: list[str], closed_B: Tensor | None = None) -> Tensor:
    """1 for a well-formed completion, 0 otherwise, fp32 (B,).

    Args:
        cots: Decoded completions, special tokens kept.
        closed_B: True where the completion ended before the cap, bool (B,); an unclosed one gets 0.
    """
    reward_B = torch.tensor([float(is_well_formed(cot)) for cot in cots])
    return reward_B if closed_B is None else reward_B.to(closed_B.device) * closed_B


def reciprocal_rank(positive_B: Tensor, negatives_BN: Tensor, valid_BN: Tensor | None = None) -> Tensor:
    """1 / rank of the positive among itself and the negatives, fp32 (B,); ties count against it.

    Args:
        positive_B: Similarity to the positive (B,).
        negatives_BN: Similarities to the negatives (B, N).
        valid_BN: False where a column is not a negative of that row (it has the positive's hash), bool (B, N).

    Relations: 1 when the positive beats every negative, 1 / (N + 1) when it beats none.
    """
    ahead_BN = negatives_BN >= positive_B[:, None]
    if valid_BN is not None:
        ahead_BN = ahead_BN & valid_BN
    return 1.0 / (1.0 + ahead_BN.sum(1).float())


def share_of_positives_in_top(positives_BG: Tensor, negatives_BN: Tensor, valid_BN: Tensor | None = None) -> Tensor:
    """Share of the G positives among the G best of positives and negatives, fp32 (B,); ties count against them.

    Args:
        positives_BG: Similarities to the G completions of the other side (B, G).
        negatives_BN: Similarities to the negatives (B, N).
        valid_BN: False where a column is not a negative of that row, bool (B, N).

    Reference: UME-R1 (both sides think).

    Relations: Equals hit@1 for G = 1.
    """
    group_size = positives_BG.shape[1]
    if valid_BN is not None:
        negatives_BN = negatives_BN.masked_fill(~valid_BN, -torch.inf)
    ordered_BG = positives_BG.sort(dim=1, descending=True).values
    # The j-th best positive (from 0) is in the top G iff j + (negatives at least as good) < G.
    ahead_BG = (negatives_BN[:, None, :] >= ordered_BG[:, :, None]).sum(-1)
    place_BG = ahead_BG + torch.arange(group_size, device=positives_BG.device)
    return (place_BG < group_size).float().mean(1)


def similarity_gap(
    positive_B: Tensor, negatives_BN: Tensor, *, temperature: float = 0.05, valid_BN: Tensor | None = None
) -> Tensor:
    """Similarity to the positive minus the softmax-weighted mean similarity of the negatives, fp32 (B,).

    Args:
        positive_B: Similarity to the positive (B,); where both sides think, the mean over the other side's G.
        negatives_BN: Similarities to the negatives (B, N).
        temperature: Of the softmax over negatives: towards 0 the hardest negative counts alone.
        valid_BN: False where a column is not a negative of that row, bool (B, N).

    Raises:
        DataError: When a row has no valid negative.

    Relations: `positive - s` when every negative scores s.
    """
    valid_BN = torch.ones_like(negatives_BN, dtype=torch.bool) if valid_BN is None else valid_BN
    if not bool(valid_BN.any(1).all()):
        raise DataError(
            "a completion has no negative of another target: enlarge stage.pool_size or stage.prompts_per_step."
        )
    scores_BN = negatives_BN.float()
    weights_BN = (scores_BN / temperature).masked_fill(~valid_BN, -torch.inf).softmax(-1)
    return positive_B.float() - (weights_BN * scores_BN.masked_fill(~valid_BN, 0.0)).sum(-1)


def combine_rewards(
    format_B: Tensor,
    rank_B: Tensor,
    gap_B: Tensor,
    *,
    format_weight: float = 0.1,
    rank_weight: float = 0.5,
    gap_weight: float = 0.5,
    combination: Literal["sum", "product"] = "sum",
) -> Tensor:
    """One reward per completion, fp32 (B,): 0 for a malformed one, whatever its embedding retrieves.

    Args:
        format_B: 1 where well formed, else 0 (B,).
        rank_B: Reciprocal rank, or share of positives in the top G (B,).
        gap_B: Similarity gap (B,).
        format_weight: Weight of the format term.
        rank_weight: Weight of the rank term.
        gap_weight: Weight of the gap term.
        combination: "sum" adds the weighted terms; "product" replaces rank and gap by
            `(rank_weight + gap_weight) * rank * relu(gap)`, so that the largest reward stays the same.

    Raises:
        ConfigError: On an unknown combination.

    Reference: UME-R1 for the sum.
    """
    if combination == "sum":
        retrieval_B = rank_weight * rank_B + gap_weight * gap_B
    elif combination == "product":
        retrieval_B = (rank_weight + gap_weight) * rank_B * gap_B.relu()
    else:
        raise ConfigError(unknown_name("stage.reward_combination", combination, ("sum", "product")))
    return torch.where(format_B > 0, format_weight * format_B + retrieval_B, torch.zeros_like(retrieval_B)).float()
