"""Encoders by name."""

from __future__ import annotations

import numpy as np
import pytest

from twn_lightning.backbone.layout import save
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encoders import ENCODERS, Encoder, get_encoder
from twn_lightning.settings import AdapterSettings, InterfaceSettings, ModelSettings
from twn_lightning.types import Item, Side

ARCHITECTURE = {"vlm2vec": "qwen2_vl", "qwen3vl_embedding": "qwen3_vl", "ume_r1": "qwen2_vl"}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_built_from_settings(name, checkpoint, tmp_path):
    adapters = None
    if name == "twn":
        model, adapters = ModelSettings(name="tiny"), str(tmp_path)
        save(load_backbone(model, AdapterSettings(), InterfaceSettings()), tmp_path, None, None)
    else:
        model = ModelSettings(path=str(checkpoint(ARCHITECTURE[name])))
    encoder = get_encoder(name, model=model, adapters_path=adapters, max_new_tokens=3, batch_size=2)
    assert isinstance(encoder, Encoder)
    assert encoder.name == name
    for mode in encoder.modes:
        found = encoder.encode([Item("a", "Find", "it"), Item("b", "", "that")], Side.QUERY, mode)
        assert found.embedding_ND.shape == (2, encoder.dimension)
        np.testing.assert_allclose(np.linalg.norm(found.embedding_ND, axis=1), 1, atol=1e-5)
        assert encoder.identity(Side.QUERY, mode)["encoder"] == name


def test_the_blank_image_reaches_its_encoder(checkpoint):
    model = ModelSettings(path=str(checkpoint("qwen2_vl")))
    assert get_encoder("ume_r1", model=model, blank_image=True).blank_image


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(ConfigError, match="unknown encoder 'vlm2vek': did you mean 'vlm2vec'"):
        get_encoder("vlm2vek", model=ModelSettings())
