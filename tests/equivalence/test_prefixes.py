"""Reading the first tokens of a CoT from its whole cache equals never having gone further."""

from __future__ import annotations

import pytest
import torch

from twn_lightning.backbone.prefixes import cut_cots, prefix_embeddings
from twn_lightning.errors import DataError
from twn_lightning.types import CotBatch

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
CASES = [("kv_detached", "reasoning"), ("kv_detached", "none"), ("kv_detached", "embedding"), ("reencode", "reasoning")]


@torch.no_grad()
@pytest.mark.parametrize(("interface", "prefix"), CASES)
def test_no_token_is_discriminative_and_all_are_generative(build, batch, interface, prefix):
    backbone = build(interface, prefix=prefix)
    state = backbone.reason(*batch)
    whole = backbone.embed(state)
    longest = int(batch[1].lengths_B.max())
    found = prefix_embeddings(backbone, state, [0, longest, longest + 5])
    torch.testing.assert_close(found[:, 0], whole.discriminative_BD, **CLOSE)
    torch.testing.assert_close(found[:, 1], whole.generative_BD, **CLOSE)
    assert torch.equal(found[:, 1], found[:, 2])
    assert (whole.discriminative_BD - whole.generative_BD).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize(("interface", "prefix"), CASES)
def test_a_cut_equals_a_cot_that_ends_there(build, batch, interface, prefix):
    backbone = build(interface, prefix=prefix)
    prompts, cots = batch
    state = backbone.reason(prompts, cots)
    for length in (1, 4, 9):
        short = CotBatch(cots.ids_BT[:, :length], cots.mask_BT[:, :length], torch.zeros_like(cots.closed_B))
        expected = backbone.embed(backbone.reason(prompts, short)).generative_BD
        torch.testing.assert_close(prefix_embeddings(backbone, state, [length])[:, 0], expected, **CLOSE)


@torch.no_grad()
def test_the_cache_is_read_and_not_changed(build, batch):
    backbone = build()
    state = backbone.reason(*batch)
    before = [(k.clone(), v.clone()) for k, v in state.layers]
    prefix_embeddings(backbone, state, [0, 3, 6])
    for (key, value), (key_now, value_now) in zip(before, state.layers, strict=True):
        assert torch.equal(key, key_now)
        assert torch.equal(value, value_now)
    assert cut_cots(state, torch.full((len(state),), 3)).layers[0][0].data_ptr() == state.layers[0][0].data_ptr()


@torch.no_grad()
def test_a_short_cot_is_cut_at_its_own_end(build, batch):
    backbone = build()
    lengths = batch[1].lengths_B
    cut = cut_cots(backbone.reason(*batch), lengths.min().expand(len(lengths)))
    assert cut.cots.lengths_B.tolist() == [int(lengths.min())] * len(lengths)
    assert cut.cots.closed_B.tolist() == (lengths == lengths.min()).tolist()


@torch.no_grad()
def test_each_row_may_be_cut_elsewhere(build, batch):
    backbone = build()
    state = backbone.reason(*batch)
    lengths = torch.tensor([0, 3, 1, 99, 5])
    found = backbone.embed(cut_cots(state, lengths)).generative_BD
    for row, length in enumerate(lengths.tolist()):
        expected = prefix_embeddings(backbone, state, [length])[row, 0]
        torch.testing.assert_close(found[row], expected, **CLOSE)


def test_there_must_be_a_cot_to_cut(build, batch):
    backbone = build()
    with pytest.raises(DataError, match="pass a state with CoTs"):
        prefix_embeddings(backbone, backbone.reason(batch[0]), [2])
    with pytest.raises(DataError, match=r"cannot cut at \[-1, .* tokens"):
        prefix_embeddings(backbone, backbone.reason(*batch), [-1])
