"""The embedding cache: what counts as the same vector, policies, several writers, torn files, memory."""

from __future__ import annotations

import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.fake_encoder import FakeEncoder
from twn_lightning.errors import ConfigError, DataError, NumericalError
from twn_lightning.evaluation import embedding_shards, embedding_space
from twn_lightning.evaluation.embedding_cache import CachedEncoder, CachePolicy, EmbeddingCache, identity_digest
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.evaluation.item_digest import item_digest, item_digests
from twn_lightning.types import EmbeddingMode, Item, Media, Side

PLAIN, GENERATIVE, ADAPTIVE = EmbeddingMode.DISCRIMINATIVE, EmbeddingMode.GENERATIVE, EmbeddingMode.ADAPTIVE


def items_of(count: int, start: int = 0) -> list[Item]:
    return [Item(f"k{i}", "find it", f"word{i} common") for i in range(start, start + count)]


def cached(
    encoder: FakeEncoder, root: Path, policy: CachePolicy = "only-missing", mode: EmbeddingMode = PLAIN
) -> CachedEncoder:
    return CachedEncoder(encoder, Side.QUERY, mode, EmbeddingCache(root, policy))


def fill(root: Path, items: list[Item], adapters: str = "a", mode: EmbeddingMode = PLAIN) -> EncodedItems:
    through = cached(FakeEncoder(adapters), root, mode=mode)
    encoded = through.encode(items)
    through.flush()
    return encoded


def test_the_second_time_nothing_is_encoded(tmp_path: Path) -> None:
    items = items_of(12)
    first = fill(tmp_path, items, mode=ADAPTIVE)
    encoder = FakeEncoder()
    again = cached(encoder, tmp_path, mode=ADAPTIVE)
    second = again.encode(items[::-1])
    assert encoder.encoded == 0
    assert again.reused == 12
    np.testing.assert_array_equal(second.embedding_ND[::-1], first.embedding_ND)
    for name in ("think_N", "probability_N", "tokens_N", "malformed_N"):
        np.testing.assert_array_equal(getattr(second, name)[::-1], getattr(first, name))
    assert second.cots[::-1] == first.cots
    assert None in second.cots
    assert any("ü" in (cot or "") for cot in second.cots)


def test_what_is_missing_is_encoded_in_the_items_order(tmp_path: Path) -> None:
    items = items_of(9)
    fill(tmp_path, [items[4], items[1]])
    encoder = FakeEncoder()
    mixed = cached(encoder, tmp_path).encode([*items, items[0]])
    assert encoder.batches == [["k0", "k2", "k3", "k5", "k6", "k7", "k8"]]
    straight = FakeEncoder().encode([*items, items[0]], Side.QUERY, PLAIN)
    np.testing.assert_array_equal(mixed.embedding_ND, straight.embedding_ND)


@pytest.mark.parametrize("other", ["adapters", "mode"])
def test_another_identity_is_another_space(other: str, tmp_path: Path) -> None:
    items = items_of(5)
    fill(tmp_path, items)
    encoder = FakeEncoder("b") if other == "adapters" else FakeEncoder()
    changed = cached(encoder, tmp_path, mode=GENERATIVE if other == "mode" else PLAIN)
    found = changed.encode(items)
    changed.flush()
    assert encoder.encoded == 5
    assert not np.allclose(found.embedding_ND, FakeEncoder().encode(items, Side.QUERY, PLAIN).embedding_ND)
    assert len([path for path in tmp_path.iterdir() if (path / "identity.json").is_file()]) == 2


def test_the_key_is_a_name_and_everything_else_is_content(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    media = (Media("image", path),)
    base = Item("k", "i", "t", media)
    assert item_digest(base) == item_digest(Item("other", "i", "t", media, cot="<think>"))
    copy = tmp_path / "copy.png"
    copy.write_bytes(b"one")
    assert item_digest(base) == item_digest(Item("k", "i", "t", (Media("image", copy),)))
    changed = [
        Item("k", "j", "t", media),
        Item("k", "i", "u", media),
        Item("k", "it", "", media),
        Item("k", "i", "t"),
        Item("k", "i", "t", (Media("video", path),)),
        Item("k", "i", "t", (Media("video", (path,)),)),
        Item("k", "i", "t", (Media("video", (path, path)),)),
        Item("k", "i", "t", (*media, *media)),
        Item("k", "i", "t", (Media("image", np.zeros((2, 2, 3), np.uint8)),)),
    ]
    assert len({item_digest(item) for item in [base, *changed]}) == 1 + len(changed)


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    item = Item("k", "", "", (Media("image", path),))
    before = item_digest(item)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert item_digest(item) != before


def test_a_file_that_cannot_be_read_names_the_item(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"item 'k7'.*gone\.png"):
        item_digests([Item("k7", "", "", (Media("image", tmp_path / "gone.png"),))])


def test_always_encodes_again_and_overwrites(tmp_path: Path) -> None:
    items = items_of(4)
    fill(tmp_path, items)
    changed = FakeEncoder(constant=True)  # same identity, other vectors: what a wrong cache would hold
    through = cached(changed, tmp_path, "always")
    through.encode(items)
    through.flush()
    assert changed.encoded == 4
    found = cached(FakeEncoder(), tmp_path).encode(items)
    np.testing.assert_array_equal(found.embedding_ND, np.full((4, 16), 0.25, np.float32))


def test_never_neither_reads_nor_writes(tmp_path: Path) -> None:
    fill(tmp_path / "full", items_of(3))
    encoder = FakeEncoder()
    cached(encoder, tmp_path / "full", "never").encode(items_of(3))
    cached(encoder, tmp_path / "empty", "never").encode(items_of(3))
    assert encoder.encoded == 6
    assert not (tmp_path / "empty").exists()


def test_only_cache_counts_and_names_what_is_missing(tmp_path: Path) -> None:
    fill(tmp_path, items_of(3))
    encoder = FakeEncoder()
    through = cached(encoder, tmp_path, "only-cache")
    assert len(through.encode(items_of(3))) == 3
    for refuse in (through.encode, through.require_cached):
        with pytest.raises(DataError, match=r"7 of 10 items are not.*'k3', 'k4', 'k5', 'k6', 'k7', \.\.\."):
            refuse(items_of(10))
    assert encoder.encoded == 0


def test_unknown_policies_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'always'"):
        EmbeddingCache(tmp_path, "alway")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a folder"):
        EmbeddingCache(None)


def test_identities_must_be_plain_and_ignore_the_order_of_keys() -> None:
    assert identity_digest({"a": 1, "b": [2, {"c": None}]}) == identity_digest({"b": [2, {"c": None}], "a": 1})
    assert identity_digest({"a": 1}) != identity_digest({"a": 1.5})
    with pytest.raises(ConfigError, match="plain values"):
        identity_digest({"a": object()})


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_torn_shard_is_ignored_with_a_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A logging configuration loaded by another test may have switched this logger off.
    monkeypatch.setattr(embedding_shards.log, "disabled", False)
    monkeypatch.setattr(embedding_shards.log, "handlers", [caplog.handler])
    items = items_of(6)
    fill(tmp_path, items[:3])
    fill(tmp_path, items[3:])
    torn = sorted(tmp_path.glob("*/*.safetensors"))[1]
    content = bytearray(torn.read_bytes())
    if damage == "flipped":
        content[-5] ^= 0xFF
    torn.write_bytes({"cut": content[:-7], "flipped": content, "empty": b""}[damage])
    encoder = FakeEncoder()
    with caplog.at_level(logging.WARNING, logger=embedding_shards.log.name):
        found = cached(encoder, tmp_path).encode(items)
    assert encoder.batches == [["k3", "k4", "k5"]]
    assert torn.name in caplog.text
    straight = FakeEncoder().encode(items, Side.QUERY, PLAIN)
    np.testing.assert_array_equal(found.embedding_ND, straight.embedding_ND)


def test_a_temporary_file_is_no_shard(tmp_path: Path) -> None:
    fill(tmp_path, items_of(2))
    (shard,) = tmp_path.glob("*/*.safetensors")
    (shard.parent / f".{shard.stem}.tmp").write_bytes(shard.read_bytes()[:50])
    encoder = FakeEncoder()
    cached(encoder, tmp_path).encode(items_of(2))
    assert encoder.encoded == 0


def write_many(root: Path, start: int) -> None:
    through = cached(FakeEncoder(), root)
    for first in range(start, start + 40, 4):
        through.encode(items_of(4, first))
        through.flush()


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, start)) for start in (0, 20, 60)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    encoder = FakeEncoder()
    found = cached(encoder, tmp_path).encode(items_of(100))
    assert encoder.encoded == 0
    straight = FakeEncoder().encode(items_of(100), Side.QUERY, PLAIN)
    np.testing.assert_array_equal(found.embedding_ND, straight.embedding_ND)


def test_another_process_entries_show_after_a_refresh(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    identity = FakeEncoder().identity(Side.QUERY, PLAIN)
    wanted = item_digests(items_of(3))
    assert not cache.space(identity).find(wanted).any()
    fill(tmp_path, items_of(3))
    assert cache.space(identity).find(wanted).all()
    assert len(cache.space(identity)) == 3


def test_entries_are_written_by_number_and_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shards() -> int:
        return len(list(tmp_path.glob("*/*.safetensors")))

    through = cached(FakeEncoder(), tmp_path)
    through.encode(items_of(embedding_space.FLUSH_ROWS - 1))
    assert shards() == 0
    through.encode(items_of(1, 10_000))
    assert shards() == 1
    monkeypatch.setattr(embedding_space, "FLUSH_SECONDS", 0.0)
    through.encode(items_of(1, 20_000))
    assert shards() == 2


@pytest.mark.parametrize("broken", ["nan", "shape"])
def test_broken_embeddings_are_refused_and_not_kept(broken: str, tmp_path: Path) -> None:
    class Broken(FakeEncoder):
        def encode(self, items, side, mode, progress=None):  # type: ignore[no-untyped-def]
            vectors = np.ones((len(items), 8 if broken == "shape" else 16), np.float32)
            if broken == "nan":
                vectors[1, 3] = np.nan
            return EncodedItems(vectors)

    through = cached(Broken(), tmp_path)
    with pytest.raises(NumericalError, match="'k1'" if broken == "nan" else r"\(3, 8\), not \(3, 16\)"):
        through.encode(items_of(3))
    through.flush()
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_nothing_on_disk_is_a_pickle(tmp_path: Path) -> None:
    fill(tmp_path, items_of(3), mode=ADAPTIVE)
    assert {path.suffix for path in tmp_path.glob("*/*")} == {".json", ".safetensors"}
