"""What every gate shares: its features made standard, and one hidden layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twn_lightning.errors import NumericalError

SIDE_INDEX = {"query": 0, "candidate": 1}
"""Row of the side embedding."""


class GateTrunk(nn.Module):
    """Standardise -> LayerNorm -> Linear -> GELU, for a gate to put its outputs on.

    Args:
        feature_dim: Width F of the features, twice the backbone's hidden size.
        hidden: Width H of the hidden layer.
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
        self.side = nn.Embedding(len(SIDE_INDEX), hidden) if use_side else None
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

    def hidden(self, features_BF: Tensor, side_B: Tensor | None = None) -> Tensor:
        """The hidden layer (B, H).

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
        inner_BH: Tensor = self.inner(self.norm(standard_BF))
        if self.side is not None:
            inner_BH = inner_BH + self.side(side_B)
        return self.activation(inner_BH)

    def _check_features(self, features: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise ValueError(
                f"gate features must be (B, {self.feature_dim}), got {tuple(features.shape)}: "
                "twice the hidden size of the backbone the gate was trained for."
            )
