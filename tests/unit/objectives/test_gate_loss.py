from __future__ import annotations

import math

import pytest
import torch

from twn_lightning.errors import NumericalError
from twn_lightning.objectives import gate_binary_cross_entropy


@pytest.mark.parametrize("labels", [[0.0, 1.0, 1.0], [0.3, 0.5, 0.9]])
def test_zero_logits_cost_log_two(labels: list[float]) -> None:
    assert gate_binary_cross_entropy(torch.zeros(3), torch.tensor(labels)).item() == pytest.approx(math.log(2))


def test_soft_labels_are_fitted_exactly_at_their_logit() -> None:
    labels = torch.tensor([0.2, 0.7])
    logits = torch.logit(labels).requires_grad_()
    loss = gate_binary_cross_entropy(logits, labels)
    entropy = -(labels * labels.log() + (1 - labels) * (1 - labels).log()).mean()
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(entropy.item())
    assert grad.abs().max() < 1e-7


def test_gradient_is_probability_minus_label() -> None:
    logits = torch.tensor([2.0, -1.0], requires_grad=True)
    (grad,) = torch.autograd.grad(gate_binary_cross_entropy(logits, torch.tensor([0, 1])), logits)
    assert torch.allclose(grad, (torch.sigmoid(logits) - torch.tensor([0.0, 1.0])) / 2)


@pytest.mark.parametrize("label", [1.5, -0.1, math.nan])
def test_labels_outside_the_unit_interval_are_refused(label: float) -> None:
    with pytest.raises(ValueError, match="1 of 2 gate labels"):
        gate_binary_cross_entropy(torch.zeros(2), torch.tensor([0.0, label]))


def test_broken_logits_and_shapes_are_refused() -> None:
    with pytest.raises(NumericalError, match="standardisation"):
        gate_binary_cross_entropy(torch.tensor([0.0, math.inf]), torch.zeros(2))
    with pytest.raises(ValueError, match=r"\(3,\) and labels \(2,\)"):
        gate_binary_cross_entropy(torch.zeros(3), torch.zeros(2))
