"""The graded gate and its labels: with two budgets they are the routing gate and its labels."""

from __future__ import annotations

import pytest
import torch

from twn_lightning.gate import GradedGate, RoutingGate, gate_labels, graded_labels, thinking_gain


def test_an_untrained_gate_takes_the_first_budget() -> None:
    assert (GradedGate(6).choose(torch.randn(10, 6)) == 0).all()


def test_two_budgets_are_a_routing_gate() -> None:
    torch.manual_seed(0)
    graded, routing, features = GradedGate(6, 2, hidden=16), RoutingGate(6, hidden=16), torch.randn(20, 6)
    torch.nn.init.normal_(graded.outer.weight)
    state = {name: value for name, value in graded.state_dict().items() if not name.startswith("outer")}
    difference = {f"outer.{k}": graded.outer.get_parameter(k)[1:] - graded.outer.get_parameter(k)[:1] for k in
                  ("weight", "bias")}  # fmt: skip
    routing.load_state({**state, **difference})
    assert torch.equal(graded.choose(features) == 1, routing.decide(features).think_B)


def test_it_shares_the_trunk_and_its_checks() -> None:
    gate = GradedGate(6)
    gate.standardise_from(torch.randn(50, 6) * 3 + 1)
    assert gate(torch.randn(4, 6)).shape == (4, 3)
    with pytest.raises(ValueError, match=r"must be \(B, 6\), got \(4, 5\)"):
        gate(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="at least 2 budgets, got num_choices=1"):
        GradedGate(6, num_choices=1)


def test_labels_weigh_loss_against_tokens() -> None:
    loss = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.9], [0.1, 0.1, 0.1], [3.0, 2.9, 2.9]])
    tokens = torch.tensor([[0, 8, 24]] * 4)
    assert graded_labels(loss, tokens, price=0.5, mean_tokens=24.0).tolist() == [2, 1, 0, 0]
    assert graded_labels(loss, tokens, price=0.0, mean_tokens=24.0).tolist() == [2, 2, 0, 1]


def test_two_budgets_are_the_hard_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    loss = torch.rand(50, 2, generator=generator) * 3
    tokens = torch.stack([torch.zeros(50), torch.randint(1, 40, (50,), generator=generator).float()], dim=1)
    gain = thinking_gain(loss[:, 0], loss[:, 1], tokens[:, 1], price=0.5, mean_tokens=20.0)
    labels = graded_labels(loss, tokens, price=0.5, mean_tokens=20.0)
    assert torch.equal(labels.float(), gate_labels(gain))
    assert 0 < labels.sum() < 50


def test_bad_label_settings_are_explained() -> None:
    with pytest.raises(ValueError, match=r"must both be \(Q, M\)"):
        graded_labels(torch.zeros(2, 3), torch.zeros(2, 2), mean_tokens=1.0)
    with pytest.raises(ValueError, match="mean CoT length"):
        graded_labels(torch.zeros(2, 3), torch.zeros(2, 3), mean_tokens=0.0)
