"""Where a CoT ends: an automaton over tokens that finds `</answer>` on the device, without looking at any text.

The tag may be several tokens and may merge with its neighbours, so its end is a property of text. How much of the tag
the text so far ends with is all that one has to remember of it.

Shape letters: M match lengths (0 to the length of the tag), V vocabulary.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from twn_lightning.backbone.processor import ANSWER_CLOSE


class StopText:
    """Transitions between match lengths, one table row per length and one column per token.

    Args:
        tokenizer: gives each token's text.
        vocabulary: of the model; tokens beyond the tokenizer's have no text.
    """

    CLOSED = len(ANSWER_CLOSE)
    """The match length of a text that contains the tag."""

    def __init__(self, tokenizer: Any, vocabulary: int):
        self.texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
        self.texts += [""] * (vocabulary - len(self.texts))
        lengths = torch.arange(self.CLOSED + 1)
        self.next_MV = torch.zeros(len(lengths), len(self.texts), dtype=torch.uint8)
        self.next_MV[self.CLOSED] = self.CLOSED
        for token, text in enumerate(self.texts):
            if not text:
                self.next_MV[:, token] = lengths
            elif ANSWER_CLOSE[0] in text or text[0] in ANSWER_CLOSE:  # any other text ends every partial match
                self.next_MV[:, token] = torch.tensor([self.matched(int(n), text) for n in lengths])

    @classmethod
    def of(cls, tokenizer: Any, vocabulary: int) -> StopText:
        return _stop_text(tokenizer, vocabulary)

    @classmethod
    def matched(cls, before: int, text: str) -> int:
        """Characters of the tag that the text so far ends with, once `text` follows; CLOSED where it contains it."""
        text = ANSWER_CLOSE[:before] + text
        if ANSWER_CLOSE in text:
            return cls.CLOSED
        return next(n for n in range(cls.CLOSED - 1, -1, -1) if text.endswith(ANSWER_CLOSE[:n]))


@lru_cache(maxsize=8)
def _stop_text(tokenizer: Any, vocabulary: int) -> StopText:
    return StopText(tokenizer, vocabulary)
