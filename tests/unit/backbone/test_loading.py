from __future__ import annotations

import logging

import pytest
import torch

from twn_lightning.backbone import loading
from twn_lightning.backbone.loading import choose_attention, load_backbone
from twn_lightning.backbone.tiny import build_tiny
from twn_lightning.errors import ConfigError
from twn_lightning.settings import AdapterSettings, InterfaceSettings, ModelSettings


def _load(**model: object):
    return load_backbone(ModelSettings(**model), AdapterSettings(), InterfaceSettings())


def test_tiny_is_the_same_every_time_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = build_tiny()[0], build_tiny()[0]
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_saved_folder_loads_by_path_as_real_backbones_do(tmp_path, caplog, monkeypatch, mixed_items):
    # A logging configuration loaded by another test (a child's, Hydra's) may have switched this logger off.
    monkeypatch.setattr(loading.log, "disabled", False)
    monkeypatch.setattr(loading.log, "handlers", [caplog.handler])
    tiny = _load(name="tiny")
    model, processor = build_tiny()
    model.save_pretrained(tmp_path)
    processor.save(tmp_path)
    with caplog.at_level(logging.INFO, logger=loading.log.name):
        loaded = _load(name="qwen3vl_2b", path=str(tmp_path))
    assert "language attention sdpa, vision attention packed" in caplog.text
    assert "LoRA on 14 language and 0 vision linears" in caplog.text
    assert loaded.digest == tiny.digest
    with torch.no_grad():
        a, b = (m.reason(m.processor(mixed_items)).last_hidden_BD for m in (tiny, loaded))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_plain_attention_gives_the_same(mixed_items, attention):
    with torch.no_grad():
        a, b = (
            m.reason(m.processor(mixed_items)).last_hidden_BD
            for m in (_load(name="tiny"), _load(name="tiny", attention=attention))
        )
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_had_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean 'nano'"):
        _load(name="nanoo")
    with pytest.raises(ConfigError, match=r"no config\.json there"):
        _load(name="nano", path=str(tmp_path))
    with pytest.raises(ConfigError, match="flash_attention_2 on cpu"):
        choose_attention("flash_attention_2", torch.device("cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA was asked for"):
            load_backbone(ModelSettings(name="tiny"), AdapterSettings(), InterfaceSettings(), "cuda")
    monkeypatch.setattr("twn_lightning.backbone.loading.HUB_IDS", {"qwen3vl_4b": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"qwen3vl_4b.* cannot be loaded.*set model\.path"):
        _load(name="qwen3vl_4b")
