"""A registered synthetic source, a mirror of the corpora, and processors with the nano and the tiny vocabulary."""

from __future__ import annotations

import pytest
from made_pairs import MadeSource

from tests.support.corpora_fixtures import Mirror, write_mirror
from twn_lightning.backbone.loading import load_processor
from twn_lightning.backbone.pixels import PatchSettings
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.data import sources
from twn_lightning.data.nano.vocabulary import build_tokenizer
from twn_lightning.settings import DataSettings, ModelSettings, Settings, SFTSettings


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


@pytest.fixture(scope="session")
def tiny() -> PromptProcessor:
    """The tiny backbone's processor: bytes, patches of 4 pixels."""
    return load_processor(ModelSettings(name="tiny"))


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    """Every training corpus in small, written once; tests do not change it."""
    return write_mirror(tmp_path_factory.mktemp("mirror"))
