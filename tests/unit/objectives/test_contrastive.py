"""The sum of section 4: which embedding meets which, with what weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twn_lightning.errors import ConfigError
from twn_lightning.objectives import combined_contrastive, info_nce
from twn_lightning.types import EmbeddingOutput

ROWS, HASHES, TAU = torch.arange(4), torch.arange(6), 0.1
NEGATIVE = torch.tensor([False, False, False, False, True, True])


def unit(rows: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


QUERIES, CANDIDATES = EmbeddingOutput(unit(4, 0), unit(4, 1)), EmbeddingOutput(unit(6, 2), unit(6, 3))


def nce(query: Tensor | None, candidate: Tensor | None, excluded: Tensor | None = None) -> Tensor:
    assert query is not None
    assert candidate is not None
    return info_nce(query, candidate, ROWS, ROWS, HASHES, TAU, candidate_excluded_C=excluded).loss


def test_both_sides_think() -> None:
    output = combined_contrastive(
        QUERIES, CANDIDATES, ROWS, ROWS, HASHES, temperature=TAU,
        cross_query_generative=0.25, cross_candidate_generative=0.25,
    )  # fmt: skip
    q, c = QUERIES, CANDIDATES
    expected = (
        nce(q.discriminative_BD, c.discriminative_BD)
        + nce(q.generative_BD, c.generative_BD)
        + 0.25 * nce(q.generative_BD, c.discriminative_BD)
        + 0.25 * nce(q.discriminative_BD, c.generative_BD)
    )
    assert torch.allclose(output.loss, expected, rtol=1e-6)
    assert set(output.terms) == {"discriminative", "generative", "query_generative", "candidate_generative"}


def test_only_queries_think() -> None:
    candidates = EmbeddingOutput(CANDIDATES.discriminative_BD)
    output = combined_contrastive(QUERIES, candidates, ROWS, ROWS, HASHES, temperature=TAU)
    generative = nce(QUERIES.generative_BD, candidates.discriminative_BD)
    expected = nce(QUERIES.discriminative_BD, candidates.discriminative_BD) + 2 * generative
    assert torch.allclose(output.loss, expected, rtol=1e-6)


def test_hard_negatives_without_cot_leave_only_the_terms_that_read_candidate_generative() -> None:
    has_cot = torch.tensor([True, True, False, True, True, False])  # row 2 is a positive: it stays
    output = combined_contrastive(
        QUERIES, CANDIDATES, ROWS, ROWS, HASHES, temperature=TAU, cross_query_generative=0.25,
        cross_candidate_generative=0.25, candidate_is_negative_C=NEGATIVE, candidate_has_cot_C=has_cot,
    )  # fmt: skip
    excluded = torch.tensor([False, False, False, False, False, True])
    q, c = QUERIES, CANDIDATES
    assert torch.equal(output.terms["discriminative"].loss, nce(q.discriminative_BD, c.discriminative_BD))
    assert torch.equal(output.terms["query_generative"].loss, nce(q.generative_BD, c.discriminative_BD))
    assert torch.equal(output.terms["generative"].loss, nce(q.generative_BD, c.generative_BD, excluded))
    assert torch.equal(output.terms["candidate_generative"].loss, nce(q.discriminative_BD, c.generative_BD, excluded))


def test_gradient_reaches_every_embedding_and_logs_are_detached() -> None:
    tensors = [unit(4, 0), unit(4, 1), unit(6, 2), unit(6, 3)]
    for tensor in tensors:
        tensor.requires_grad_()
    output = combined_contrastive(
        EmbeddingOutput(*tensors[:2]), EmbeddingOutput(*tensors[2:]), ROWS, ROWS, HASHES, temperature=TAU
    )
    assert all(grad.abs().sum() > 0 for grad in torch.autograd.grad(output.loss, tensors))
    values = output.log_values()
    assert {"discriminative/loss", "generative/hit@1", "query_generative/masked_share"} <= set(values)
    assert not any(value.requires_grad for value in values.values())


def test_a_weight_over_embeddings_that_do_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cross_candidate_generative = 0\.25 .* data\.think_sides=candidate"):
        combined_contrastive(
            QUERIES, EmbeddingOutput(CANDIDATES.discriminative_BD), ROWS, ROWS, HASHES,
            temperature=TAU, cross_candidate_generative=0.25,
        )  # fmt: skip
    with pytest.raises(ValueError, match="no generative embeddings on either side"):
        combined_contrastive(
            EmbeddingOutput(QUERIES.discriminative_BD), EmbeddingOutput(CANDIDATES.discriminative_BD),
            ROWS, ROWS, HASHES, temperature=TAU,
        )  # fmt: skip
