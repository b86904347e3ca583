"""Early exit: stop a CoT once the embedding that reads it no longer moves.

Shape letters: B rows of a decoding run, A rows still in it, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.interface import ReasonerState
from twn_lightning.errors import ConfigError


@dataclass(frozen=True)
class ExitRule:
    """When a CoT is left early: after `patience` checks in a row that each found the embedding where it was.

    Args:
        tolerance: the embedding stands still where `1 - cosine` to the check before is below this, in (0, 2].
        stride: CoT tokens from one check to the next. The check before the first is the discriminative embedding.
        patience: checks in a row.

    Raises:
        ConfigError: a value out of range.
    """

    tolerance: float
    stride: int = 4
    patience: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.tolerance <= 2 or self.stride < 1 or self.patience < 1:
            raise ConfigError(
                f"early exit needs a tolerance in (0, 2], a stride and a patience of at least 1, got "
                f"{self.tolerance}, {self.stride} and {self.patience}"
            )


class ExitWatch:
    """Follows the embeddings of one decoding run.

    Args:
        backbone: in eval mode.
        rule: when to leave.
        state: the prompts, before the first CoT token.
    """

    def __init__(self, backbone: DualLoRABackbone, rule: ExitRule, state: ReasonerState) -> None:
        e_d = backbone.embed(state, ["discriminative"]).discriminative_BD
        assert e_d is not None
        self.backbone, self.rule, self.last_BD = backbone, rule, e_d
        self.still_B = torch.zeros(len(e_d), dtype=torch.long, device=e_d.device)

    def leaves(self, state: ReasonerState, rows_A: Tensor) -> Tensor:
        """Which rows to stop now, bool (A,); pass E reads a view of the cache and leaves it as it was.

        Args:
            state: the rows with their CoTs so far.
            rows_A: their numbers in the run, int64 (A,).
        """
        e_AD = self.backbone.embed(state, ["generative"]).generative_BD
        assert e_AD is not None
        moved_A = 1 - (e_AD * self.last_BD[rows_A]).sum(-1)
        self.still_B[rows_A] = torch.where(moved_A < self.rule.tolerance, self.still_B[rows_A] + 1, 0)
        self.last_BD[rows_A] = e_AD
        return self.still_B[rows_A] >= self.rule.patience
