"""Graded thinking: no CoT, its first tokens read as they are, or all of it; chosen by a gate with three outputs.

Both gates learn from the same recorded outcomes, with the same features and training; the two-way gate is the graded
one without its middle choice.

Shape letters: N queries, M budgets (none, short, full), F gate features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from twn_lightning.evaluation.prefix_outcomes import PrefixOutcomes
from twn_lightning.gate import GradedGate, graded_labels
from twn_lightning.metrics import think_at_equal_tokens
from twn_lightning.settings import GateStageSettings

BUDGETS = ("none", "short", "full")
"""What a graded gate chooses between, by name."""


@dataclass(frozen=True)
class BudgetOutcomes:
    """What each query's retrieval does under M budgets, from none to the full CoT."""

    features_NF: Tensor
    hit_NM: np.ndarray
    loss_NM: Tensor
    tokens_NM: Tensor

    def __len__(self) -> int:
        return len(self.hit_NM)

    def labels(self, price: float, mean_tokens: float) -> Tensor:
        """The best budget of each query at a price, int64 (N,)."""
        return graded_labels(self.loss_NM, self.tokens_NM, price=price, mean_tokens=mean_tokens)

    def under(self, choice_N: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Hits and tokens (N,) of one budget for each query."""
        rows_N, chosen_N = np.arange(len(self)), choice_N.numpy()
        return self.hit_NM[rows_N, chosen_N], self.tokens_NM.numpy()[rows_N, chosen_N]


def budget_outcomes(outcomes: PrefixOutcomes, tokens: tuple[int, ...]) -> BudgetOutcomes:
    """The outcomes under some numbers of CoT tokens.

    Args:
        outcomes: recorded with these cuts.
        tokens: of each budget, rising: 0 is no CoT, the last cut the full one.

    Raises:
        DataError: a number of tokens that was not recorded.
    """
    columns = [outcomes.column(count) for count in tokens]
    return BudgetOutcomes(
        torch.as_tensor(outcomes.features_NF),
        outcomes.hit_NP[:, columns],
        torch.as_tensor(outcomes.loss_NP[:, columns]).float(),
        torch.as_tensor(outcomes.spent_NP[:, columns]),
    )


def train_graded_gate(
    train: BudgetOutcomes,
    calibration: BudgetOutcomes,
    *,
    price: float,
    hidden: int = 512,
    settings: GateStageSettings | None = None,
    seed: int = 0,
) -> GradedGate:
    """Fit a gate to the best budget of each query, as stage 2 fits its own: AdamW, early stop on calibration.

    Args:
        train: outcomes of the gate split.
        calibration: outcomes of the calibration split, for the early stop.
        price: nats an average CoT must earn; the training split sets what is average.
        hidden: width of the hidden layer.
        settings: batch size, epochs, learning rate, weight decay and patience of stage 2.
        seed: of the initialisation and the order of the rows.
    """
    settings = settings or GateStageSettings()
    mean_tokens = max(float(train.tokens_NM[:, -1].float().mean()), 1.0)
    label_N, held_out_label_N = (split.labels(price, mean_tokens) for split in (train, calibration))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = GradedGate(train.features_NF.shape[1], train.loss_NM.shape[1], hidden)
        gate.standardise_from(train.features_NF)
        optimizer = torch.optim.AdamW(gate.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        best, best_state, waited = float("inf"), gate.state_dict(), 0
        for _ in range(settings.max_epochs):
            for rows in torch.randperm(len(train)).split(settings.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(gate(train.features_NF[rows]), label_N[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                loss = float(F.cross_entropy(gate(calibration.features_NF), held_out_label_N))
            if loss < best:
                best, waited = loss, 0
                best_state = {name: value.clone() for name, value in gate.state_dict().items()}
            elif (waited := waited + 1) >= settings.patience:
                break
    gate.load_state_dict(best_state)
    return gate.eval()


def choices_at_equal_tokens(gate: GradedGate, outcomes: BudgetOutcomes, tokens_per_query: float) -> Tensor:
    """What a two-way gate would choose at the threshold whose tokens come nearest to a budget.

    Args:
        gate: of 2 budgets.
        outcomes: of the same 2 budgets.
        tokens_per_query: to spend.

    Returns:
        0 or 1 for each query, int64 (N,).
    """
    with torch.no_grad():
        logits_NM = gate(outcomes.features_NF)
    score_N = (logits_NM[:, 1] - logits_NM[:, 0]).numpy()
    think_N = think_at_equal_tokens(score_N, outcomes.tokens_NM[:, 1].numpy(), tokens_per_query)
    return torch.from_numpy(think_N).long()
