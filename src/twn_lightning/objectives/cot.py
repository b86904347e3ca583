"""The CoT loss of stage 1: next-token cross-entropy over the tokens of the batch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from twn_lightning.errors import DataError

IGNORE_INDEX = -100


def cot_cross_entropy(
    logits_BTV: Tensor,
    targets_BT: Tensor,
    *,
    num_tokens: int | Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Cross-entropy over CoT tokens and end-of-turn in fp32, normalised by a token count.

    Args:
        logits_BTV: Logits (B, T, V), any float dtype; column t predicts target t.
        targets_BT: Token ids (B, T), -100 where ignored.
        num_tokens: Denominator of the mean. Chunks of one batch pass the token count of the whole batch, so that
            their losses and gradients add up to those of the batch; None counts the targets given.
        reduction: "sum" leaves the sum over tokens undivided.

    Returns:
        Scalar fp32 loss.

    Raises:
        ValueError: On mismatched shapes.
        DataError: When there is no token to average over.

    Relations:
        Equals log V for uniform logits; chunk losses with a common `num_tokens` sum to the one-chunk loss.
    """
    if logits_BTV.shape[:2] != targets_BT.shape:
        raise ValueError(
            f"logits {tuple(logits_BTV.shape)} and targets {tuple(targets_BT.shape)} disagree in rows or columns."
        )
    kept_BT = targets_BT != IGNORE_INDEX
    if num_tokens is None and reduction == "mean":
        num_tokens = kept_BT.sum()
    if num_tokens is not None and int(num_tokens) <= 0:
        raise DataError(
            f"no CoT token to learn from in {targets_BT.shape[0]} rows of {targets_BT.shape[1]} columns: every target "
            f"is {IGNORE_INDEX}. Check that the source's items carry CoTs, or set stage.cot_weight=0."
        )
    with torch.autocast(device_type=logits_BTV.device.type, enabled=False):
        # Rows are picked before the cast: an fp32 copy of padding's logits would be the largest tensor of the step.
        total = F.cross_entropy(logits_BTV[kept_BT].float(), targets_BT[kept_BT], reduction="sum")
    return total if reduction == "sum" or num_tokens is None else total / num_tokens
