"""A registered synthetic source, and a processor with the nano vocabulary."""

from __future__ import annotations

import pytest
from made_pairs import MadeSource

from twn_lightning.backbone.pixels import PatchSettings
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.data import sources
from twn_lightning.data.nano.vocabulary import build_tokenizer
from twn_lightning.settings import DataSettings, Settings, SFTSettings


@pytest.fixture(scope="session")
def processor() -> PromptProcessor:
    patches = PatchSettings(4, 2, 2, 64, 100_000, (0.5,) * 3, (0.5,) * 3)
    return PromptProcessor(build_tokenizer(), patches)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """SFT on 50 synthetic pairs in batches of 8, 20 steps."""
    monkeypatch.setitem(sources._MODULES, "made", f"{MadeSource.__module__}:{MadeSource.__name__}")
    data = DataSettings(source="made", train_pairs=50, rl_pairs=20, val_pairs=10, rows_per_source_global=4)
    return Settings(stage=SFTSettings(batch_size=8, max_steps=20), data=data)
