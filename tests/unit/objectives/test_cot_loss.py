from __future__ import annotations

import math

import pytest
import torch

from twn_lightning.errors import DataError
from twn_lightning.objectives import cot_cross_entropy


def test_uniform_logits_cost_log_vocabulary() -> None:
    targets = torch.tensor([[1, 2, -100], [3, -100, -100]])
    assert cot_cross_entropy(torch.zeros(2, 3, 11), targets).item() == pytest.approx(math.log(11))


def test_mean_is_over_tokens_not_rows() -> None:
    logits = torch.zeros(2, 3, 5)
    logits[0, :, 1] = 4.0
    targets = torch.tensor([[1, 1, 1], [2, -100, -100]])
    easy = math.log(math.exp(4) + 4) - 4
    assert cot_cross_entropy(logits, targets).item() == pytest.approx((3 * easy + math.log(5)) / 4)


def test_chunks_with_the_batchs_token_count_add_up() -> None:
    logits = torch.randn(5, 4, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.randint(0, 7, (5, 4), generator=torch.Generator().manual_seed(1))
    targets[0, 2:] = -100
    targets[4] = -100  # a chunk may hold no token at all
    whole = cot_cross_entropy(logits, targets)
    num_tokens = (targets != -100).sum()
    chunks = [
        cot_cross_entropy(logits[rows], targets[rows], num_tokens=num_tokens)
        for rows in (slice(0, 2), slice(2, 4), slice(4, 5))
    ]
    total = torch.stack(chunks).sum()
    assert torch.allclose(total, whole, rtol=1e-6)
    (of_whole,), (of_chunks,) = torch.autograd.grad(whole, logits), torch.autograd.grad(total, logits)
    assert torch.allclose(of_whole, of_chunks, atol=1e-8)
    summed = cot_cross_entropy(logits, targets, reduction="sum")
    assert torch.allclose(summed / num_tokens, whole, rtol=1e-6)


def test_ignored_positions_have_no_gradient_even_where_logits_overflow() -> None:
    logits = torch.zeros(1, 2, 3)
    logits[0, 1] = torch.inf
    logits.requires_grad_()
    loss = cot_cross_entropy(logits, torch.tensor([[0, -100]]))
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert grad[0, 1].abs().sum() == 0


def test_bfloat16_logits_are_reduced_in_fp32() -> None:
    logits = torch.randn(4, 8, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.randint(0, 50, (4, 8))
    loss = cot_cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cot_cross_entropy(logits.float(), targets))


def test_no_token_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="no CoT token to learn from in 2 rows"):
        cot_cross_entropy(torch.zeros(2, 3, 5), torch.full((2, 3), -100))


def test_mismatched_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 5\) and targets \(2, 4\)"):
        cot_cross_entropy(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long))
