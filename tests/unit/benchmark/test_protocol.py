"""The switches of a protocol, and the digest that score files record."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from twn_lightning.benchmark.protocol import PROTOCOLS, Protocol, get_protocol
from twn_lightning.errors import ConfigError

OTHER_VALUES: dict[str, Any] = {
    "prompts": "qwen3",
    "version": "2.0.0",
    "num_frames": 16,
    "min_pixels": 1,
    "max_pixels": 2,
    "ndcg_pairing": "compat",
    "ties": "optimistic",
    "query_mode": "generative",
    "candidate_mode": "adaptive",
}


def test_defaults() -> None:
    protocol = Protocol()
    assert (protocol.ndcg_pairing, protocol.ties, protocol.version) == ("correct", "pessimistic", "2.1")
    assert (protocol.query_mode, protocol.candidate_mode) == ("adaptive", "discriminative")


def test_named_protocols() -> None:
    vlm2vec, qwen3 = get_protocol("vlm2vec"), get_protocol("qwen3")
    assert (vlm2vec.prompts, vlm2vec.num_frames, vlm2vec.max_pixels) == ("vlm2vec", 8, 1_003_520)
    assert (qwen3.prompts, qwen3.num_frames) == ("qwen3", 64)
    assert get_protocol("nano") == Protocol(), "images of the size they are drawn in"
    assert set(PROTOCOLS) == {"vlm2vec", "qwen3", "nano"}


def test_every_switch_changes_the_digest() -> None:
    assert set(OTHER_VALUES) == {field.name for field in fields(Protocol)}
    digests = {replace(Protocol(), **{name: value}).digest() for name, value in OTHER_VALUES.items()}
    assert len(digests | {Protocol().digest()}) == len(OTHER_VALUES) + 1
    assert Protocol().digest() == Protocol().digest()


def test_changes_on_top_of_a_name_or_a_protocol() -> None:
    assert get_protocol("qwen3", num_frames=8) == replace(PROTOCOLS["qwen3"], num_frames=8)
    assert (
        get_protocol(Protocol(version="2.0.1"), ties="first").as_dict()
        == Protocol(version="2.0.1", ties="first").as_dict()
    )


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match="unknown protocol 'qwen': did you mean 'qwen3'"):
        get_protocol("qwen")


def test_bad_values_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        Protocol(ties="pesimistic", version="2", num_frames=0)  # type: ignore[arg-type]
    assert len(error.value.problems) == 3
    assert "did you mean 'pessimistic'" in str(error.value)
    assert "num_frames must be at least 1, got 0" in str(error.value)
