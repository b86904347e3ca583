"""Outcome losses against closed forms and a literal loop; labels against their definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twn_lightning.errors import ConfigError, DataError, NumericalError
from twn_lightning.gate import gate_labels, labels, outcome_losses, thinking_gain


def unit(rows: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_zero_embeddings_lose_the_log_of_the_distinct_candidates() -> None:
    hashes = torch.tensor([1, 2, 3, 3, 1])  # three distinct targets
    loss = outcome_losses(torch.zeros(2, 4), torch.zeros(5, 4), torch.tensor([0, 3]), hashes[[0, 3]], hashes)
    assert loss.tolist() == pytest.approx([math.log(3)] * 2)


def test_equals_the_definition() -> None:
    queries, candidates = unit(6, 0), unit(9, 1)
    hashes = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0, 2])
    positive = torch.tensor([0, 1, 2, 7, 8, 5])
    copies = {7: 0, 8: 2}  # rows 7 and 8 hold targets 0 and 2 again; give them the same embedding
    for row, original in copies.items():
        candidates[row] = candidates[original]
    loss = outcome_losses(queries, candidates, positive, hashes[positive], hashes, temperature=0.5)
    for i in range(6):
        logits = queries[i] @ candidates[:7].T / 0.5  # the seven distinct targets
        expected = F.cross_entropy(logits[None], hashes[positive[i]][None])
        assert loss[i].item() == pytest.approx(min(expected.item(), math.log(7)), abs=1e-5)


def test_the_loss_is_capped_at_chance() -> None:
    queries = torch.tensor([[1.0, 0.0]])
    candidates = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss = outcome_losses(queries, candidates, torch.tensor([0]), torch.tensor([0]), torch.arange(3))
    assert loss.item() == pytest.approx(math.log(3))
    perfect = outcome_losses(queries, candidates, torch.tensor([1]), torch.tensor([1]), torch.arange(3))
    assert perfect.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("num_negatives", [1, 5, 30, 100])
def test_at_most_so_many_negatives_are_drawn(num_negatives: int) -> None:
    count = min(num_negatives, 39)
    loss = outcome_losses(
        torch.zeros(40, 4), torch.zeros(40, 4), torch.arange(40), torch.arange(40), torch.arange(40),
        num_negatives=num_negatives,
    )  # fmt: skip
    assert loss.tolist() == pytest.approx([math.log(1 + count)] * 40)


def test_both_modes_meet_the_same_negatives_and_the_seed_draws_them() -> None:
    queries, candidates, rows = unit(20, 0), unit(60, 1), torch.arange(20)
    hashes = torch.arange(60)
    draw = [outcome_losses(queries, candidates, rows, rows, hashes, num_negatives=7, seed=s) for s in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_blocks_of_rows_give_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, candidates, rows, hashes = unit(20, 0), unit(30, 1), torch.arange(20), torch.arange(30)
    whole = outcome_losses(queries, candidates, rows, rows, hashes, num_negatives=9)
    monkeypatch.setattr(labels, "_ROWS_AT_ONCE", 6)
    assert torch.allclose(outcome_losses(queries, candidates, rows, rows, hashes, num_negatives=9), whole)


def test_bad_outcomes_are_explained() -> None:
    one = torch.tensor([0])
    with pytest.raises(DataError, match="no candidate of another target among 2"):
        outcome_losses(torch.zeros(1, 2), torch.zeros(2, 2), one, one, torch.tensor([0, 0]))
    with pytest.raises(NumericalError, match="queries contain NaN"):
        outcome_losses(torch.full((1, 2), math.nan), torch.zeros(2, 2), one, one, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="num_negatives"):
        outcome_losses(torch.zeros(1, 2), torch.zeros(2, 2), one, one, torch.tensor([0, 1]), num_negatives=0)


def test_gain_charges_each_cot_by_its_length() -> None:
    gain = thinking_gain(torch.tensor([2.0, 0.1]), torch.tensor([0.5, 0.1]), torch.tensor([10, 30]), price=0.5)
    assert gain.tolist() == pytest.approx([1.5 - 0.25, -0.75])
    other_split = thinking_gain(
        torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([10]), price=0.5, mean_tokens=20.0
    )
    assert other_split.item() == pytest.approx(1.25)


def test_the_price_decides_ties_against_thinking() -> None:
    same = torch.tensor([0.0, 3.0])  # both right, both wrong
    tokens = torch.tensor([5, 5])
    assert gate_labels(thinking_gain(same, same, tokens)).tolist() == [0, 0]
    assert gate_labels(thinking_gain(same, same, tokens, price=0.0)).tolist() == [0, 0]
    assert gate_labels(thinking_gain(same + 0.6, same, tokens)).tolist() == [1, 1]


def test_soft_labels_agree_with_hard_ones() -> None:
    gain = torch.tensor([-1.0, -1e-3, 1e-3, 0.25])
    soft = gate_labels(gain, "soft", soft_scale=0.25)
    assert ((soft > 0.5).float() == gate_labels(gain)).all()
    assert soft[3].item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_bad_label_settings_are_explained() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hard'"):
        gate_labels(torch.zeros(2), "hart")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="soft_scale"):
        gate_labels(torch.zeros(2), "soft", soft_scale=0.0)
    with pytest.raises(ValueError, match="mean CoT length"):
        thinking_gain(torch.zeros(2), torch.zeros(2), torch.zeros(2))
