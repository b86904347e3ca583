"""Tampering with chains of thought as token ids: the tags stay, words are shuffled, taken out or swapped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from twn_lightning.objectives import is_well_formed

_PARTS = re.compile(r"<think>(?P<think>.*)</think>\s*<answer>(?P<answer>.*)</answer>", re.DOTALL)


@dataclass(frozen=True)
class TaggedCot:
    """A CoT's token ids, and which of them are its words; the others make up the tags."""

    ids: tuple[int, ...]
    think: tuple[int, ...]
    """Positions of the tokens between `<think>` and `</think>`."""
    answer: tuple[int, ...]
    """Positions of the tokens between `<answer>` and `</answer>`."""

    def shuffled(self, rng: np.random.Generator) -> tuple[int, ...]:
        """The words of each part in a random order of their own."""
        ids = list(self.ids)
        for positions in (self.think, self.answer):
            for position, source in zip(positions, rng.permutation(positions), strict=True):
                ids[position] = self.ids[source]
        return tuple(ids)

    def without(self, positions: Sequence[int]) -> tuple[int, ...]:
        """The CoT with some of its tokens taken out."""
        dropped = set(positions)
        return tuple(token for position, token in enumerate(self.ids) if position not in dropped)

    def answered_by(self, other: TaggedCot) -> tuple[int, ...]:
        """This reasoning with the answer of another CoT."""
        answer = [other.ids[position] for position in other.answer]
        return (*self.ids[: self.answer[0]], *answer, *self.ids[self.answer[-1] + 1 :])


def read_cot(ids: Sequence[int], text_of: Sequence[str]) -> TaggedCot | None:
    """Find the words of a CoT.

    Args:
        ids: the CoT's tokens.
        text_of: every token's text by its id, as `StopText.texts` has them.

    Returns:
        None for a malformed CoT: a tag missing, repeated or out of order, or a part without a token of its own. A token
        that holds a piece of a tag counts as tag, whatever else it holds.
    """
    texts = [text_of[token] for token in ids]
    whole = "".join(texts)
    found = _PARTS.search(whole)
    if found is None or not is_well_formed(whole[found.start() : found.end()]):
        return None
    ends = list(accumulate(map(len, texts)))
    starts = [0, *ends[:-1]]

    def inside(part: str) -> tuple[int, ...]:
        low, high = found.span(part)
        return tuple(i for i in range(len(ids)) if low <= starts[i] and ends[i] <= high and texts[i])

    think, answer = inside("think"), inside("answer")
    return TaggedCot(tuple(ids), think, answer) if think and answer else None
