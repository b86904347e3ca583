"""Whether CoTs are still language: repetition, alphabet, and how likely the backbone finds them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.interface import cot_targets
from twn_lightning.data.corpus import ANSWER_CLOSE, is_repetitive
from twn_lightning.objectives import cot_cross_entropy
from twn_lightning.types import Pair

REPETITIVE, LETTERS, PERPLEXITY = "val/repetitive_cot_rate", "val/latin_letter_share", "val/base_perplexity"
"""Names in the logs."""
PERPLEXITY_COTS = 16


def language_values(cots: Sequence[str]) -> dict[str, float]:
    """The share of CoTs that repeat themselves, and of their letters that are Latin.

    Args:
        cots: as text.

    Returns:
        Values by their names in the logs; 1 is the share of Latin letters where there are no letters.
    """
    letters = [character for cot in cots for character in cot if character.isalpha()]
    return {
        REPETITIVE: float(np.mean([is_repetitive(cot) for cot in cots])),
        LETTERS: float(np.mean([_is_latin(letter) for letter in letters])) if letters else 1.0,
    }


@lru_cache(maxsize=4096)
def _is_latin(letter: str) -> bool:
    return "LATIN" in unicodedata.name(letter, "")


@torch.no_grad()
def perplexity_values(backbone: DualLoRABackbone, pairs: Sequence[Pair], cots: Sequence[str]) -> dict[str, float]:
    """Perplexity of CoTs under the backbone without the reasoning adapter.

    Args:
        backbone: in any state.
        pairs: whose queries the CoTs belong to; the first `PERPLEXITY_COTS` whose CoT ended are read.
        cots: as text, in the same order.

    Returns:
        exp of the mean loss of a token by its name in the logs; nothing where no CoT ended.
    """
    rows = [row for row, cot in enumerate(cots) if cot.endswith(ANSWER_CLOSE)][:PERPLEXITY_COTS]
    if not rows:
        return {}
    prompts = backbone.processor([pairs[row].query for row in rows]).to(backbone.device)
    read = backbone.processor.encode_cots([cots[row] for row in rows]).to(backbone.device)
    with backbone.pin(None):
        state = backbone.reason(prompts, read, want_logits=True)
    assert state.cot_logits_BTV is not None
    loss = cot_cross_entropy(state.cot_logits_BTV, cot_targets(read, backbone.processor.eot_id))
    return {PERPLEXITY: math.exp(min(float(loss), 50.0))}
