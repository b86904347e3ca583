"""Leaving a CoT while it is decoded equals cutting the whole one where its embedding stood still."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twn_lightning.backbone.decoding import decode_cots
from twn_lightning.backbone.early_exit import ExitRule
from twn_lightning.backbone.encoding import encode
from twn_lightning.backbone.prefixes import prefix_embeddings
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.early_exit import exit_columns
from twn_lightning.evaluation.prefix_outcomes import PrefixOutcomes, cuts_up_to

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
CAP, STRIDE = 12, 2


def recorded(backbone, items):
    """The whole CoTs of the items, the embeddings after every STRIDE tokens, and how far each moved."""
    state = backbone.reason(backbone.processor(items))
    whole = decode_cots(backbone, state, max_new_tokens=CAP)
    cuts = cuts_up_to(CAP, STRIDE)
    e_NPD = prefix_embeddings(backbone, whole.state, cuts)
    moved_NP = torch.zeros(e_NPD.shape[:2])
    moved_NP[:, 1:] = 1 - (e_NPD[:, 1:] * e_NPD[:, :-1]).sum(-1)
    nothing = np.zeros(e_NPD.shape[:2])
    texts = np.array([item.key for item in items])
    outcomes = PrefixOutcomes(
        texts, texts, texts, texts, np.array(cuts), nothing, nothing, moved_NP.numpy(), whole.cots.lengths_B.numpy(),
        nothing[:, 0], nothing,
    )  # fmt: skip
    return whole, e_NPD, outcomes


def between(moved):
    """A tolerance in the widest gap of the middle half, where rounding decides nothing."""
    values = np.sort(moved[:, 1:-1].ravel())
    values = values[len(values) // 4 : -len(values) // 4]
    gap = np.diff(values).argmax()
    return float(values[gap] + values[gap + 1]) / 2


@torch.no_grad()
@pytest.mark.parametrize("patience", [1, 2])
@pytest.mark.parametrize(("interface", "prefix"), [("kv_detached", "reasoning"), ("reencode", "none")])
def test_online_equals_offline(build, items, interface, prefix, patience):
    backbone = build(interface, prefix=prefix)
    whole, e_NPD, outcomes = recorded(backbone, items)
    tolerance = between(outcomes.moved_NP)
    rule = ExitRule(tolerance, STRIDE, patience)
    state = backbone.reason(backbone.processor(items))
    columns_before = state.layers[0][0].shape[2]
    online = decode_cots(backbone, state, max_new_tokens=CAP, exit_rule=rule)

    assert state.layers[0][0].shape[2] == columns_before
    column_N = exit_columns(outcomes, tolerance, patience)
    assert len(set(column_N.tolist())) > 1, "the case must tell rows apart"
    spent_N = outcomes.spent_NP[np.arange(len(items)), column_N]
    assert online.cots.lengths_B.tolist() == spent_N.tolist()
    assert online.exited_B.tolist() == (spent_N < outcomes.tokens_N).tolist()
    for row, spent in enumerate(spent_N):
        assert torch.equal(online.cots.ids_BT[row, :spent], whole.cots.ids_BT[row, :spent])
    expected = e_NPD[torch.arange(len(items)), torch.as_tensor(column_N)]
    found = backbone.embed(online.state, ["generative"]).generative_BD
    torch.testing.assert_close(found, expected, **CLOSE)


@torch.no_grad()
def test_encoding_takes_the_embedding_at_the_exit(build, items):
    backbone = build()
    _, e_NPD, outcomes = recorded(backbone, items)
    tolerance = between(outcomes.moved_NP)
    found = encode(
        backbone, items, "generative", max_new_tokens=CAP, exit_rule=ExitRule(tolerance, STRIDE), batch_size=3
    )
    column_N = exit_columns(outcomes, tolerance)
    left_N = torch.as_tensor(outcomes.cuts_P[column_N] < outcomes.tokens_N)
    expected = e_NPD[torch.arange(len(items)), torch.as_tensor(column_N)]
    expected[~left_N] = found.discriminative_ND[~left_N]  # the random model never closes a CoT
    torch.testing.assert_close(found.embedding_ND, expected, **CLOSE)
    assert torch.equal(found.malformed_N, ~left_N)
    assert found.tokens_N.tolist() == outcomes.spent_NP[np.arange(len(items)), column_N].tolist()


@torch.no_grad()
@pytest.mark.parametrize("patience", [1, 3])
def test_the_widest_tolerance_leaves_as_soon_as_patience_allows(build, items, patience):
    backbone = build()
    state = backbone.reason(backbone.processor(items))
    decoded = decode_cots(backbone, state, max_new_tokens=CAP, exit_rule=ExitRule(2.0, STRIDE, patience))
    assert decoded.exited_B.all()
    assert decoded.cots.lengths_B.tolist() == [STRIDE * patience] * len(items)


@torch.no_grad()
def test_nothing_leaves_at_the_cap(build, items):
    backbone = build()
    state = backbone.reason(backbone.processor(items))
    decoded = decode_cots(backbone, state, max_new_tokens=4, exit_rule=ExitRule(2.0, 4))
    assert not decoded.exited_B.any()


def test_a_rule_out_of_range_is_refused():
    for values in ((0.0, 4, 1), (3.0, 4, 1), (0.1, 0, 1), (0.1, 4, 0)):
        with pytest.raises(ConfigError, match="early exit needs a tolerance"):
            ExitRule(*values)
