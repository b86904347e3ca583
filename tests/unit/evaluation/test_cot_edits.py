"""Tampering with CoTs: the tags survive, tokens that hold a piece of a tag are never words."""

from __future__ import annotations

import numpy as np
import pytest

from twn_lightning.backbone.tiny import tiny_tokenizer
from twn_lightning.evaluation.cot_edits import TaggedCot, read_cot

TOKENIZER = tiny_tokenizer()
TEXTS = TOKENIZER.batch_decode([[i] for i in range(len(TOKENIZER))], clean_up_tokenization_spaces=False)


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def read(text: str) -> TaggedCot:
    found = read_cot(ids_of(text), TEXTS)
    assert found is not None
    return found


def text_of(ids: tuple[int, ...]) -> str:
    return "".join(TEXTS[token] for token in ids)


def test_words_are_found_between_the_tags() -> None:
    cot = read("<think>answer one</think> <answer>two</answer>")
    assert text_of(tuple(cot.ids[i] for i in cot.think)) == "answer one"
    assert text_of(tuple(cot.ids[i] for i in cot.answer)) == "two"


def test_a_part_taken_out_leaves_its_tags() -> None:
    cot = read("<think>one</think><answer>two</answer>")
    assert text_of(cot.without(cot.think)) == "<think></think><answer>two</answer>"
    assert text_of(cot.without(cot.answer)) == "<think>one</think><answer></answer>"


def test_shuffling_keeps_every_part_its_own_tokens_and_moves_them() -> None:
    cot = read("<think>abcdefgh</think><answer>xyz</answer>")
    shuffled = cot.shuffled(np.random.default_rng(0))
    assert shuffled != cot.ids
    for part in (cot.think, cot.answer):
        assert sorted(shuffled[i] for i in part) == sorted(cot.ids[i] for i in part)
    tags = set(range(len(cot.ids))) - {*cot.think, *cot.answer}
    assert all(shuffled[i] == cot.ids[i] for i in tags)


def test_the_answer_of_another_cot() -> None:
    cot, other = read("<think>one</think><answer>two</answer>"), read("<think>1</think><answer>three</answer>")
    assert text_of(cot.answered_by(other)) == "<think>one</think><answer>three</answer>"


def test_a_token_that_holds_a_piece_of_a_tag_belongs_to_the_tag() -> None:
    merged = ids_of("<answer>.x</answer>")
    assert any(TEXTS[token] == ">." for token in merged)
    cot = read("<think>one</think><answer>.x</answer>")
    assert text_of(tuple(cot.ids[i] for i in cot.answer)) == "x"


@pytest.mark.parametrize(
    "text",
    [
        "one two",
        "<think>one</think>",
        "<think>one</think><answer></answer>",
        "<think>one</think><think>two</think><answer>three</answer>",
        "<answer>two</answer><think>one</think>",
        "<think>one</think><answer>.</answer>",
    ],
)
def test_malformed_cots_have_no_parts(text: str) -> None:
    assert read_cot(ids_of(text), TEXTS) is None
