from __future__ import annotations

import pytest
import torch

from twn_lightning.backbone.interface import causal_mask, cot_targets
from twn_lightning.errors import ConfigError
from twn_lightning.types import CotBatch


def test_targets_are_the_cot_then_the_end_of_the_turn():
    cots = CotBatch(
        torch.tensor([[5, 6, 7], [8, 9, 0], [3, 0, 0]]),
        torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]]),
        torch.tensor([True, False, True]),
    )
    assert cot_targets(cots, 2).tolist() == [[5, 6, 7, 2], [8, 9, -100, -100], [2, -100, -100, -100]]


def test_causal_mask_reads_what_is_readable_and_lets_padding_read_itself():
    mask = causal_mask(torch.tensor([[0, 1, 1]]), 2)[0, 0]
    assert mask.tolist() == [[False, True, False], [False, True, True]]
    assert causal_mask(torch.tensor([[0, 1]]), 2)[0, 0].tolist() == [[True, False], [False, True]]


def test_modes_that_cannot_be_embedded(tiny_backbone, mixed_items):
    backbone = tiny_backbone()
    state = backbone.reason(backbone.processor(mixed_items))
    with pytest.raises(ConfigError, match="this state has none"):
        backbone.embed(state)
    with pytest.raises(ConfigError, match="not \\['adaptive'\\]"):
        backbone.embed(state, ["adaptive"])


def test_detached_state_carries_no_graph(tiny_backbone, mixed_items):
    backbone = tiny_backbone()
    state = backbone.reason(backbone.processor(mixed_items), want_logits=True)
    assert state.cot_logits_BTV.requires_grad
    detached = state.detach()
    assert not any(t.requires_grad for t in (detached.last_hidden_BD, detached.cot_logits_BTV, *detached.layers[0]))
