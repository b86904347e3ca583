"""Cached gradients equal plain gradients: with dropout, uneven chunks, several outputs, empty contributions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twn_lightning.objectives import grad_cache_backward, info_nce


class Encoder(nn.Module):
    """Two outputs per row, one through dropout, like a backbone with two embedding modes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.4))
        self.first, self.second = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(inputs)
        return F.normalize(self.first(hidden), dim=-1), F.normalize(self.second(hidden), dim=-1)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder().train()


def contrast(representations: tuple[Tensor, ...]) -> Tensor:
    queries, candidates = representations
    rows = torch.arange(len(queries))
    return info_nce(queries, candidates, rows, rows, rows, 0.1).loss


def gradients(module: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    return found


@pytest.mark.parametrize("sizes", [(10,), (5, 5), (4, 4, 2), (1, 9), (3, 3, 3, 1)])
def test_cached_equals_plain_with_dropout(encoder: Encoder, sizes: tuple[int, ...]) -> None:
    chunks = list(torch.randn(10, 6).split(sizes))
    torch.manual_seed(7)
    parts = [encoder(chunk) for chunk in chunks]
    plain_loss = contrast(tuple(torch.cat(column) for column in zip(*parts, strict=True)))
    plain_loss.backward()
    plain = gradients(encoder)

    torch.manual_seed(7)
    cached_loss = grad_cache_backward(encoder, chunks, contrast)
    assert torch.allclose(cached_loss, plain_loss, rtol=1e-6)
    assert not cached_loss.requires_grad
    for ours, theirs in zip(gradients(encoder), plain, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_without_replay_dropout_breaks_the_equality(encoder: Encoder) -> None:
    chunks = list(torch.randn(10, 6).split(5))
    torch.manual_seed(7)
    grad_cache_backward(encoder, chunks, contrast)
    replayed = gradients(encoder)
    torch.manual_seed(7)
    grad_cache_backward(encoder, chunks, contrast, rng_replay=False)
    assert any(not torch.allclose(a, b, rtol=1e-2) for a, b in zip(gradients(encoder), replayed, strict=True))


def test_replay_does_not_rewind_the_callers_generator(encoder: Encoder) -> None:
    """What a loss draws comes after the chunks' draws, and stays drawn."""
    chunks = list(torch.randn(10, 6).split(5))
    state_after_loss: list[Tensor] = []

    def noisy(representations: tuple[Tensor, ...]) -> Tensor:
        loss = contrast(representations) * torch.rand(())
        state_after_loss.append(torch.get_rng_state())
        return loss

    grad_cache_backward(encoder, chunks, noisy)
    assert torch.equal(torch.get_rng_state(), state_after_loss[0])


def test_chunks_of_queries_and_of_candidates(encoder: Encoder) -> None:
    """A chunk may contribute to one output only."""
    encoder.eval()
    queries, candidates = torch.randn(5, 6), torch.randn(5, 6)
    contrast((encoder(queries)[0], encoder(candidates)[0])).backward()
    plain = gradients(encoder)

    def encode(chunk: tuple[str, Tensor]) -> tuple[Tensor, Tensor]:
        side, inputs = chunk
        embedding = encoder(inputs)[0]
        return (embedding, embedding[:0]) if side == "query" else (embedding[:0], embedding)

    query_chunks = [("query", part) for part in queries.split(3)]
    candidate_chunks = [("candidate", part) for part in candidates.split(4)]
    chunks = [query_chunks[0], *candidate_chunks, query_chunks[1]]
    grad_cache_backward(encode, chunks, contrast)
    for ours, theirs in zip(gradients(encoder), plain, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_an_output_the_loss_ignores_gets_no_gradient(encoder: Encoder) -> None:
    grad_cache_backward(encoder, list(torch.randn(6, 6).split(3)), lambda outputs: outputs[0].square()[:, 0].sum())
    assert encoder.second.weight.grad is None or encoder.second.weight.grad.abs().sum() == 0
    assert encoder.first.weight.grad is not None
    assert encoder.first.weight.grad.abs().sum() > 0


def test_the_given_backward_runs_once_per_chunk(encoder: Encoder) -> None:
    calls: list[Tensor] = []

    def backward(loss: Tensor) -> None:
        calls.append(loss)
        loss.backward()

    grad_cache_backward(encoder, list(torch.randn(9, 6).split(3)), contrast, backward=backward)
    assert len(calls) == 3


def test_nothing_to_do_is_an_error(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="at least one chunk"):
        grad_cache_backward(encoder, [], contrast)
    with pytest.raises(ValueError, match="does not depend on any representation"):
        grad_cache_backward(encoder, list(torch.randn(4, 6).split(2)), lambda outputs: torch.ones(()))
