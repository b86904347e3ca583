"""The graded gate: how much of a CoT to generate, instead of whether."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twn_lightning.gate.gate_trunk import GateTrunk


class GradedGate(GateTrunk):
    """Standardise -> LayerNorm -> Linear -> GELU -> Linear -> a logit for each of M budgets, from none to the full CoT.

    The last layer starts at zero, so an untrained gate takes the first budget: it does not think.

    Args:
        feature_dim: Width F of the features, twice the backbone's hidden size.
        num_choices: Budgets M, at least 2.
        hidden: Width of the hidden layer.

    Raises:
        ValueError: On fewer than 2 budgets.

    Relations:
        With two budgets it is a RoutingGate whose logit is the difference of the two and whose threshold is .5.
    """

    def __init__(self, feature_dim: int, num_choices: int = 3, hidden: int = 512) -> None:
        if num_choices < 2:
            raise ValueError(f"a graded gate chooses between at least 2 budgets, got num_choices={num_choices}.")
        super().__init__(feature_dim, hidden)
        self.outer = nn.Linear(hidden, num_choices)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, features_BF: Tensor) -> Tensor:
        """Logits (B, M), fp32. Arguments and errors as `GateTrunk.hidden`."""
        return self.outer(self.hidden(features_BF)).float()

    @torch.no_grad()
    def choose(self, features_BF: Tensor) -> Tensor:
        """The likeliest budget of each input, int64 (B,); the cheapest of equals."""
        return self(features_BF).argmax(-1)
