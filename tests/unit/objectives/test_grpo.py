"""Advantages and the clipped loss, on numbers small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from twn_lightning.errors import NumericalError
from twn_lightning.objectives import group_advantages, grpo_loss, token_entropy, token_log_probs

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


def test_advantages_are_standardised_within_each_group() -> None:
    output = group_advantages(torch.tensor([1.0, 3.0, 10.0, 30.0]), 2)
    one, ten = math.sqrt(2) + 1e-4, 10 * math.sqrt(2) + 1e-4
    assert output.advantages_B.tolist() == pytest.approx([-1 / one, 1 / one, -10 / ten, 10 / ten])
    assert (output.num_groups, output.degenerate_groups) == (2, 0)


def test_degenerate_groups_get_zero_and_are_counted() -> None:
    output = group_advantages(torch.tensor([0.5, 0.5, 0.5004, 0.5, 0.0, 1.0]), 2)
    assert output.degenerate_groups == 2
    assert output.advantages_B[:4].tolist() == [0, 0, 0, 0]
    assert output.advantages_B[4:].tolist() == pytest.approx([-0.7070, 0.7070], abs=1e-4)


@pytest.mark.parametrize(("shift", "scale"), [(5.0, 1.0), (0.0, 100.0)])
def test_advantages_ignore_the_rewards_origin_and_scale(shift: float, scale: float) -> None:
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(0))
    plain = group_advantages(rewards, 4, std_epsilon=0.0).advantages_B
    moved = group_advantages(rewards * scale + shift, 4, std_epsilon=0.0).advantages_B
    assert torch.allclose(plain, moved, atol=1e-4)
    assert torch.allclose(plain.view(3, 4).mean(1), torch.zeros(3), atol=1e-6)


def test_bad_groups_and_rewards_are_named() -> None:
    with pytest.raises(ValueError, match="5 rewards do not split into groups of 2"):
        group_advantages(torch.zeros(5), 2)
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(torch.zeros(4), 1)
    with pytest.raises(NumericalError, match="1 rewards are NaN or Inf, first at row 3"):
        group_advantages(torch.tensor([0, 0, 0, math.nan]), 2)


def test_step_zero_has_ratio_one_no_kl_and_the_policy_gradient() -> None:
    log_probs = torch.log(torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.9, 0.9]])).requires_grad_()
    advantages = torch.tensor([2.0, -1.0])
    output = grpo_loss(
        log_probs, log_probs.detach(), advantages, MASK, reference_log_probs_BT=log_probs.detach(), kl_weight=0.04
    )
    assert (output.ratio, output.kl, output.clip_share) == (1, 0, 0)
    assert output.loss.item() == pytest.approx(-(3 * 2 - 1) / 4), "averaged over tokens, not over completions"
    (grad,) = torch.autograd.grad(output.loss, log_probs)
    assert torch.allclose(grad, -advantages[:, None] * MASK / 4)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "clipped"),
    [
        (1.27, 1.0, 1.27, False),  # inside the upper clip of .28
        (1.50, 1.0, 1.28, True),
        (0.50, 1.0, 0.50, False),  # a good token made rarer: the pessimistic side is the unclipped one
        (0.81, -1.0, -0.81, False),
        (0.50, -1.0, -0.80, True),  # the lower clip is .2
        (1.50, -1.0, -1.50, False),
    ],
)
def test_asymmetric_clip(ratio: float, advantage: float, surrogate: float, clipped: bool) -> None:
    log_probs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    output = grpo_loss(log_probs, torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1))
    assert output.loss.item() == pytest.approx(-surrogate, abs=1e-6)
    assert output.clip_share == float(clipped)
    (grad,) = torch.autograd.grad(output.loss, log_probs)
    assert (grad == 0).item() == clipped


@pytest.mark.parametrize("difference", [-1.0, 0.0, 0.7])
def test_kl_is_the_k3_estimate_and_never_negative(difference: float) -> None:
    log_probs = torch.full((1, 2), -1.0, requires_grad=True)
    output = grpo_loss(
        log_probs, log_probs.detach(), torch.zeros(1), torch.ones(1, 2),
        reference_log_probs_BT=torch.full((1, 2), -1.0 + difference), kl_weight=0.5,
    )  # fmt: skip
    expected = math.exp(difference) - difference - 1
    assert output.kl.item() == pytest.approx(expected, abs=1e-6)
    assert output.loss.item() == pytest.approx(0.5 * expected, abs=1e-6)
    (grad,) = torch.autograd.grad(output.loss, log_probs)
    assert grad.sum().item() == pytest.approx(0.5 * (1 - math.exp(difference)), abs=1e-6)


def test_chunks_with_the_rollouts_token_count_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs, sampled, reference = (-torch.rand(4, 5, generator=generator) for _ in range(3))
    mask = torch.arange(5)[None, :] < torch.tensor([5, 2, 0, 3])[:, None]
    advantages = torch.tensor([1.0, -1.0, 0.5, 2.0])
    whole = grpo_loss(log_probs, sampled, advantages, mask, reference_log_probs_BT=reference)
    parts = [
        grpo_loss(
            log_probs[i : i + 1], sampled[i : i + 1], advantages[i : i + 1], mask[i : i + 1],
            reference_log_probs_BT=reference[i : i + 1], num_tokens=int(mask.sum()),
        )
        for i in range(4)
    ]  # fmt: skip
    assert torch.allclose(torch.stack([part.loss for part in parts]).sum(), whole.loss, rtol=1e-5)
    weighted = sum(part.kl * part.num_tokens for part in parts) / whole.num_tokens
    assert torch.allclose(torch.as_tensor(weighted), whole.kl, rtol=1e-5)


def test_padding_may_hold_anything() -> None:
    log_probs = torch.zeros(2, 3)
    log_probs[1, 1:] = torch.tensor([500.0, -torch.inf])
    log_probs.requires_grad_()
    output = grpo_loss(log_probs, torch.zeros(2, 3), torch.ones(2), MASK, reference_log_probs_BT=torch.zeros(2, 3))
    (grad,) = torch.autograd.grad(output.loss, log_probs)
    assert torch.isfinite(output.loss)
    assert torch.isfinite(grad).all()
    assert grad[1, 1:].tolist() == [0, 0]


def test_broken_log_probs_inside_the_mask_are_named() -> None:
    reference = torch.zeros(2, 3)
    reference[0, 1] = math.nan
    with pytest.raises(NumericalError, match="reference log-probabilities: 1 of 4 tokens"):
        grpo_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), MASK, reference_log_probs_BT=reference)
    with pytest.raises(ValueError, match="no token to average over"):
        grpo_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), torch.zeros(2, 3))


def test_token_log_probs_and_entropy() -> None:
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 7, (2, 3))
    expected = -F.cross_entropy((logits / 0.7).flatten(0, 1), ids.flatten(), reduction="none").view(2, 3)
    assert torch.allclose(token_log_probs(logits, ids, temperature=0.7), expected, atol=1e-6)
    assert torch.allclose(token_entropy(torch.zeros(1, 2, 7)), torch.full((1, 2), math.log(7)))
    output = grpo_loss(
        torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), MASK,
        entropy_BT=torch.tensor([[1.0, 2.0, 3.0], [4.0, math.nan, math.nan]]),
    )  # fmt: skip
    assert output.entropy is not None
    assert output.entropy.item() == pytest.approx(2.5)


def test_unscaled_advantages_keep_small_differences_small() -> None:
    rewards = torch.tensor([-0.18, -0.05, 0.79, -0.31])  # a group of two wrong answers, one of right and wrong
    plain = group_advantages(rewards, 2, scale="none").advantages_B
    torch.testing.assert_close(plain, torch.tensor([-0.065, 0.065, 0.55, -0.55]))
    scaled = group_advantages(rewards, 2).advantages_B
    assert abs(float(scaled[1] / scaled[2])) > 0.99  # the group's deviation hides that one difference is 8 times larger
