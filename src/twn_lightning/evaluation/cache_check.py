"""Whether cached embeddings are what the encoder gives today. Shape letters: N items, D embedding width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twn_lightning import checks
from twn_lightning.evaluation.embedding_cache import CachedEncoder
from twn_lightning.strategy import world_size
from twn_lightning.types import Item

SMALLEST_COSINE = 0.999
"""Other batches and other devices round differently; other weights or pixels end up far below."""


def check_cached(cached: CachedEncoder, items: Sequence[Item]) -> bool:
    """Encode items again that the cache holds, and compare.

    An identity covers weights, prompts and pixels, but not the code: a release of a library that changes what a model
    computes would be mixed with older vectors.

    Args:
        cached: with a cache.
        items: few, since they cost what encoding costs. With several ranks nothing is compared.

    Returns:
        Whether the cache held any of them.

    Raises:
        CheckError: a vector that is no longer what the encoder gives.
    """
    if cached.policy != "only-missing" or world_size() > 1 or not checks.is_on("stale_cache"):
        return False
    held = [item for item in items if cached.holds(item)]
    if not held:
        return False
    reused = cached.reused
    kept_ND = cached.encode(held).embedding_ND
    cached.reused = reused
    fresh_ND = cached.encoder.encode(held, cached.side, cached.mode).embedding_ND
    norms_N = np.linalg.norm(kept_ND, axis=1) * np.linalg.norm(fresh_ND, axis=1)
    cosine_N = (kept_ND * fresh_ND).sum(1) / norms_N
    worst = int(cosine_N.argmin())
    if cosine_N[worst] < SMALLEST_COSINE:
        checks.report(
            "stale_cache",
            f"the cached embedding of '{held[worst].key}' has cosine {cosine_N[worst]:.4f} with the one that encoder "
            f"'{cached.encoder.name}' gives now, {int((cosine_N < SMALLEST_COSINE).sum())} of {len(held)} that were "
            "compared differ. Set task.cache=always to encode everything anew, or another task.cache_root",
        )
    return True
