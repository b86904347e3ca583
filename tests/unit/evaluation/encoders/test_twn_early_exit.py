"""Early exit behind the encoder protocol: fewer tokens, and vectors of an identity of their own."""

from __future__ import annotations

import numpy as np
import pytest

from twn_lightning.backbone.early_exit import ExitRule
from twn_lightning.backbone.encoding import encode
from twn_lightning.backbone.layout import save
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encoders import get_encoder
from twn_lightning.evaluation.encoders.twn import AdaptiveEncoder
from twn_lightning.settings import AdapterSettings, InterfaceSettings, ModelSettings
from twn_lightning.types import EmbeddingMode, Side

PLAIN, THINK = EmbeddingMode.DISCRIMINATIVE, EmbeddingMode.GENERATIVE
RULE = ExitRule(1.0, stride=2)


def test_it_encodes_as_the_rule_says(backbone, peer_items):
    found = AdaptiveEncoder(backbone, None, max_new_tokens=6, exit_rule=RULE).encode(peer_items, Side.QUERY, THINK)
    expected = encode(backbone, peer_items, THINK, max_new_tokens=6, exit_rule=RULE)
    np.testing.assert_allclose(found.embedding_ND, expected.embedding_ND, atol=3e-6)
    assert found.tokens_N.tolist() == expected.tokens_N.tolist() == [2] * len(peer_items)
    assert not found.malformed_N.any()


def test_the_rule_is_part_of_what_thinking_gives_and_of_nothing_else(backbone):
    without, with_rule, other = (
        AdaptiveEncoder(backbone, None, exit_rule=rule) for rule in (None, RULE, ExitRule(0.5, stride=2))
    )
    identities = [encoder.identity(Side.QUERY, THINK) for encoder in (without, with_rule, other)]
    assert identities[0] != identities[1] != identities[2] != identities[0]
    assert without.identity(Side.QUERY, PLAIN) == with_rule.identity(Side.QUERY, PLAIN)


def test_settings_reach_the_encoder_that_can(tmp_path):
    model = ModelSettings(name="tiny")
    save(load_backbone(model, AdapterSettings(), InterfaceSettings()), tmp_path, None, None)
    encoder = get_encoder("twn", model=model, adapters_path=str(tmp_path), exit_tolerance=0.01)
    assert encoder.exit_rule == ExitRule(0.01)
    with pytest.raises(ConfigError, match=r"'vlm2vec' cannot leave a CoT early: evaluation\.exit_tolerance is 0\.01"):
        get_encoder("vlm2vec", model=ModelSettings(path="somewhere"), exit_tolerance=0.01)
