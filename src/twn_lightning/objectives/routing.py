"""The gate's loss (stage 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from twn_lightning.errors import NumericalError


def gate_binary_cross_entropy(logits_B: Tensor, labels_B: Tensor) -> Tensor:
    """Mean binary cross-entropy of the think decision, in fp32, for hard and soft labels alike.

    Args:
        logits_B: Gate logits (B,); positive means think.
        labels_B: Labels (B,), 0/1 or anything between.

    Returns:
        Scalar fp32 loss.

    Raises:
        ValueError: On mismatched or empty shapes, or labels outside [0, 1] (NaN included).
        NumericalError: When logits contain NaN or Inf.

    Relations:
        Equals log 2 for zero logits whatever the labels; for soft labels its minimum is their mean entropy.
    """
    if logits_B.shape != labels_B.shape or logits_B.ndim != 1 or len(logits_B) == 0:
        raise ValueError(f"logits {tuple(logits_B.shape)} and labels {tuple(labels_B.shape)} must both be (B,), B > 0.")
    labels_B = labels_B.float()
    outside = int((~((labels_B >= 0) & (labels_B <= 1))).sum())
    if outside:
        raise ValueError(f"{outside} of {len(labels_B)} gate labels are NaN or outside [0, 1].")
    if not bool(torch.isfinite(logits_B).all()):
        raise NumericalError("gate logits contain NaN or Inf: check the features' standardisation.")
    with torch.autocast(device_type=logits_B.device.type, enabled=False):
        return F.binary_cross_entropy_with_logits(logits_B.float(), labels_B)
