"""The routing gate: a small MLP that decides per input whether to generate a CoT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twn_lightning.errors import AdapterError, NumericalError
from twn_lightning.types import GateDecision

SIDE_INDEX = {"query": 0, "candidate": 1}
"""Row of the side embedding."""


class RoutingGate(nn.Module):
    """Standardise -> LayerNorm -> Linear -> GELU -> Linear -> one logit; think iff sigmoid(logit) > threshold.

    The last layer starts at zero, so an untrained gate says .5 of everything and thinks of nothing at the default
    threshold.

    Args:
        feature_dim: Width F of the features, twice the backbone's hidden size.
        hidden: Width of the hidden layer.
        use_side: Add a learned embedding of the input's side, for models where both sides think.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, feature_dim: int, hidden: int = 512, use_side: bool = False) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        self.register_buffer("feature_std", torch.ones(feature_dim))
        self.norm = nn.LayerNorm(feature_dim)
        self.inner = nn.Linear(feature_dim, hidden)
        self.activation = nn.GELU()
        self.outer = nn.Linear(hidden, 1)
        self.side = nn.Embedding(len(SIDE_INDEX), hidden) if use_side else None
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        if self.side is not None:
            nn.init.zeros_(self.side.weight)

    @property
    def feature_dim(self) -> int:
        return self.inner.in_features

    def standardise_from(self, features_NF: Tensor) -> None:
        """Set the standardisation to the mean and deviation of training features; constant ones keep scale 1.

        Args:
            features_NF: Features (N, F), N at least 2.

        Raises:
            ValueError: On a wrong shape or too few rows.
            NumericalError: On NaN or Inf.
        """
        self._check_features(features_NF)
        if len(features_NF) < 2:
            raise ValueError(f"standardisation needs at least 2 rows of features, got {len(features_NF)}.")
        bad = int((~torch.isfinite(features_NF).all(-1)).sum())
        if bad:
            raise NumericalError(f"{bad} of {len(features_NF)} gate features contain NaN or Inf.")
        std_F = features_NF.float().std(0)
        self.feature_mean.copy_(features_NF.float().mean(0))
        self.feature_std.copy_(torch.where(std_F < 1e-6, torch.ones_like(std_F), std_F))

    def forward(self, features_BF: Tensor, side_B: Tensor | None = None) -> Tensor:
        """Logits (B,), fp32.

        Args:
            features_BF: Detached features (B, F), as `DualLoRABackbone.gate_features` gives them.
            side_B: 0 query, 1 candidate, int64 (B,); required exactly when the gate has a side embedding.

        Raises:
            ValueError: On a wrong feature width, or a side given without need or missing.
        """
        self._check_features(features_BF)
        if (side_B is None) != (self.side is None):
            raise ValueError(
                "this gate was built with use_side=True and needs side_B."
                if self.side is not None
                else "this gate was built with use_side=False: leave side_B out, or rebuild it with use_side=True."
            )
        standard_BF = (features_BF.float() - self.feature_mean) / self.feature_std
        inner_BH = self.inner(self.norm(standard_BF))
        if self.side is not None:
            inner_BH = inner_BH + self.side(side_B)
        return self.outer(self.activation(inner_BH)).squeeze(-1).float()

    @torch.no_grad()
    def decide(self, features_BF: Tensor, threshold: float = 0.5, side_B: Tensor | None = None) -> GateDecision:
        """Probabilities and think decisions, `probability > threshold`. Arguments as `forward`."""
        probability_B = torch.sigmoid(self(features_BF, side_B))
        return GateDecision(probability_B, probability_B > threshold, threshold)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> RoutingGate:
        """Build the gate a saved state describes, and load it.

        Raises:
            AdapterError: When keys or shapes are not those of a RoutingGate; names them.
        """
        inner = state.get("inner.weight")
        if inner is None or inner.ndim != 2:
            found = "missing" if inner is None else f"of shape {tuple(inner.shape)}"
            raise AdapterError(f"not a RoutingGate state: 'inner.weight' is {found}; found keys {sorted(state)}.")
        gate = cls(inner.shape[1], inner.shape[0], use_side="side.weight" in state)
        gate.load_state(state)
        return gate

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load a state strictly.

        Raises:
            AdapterError: Naming every missing, unexpected or wrongly shaped key; nothing is loaded then.
        """
        own = self.state_dict()
        problems = [f"missing {key} {tuple(own[key].shape)}" for key in own if key not in state]
        problems += [f"unexpected {key} {tuple(state[key].shape)}" for key in state if key not in own]
        problems += [
            f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ]
        if problems:
            raise AdapterError(
                f"gate state does not fit this gate (features {self.feature_dim}, hidden {self.inner.out_features}, "
                f"side embedding {self.side is not None}): {'; '.join(problems)}. "
                "Was it trained for another backbone or another gate.hidden?"
            )
        self.load_state_dict(state)

    def _check_features(self, features: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise ValueError(
                f"gate features must be (B, {self.feature_dim}), got {tuple(features.shape)}: "
                "twice the hidden size of the backbone the gate was trained for."
            )
