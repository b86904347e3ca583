"""Hard negatives of a training split from an encoder's own embeddings, through the embedding cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from twn_lightning.data.hard_negatives import Embedded, HardNegatives, mine_hard_negatives
from twn_lightning.evaluation.embedding_cache import CachedEncoder, EmbeddingCache
from twn_lightning.evaluation.encoders.protocol import Encoder
from twn_lightning.types import EmbeddingMode, Item, Pair, Side

CHUNK = 1024
"""Items between two writes to the cache."""


def mine_pairs(
    encoder: Encoder,
    pairs: Sequence[Pair],
    count: int,
    *,
    relative_margin: float = 0.95,
    skip: int = 0,
    cache: EmbeddingCache | None = None,
    progress: Callable[[int], None] | None = None,
) -> HardNegatives:
    """Embed a split's queries and distinct targets, discriminative both, and mine negatives for every query.

    Args:
        encoder: whose mistakes to look for.
        pairs: the split; a query's positive is its own target.
        count: negatives of a query.
        relative_margin: as in `mine_hard_negatives`.
        skip: as in `mine_hard_negatives`.
        cache: what is in it is not embedded again, so an interrupted run goes on.
        progress: called with the number of items embedded, after each chunk.

    Returns:
        The negatives of every query, in order.

    Raises:
        ConfigError, DataError, NumericalError: as `mine_hard_negatives`, or an item that cannot be read.
    """
    distinct: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        distinct.setdefault((pair.source, pair.target_hash), pair)
    targets = list(distinct.values())
    queries, answers = (
        Embedded(
            _embed(CachedEncoder(encoder, side, EmbeddingMode.DISCRIMINATIVE, cache), items, progress),
            [pair.source for pair in rows],
            [pair.target_hash for pair in rows],
            [item.key for item in items],
        )
        for side, rows, items in (
            (Side.QUERY, pairs, [pair.query for pair in pairs]),
            (Side.CANDIDATE, targets, [pair.positive for pair in targets]),
        )
    )
    return mine_hard_negatives(queries, answers, count, relative_margin=relative_margin, skip=skip)


def _embed(encoder: CachedEncoder, items: Sequence[Item], progress: Callable[[int], None] | None) -> np.ndarray:
    parts = []
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        parts.append(encoder.encode(chunk).embedding_ND)
        encoder.flush()
        if progress is not None:
            progress(len(chunk))
    return np.concatenate(parts)
