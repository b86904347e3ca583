"""The routing gate: a small MLP that decides per input whether to generate a CoT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twn_lightning.errors import AdapterError
from twn_lightning.gate.gate_trunk import GateTrunk
from twn_lightning.types import GateDecision


class RoutingGate(GateTrunk):
    """Standardise -> LayerNorm -> Linear -> GELU -> Linear -> one logit; think iff sigmoid(logit) > threshold.

    The last layer starts at zero, so an untrained gate says .5 of everything and thinks of nothing at the default
    threshold.

    Args:
        feature_dim: Width F of the features, twice the backbone's hidden size.
        hidden: Width of the hidden layer.
        use_side: Add a learned embedding of the input's side, for models where both sides think.
    """

    def __init__(self, feature_dim: int, hidden: int = 512, use_side: bool = False) -> None:
        super().__init__(feature_dim, hidden, use_side)
        self.outer = nn.Linear(hidden, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, features_BF: Tensor, side_B: Tensor | None = None) -> Tensor:
        """Logits (B,), fp32. Arguments and errors as `GateTrunk.hidden`."""
        return self.outer(self.hidden(features_BF, side_B)).squeeze(-1).float()

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
            found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
            raise AdapterError(
                f"not a RoutingGate state: no matrix under 'inner.weight'; found {found}. Without its gate_mlp.pt the "
                "folder loads for discriminative and generative embeddings"
            )
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
