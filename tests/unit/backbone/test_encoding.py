"""The adaptive path: who is decoded, what falls back, what is reported."""

from __future__ import annotations

import pytest
import torch

from twn_lightning.backbone import encoding
from twn_lightning.backbone.encoding import encode
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.types import Side


@torch.no_grad()
def test_discriminative_never_decodes(tiny_backbone, mixed_items, monkeypatch):
    backbone = tiny_backbone()
    monkeypatch.setattr(encoding, "decode_cots", lambda *a, **k: pytest.fail("decoded"))
    done = []
    found = encode(backbone, mixed_items, "discriminative", batch_size=2, progress=done.append)
    assert done == [2, 2, 1]
    assert found.generative_ND is None
    assert found.probability_N is None
    assert torch.equal(found.embedding_ND, found.discriminative_ND)
    assert found.tokens_N.sum() == 0
    assert found.cot_texts == [None] * 5
    assert found.features_NF.shape == (5, 2 * backbone.hidden_size)
    torch.testing.assert_close(found.embedding_ND.norm(dim=-1), torch.ones(5))


@torch.no_grad()
def test_unclosed_cots_fall_back_and_are_flagged(tiny_backbone, mixed_items):
    found = encode(tiny_backbone(), mixed_items, "generative", max_new_tokens=3)
    assert found.think_N.all()
    assert found.malformed_N.all()
    assert found.tokens_N.tolist() == [3] * 5
    assert torch.equal(found.embedding_ND, found.discriminative_ND)


@torch.no_grad()
def test_adaptive_mixes_the_two_by_the_gate(tiny_backbone, mixed_items, monkeypatch):
    backbone = tiny_backbone()
    _close_everything(monkeypatch)
    always = encode(backbone, mixed_items, "generative", max_new_tokens=3)
    assert not always.malformed_N.any()
    assert (always.embedding_ND - always.discriminative_ND).abs().max() > 1e-4
    sides = []

    def gate(features, side):
        sides.append(side.tolist())
        return torch.tensor([3.0, -3.0, 3.0, -3.0, 3.0])[: len(features)]

    found = encode(backbone, mixed_items, "adaptive", gate=gate, max_new_tokens=3, side=Side.CANDIDATE)
    assert sides == [[1] * 5]
    assert found.think_N.tolist() == [True, False, True, False, True]
    think = found.think_N[:, None]
    expected = torch.where(think, always.embedding_ND, always.discriminative_ND)
    torch.testing.assert_close(found.embedding_ND, expected, atol=1e-5, rtol=1e-4)
    assert [t is None for t in found.cot_texts] == [False, True, False, True, False]
    assert found.tokens_N.tolist() == [3, 0, 3, 0, 3]
    assert found.probability_N[0] == pytest.approx(0.9526, abs=1e-4)
    never = encode(backbone, mixed_items, "adaptive", gate=gate, max_new_tokens=3, side=Side.QUERY, threshold=0.99)
    assert torch.equal(never.embedding_ND, never.discriminative_ND)


def _close_everything(monkeypatch):
    decode = encoding.decode_cots

    def closed(*args, **kwargs):
        decoded = decode(*args, **kwargs)
        decoded.cots.closed_B.fill_(True)
        return decoded

    monkeypatch.setattr(encoding, "decode_cots", closed)


def test_encoding_keeps_the_training_mode_and_refuses_nonsense(tiny_backbone, mixed_items):
    backbone = tiny_backbone().train()
    encode(backbone, mixed_items[:1], "discriminative")
    assert backbone.training
    with pytest.raises(ConfigError, match="adaptive encoding needs a gate"):
        encode(backbone, mixed_items, "adaptive")
    with pytest.raises(DataError, match="batch is empty"):
        encode(backbone, [], "discriminative")
