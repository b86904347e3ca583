"""Group-relative policy optimisation of the reasoning adapter (stage 3).

Shape letters: B completions (prompt-major, groups of G), T completion tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from twn_lightning.errors import NumericalError


@dataclass
class GroupAdvantages:
    """Advantages of one rollout, with what to log about its groups."""

    advantages_B: Tensor
    num_groups: int
    degenerate_groups: int
    """Groups whose rewards hardly differ: they teach nothing, and their advantages are 0."""
    mean_group_std: Tensor


@dataclass
class GRPOOutput:
    """The loss and detached statistics, each a mean over the completion tokens given."""

    loss: Tensor
    ratio: Tensor
    clip_share: Tensor
    kl: Tensor
    """k3 estimate against the reference; 0 without one."""
    entropy: Tensor | None
    num_tokens: int


def group_advantages(
    rewards_B: Tensor,
    group_size: int,
    *,
    scale: Literal["group_std", "none"] = "group_std",
    std_epsilon: float = 1e-4,
    std_floor: float = 1e-3,
) -> GroupAdvantages:
    """`(r - mean) / (std + epsilon)` within each prompt's completions, or `r - mean`.

    Args:
        rewards_B: Rewards (B,), prompt-major.
        group_size: G, completions per prompt, at least 2.
        scale: "group_std" gives every group the same weight, also one whose completions are all wrong and differ by
            little; "none" leaves small differences small.
        std_epsilon: Added to the standard deviation (sample standard deviation, as in TRL).
        std_floor: Groups with a smaller standard deviation get advantage 0 and are counted.

    Returns:
        `GroupAdvantages`.

    Raises:
        ValueError: When B is not a positive multiple of G, or G < 2.
        NumericalError: When a reward is NaN or Inf; names the first.

    Reference: Shao et al. 2024, DeepSeekMath (arXiv 2402.03300); without the scale, Liu et al. 2025, Dr. GRPO
        (arXiv 2503.20783).
    """
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}, but a group needs at least 2 completions to compare.")
    if len(rewards_B) == 0 or len(rewards_B) % group_size:
        raise ValueError(f"{len(rewards_B)} rewards do not split into groups of {group_size}.")
    bad = ~torch.isfinite(rewards_B)
    if bool(bad.any()):
        raise NumericalError(f"{int(bad.sum())} rewards are NaN or Inf, first at row {int(bad.nonzero()[0, 0])}.")
    groups_PG = rewards_B.float().view(-1, group_size)
    std_P1 = groups_PG.std(1, keepdim=True)
    advantages_PG = groups_PG - groups_PG.mean(1, keepdim=True)
    if scale == "group_std":
        advantages_PG = advantages_PG / (std_P1 + std_epsilon)
    degenerate_P1 = std_P1 < std_floor
    return GroupAdvantages(
        advantages_PG.masked_fill(degenerate_P1, 0.0).reshape(-1),
        len(groups_PG),
        int(degenerate_P1.sum()),
        std_P1.mean(),
    )


def token_log_probs(logits_BTV: Tensor, ids_BT: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of given tokens, fp32 (B, T).

    Args:
        logits_BTV: Logits (B, T, V); column t predicts `ids_BT[:, t]`.
        ids_BT: Token ids (B, T); padding may hold any valid id.
        temperature: The sampling temperature.
    """
    with torch.autocast(device_type=logits_BTV.device.type, enabled=False):
        scaled_BTV = logits_BTV.float() / temperature
        chosen_BT = scaled_BTV.gather(-1, ids_BT.unsqueeze(-1)).squeeze(-1)
        return chosen_BT - scaled_BTV.logsumexp(-1)


def token_entropy(logits_BTV: Tensor) -> Tensor:
    """Entropy of each next-token distribution in nats, fp32 (B, T)."""
    log_probs_BTV = logits_BTV.float().log_softmax(-1)
    return -(log_probs_BTV.exp() * log_probs_BTV).sum(-1)


def grpo_loss(
    log_probs_BT: Tensor,
    sampled_log_probs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    reference_log_probs_BT: Tensor | None = None,
    kl_weight: float = 0.04,
    num_tokens: int | Tensor | None = None,
    entropy_BT: Tensor | None = None,
) -> GRPOOutput:
    """Clipped surrogate with asymmetric clip and a per-token k3 KL to the reference, averaged over tokens.

    Args:
        log_probs_BT: Log-probabilities under the policy being trained, with gradient (B, T).
        sampled_log_probs_BT: The same tokens under the policy that sampled them (B, T).
        advantages_B: One advantage per completion (B,).
        mask_BT: 1 where a token belongs to the completion (B, T).
        clip_low: The ratio is clipped below at 1 - clip_low.
        clip_high: The ratio is clipped above at 1 + clip_high.
        reference_log_probs_BT: The same tokens under the frozen reference (B, T); None leaves the KL out.
        kl_weight: Weight of the KL term.
        num_tokens: Denominator of the mean. Chunks of one rollout pass its total token count, so that their losses
            add up; None counts the mask.
        entropy_BT: Per-token entropies for logging only (B, T).

    Returns:
        `GRPOOutput`; statistics are means over this call's own tokens.

    Raises:
        ValueError: On mismatched shapes, or when there is no token to average over.
        NumericalError: When log-probabilities of masked-in tokens are NaN or Inf; names which.

    Reference: DeepSeekMath (group advantages, k3 KL); DAPO, arXiv 2503.14476 (token average, asymmetric clip).

    Relations:
        At step 0 (policy = sampler = reference) ratio is 1, KL is 0, and the loss is minus the token-weighted mean
        advantage; its gradient is the policy gradient.
    """
    mask_BT = mask_BT.bool()
    _check_rollout(log_probs_BT, sampled_log_probs_BT, advantages_B, mask_BT, reference_log_probs_BT)
    own_tokens = int(mask_BT.sum())
    denominator = own_tokens if num_tokens is None else int(num_tokens)
    if denominator <= 0:
        raise ValueError(f"all {len(mask_BT)} completions are empty: there is no token to average over.")
    counted = max(own_tokens, 1)
    # Masked before exp: an overflow in padding would turn into NaN gradients.
    log_ratio_BT = (log_probs_BT - sampled_log_probs_BT.detach()).float().masked_fill(~mask_BT, 0.0)
    ratio_BT = log_ratio_BT.exp()
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    advantages_B1 = advantages_B.detach().float()[:, None]
    surrogate_BT = torch.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
    clip_active_BT = (clipped_BT * advantages_B1 < ratio_BT * advantages_B1) & mask_BT
    kl_BT = torch.zeros_like(ratio_BT)
    if reference_log_probs_BT is not None:
        difference_BT = (reference_log_probs_BT.detach() - log_probs_BT).float().masked_fill(~mask_BT, 0.0)
        kl_BT = difference_BT.exp() - difference_BT - 1
    loss = ((kl_weight * kl_BT - surrogate_BT) * mask_BT).sum() / denominator
    with torch.no_grad():
        return GRPOOutput(
            loss=loss,
            ratio=(ratio_BT * mask_BT).sum() / counted,
            clip_share=clip_active_BT.sum() / counted,
            kl=(kl_BT * mask_BT).sum() / counted,
            entropy=None if entropy_BT is None else entropy_BT.masked_fill(~mask_BT, 0.0).sum() / counted,
            num_tokens=own_tokens,
        )


def _check_rollout(
    log_probs_BT: Tensor,
    sampled_log_probs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    reference_log_probs_BT: Tensor | None,
) -> None:
    named = {"policy": log_probs_BT, "sampled": sampled_log_probs_BT}
    if reference_log_probs_BT is not None:
        named["reference"] = reference_log_probs_BT
    for name, tensor in named.items():
        if tensor.shape != mask_BT.shape:
            raise ValueError(
                f"{name} log-probabilities {tuple(tensor.shape)} must have the mask's shape {tuple(mask_BT.shape)}."
            )
    if advantages_B.shape != mask_BT.shape[:1]:
        raise ValueError(f"advantages {tuple(advantages_B.shape)} must be ({mask_BT.shape[0]},), one per completion.")
    for name, tensor in named.items():
        bad = int((~torch.isfinite(tensor) & mask_BT).sum())
        if bad:
            raise NumericalError(f"{name} log-probabilities: {bad} of {int(mask_BT.sum())} tokens are NaN or Inf.")
