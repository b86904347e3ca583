"""The gates that the study compares: what they see and what they are taught."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Feature = Literal["hidden state", "e_d", "margin"]


@dataclass(frozen=True)
class Variant:
    """How a gate is trained.

    Args:
        features: what it sees; the margin is known only once the index was searched without a CoT.
        label: as `gate.label`.
        price: as `gate.price`.
    """

    features: tuple[Feature, ...] = ("hidden state", "e_d")
    label: Literal["hard", "soft"] = "hard"
    price: float = 0.5


DEFAULT = Variant()
FEATURE_SETS = {
    "hidden state, e_d": DEFAULT,
    "hidden state": Variant(("hidden state",)),
    "e_d": Variant(("e_d",)),
    "hidden state, e_d, margin": Variant(("hidden state", "e_d", "margin")),
}
MARGIN = "margin, no gate"
"""The heuristic: the least margins think first. The gate's layer norm leaves nothing of a single feature."""
PRICES = (0.0, 0.25, 0.5, 1.0, 2.0)
SOFT, SOFT_WITHOUT_PRICE = Variant(label="soft"), Variant(label="soft", price=0.0)
LABELS = [*(Variant(price=price) for price in PRICES), SOFT_WITHOUT_PRICE, SOFT]
