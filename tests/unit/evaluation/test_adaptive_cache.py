"""Adaptive embeddings from two spaces: whatever threshold, gate, mode or interruption, no CoT is decoded twice."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.fake_encoder import FakeEncoder
from twn_lightning.errors import ConfigError, DataError, NumericalError
from twn_lightning.evaluation import embedding_space
from twn_lightning.evaluation.adaptive_cache import AdaptiveCachedEncoder, cached_encoder
from twn_lightning.evaluation.embedding_cache import CachedEncoder, CachePolicy, EmbeddingCache
from twn_lightning.evaluation.encoders.protocol import EncodedItems, GatedEncoder
from twn_lightning.types import EmbeddingMode, Item, Side

PLAIN, GENERATIVE, ADAPTIVE = EmbeddingMode.DISCRIMINATIVE, EmbeddingMode.GENERATIVE, EmbeddingMode.ADAPTIVE
ITEMS = [Item(f"k{i}", "find it", f"word{i} common{' odd' if i % 5 == 0 else ''}") for i in range(24)]
LOW, HIGH = 0.3, 0.7


def gated(threshold: float = HIGH, gate: str = "g", adapters: str = "a") -> FakeEncoder:
    return FakeEncoder(adapters, gate=gate, threshold=threshold)


def straight(encoder: FakeEncoder, items: list[Item] = ITEMS, mode: EmbeddingMode = ADAPTIVE) -> EncodedItems:
    """What the encoder gives by itself."""
    return replace(encoder, batches=[], calls=[], fail_after=None).encode(items, Side.QUERY, mode)


def through(
    encoder: FakeEncoder,
    root: Path,
    items: list[Item] = ITEMS,
    mode: EmbeddingMode = ADAPTIVE,
    policy: CachePolicy = "only-missing",
) -> EncodedItems:
    """What it gives through the cache, which holds it from then on."""
    cached = cached_encoder(encoder, Side.QUERY, mode, EmbeddingCache(root, policy))
    found = cached.encode(items)
    cached.flush()
    return found


def thinking(encoder: FakeEncoder, items: list[Item] = ITEMS) -> list[str]:
    think_N = straight(encoder, items).think_N
    assert think_N is not None
    return [item.key for item, thinks in zip(items, think_N, strict=True) if thinks]


def others(keys: list[str]) -> list[str]:
    return [item.key for item in ITEMS if item.key not in keys]


def assert_equal(found: EncodedItems, expected: EncodedItems) -> None:
    assert found.cots == expected.cots
    for field in fields(EncodedItems):
        if field.name != "cots":
            np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), field.name)


def test_the_made_gates_differ() -> None:
    few, many, other = (thinking(encoder) for encoder in (gated(HIGH), gated(LOW), gated(gate="h")))
    assert 2 < len(few) < len(many) < len(ITEMS) - 2
    assert set(other) - set(few)
    assert set(few) - set(other)
    assert isinstance(gated(), GatedEncoder)


def test_one_pass_decides_and_decodes_and_the_second_run_does_nothing(tmp_path: Path) -> None:
    encoder = gated()
    items = [*ITEMS, ITEMS[3], ITEMS[0]]
    assert_equal(through(encoder, tmp_path, items), straight(encoder, items))
    assert encoder.calls == ["adaptive"]
    assert encoder.batches == [[item.key for item in ITEMS]]
    assert_equal(through(encoder, tmp_path, items[::-1]), straight(encoder, items[::-1]))
    assert encoder.calls == ["adaptive"]


def test_another_threshold_decodes_only_what_newly_thinks(tmp_path: Path) -> None:
    through(gated(HIGH), tmp_path)
    encoder = gated(LOW)
    new = [key for key in thinking(encoder) if key not in thinking(gated(HIGH))]
    assert_equal(through(encoder, tmp_path), straight(encoder))
    assert (encoder.calls, encoder.batches) == (["generative"], [new])
    for threshold in (HIGH, LOW, 0.5, 2.0):
        encoder = gated(threshold)
        assert_equal(through(encoder, tmp_path), straight(encoder))
        assert encoder.calls == []


def test_a_probability_at_the_threshold_does_not_think(tmp_path: Path) -> None:
    probability_N = straight(gated()).probability_N
    assert probability_N is not None
    encoder = gated(float(probability_N[4]))
    through(gated(-1.0), tmp_path)
    found = through(encoder, tmp_path)
    assert found.think_N is not None
    assert not found.think_N[4]
    assert_equal(found, straight(encoder))


@pytest.mark.parametrize("threshold", [HIGH, -1.0])
def test_generative_after_adaptive_decodes_only_what_had_not_thought(threshold: float, tmp_path: Path) -> None:
    through(gated(threshold), tmp_path)
    encoder = gated(threshold)
    found = through(encoder, tmp_path, mode=GENERATIVE)
    assert encoder.batches == [keys for keys in [others(thinking(encoder))] if keys]
    assert_equal(found, replace(straight(encoder, mode=GENERATIVE), discriminative_ND=None))


def test_adaptive_after_generative_decodes_nothing(tmp_path: Path) -> None:
    through(gated(), tmp_path, mode=GENERATIVE)
    encoder = gated()
    assert_equal(through(encoder, tmp_path), straight(encoder))
    assert encoder.calls == ["decide"]


def test_another_gate_decides_again_and_decodes_only_what_has_no_cot(tmp_path: Path) -> None:
    through(gated(gate="g"), tmp_path)
    encoder = gated(gate="h")
    had = thinking(gated(gate="g"))
    assert_equal(through(encoder, tmp_path), straight(encoder))
    assert (encoder.calls, encoder.batches) == (["adaptive", "decide"], [others(had), had])
    again = gated(gate="i", threshold=-1.0)
    through(again, tmp_path)
    assert [again.calls, len(again.batches[1])] == [["adaptive", "decide"], len({*had, *thinking(encoder)})]


@pytest.mark.parametrize("mode", [PLAIN, GENERATIVE, ADAPTIVE])
def test_another_adapter_reuses_nothing(mode: EmbeddingMode, tmp_path: Path) -> None:
    for filled in (PLAIN, GENERATIVE, ADAPTIVE):
        through(gated(), tmp_path, mode=filled)
    encoder = gated(adapters="b")
    found = through(encoder, tmp_path, mode=mode)
    assert encoder.batches == [[item.key for item in ITEMS]]
    np.testing.assert_array_equal(found.embedding_ND, straight(encoder, mode=mode).embedding_ND)


def test_the_discriminative_space_is_its_own(tmp_path: Path) -> None:
    through(gated(), tmp_path)
    encoder = gated()
    through(encoder, tmp_path, mode=PLAIN)
    assert encoder.encoded == len(ITEMS)


def test_a_mixture_keeps_the_items_order_and_counts_what_it_reused(tmp_path: Path) -> None:
    through(gated(HIGH), tmp_path, ITEMS[4:9])
    through(gated(HIGH), tmp_path, ITEMS[:12], mode=GENERATIVE)
    encoder = gated(LOW)
    cached = AdaptiveCachedEncoder(encoder, Side.QUERY, EmbeddingCache(tmp_path))
    assert_equal(cached.encode([*ITEMS, ITEMS[5]]), straight(encoder, [*ITEMS, ITEMS[5]]))
    keys = [item.key for item in ITEMS]
    assert (encoder.calls, encoder.batches) == (["adaptive", "decide"], [keys[12:], keys[:4] + keys[9:12]])
    assert cached.reused == 5 + 1


def test_always_encodes_again_and_overwrites(tmp_path: Path) -> None:
    through(FakeEncoder(gate="g", threshold=HIGH, constant=True), tmp_path)
    encoder = gated(HIGH)
    assert_equal(through(encoder, tmp_path, policy="always"), straight(encoder))
    assert encoder.calls == ["adaptive"]
    assert_equal(through(encoder, tmp_path), straight(encoder))
    assert encoder.calls == ["adaptive"]


def test_never_keeps_nothing(tmp_path: Path) -> None:
    encoder = gated()
    found = through(encoder, tmp_path / "none", policy="never")
    np.testing.assert_array_equal(found.embedding_ND, straight(encoder).embedding_ND)
    assert not (tmp_path / "none").exists()


def test_only_cache_counts_what_either_space_lacks(tmp_path: Path) -> None:
    through(gated(HIGH), tmp_path, ITEMS[:16])
    encoder = gated(LOW)
    cached = cached_encoder(encoder, Side.QUERY, ADAPTIVE, EmbeddingCache(tmp_path, "only-cache"))
    cots = [key for key in thinking(encoder, ITEMS[:16]) if key not in thinking(gated(HIGH), ITEMS[:16])]
    assert cots
    for refuse in (cached.encode, cached.require_cached):
        with pytest.raises(DataError, match=f"{8 + len(cots)} of 24 items are not in .*: '{cots[0]}'"):
            refuse(ITEMS)
    assert encoder.calls == []
    held = cached_encoder(gated(HIGH), Side.QUERY, ADAPTIVE, EmbeddingCache(tmp_path, "only-cache"))
    held.require_cached(ITEMS[:16])
    assert_equal(held.encode(ITEMS[:16]), straight(gated(HIGH), ITEMS[:16]))


@pytest.mark.parametrize("torn", ["decisions", "generative"])
def test_a_torn_shard_of_either_space_is_made_again(torn: str, tmp_path: Path) -> None:
    encoder = gated()
    through(encoder, tmp_path)
    cache = EmbeddingCache(tmp_path)
    identity = (
        encoder.decision_identity(Side.QUERY) if torn == "decisions" else encoder.identity(Side.QUERY, GENERATIVE)
    )
    (shard,) = cache.space(identity).folder.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 0xFF
    shard.write_bytes(content)
    again = gated()
    assert_equal(through(again, tmp_path), straight(again))
    assert again.calls == (["adaptive", "decide"] if torn == "decisions" else ["generative"])


@pytest.mark.parametrize("written", ["generative", "both"])
def test_a_kill_between_the_spaces_costs_no_decoding(written: str, tmp_path: Path) -> None:
    cached = AdaptiveCachedEncoder(gated(), Side.QUERY, EmbeddingCache(tmp_path))
    cached.encode(ITEMS)
    spaces = cached._spaces[:1] if written == "generative" else cached._spaces
    for space in spaces:  # in the order of `flush`
        space.flush()
    encoder = gated()
    assert_equal(through(encoder, tmp_path), straight(encoder))
    thought = thinking(encoder)
    assert encoder.batches == ([others(thought), thought] if written == "generative" else [])


def test_both_spaces_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_space, "FLUSH_ROWS", 10)
    cached = AdaptiveCachedEncoder(gated(), Side.QUERY, EmbeddingCache(tmp_path))
    cached.encode(ITEMS[:9])
    assert not list(tmp_path.glob("*/*.safetensors"))
    cached.encode(ITEMS[9:12])
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2
    encoder = gated()
    through(encoder, tmp_path, ITEMS[:12])
    assert encoder.calls == []


def test_an_encoder_without_decisions_is_cached_as_a_whole(tmp_path: Path) -> None:
    @dataclass
    class Peer:
        inner: FakeEncoder
        name = "peer"
        dimension = 16
        modes = (ADAPTIVE,)

        def identity(self, side, mode):  # type: ignore[no-untyped-def]
            return self.inner.identity(side, mode)

        def encode(self, items, side, mode, progress=None):  # type: ignore[no-untyped-def]
            return replace(self.inner.encode(items, side, mode), probability_N=None)

    for threshold, calls in ((HIGH, ["adaptive"]), (HIGH, []), (LOW, ["adaptive"])):
        inner = gated(threshold)
        cached = cached_encoder(Peer(inner), Side.QUERY, ADAPTIVE, EmbeddingCache(tmp_path))  # type: ignore[arg-type]
        assert type(cached) is CachedEncoder
        np.testing.assert_array_equal(cached.encode(ITEMS).embedding_ND, straight(inner).embedding_ND)
        cached.flush()
        assert inner.calls == calls
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("broken", ["probability", "discriminative", "left out"])
def test_broken_decisions_are_refused_and_not_kept(broken: str, tmp_path: Path) -> None:
    class Broken(FakeEncoder):
        def encode(self, items, side, mode, progress=None):  # type: ignore[no-untyped-def]
            found = super().encode(items, side, mode)
            if broken == "left out":
                return replace(found, probability_N=None)
            (found.probability_N if broken == "probability" else found.discriminative_ND)[2] = np.nan
            return found

    cached = cached_encoder(Broken(gate="g", threshold=HIGH), Side.QUERY, ADAPTIVE, EmbeddingCache(tmp_path))
    error = ConfigError if broken == "left out" else NumericalError
    with pytest.raises(error, match="leaves out probability_N" if broken == "left out" else "first item 'k2'"):
        cached.encode(ITEMS)
    cached.flush()
    assert not list(tmp_path.glob("*/*.safetensors"))
