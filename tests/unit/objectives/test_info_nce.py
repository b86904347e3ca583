"""InfoNCE against closed forms and against a loop that follows the formula literally."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twn_lightning.errors import NumericalError
from twn_lightning.objectives import info_nce


def unit(rows: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_loop(
    queries: Tensor, candidates: Tensor, positive: Tensor, query_hash: Tensor, candidate_hash: Tensor,
    temperature: float, margin: float = math.inf,
) -> Tensor:  # fmt: skip
    """The definition, entry by entry."""
    scores = queries.double() @ candidates.double().T
    total = scores.new_zeros(())
    for i in range(len(queries)):
        p = int(positive[i])
        own = scores[i, p]
        seen, forward = set(), [own]
        for c in range(len(candidates)):
            other = int(candidate_hash[c])
            if c != p and other != int(query_hash[i]) and other not in seen:
                seen.add(other)
                if scores[i, c] <= own + margin:
                    forward.append(scores[i, c])
        backward = [own]
        for j in range(len(queries)):
            if int(query_hash[j]) != int(query_hash[i]) and scores[j, p] <= own + margin:
                backward.append(scores[j, p])
        for logits in (forward, backward):
            total = total + torch.logsumexp(torch.stack(logits) / temperature, 0) - own / temperature
    return total / (2 * len(queries))


SHARED = {
    "positive_Q": torch.tensor([0, 1, 0, 2]),
    "query_hash_Q": torch.tensor([10, 11, 10, 12]),
    "candidate_hash_C": torch.tensor([10, 11, 12, 13, 14]),
}
"""Four queries, two of which share a target; rows 3 and 4 are hard negatives."""


@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_zero_embeddings_give_the_log_of_the_counts(temperature: float) -> None:
    output = info_nce(torch.zeros(4, 8), torch.zeros(5, 8), **SHARED, temperature=temperature)
    # q->c: five candidates for every query. c->q: the twins see three queries (each other is masked), the rest four.
    expected = (math.log(5) + (2 * math.log(3) + 2 * math.log(4)) / 4) / 2
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)
    assert output.hit_at_1 == 0, "a tie with every negative is no hit"
    assert output.effective_negatives == 4


@pytest.mark.parametrize("margin", [None, 0.1, -0.2])
def test_equals_the_definition_entry_by_entry(margin: float | None) -> None:
    queries, candidates = unit(4, 8, 0), unit(5, 8, 1)
    output = info_nce(queries, candidates, **SHARED, temperature=0.1, margin=margin)
    expected = by_loop(
        queries, candidates, *SHARED.values(), temperature=0.1, margin=math.inf if margin is None else margin
    )
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_equals_symmetric_clip_when_every_query_has_its_own_target() -> None:
    queries, candidates, rows = unit(6, 8, 0), unit(6, 8, 1), torch.arange(6)
    logits = queries @ candidates.T / 0.05
    expected = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    assert torch.allclose(info_nce(queries, candidates, rows, rows, rows, 0.05).loss, expected, rtol=1e-6)


def test_a_target_held_twice_counts_once() -> None:
    """What two ranks gather (a target encoded on both) must give what one rank computes."""
    queries, candidates = unit(4, 8, 0), unit(3, 8, 1)
    positive, hashes = torch.tensor([0, 1, 0, 2]), torch.tensor([10, 11, 12])
    once = info_nce(queries, candidates, positive, hashes[positive], hashes, 0.1)
    twice = info_nce(
        queries, torch.cat([candidates, candidates[:1]]), torch.tensor([0, 1, 3, 2]), hashes[positive],
        torch.cat([hashes, hashes[:1]]), 0.1,
    )  # fmt: skip
    assert torch.allclose(once.loss, twice.loss, rtol=1e-6)
    assert once.effective_negatives == twice.effective_negatives == 2


def test_false_negatives_carry_no_gradient() -> None:
    queries, candidates = unit(3, 8, 0), unit(4, 8, 1).requires_grad_()
    hashes = torch.tensor([5, 6, 7, 5])  # row 3 is the target of query 0 again
    loss = info_nce(queries[:1], candidates, torch.tensor([0]), torch.tensor([5]), hashes, 0.1).loss
    (grad,) = torch.autograd.grad(loss, candidates)
    assert grad[3].abs().sum() == 0
    assert grad[:3].abs().sum(1).min() > 0


def test_margin_masks_only_what_exceeds_it_and_reports_the_share() -> None:
    queries = torch.tensor([[1.0, 0.0]])
    candidates = torch.tensor([[0.5, 0.0], [0.75, 0.0], [0.76, 0.0]])  # at the margin, and just over it
    hashes = torch.tensor([0, 1, 2])
    kept = info_nce(queries, candidates[:2], torch.tensor([0]), hashes[:1], hashes[:2], 1.0)
    output = info_nce(queries, candidates, torch.tensor([0]), hashes[:1], hashes, 1.0, margin=0.25)
    assert output.loss.item() == pytest.approx(kept.loss.item(), abs=1e-6)
    assert output.margin_masked_share.item() == pytest.approx(1 / 2)
    assert output.effective_negatives == 1
    assert output.hit_at_1 == 0, "what the margin hides from the loss still outranks the positive"


def test_excluded_candidates_are_nobodys_negative_but_stay_positives() -> None:
    queries, candidates = unit(3, 8, 0), unit(4, 8, 1)
    rows, hashes = torch.arange(3), torch.arange(4)
    excluded = torch.tensor([True, False, False, True])
    loss = info_nce(queries, candidates, rows, rows, hashes, 0.1, candidate_excluded_C=excluded).loss
    logits = queries @ candidates.T / 0.1
    forward = [
        F.cross_entropy(logits[i, kept][None], torch.tensor([kept.index(i)]))
        for i, kept in enumerate([[0, 1, 2], [1, 2], [1, 2]])
    ]
    backward = F.cross_entropy(logits[:, :3].T, rows)
    assert torch.allclose(loss, (torch.stack(forward).mean() + backward) / 2, rtol=1e-5)


def test_matryoshka_averages_the_widths() -> None:
    queries, candidates, rows = unit(5, 8, 0), unit(5, 8, 1), torch.arange(5)
    full = info_nce(queries, candidates, rows, rows, rows, 0.1).loss
    prefix = info_nce(
        F.normalize(queries[:, :3], dim=-1), F.normalize(candidates[:, :3], dim=-1), rows, rows, rows, 0.1
    ).loss
    both = info_nce(queries, candidates, rows, rows, rows, 0.1, matryoshka_dims=(3,)).loss
    assert torch.allclose(both, (full + prefix) / 2, rtol=1e-6)


def test_hard_negative_mass_is_the_softmax_share_of_the_marked_columns() -> None:
    marked = torch.tensor([False, False, False, True, True])
    output = info_nce(torch.zeros(4, 8), torch.zeros(5, 8), **SHARED, temperature=1.0, candidate_is_negative_C=marked)
    assert output.hard_negative_mass is not None
    assert output.hard_negative_mass.item() == pytest.approx(2 / 5)


def test_order_of_rows_does_not_matter() -> None:
    queries, candidates = unit(4, 8, 0), unit(5, 8, 1)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 2, 0, 1, 3])
    shuffled = info_nce(
        queries[rows], candidates[columns], columns.argsort()[SHARED["positive_Q"][rows]],
        SHARED["query_hash_Q"][rows], SHARED["candidate_hash_C"][columns], 0.1,
    )  # fmt: skip
    assert torch.allclose(shuffled.loss, info_nce(queries, candidates, **SHARED, temperature=0.1).loss, rtol=1e-6)


def test_runs_in_fp32_under_autocast() -> None:
    queries, candidates = unit(4, 64, 0), unit(5, 64, 1)
    plain = info_nce(queries, candidates, **SHARED, temperature=0.02).loss
    with torch.autocast("cpu", torch.bfloat16):
        cast = info_nce(queries, candidates, **SHARED, temperature=0.02).loss
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


@pytest.mark.parametrize("side", ["queries", "candidates"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_input_names_the_side_and_row(side: str, value: float) -> None:
    queries, candidates = unit(4, 8, 0), unit(5, 8, 1)
    (queries if side == "queries" else candidates)[2, 1] = value
    with pytest.raises(NumericalError, match=f"{side}: 1 of . embeddings .* row 2"):
        info_nce(queries, candidates, **SHARED, temperature=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"positive_Q": torch.tensor([0, 1, 0, 5])}, "but there are 5 candidates"),
        ({"query_hash_Q": torch.tensor([10, 11, 99, 12])}, "1 of 4 queries have a target hash"),
        ({"candidate_hash_C": torch.tensor([10, 11])}, "5 candidates need as many hashes, got 2"),
        ({"query_hash_Q": torch.tensor([10])}, "got 4 and 1"),
        ({"matryoshka_dims": (4, 9)}, r"\[9\] lie outside 1..8"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        info_nce(unit(4, 8, 0), unit(5, 8, 1), **{**SHARED, "temperature": 0.1, **change})
