"""A content-addressed cache of embeddings, shared by tasks, runs and processes.

A space holds what one encoder makes of one side in one mode: its name is the digest of `Encoder.identity`, so changed
adapters, pixels or decoding never meet an old vector. Within a space an entry is found by what the item holds.

    <root>/<space>/                  see `EmbeddingSpace`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from twn_lightning.errors import ConfigError, DataError, NumericalError, unknown_name
from twn_lightning.evaluation.embedding_shards import merge_rows, select_rows, without_extras
from twn_lightning.evaluation.embedding_space import EmbeddingSpace
from twn_lightning.evaluation.encoders.protocol import EncodedItems, Encoder
from twn_lightning.evaluation.item_digest import item_digests
from twn_lightning.types import EmbeddingMode, Item, Side

CachePolicy = Literal["only-missing", "always", "never", "only-cache"]
"""only-missing: encode what is not cached; always: encode everything and overwrite; never: neither read nor write;
only-cache: encode nothing, what is missing is an error."""

_SPACE_FORMAT = 1
_NAMED_IN_ERRORS = 5
_LOOKED_UP_AT_ONCE = 1024

Part = tuple[np.ndarray, EncodedItems]
"""Some rows of a list of items, ascending, and what they hold."""


def identity_digest(identity: Mapping[str, Any]) -> str:
    """Name of an encoder's space: 32 hex digits over its identity.

    Raises:
        ConfigError: a value that is no plain data.
    """
    try:
        text = json.dumps({"format": _SPACE_FORMAT, **identity}, sort_keys=True)
    except TypeError as error:
        raise ConfigError(f"the encoder's identity must be plain values that JSON can hold: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class EmbeddingCache:
    """Spaces under one folder.

    Args:
        root: the folder; None only with policy `never`.
        policy: see `CachePolicy`.

    Raises:
        ConfigError: unknown policy, or no folder.
    """

    def __init__(self, root: str | Path | None, policy: CachePolicy = "only-missing") -> None:
        if policy not in get_args(CachePolicy):
            raise ConfigError(unknown_name("cache policy", str(policy), get_args(CachePolicy)))
        if root is None and policy != "never":
            raise ConfigError(f"cache policy {policy!r} needs a folder: set task.cache_root, or task.cache=never")
        self.root = None if root is None else Path(root).expanduser()
        self.policy = policy
        self._spaces: dict[str, EmbeddingSpace] = {}

    def space(self, identity: Mapping[str, Any]) -> EmbeddingSpace:
        """The space of an identity, with what other processes have added to it since."""
        assert self.root is not None, "policy never has no spaces"
        digest = identity_digest(identity)
        if digest not in self._spaces:
            self._spaces[digest] = EmbeddingSpace(self.root / digest, identity)
        self._spaces[digest].refresh()
        return self._spaces[digest]


class CachedEncoder:
    """One encoder, side and mode, read through a cache.

    Args:
        encoder: the model.
        side: of the items.
        mode: of the embeddings.
        cache: None: always encode.
        identity: of the encoder, where the caller has it at hand: it takes a pass over all trained weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        side: Side,
        mode: EmbeddingMode,
        cache: EmbeddingCache | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.encoder, self.side, self.mode = encoder, side, mode
        self.policy: CachePolicy = "never" if cache is None else cache.policy
        self.reused = 0
        """Items whose embedding came from the cache."""
        self._spaces: tuple[EmbeddingSpace, ...] = ()
        if cache is not None and self.policy != "never":
            self._spaces = (cache.space(identity or encoder.identity(side, mode)),)

    def encode(self, items: Sequence[Item]) -> EncodedItems:
        """Embeddings of items, in order; equal items are encoded once.

        Raises:
            DataError: an item that cannot be read, or with policy `only-cache` has no entry.
            NumericalError: an embedding that is not finite; names the item.
        """
        if not self._spaces:
            return without_extras(self._fresh(items, self.mode))
        digests_N = item_digests(items)
        first_U, inverse_N = distinct_rows(digests_N)
        encoded, reused_U = self._through([items[i] for i in first_U.tolist()], digests_N[first_U])
        self.reused += int(reused_U[inverse_N].sum())
        if any(space.due() for space in self._spaces):
            self.flush()
        return select_rows(encoded, inverse_N)

    def require_cached(self, items: Sequence[Item]) -> None:
        """With policy `only-cache`, refuse before any work what the cache does not hold.

        Raises:
            DataError: items without an entry; says how many and names the first.
        """
        if self.policy != "only-cache":
            return
        missing: list[Item] = []
        for start in range(0, len(items), _LOOKED_UP_AT_ONCE):
            part = items[start : start + _LOOKED_UP_AT_ONCE]
            missing += [part[i] for i in np.flatnonzero(self._missing(item_digests(part))).tolist()]
        if missing:
            raise self._not_cached(missing, len(items))

    def holds(self, item: Item) -> bool:
        """Whether an item would come from the cache alone."""
        return bool(self._spaces) and not self._missing(item_digests([item]))[0]

    def refresh(self) -> None:
        """Take in what other processes have added to the cache since."""
        for space in self._spaces:
            space.refresh()

    def flush(self) -> None:
        """Write what is new to the cache."""
        for space in self._spaces:
            space.flush()

    def _through(self, items: Sequence[Item], digests_U: np.ndarray) -> tuple[EncodedItems, np.ndarray]:
        """Embeddings of distinct items, and which of them came from the cache alone, bool (U,)."""
        (space,) = self._spaces
        every_U = np.arange(len(items))
        parts = self._read(space, digests_U, every_U)
        reused_U = np.isin(every_U, rows_of(parts))
        missing_V = np.flatnonzero(~reused_U)
        if len(missing_V):
            wanted = [items[i] for i in missing_V.tolist()]
            if self.policy == "only-cache":
                raise self._not_cached(wanted, len(items))
            fresh = without_extras(self._fresh(wanted, self.mode))
            space.add(digests_U[missing_V], fresh)
            parts.append((missing_V, fresh))
        return merge_rows(parts), reused_U

    def _missing(self, digests_N: np.ndarray) -> np.ndarray:
        """Which items could not come from the cache, bool (N,)."""
        return ~self._spaces[0].find(digests_N)

    def _read(self, space: EmbeddingSpace, digests_U: np.ndarray, rows_V: np.ndarray) -> list[Part]:
        """What a space holds of some rows, where the policy lets it be read: one part, or none."""
        if self.policy == "always":
            return []
        found_V, cached = space.read(digests_U[rows_V])
        return [] if cached is None else [(rows_V[found_V], cached)]

    def _fresh(self, items: Sequence[Item], mode: EmbeddingMode) -> EncodedItems:
        """Encode items and check what comes back."""
        encoded = self.encoder.encode(items, self.side, mode)
        encoded.embedding_ND = self._checked(encoded.embedding_ND, items)
        return encoded

    def _checked(self, embedding_ND: np.ndarray, items: Sequence[Item]) -> np.ndarray:
        """Embeddings as float32, of the right shape and finite."""
        embedding_ND = np.asarray(embedding_ND, dtype=np.float32)
        wanted = (len(items), self.encoder.dimension)
        if embedding_ND.shape != wanted:
            raise NumericalError(f"encoder '{self.encoder.name}' returned {embedding_ND.shape}, not {wanted}")
        broken_N = ~np.isfinite(embedding_ND).all(1)
        if broken_N.any():
            raise NumericalError(
                f"encoder '{self.encoder.name}' gave {int(broken_N.sum())} of {len(items)} items an embedding with NaN "
                f"or Inf, first item '{items[int(broken_N.argmax())].key}': a rank among them would mean nothing"
            )
        return embedding_ND

    def _not_cached(self, missing: Sequence[Item], total: int) -> DataError:
        named = ", ".join(f"'{item.key}'" for item in missing[:_NAMED_IN_ERRORS])
        folders = " with ".join(str(space.folder) for space in self._spaces)
        return DataError(
            f"{len(missing)} of {total} items are not in the embedding cache {folders}: {named}"
            f"{', ...' if len(missing) > _NAMED_IN_ERRORS else ''}. Set task.cache=only-missing to encode them"
        )


def distinct_rows(digests_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each distinct item (U,), in the items' order, and each item's place among them (N,).

    In that order batches are the same whatever the digests are.
    """
    _, first_U, inverse_N = np.unique(digests_N, return_index=True, return_inverse=True)
    order_U = np.argsort(first_U)
    place_U = np.empty_like(order_U)
    place_U[order_U] = np.arange(len(order_U))
    return first_U[order_U], place_U[inverse_N]


def rows_of(parts: Sequence[Part]) -> np.ndarray:
    """All rows of some parts."""
    return np.concatenate([np.empty(0, dtype=np.int64), *(rows for rows, _ in parts)])
