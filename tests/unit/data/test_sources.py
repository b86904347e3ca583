"""The registry, and what every source must keep."""

from __future__ import annotations

import pytest

from twn_lightning.data.corpus import columns_of
from twn_lightning.data.sources import SPLITS, get_source, require_split
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.settings import DataSettings


def test_unknown_names_get_the_nearest_match():
    with pytest.raises(ConfigError, match=r"data\.source: unknown source 'nanno': did you mean 'nano'"):
        get_source("nanno", DataSettings())
    with pytest.raises(DataError, match="unknown split 'tests': did you mean 'test'"):
        require_split("nano", "tests")


@pytest.mark.parametrize("split", SPLITS)
def test_nano_keeps_the_protocol(split):
    """The corpora's own: test_sources_corpora."""
    source = get_source("nano", DataSettings())
    pairs = source.pairs(split, 30)
    again = get_source("nano", DataSettings()).pairs(split, 30)
    assert source.name == "nano"
    assert len(pairs) == 30
    assert [p.target_hash for p in pairs] == [p.target_hash for p in again]
    assert columns_of(pairs).sources == [p.source for p in pairs]
    assert columns_of(pairs).target_hashes == [p.target_hash for p in pairs]
    for task in {p.source for p in pairs}:
        assert task in source.tasks
        keys = [item.key for item in source.candidates(split, task)]
        assert len(keys) == len(set(keys))
        if split != "train":
            assert {p.positive.key for p in pairs if p.source == task} <= set(keys)
