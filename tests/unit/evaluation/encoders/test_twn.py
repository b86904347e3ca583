"""TWN as an encoder: equal to plain encoding in any batch, and an identity that follows every trained value."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from twn_lightning.backbone.encoding import encode
from twn_lightning.backbone.layout import save
from twn_lightning.errors import AdapterError, ConfigError, DataError, NumericalError
from twn_lightning.evaluation.encoders.protocol import Encoder, GatedEncoder, NamedModel
from twn_lightning.evaluation.encoders.twn import AdaptiveEncoder, decoded_ahead, load_trained
from twn_lightning.settings import ModelSettings
from twn_lightning.types import EmbeddingMode, Item, Media, Side

PLAIN, THINK, ADAPTIVE = EmbeddingMode.DISCRIMINATIVE, EmbeddingMode.GENERATIVE, EmbeddingMode.ADAPTIVE
FIELDS = ("embedding_ND", "discriminative_ND", "think_N", "probability_N", "tokens_N", "malformed_N")


def middle(backbone, gate, items):
    """A threshold that some items are above and some below."""
    probability = encode(backbone, items, PLAIN, gate=gate).probability_N
    return float(probability.median())


@pytest.mark.parametrize("mode", [PLAIN, THINK, ADAPTIVE])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_equals_plain_encoding_in_any_batch(batch_size, mode, backbone, make_gate, closing, peer_items):
    gate = make_gate()
    threshold = middle(backbone, gate, peer_items)
    encoder = AdaptiveEncoder(backbone, gate, threshold, max_new_tokens=3, batch_size=batch_size)
    done = []
    found = encoder.encode(peer_items, Side.QUERY, mode, done.append)
    assert isinstance(encoder, Encoder)
    assert sum(done) == len(peer_items)
    expected = encode(backbone, peer_items, mode, gate=gate, threshold=threshold, max_new_tokens=3)
    np.testing.assert_allclose(found.embedding_ND, expected.embedding_ND, atol=3e-6)
    np.testing.assert_allclose(np.linalg.norm(found.embedding_ND, axis=1), 1, atol=1e-6)
    assert found.embedding_ND.shape == (len(peer_items), encoder.dimension)
    if mode is PLAIN:
        assert [getattr(found, name) for name in FIELDS[1:]] == [None] * 5
        assert found.cots == []
        return
    assert found.cots == expected.cot_texts
    for name in ("think_N", "tokens_N", "malformed_N"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert 0 < found.malformed_N.sum() < found.think_N.sum()
    np.testing.assert_allclose(found.discriminative_ND, expected.discriminative_ND, atol=3e-6)
    if mode is ADAPTIVE:
        np.testing.assert_allclose(found.probability_N, expected.probability_N, atol=1e-5)
        assert 0 < found.think_N.sum() < len(peer_items)
    else:
        assert found.probability_N is None


@pytest.mark.parametrize("mode", [PLAIN, THINK])
def test_encoders_that_share_a_backbone_take_turns(mode, backbone, peer_items, monkeypatch):
    """Its adapters are switched while it reads: two readings at once would see each other's."""
    reading, most, reason = [], [], backbone.reason

    def slow_reason(*args, **kwargs):
        reading.append(1)
        most.append(len(reading))
        time.sleep(0.05)
        found = reason(*args, **kwargs)
        reading.pop()
        return found

    monkeypatch.setattr(backbone, "reason", slow_reason)
    encoders = [AdaptiveEncoder(backbone, None, max_new_tokens=2) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda encoder: encoder.encode(peer_items, Side.QUERY, mode), encoders))
    assert len(most) >= 4
    assert max(most) == 1
    for other in found[1:]:
        np.testing.assert_array_equal(other.embedding_ND, found[0].embedding_ND)


@pytest.mark.parametrize("max_frames", [2, 3, 8])
def test_decoding_ahead_changes_no_prompt(max_frames, backbone, peer_items):
    processor = backbone.processor
    processor.max_frames = max_frames
    ahead = [decoded_ahead(item, max_frames) for item in peer_items]
    by_key = {item.key: item for item in ahead}
    assert isinstance(by_key["stored"].media[0].content, np.ndarray)
    assert isinstance(by_key["frames"].media[0].content, np.ndarray) == (max_frames >= 3)
    found, expected = processor(ahead), processor(peer_items)
    for name in ("input_ids_BL", "pixel_values", "pixel_values_videos", "video_grid_thw"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_batches_are_capped_by_tokens(backbone, peer_items):
    sizes = []
    encoder = AdaptiveEncoder(backbone, None, batch_tokens=150)
    encoder.encode(peer_items, Side.QUERY, PLAIN, sizes.append)
    assert sum(sizes) == len(peer_items)
    assert 1 < len(sizes) < len(peer_items)


def test_a_gate_with_sides_is_told_the_side(backbone, make_gate, peer_items):
    encoder = AdaptiveEncoder(backbone, make_gate(use_side=True), 0.5, max_new_tokens=2)
    found = [encoder.encode(peer_items, side, ADAPTIVE).probability_N for side in Side]
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert encoder.identity(Side.QUERY, ADAPTIVE) != encoder.identity(Side.CANDIDATE, ADAPTIVE)
    assert encoder.identity(Side.QUERY, THINK) == encoder.identity(Side.CANDIDATE, THINK)


def test_identity_follows_every_trained_value(backbone, make_gate):
    encoder = AdaptiveEncoder(backbone, make_gate(), 0.5, max_new_tokens=4)
    seen = set()

    def distinct():
        identity = json.dumps(encoder.identity(Side.QUERY, ADAPTIVE), sort_keys=True)
        new = identity not in seen
        seen.add(identity)
        return new

    assert distinct()
    assert not distinct()
    with torch.no_grad():
        for group in ("reasoning", "embedding", "queries"):
            backbone.group_parameters(group)[-1].view(-1)[-1] += 1e-6
            assert distinct()
            backbone.group_parameters(group)[-1].data.view(-1)[-1] += 1e-6
            assert distinct()
        encoder.gate.outer.bias += 1e-6
        assert distinct()
    encoder.threshold = 0.6
    assert distinct()
    encoder.max_new_tokens = 5
    assert distinct()
    backbone.processor.max_frames = 3
    assert distinct()


def test_decisions_are_those_of_adaptive_encoding_and_decode_nothing(backbone, make_gate, peer_items, monkeypatch):
    encoder = AdaptiveEncoder(backbone, make_gate(use_side=True), 0.5, max_new_tokens=2)
    expected = encoder.encode(peer_items, Side.CANDIDATE, ADAPTIVE)
    monkeypatch.setattr("twn_lightning.backbone.encoding.decode_cots", None)
    found = encoder.decide(peer_items, Side.CANDIDATE)
    np.testing.assert_array_equal(found.embedding_ND, expected.discriminative_ND)
    np.testing.assert_array_equal(found.probability_N, expected.probability_N)
    assert isinstance(encoder, GatedEncoder)
    with pytest.raises(ConfigError, match="unknown mode 'adaptive'"):
        AdaptiveEncoder(backbone, None).decide(peer_items, Side.QUERY)


def test_a_decision_outlives_threshold_and_cap_but_no_gate(backbone, make_gate):
    gate = make_gate(use_side=True)
    first = AdaptiveEncoder(backbone, gate, 0.5, max_new_tokens=2).decision_identity(Side.QUERY)
    assert AdaptiveEncoder(backbone, gate, 0.7, max_new_tokens=9).decision_identity(Side.QUERY) == first
    assert AdaptiveEncoder(backbone, gate, 0.5).decision_identity(Side.CANDIDATE) != first
    for changed in (gate.outer.bias, backbone.group_parameters("embedding")[-1]):
        with torch.no_grad():
            changed.view(-1)[-1] += 1e-6
        second = AdaptiveEncoder(backbone, gate, 0.5, max_new_tokens=2).decision_identity(Side.QUERY)
        assert second != first
        first = second


def test_the_model_is_named_after_backbone_and_adapters(backbone):
    encoder = AdaptiveEncoder(backbone, None)
    assert isinstance(encoder, NamedModel)
    name = encoder.model_name()
    assert name == f"tiny+{encoder.identity(Side.QUERY, PLAIN)['adapters'][:8]}"
    with torch.no_grad():
        backbone.queries[0, 0] += 1
    assert encoder.model_name() != name


def test_the_reference_adapter_of_stage_three_is_no_part_of_it(backbone):
    encoder = AdaptiveEncoder(backbone, None)
    before = encoder.identity(Side.QUERY, THINK)
    backbone.add_reference()
    assert encoder.identity(Side.QUERY, THINK) == before


def test_discriminative_vectors_outlive_the_gate_and_the_cap(backbone, make_gate):
    before = AdaptiveEncoder(backbone, None).identity(Side.CANDIDATE, PLAIN)
    after = AdaptiveEncoder(backbone, make_gate(), 0.7, max_new_tokens=9).identity(Side.CANDIDATE, PLAIN)
    assert before == after
    assert json.loads(json.dumps(before)) == before


def test_modes_follow_the_gate(backbone, make_gate, peer_items):
    assert AdaptiveEncoder(backbone, make_gate()).modes == (PLAIN, THINK, ADAPTIVE)
    bare = AdaptiveEncoder(backbone, None)
    assert bare.modes == (PLAIN, THINK)
    with pytest.raises(ConfigError, match=r"unknown mode 'adaptive'.*train one with stage=gate"):
        bare.encode(peer_items, Side.QUERY, ADAPTIVE)
    with pytest.raises(ConfigError, match="unknown mode 'adaptive'"):
        bare.identity(Side.QUERY, ADAPTIVE)
    with pytest.raises(DataError, match="no items"):
        bare.encode([], Side.QUERY, PLAIN)


def test_embeddings_that_are_not_finite_are_refused(backbone, peer_items):
    with torch.no_grad():
        backbone.queries[0, 0] = torch.inf
    with pytest.raises(NumericalError, match=r"7 of 7 embeddings of a batch contain NaN or Inf: item '"):
        AdaptiveEncoder(backbone, None).encode(peer_items, Side.QUERY, PLAIN)


def test_a_broken_file_ends_the_encoding_with_its_item(backbone, peer_items, tmp_path):
    bad = Item("bad", "Find", "it", (Media("image", tmp_path / "gone.png"),))
    with pytest.raises(DataError, match=r"item 'bad': image .*gone\.png does not exist"):
        AdaptiveEncoder(backbone, None, batch_size=1).encode([*peer_items, bad], Side.QUERY, PLAIN)


def test_saved_adapters_come_back_with_gate_and_threshold(backbone, make_gate, tmp_path, peer_items):
    gate = make_gate()
    model = ModelSettings(name="tiny")
    save(backbone, tmp_path, gate.state_dict(), {"gate_threshold": 0.31})
    encoder = AdaptiveEncoder(*load_trained(model, str(tmp_path), 0.5), max_new_tokens=2)
    assert not encoder.backbone.training
    assert encoder.threshold == 0.31
    ours = AdaptiveEncoder(backbone, gate, 0.31, max_new_tokens=2)
    assert encoder.identity(Side.QUERY, ADAPTIVE) == ours.identity(Side.QUERY, ADAPTIVE)
    save(backbone, tmp_path / "bare", None, None)
    _, no_gate, threshold = load_trained(model, str(tmp_path / "bare"), 0.5)
    assert no_gate is None
    assert threshold == 0.5
    with pytest.raises(AdapterError):
        load_trained(model, str(tmp_path / "nothing"), 0.5)
