"""Adaptive embeddings through a cache that neither threshold nor gate empties: CoTs are decoded once.

An adaptive embedding is the discriminative one where the gate says so and the generative one elsewhere, so two spaces
hold all of it:

    decisions     discriminative embedding and the gate's probability; another gate is another space
    generative    generative embedding and CoT; the space of the generative mode

Another threshold decodes only what newly thinks, another gate reads the prompts again and decodes what had no CoT, and
the generative mode after the adaptive one decodes what had not thought. Another cap makes another generative space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twn_lightning.errors import ConfigError, NumericalError
from twn_lightning.evaluation.embedding_cache import CachedEncoder, EmbeddingCache, Part, rows_of
from twn_lightning.evaluation.embedding_shards import merge_rows, select_rows, without_extras
from twn_lightning.evaluation.encoders.protocol import EncodedItems, Encoder, GatedEncoder
from twn_lightning.evaluation.item_digest import item_digests
from twn_lightning.types import EmbeddingMode, Item, Side

_NEEDED = ("discriminative_ND", "think_N", "probability_N", "tokens_N", "malformed_N")


def cached_encoder(
    encoder: Encoder,
    side: Side,
    mode: EmbeddingMode,
    cache: EmbeddingCache | None = None,
    identity: Mapping[str, Any] | None = None,
) -> CachedEncoder:
    """An encoder read through a cache: adaptive embeddings in two parts where it can tell them apart.

    Args as `CachedEncoder`; `identity` has no use for those.
    """
    used = None if cache is None or cache.policy == "never" else cache
    if used is not None and mode is EmbeddingMode.ADAPTIVE and isinstance(encoder, GatedEncoder):
        return AdaptiveCachedEncoder(encoder, side, used)
    return CachedEncoder(encoder, side, mode, cache, identity)


@dataclass
class Decided:
    """What a gate says of N items, bool (N,) each."""

    think_N: np.ndarray
    has_cot_N: np.ndarray
    """The cache holds a CoT, needed or not."""
    was_held_N: np.ndarray
    """The decision was in the cache."""


class AdaptiveCachedEncoder(CachedEncoder):
    """A gated encoder's adaptive mode, composed from its decisions and its generative embeddings.

    Args:
        encoder: the model; its threshold may change between calls.
        side: of the items.
        cache: whose policy is not `never`.
    """

    def __init__(self, encoder: GatedEncoder, side: Side, cache: EmbeddingCache) -> None:
        super().__init__(encoder, side, EmbeddingMode.ADAPTIVE)
        self.policy = cache.policy
        self._gated = encoder
        self._decisions = cache.space(encoder.decision_identity(side))
        self._generative = cache.space(encoder.identity(side, EmbeddingMode.GENERATIVE))
        # CoTs are written first: a kill between the two costs reading prompts again, not decoding.
        self._spaces = (self._generative, self._decisions)

    def decide(self, items: Sequence[Item]) -> Decided:
        """Decide on items, and keep what is new; nothing is decoded."""
        digests_N, every_N = item_digests(items), np.arange(len(items))
        decided = self._read(self._decisions, digests_N, every_N)
        new_V = _without(every_N, decided)
        decided += self._decide(items, digests_N, new_V)
        return Decided(
            np.isin(every_N, self._thinking(decided)), self._generative.find(digests_N), ~np.isin(every_N, new_V)
        )

    def think(self, items: Sequence[Item]) -> None:
        """Decode the CoTs of items that have none in the cache, and keep them."""
        digests_N = item_digests(items)
        self._generate(items, digests_N, np.flatnonzero(~self._generative.find(digests_N)))
        if self._generative.due():
            self.flush()

    def _through(self, items: Sequence[Item], digests_U: np.ndarray) -> tuple[EncodedItems, np.ndarray]:
        every_U = np.arange(len(items))
        decided = self._read(self._decisions, digests_U, every_U)
        thought = self._read(self._generative, digests_U, self._thinking(decided))
        new_V = _without(every_U, decided)
        missing = np.union1d(new_V, _without(self._thinking(decided), thought))
        if self.policy == "only-cache" and len(missing):
            raise self._not_cached([items[i] for i in missing], len(items))
        has_cot_V = self._generative.find(digests_U[new_V]) & (self.policy != "always")
        fresh = self._encode(items, digests_U, new_V[~has_cot_V])
        decided += fresh[0] + self._decide(items, digests_U, new_V[has_cot_V])
        thought += fresh[1]
        thought += self._read(self._generative, digests_U, _without(self._thinking(decided), thought))
        generated = self._generate(items, digests_U, _without(self._thinking(decided), thought))
        composed = _composed(merge_rows(decided), [*thought, *generated])
        return composed, ~np.isin(every_U, np.concatenate([new_V, rows_of(generated)]))

    def _missing(self, digests_N: np.ndarray) -> np.ndarray:
        decided = self._read(self._decisions, digests_N, np.arange(len(digests_N)))
        missing_N = ~np.isin(np.arange(len(digests_N)), rows_of(decided))
        thinking = self._thinking(decided)
        missing_N[thinking] = ~self._generative.find(digests_N[thinking])
        return missing_N

    def _thinking(self, decided: Sequence[Part]) -> np.ndarray:
        """Rows whose probability is above the threshold, ascending. In float32, as the encoder compares them."""
        threshold = np.float32(self._gated.threshold)
        return np.sort(rows_of([(rows[_probability(part) > threshold], part) for rows, part in decided]))

    def _encode(self, items: Sequence[Item], digests_U: np.ndarray, rows: np.ndarray) -> tuple[list[Part], list[Part]]:
        """Decide and, where need be, decode in one pass; the decisions, and what thought."""
        if not len(rows):
            return [], []
        wanted = [items[i] for i in rows]
        encoded = self._fresh(wanted, EmbeddingMode.ADAPTIVE)
        absent = [name for name in _NEEDED if getattr(encoded, name) is None]
        if absent:
            raise ConfigError(
                f"encoder '{self.encoder.name}' leaves out {', '.join(absent)} in adaptive mode, which a gated encoder "
                "must give: adaptive embeddings are cached in parts"
            )
        assert encoded.discriminative_ND is not None
        assert encoded.think_N is not None
        decisions = EncodedItems(encoded.discriminative_ND, probability_N=encoded.probability_N)
        decided = self._keep_decisions(wanted, digests_U, rows, decisions)
        thinks = np.flatnonzero(encoded.think_N)
        if not len(thinks):
            return decided, []
        thought = replace(without_extras(select_rows(encoded, thinks)), probability_N=None)
        self._generative.add(digests_U[rows[thinks]], thought)
        return decided, [(rows[thinks], thought)]

    def _decide(self, items: Sequence[Item], digests_U: np.ndarray, rows: np.ndarray) -> list[Part]:
        """Decide alone: these have a CoT already, should they think."""
        if not len(rows):
            return []
        wanted = [items[i] for i in rows]
        return self._keep_decisions(wanted, digests_U, rows, self._gated.decide(wanted, self.side))

    def _generate(self, items: Sequence[Item], digests_U: np.ndarray, rows: np.ndarray) -> list[Part]:
        """Decode what thinks and never did."""
        if not len(rows):
            return []
        encoded = without_extras(self._fresh([items[i] for i in rows], EmbeddingMode.GENERATIVE))
        self._generative.add(digests_U[rows], encoded)
        return [(rows, encoded)]

    def _keep_decisions(
        self, wanted: Sequence[Item], digests_U: np.ndarray, rows: np.ndarray, decisions: EncodedItems
    ) -> list[Part]:
        decisions.embedding_ND = self._checked(decisions.embedding_ND, wanted)
        _require_probabilities(self.encoder, decisions, wanted)
        self._decisions.add(digests_U[rows], decisions)
        return [(rows, decisions)]


class CachedDecisions(CachedEncoder):
    """What a gated encoder decides, `GatedEncoder.decide`, read through the space that its adaptive mode fills too.

    Args:
        encoder: the model.
        side: of the items.
        cache: None: always ask the encoder.
    """

    def __init__(self, encoder: GatedEncoder, side: Side, cache: EmbeddingCache | None = None) -> None:
        super().__init__(encoder, side, EmbeddingMode.DISCRIMINATIVE, cache, encoder.decision_identity(side))
        self._gated = encoder

    def _fresh(self, items: Sequence[Item], mode: EmbeddingMode) -> EncodedItems:
        decisions = self._gated.decide(items, self.side)
        decisions.embedding_ND = self._checked(decisions.embedding_ND, items)
        _require_probabilities(self.encoder, decisions, items)
        return decisions


def _require_probabilities(encoder: Encoder, decisions: EncodedItems, items: Sequence[Item]) -> None:
    """Refuse decisions of a broken gate, before they are cached."""
    broken_N = ~np.isfinite(_probability(decisions))
    if broken_N.any():
        raise NumericalError(
            f"encoder '{encoder.name}' gave {int(broken_N.sum())} of {len(items)} items no finite probability, "
            f"first item '{items[int(broken_N.argmax())].key}': its gate is broken, train it again"
        )


def _composed(decisions: EncodedItems, thought: Sequence[Part]) -> EncodedItems:
    """Adaptive embeddings, as the encoder itself would give them."""
    count = len(decisions)
    found = EncodedItems(
        embedding_ND=decisions.embedding_ND.copy(),
        discriminative_ND=decisions.embedding_ND,
        think_N=np.zeros(count, dtype=bool),
        probability_N=decisions.probability_N,
        tokens_N=np.zeros(count, dtype=np.int64),
        malformed_N=np.zeros(count, dtype=bool),
        cots=[None] * count,
    )
    for rows, part in thought:
        for name in ("embedding_ND", "think_N", "tokens_N", "malformed_N"):
            getattr(found, name)[rows] = getattr(part, name)
        for row, text in zip(rows, part.cots, strict=True):
            found.cots[row] = text
    return found


def _probability(decisions: EncodedItems) -> np.ndarray:
    assert decisions.probability_N is not None, "a decision is a probability"
    return decisions.probability_N


def _without(rows: np.ndarray, parts: Sequence[Part]) -> np.ndarray:
    """The rows that are in no part, ascending."""
    return np.setdiff1d(rows, rows_of(parts))
