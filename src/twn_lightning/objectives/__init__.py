"""Losses and rewards: tensors in, scalars out. Nothing here knows a model, a batch or a config."""

from twn_lightning.objectives.contrastive import CombinedContrastiveOutput, combined_contrastive
from twn_lightning.objectives.cot import cot_cross_entropy
from twn_lightning.objectives.distillation import similarity_distillation
from twn_lightning.objectives.gather import gather_positive_rows, gather_with_local_gradient
from twn_lightning.objectives.grad_cache import RandomState, grad_cache_backward
from twn_lightning.objectives.grpo import (
    GroupAdvantages,
    GRPOOutput,
    group_advantages,
    grpo_loss,
    token_entropy,
    token_log_probs,
)
from twn_lightning.objectives.info_nce import InfoNCEOutput, info_nce
from twn_lightning.objectives.rewards import (
    combine_rewards,
    format_reward,
    is_well_formed,
    reciprocal_rank,
    share_of_positives_in_top,
    similarity_gap,
)
from twn_lightning.objectives.routing import gate_binary_cross_entropy

__all__ = [
    "CombinedContrastiveOutput",
    "GRPOOutput",
    "GroupAdvantages",
    "InfoNCEOutput",
    "RandomState",
    "combine_rewards",
    "combined_contrastive",
    "cot_cross_entropy",
    "format_reward",
    "gate_binary_cross_entropy",
    "gather_positive_rows",
    "gather_with_local_gradient",
    "grad_cache_backward",
    "group_advantages",
    "grpo_loss",
    "info_nce",
    "is_well_formed",
    "reciprocal_rank",
    "share_of_positives_in_top",
    "similarity_distillation",
    "similarity_gap",
    "token_entropy",
    "token_log_probs",
]
