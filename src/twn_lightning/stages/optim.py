"""One AdamW per stage with named parameter groups, and warm-up plus cosine from known numbers of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Group:
    """One parameter group: what it trains, how fast, and during which optimizer steps."""

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float
    steps: int
    """Length of its cosine."""
    start: int = 0
    """Optimizer steps before its schedule begins (two-phase training)."""


def build_optimizer(groups: Sequence[Group], warmup_ratio: float) -> tuple[AdamW, LambdaLR]:
    """AdamW over the groups that hold parameters, and the scheduler that moves each along its own cosine.

    Step counts come from the settings: Lightning's `estimated_stepping_batches` drops loader state on resume.

    Args:
        groups: the stage's groups; empty ones are left out (`embedding` in the shared arrangement).
        warmup_ratio: share of a group's steps that warms up linearly.

    Returns:
        The optimizer and its scheduler; the caller steps both.
    """
    held = [group for group in groups if group.parameters]
    optimizer = AdamW(
        [
            {
                "params": list(group.parameters),
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
                "name": group.name,
            }
            for group in held
        ]
    )
    factors: Mapping[str, partial[float]] = {
        group.name: partial(warmup_cosine, start=group.start, steps=group.steps, warmup_ratio=warmup_ratio)
        for group in held
    }
    return optimizer, LambdaLR(optimizer, list(factors.values()))


def warmup_cosine(step: int, *, start: int = 0, steps: int, warmup_ratio: float) -> float:
    """Factor on the learning rate: linear from 0 during warm-up, cosine to 0 at the end; 0 outside."""
    position = step - start
    if not 0 <= position < steps:
        return 0.0
    warmup = round(steps * warmup_ratio)
    if position < warmup:
        return (position + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (position - warmup) / (steps - warmup)))
