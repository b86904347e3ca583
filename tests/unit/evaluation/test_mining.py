"""Mining embeds each side once, keeps to the source, leaves out what is right, and goes on from the cache."""

from __future__ import annotations

import pytest

from tests.support.fake_encoder import FakeEncoder
from twn_lightning.cli import main
from twn_lightning.data.hard_negatives import read_hard_negatives
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.embedding_cache import EmbeddingCache
from twn_lightning.evaluation.mining import mine_pairs
from twn_lightning.types import Item, Pair

TEXTS = ("red fox runs", "red fox sleeps", "blue whale dives", "green frog jumps")


def _pairs() -> list[Pair]:
    pairs = []
    for source in ("animals", "others"):
        for row, text in enumerate((*TEXTS, TEXTS[0])):  # the last target comes twice
            query, target = Item(f"{source}/q{row}", "Find", text), Item(f"{source}/t{row}", "", text)
            pairs.append(Pair(query, target, source, f"{source}:{text}"))
    return pairs


def test_the_nearest_wrong_target_of_the_same_source_is_found():
    mined = mine_pairs(FakeEncoder(), _pairs(), 2)
    found = dict(zip(mined.query_keys, mined.negative_hashes, strict=True))
    assert found["animals/q0"][0] == "animals:red fox sleeps"
    assert found["others/q1"][0] == "others:red fox runs"
    for key, hashes in found.items():
        source, row = key.split("/q")
        right = (*TEXTS, TEXTS[0])[int(row)]
        assert len(hashes) == 2
        assert all(name.startswith(f"{source}:") and name != f"{source}:{right}" for name in hashes)


def test_equal_targets_are_embedded_once_and_an_interrupted_run_goes_on(tmp_path):
    cache = EmbeddingCache(tmp_path)
    straight = mine_pairs(FakeEncoder(), _pairs(), 2)
    with pytest.raises(KeyboardInterrupt):
        mine_pairs(FakeEncoder(fail_after=1), _pairs(), 2, cache=cache)
    again = FakeEncoder()
    assert mine_pairs(again, _pairs(), 2, cache=cache) == straight
    assert again.encoded == len(TEXTS)  # the queries are there; what is equal under both sources is one item


def test_the_command_writes_what_training_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    overrides = ["data.train_pairs=40", f"task.cache_root={tmp_path / 'cache'}"]
    assert main(["mine", *overrides, "--count", "3", "--output", "negatives.parquet"]) == 0
    found = read_hard_negatives(tmp_path / "negatives.parquet")
    assert len(found) == 40
    assert any(found.values())
    assert "40 queries" in capsys.readouterr().out
    assert main(["mine", *overrides, "--count", "0"]) == 2


def test_a_margin_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="relative_margin"):
        mine_pairs(FakeEncoder(), _pairs(), 2, relative_margin=0.0)
