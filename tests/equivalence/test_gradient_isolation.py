"""Who learns from what: the paper's detach, and its absence in the conflict baseline."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from twn_lightning.backbone.interface import cot_targets


def _gradients(backbone, loss):
    backbone.zero_grad()
    loss.backward()

    def norm(group):
        return sum(0.0 if p.grad is None else float(p.grad.norm()) for p in backbone.group_parameters(group))

    return {group: norm(group) for group in ("reasoning", "embedding", "queries")}


def _contrastive(backbone, state):
    out = backbone.embed(state)
    return sum(
        F.cross_entropy(e @ e.roll(1, 0).T, torch.arange(len(e))) for e in (out.discriminative_BD, out.generative_BD)
    )


def _cot(backbone, state, cots):
    targets = cot_targets(cots, backbone.processor.eot_id)
    return F.cross_entropy(state.cot_logits_BTV.flatten(0, 1), targets.flatten(), ignore_index=-100)


@pytest.mark.parametrize("prefix", ["reasoning", "none", "embedding"])
def test_contrastive_loss_does_not_reach_the_reasoner(build, batch, prefix):
    backbone = build(prefix=prefix)
    found = _gradients(backbone, _contrastive(backbone, backbone.reason(*batch)))
    assert found["reasoning"] == 0
    assert found["embedding"] > 0
    assert found["queries"] > 0


def test_without_the_detach_it_does(build, batch):
    backbone = build("kv_joint")
    found = _gradients(backbone, _contrastive(backbone, backbone.reason(*batch)))
    assert min(found.values()) > 0


@pytest.mark.parametrize("interface", ["kv_detached", "kv_joint", "reencode"])
@pytest.mark.parametrize("prefix", ["reasoning", "none", "embedding"])
def test_cot_loss_reaches_the_reasoner_only(build, batch, interface, prefix):
    backbone = build(interface, prefix=prefix)
    found = _gradients(backbone, _cot(backbone, backbone.reason(*batch, want_logits=True), batch[1]))
    assert found["reasoning"] > 0
    assert found["embedding"] == 0
    assert found["queries"] == 0


def test_reencode_trains_the_embedder_and_leaves_the_reasoner(build, batch):
    backbone = build("reencode")
    found = _gradients(backbone, _contrastive(backbone, backbone.reason(*batch)))
    assert found["reasoning"] == 0
    assert found["embedding"] > 0


def test_prefix_embedding_sends_the_contrastive_gradient_through_the_prefix_cache(build, batch):
    backbone = build(prefix="embedding")
    prompts, cots = batch
    state = backbone.reason(prompts, cots)
    key = state.layers[0][0]
    key.retain_grad()
    (backbone.embed(state).generative_BD[:, 0].sum()).backward()
    length = prompts.input_ids_BL.shape[1]
    assert key.grad[:, :, :length].abs().sum() > 0
    assert key.grad[:, :, length:].abs().sum() == 0


def test_shared_arrangement_learns_both_with_one_adapter(build, batch):
    backbone = build(arrangement="shared")
    assert backbone.adapters.names == ["reasoning"]
    assert backbone.adapters.config("embedding").r == 8
    assert backbone.group_parameters("embedding") == []
    found = _gradients(backbone, _contrastive(backbone, backbone.reason(*batch)))
    assert found["reasoning"] > 0
