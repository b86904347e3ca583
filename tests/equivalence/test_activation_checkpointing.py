"""Recomputed activations give the values and gradients of kept ones, in both passes."""

from __future__ import annotations

import pytest
import torch


def _run(backbone, prompts, cots):
    backbone.train_only("reasoning", "embedding", "queries")
    state = backbone.reason(prompts, cots, want_logits=True)
    out = backbone.embed(state)
    loss_r = state.cot_logits_BTV.float().logsumexp(-1).mean()
    loss_e = (out.discriminative_BD @ out.generative_BD.T).diagonal().sum()
    # The embedding adapter is pinned last, and another than the forward's while the backward recomputes.
    with backbone.adapters.pin("embedding"):
        (loss_r + loss_e).backward()
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad
        for group in ("reasoning", "embedding", "queries")
        for p in backbone.group_parameters(group)
    ]
    return [loss_r.detach(), loss_e.detach(), out.generative_BD.detach()], gradients


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("interface", "prefix"),
    [("kv_detached", "reasoning"), ("kv_detached", "embedding"), ("kv_joint", "none"), ("reencode", "reasoning")],
)
def test_on_equals_off(build, batch, interface, prefix, dropout):
    results = []
    for checkpointing in (False, True):
        backbone = build(interface, checkpointing, prefix=prefix, dropout=dropout).train()
        torch.manual_seed(0)
        results.append(_run(backbone, *batch))
    for kept, recomputed in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(recomputed, kept)
    assert sum(g.abs().sum() for g in results[0][1]) > 0
