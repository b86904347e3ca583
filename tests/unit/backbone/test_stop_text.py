"""The stop automaton against looking for the tag in the text."""

from __future__ import annotations

import random

import pytest

from twn_lightning.backbone.processor import ANSWER_CLOSE
from twn_lightning.backbone.stop_text import StopText
from twn_lightning.backbone.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
STOP = StopText.of(TOKENIZER, len(TOKENIZER) + 3)


def _closes_at(ids: list[int]) -> int | None:
    """The number of tokens after which the automaton finds the tag."""
    matched = 0
    for count, token in enumerate(ids, start=1):
        matched = int(STOP.next_MV[matched, token])
        if matched == StopText.CLOSED:
            return count
    return None


@pytest.mark.parametrize(
    "text",
    ["<answer>x</answer>", "</answer>.", "</</answer>", "</answer", "<answer>.", "</answ</answer>", "</an<swer>"],
)
def test_finds_the_tag_where_the_text_has_it(text):
    ids = TOKENIZER(text)["input_ids"]
    texts = ["".join(STOP.texts[i] for i in ids[:count]) for count in range(len(ids) + 1)]
    expected = next((count for count, so_far in enumerate(texts) if ANSWER_CLOSE in so_far), None)
    assert _closes_at(ids) == expected
    assert (expected is not None) == (ANSWER_CLOSE in text)


def test_the_tag_is_several_tokens_and_merges_with_what_follows():
    ids = TOKENIZER("</answer>.")["input_ids"]
    assert len(ids) > 1
    assert STOP.texts[ids[-1]] == ">."


def test_random_tokens_of_the_tag_close_as_their_text_does():
    pieces = [i for i, text in enumerate(STOP.texts) if text and all(c in ANSWER_CLOSE for c in text)]
    rng = random.Random(0)
    found = 0
    for _ in range(300):
        ids = [rng.choice(pieces) for _ in range(6)] + TOKENIZER("/answer>")["input_ids"]
        texts = ["".join(STOP.texts[i] for i in ids[:count]) for count in range(len(ids) + 1)]
        expected = next((count for count, so_far in enumerate(texts) if ANSWER_CLOSE in so_far), None)
        assert _closes_at(ids) == expected
        found += expected is not None
    assert 0 < found < 300


def test_a_token_without_text_changes_nothing_and_a_closed_text_stays_closed():
    beyond = len(TOKENIZER) + 1
    assert STOP.next_MV[:, beyond].tolist() == list(range(StopText.CLOSED + 1))
    assert (STOP.next_MV[StopText.CLOSED] == StopText.CLOSED).all()
