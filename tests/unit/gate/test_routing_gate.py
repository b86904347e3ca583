from __future__ import annotations

import math

import pytest
import torch

from twn_lightning.errors import AdapterError, NumericalError
from twn_lightning.gate import SIDE_INDEX, RoutingGate
from twn_lightning.objectives import gate_binary_cross_entropy


def trained(use_side: bool = False) -> RoutingGate:
    torch.manual_seed(0)
    gate = RoutingGate(6, hidden=16, use_side=use_side)
    gate.standardise_from(torch.randn(50, 6) * 3 + 1)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    return gate


def test_an_untrained_gate_never_thinks() -> None:
    decision = RoutingGate(6).decide(torch.randn(10, 6))
    assert (decision.probability_B == 0.5).all()
    assert not decision.think_B.any()


def test_standardisation_undoes_shift_and_scale() -> None:
    features = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    scale, shift = torch.tensor([1.0, 10, 100, 0.1, 5, 2]), torch.arange(6.0)
    plain, moved = trained(), trained()
    plain.standardise_from(features)
    moved.standardise_from(features * scale + shift)
    assert torch.allclose(plain(features), moved(features * scale + shift), atol=1e-3)


def test_constant_features_keep_scale_one() -> None:
    gate = RoutingGate(2)
    gate.standardise_from(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    assert gate.feature_mean.tolist() == [2, 7]
    assert gate.feature_std.tolist() == pytest.approx([math.sqrt(2), 1])


def test_standardisation_is_saved_but_not_trained() -> None:
    gate = trained()
    assert {"feature_mean", "feature_std"} <= set(gate.state_dict())
    assert not any("feature" in name for name, _ in gate.named_parameters())


def test_decide_compares_probability_with_the_threshold() -> None:
    gate, features = trained(), torch.randn(20, 6)
    probability = torch.sigmoid(gate(features)).detach()
    for threshold in (0.2, 0.5, float(probability[0])):
        decision = gate.decide(features, threshold)
        assert torch.equal(decision.think_B, probability > threshold)
        assert not decision.probability_B.requires_grad


def test_rows_do_not_influence_each_other() -> None:
    gate, features = trained(), torch.randn(5, 6)
    assert torch.allclose(gate(features)[2:3], gate(features[2:3]), atol=1e-6)


def test_the_side_changes_the_logit_only_when_used() -> None:
    gate, features = trained(use_side=True), torch.randn(3, 6)
    query, candidate = (torch.full((3,), SIDE_INDEX[side]) for side in ("query", "candidate"))
    assert not torch.allclose(gate(features, query), gate(features, candidate))
    with pytest.raises(ValueError, match="needs side_B"):
        gate(features)
    with pytest.raises(ValueError, match="use_side=False"):
        trained()(features, query)


def test_it_learns_a_separable_rule() -> None:
    torch.manual_seed(0)
    features = torch.randn(256, 6)
    labels = (features[:, 0] > features[:, 1]).float()
    gate = RoutingGate(6, hidden=32)
    gate.standardise_from(features)
    optimizer = torch.optim.AdamW(gate.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        gate_binary_cross_entropy(gate(features), labels).backward()
        optimizer.step()
    assert ((gate(features) > 0) == labels.bool()).float().mean() > 0.97


@pytest.mark.parametrize("use_side", [False, True])
def test_a_saved_state_rebuilds_the_same_gate(use_side: bool) -> None:
    gate = trained(use_side)
    again = RoutingGate.from_state(gate.state_dict())
    side = torch.zeros(4, dtype=torch.long) if use_side else None
    features = torch.randn(4, 6)
    assert torch.equal(gate(features, side), again(features, side))


def test_a_state_that_does_not_fit_names_every_key_and_loads_nothing() -> None:
    gate = RoutingGate(6, hidden=16)
    state = trained().state_dict()
    del state["outer.bias"]
    state["extra"] = torch.zeros(2)
    state["inner.weight"] = torch.zeros(8, 6)
    with pytest.raises(AdapterError) as error:
        gate.load_state(state)
    for part in ("missing outer.bias (1,)", "unexpected extra (2,)", "inner.weight is (8, 6), expected (16, 6)"):
        assert part in str(error.value)
    assert gate.outer.weight.abs().sum() == 0


def test_a_foreign_state_is_refused_by_naming_what_it_holds() -> None:
    with pytest.raises(AdapterError, match=r"found mlp\.0\.weight \(3, 3\)"):
        RoutingGate.from_state({"mlp.0.weight": torch.zeros(3, 3)})


def test_bad_features_are_explained() -> None:
    with pytest.raises(ValueError, match=r"must be \(B, 6\), got \(3, 8\)"):
        RoutingGate(6)(torch.zeros(3, 8))
    with pytest.raises(NumericalError, match="1 of 2 gate features"):
        RoutingGate(2).standardise_from(torch.tensor([[0.0, 1.0], [math.nan, 1.0]]))
    with pytest.raises(ValueError, match="at least 2 rows"):
        RoutingGate(2).standardise_from(torch.zeros(1, 2))
