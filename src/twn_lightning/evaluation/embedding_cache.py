"""A content-addressed cache of embeddings, shared by tasks, runs and processes.

A space holds what one encoder makes of one side in one mode: its name is the digest of `Encoder.identity`, so changed
adapters, pixels or decoding never meet an old vector. Within a space an entry is found by what the item holds.

    <root>/<space>/identity.json
    <root>/<space>/<time>-<process>-<random>.safetensors    shards: append-only, written whole, the newest row wins

Memory: an index of 24 bytes an entry, a few shards, and what is not yet flushed; never the embeddings of a corpus.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from twn_lightning.errors import ConfigError, DataError, NumericalError, unknown_name
from twn_lightning.evaluation.embedding_shards import (
    SUFFIX,
    read_digests,
    read_shard,
    select_rows,
    without_extras,
    write_shard,
)
from twn_lightning.evaluation.encoders.protocol import EncodedItems, Encoder
from twn_lightning.evaluation.item_digest import DIGEST_TYPE, item_digests
from twn_lightning.run import write_json
from twn_lightning.types import EmbeddingMode, Item, Side

CachePolicy = Literal["only-missing", "always", "never", "only-cache"]
"""only-missing: encode what is not cached; always: encode everything and overwrite; never: neither read nor write;
only-cache: encode nothing, what is missing is an error."""

FLUSH_ROWS = 512
FLUSH_SECONDS = 20.0
"""A killed process loses at most this much work, and small batches do not make thousands of small files."""

_SPACE_FORMAT = 1
_OPEN_SHARDS = 2
_NAMED_IN_ERRORS = 5


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


class EmbeddingSpace:
    """The entries of one identity. Several processes may add to it at once; `refresh` shows what others added.

    Args:
        folder: of the shards; made by the first `add`.
        identity: written beside them, for people.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._identity = identity
        self._shards: list[Path] = []
        self._key_M = np.empty(0, dtype=DIGEST_TYPE)
        self._shard_M = np.empty(0, dtype=np.int32)
        self._row_M = np.empty(0, dtype=np.int32)
        self._pending: list[tuple[np.ndarray, EncodedItems]] = []
        self._pending_since = 0.0
        self._open = lru_cache(maxsize=_OPEN_SHARDS)(read_shard)

    def __len__(self) -> int:
        return len(np.unique(self._key_M))

    def refresh(self) -> None:
        """Take in shards that were written since, by any process."""
        known = set(self._shards)
        new = [path for path in sorted(self.folder.glob(f"*{SUFFIX}")) if path not in known]
        if new:
            self._take_in([(path, read_digests(path)) for path in new])

    def find(self, digests_N: np.ndarray) -> np.ndarray:
        """Which items have an entry, bool (N,)."""
        return self._locate(digests_N)[0] >= 0

    def read(self, digests_N: np.ndarray) -> tuple[np.ndarray, EncodedItems | None]:
        """Entries of items, as far as they are flushed.

        Args:
            digests_N: of the items, each once.

        Returns:
            Which have one, bool (N,), and those entries in order; None where there are none.
        """
        shard_N, row_N = self._locate(digests_N)
        parts, places = [], []
        for shard in np.unique(shard_N[shard_N >= 0]):
            rows = np.flatnonzero(shard_N == shard)
            content = self._open(self._shards[shard])
            if content is None:
                self._drop(int(shard))
                return self.read(digests_N)
            parts.append(select_rows(content, row_N[rows]))
            places.append(rows)
        if not parts:
            return np.zeros(len(digests_N), dtype=bool), None
        return shard_N >= 0, select_rows(EncodedItems.join(parts), np.argsort(np.concatenate(places)))

    def add(self, digests_N: np.ndarray, encoded: EncodedItems) -> None:
        """Keep entries; they are written together with later ones, and at the latest by `flush`."""
        if not self._pending:
            self._pending_since = time.monotonic()
        self._pending.append((digests_N, without_extras(encoded)))
        rows = sum(len(digests) for digests, _ in self._pending)
        if rows >= FLUSH_ROWS or time.monotonic() - self._pending_since >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was added."""
        if not self._pending:
            return
        if not (self.folder / "identity.json").exists():
            write_json(self.folder / "identity.json", self._identity)
        digests_N = np.concatenate([digests for digests, _ in self._pending])
        path = write_shard(self.folder, digests_N, EncodedItems.join([part for _, part in self._pending]))
        self._pending = []
        self._take_in([(path, digests_N)])

    def _locate(self, digests_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and row of each item, -1 where there is none."""
        if not len(self._key_M):
            return np.full(len(digests_N), -1), np.full(len(digests_N), -1)
        at_N = np.searchsorted(self._key_M, digests_N).clip(max=len(self._key_M) - 1)
        found_N = self._key_M[at_N] == digests_N
        return np.where(found_N, self._shard_M[at_N], -1), np.where(found_N, self._row_M[at_N], -1)

    def _take_in(self, shards: Sequence[tuple[Path, np.ndarray]]) -> None:
        """Index shards, oldest first; of equal digests the newest entry comes first, where `searchsorted` lands."""
        first = len(self._shards)
        self._shards += [path for path, _ in shards]
        newest_first = list(enumerate((digests for _, digests in shards), start=first))[::-1]
        key_N = np.concatenate([digests for _, digests in newest_first])
        shard_N = np.concatenate([np.full(len(digests), i, np.int32) for i, digests in newest_first])
        row_N = np.concatenate([np.arange(len(digests), dtype=np.int32) for _, digests in newest_first])
        order_N = np.argsort(key_N, kind="stable")
        at_N = np.searchsorted(self._key_M, key_N[order_N])
        self._key_M = np.insert(self._key_M, at_N, key_N[order_N])
        self._shard_M = np.insert(self._shard_M, at_N, shard_N[order_N])
        self._row_M = np.insert(self._row_M, at_N, row_N[order_N])

    def _drop(self, shard: int) -> None:
        """Forget the entries of a damaged shard."""
        kept_M = self._shard_M != shard
        self._key_M, self._shard_M, self._row_M = self._key_M[kept_M], self._shard_M[kept_M], self._row_M[kept_M]


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
        self._space = None
        if cache is not None and self.policy != "never":
            self._space = cache.space(identity or encoder.identity(side, mode))

    def encode(self, items: Sequence[Item]) -> EncodedItems:
        """Embeddings of items, in order; equal items are encoded once.

        Raises:
            DataError: an item that cannot be read, or with policy `only-cache` has no entry.
            NumericalError: an embedding that is not finite; names the item.
        """
        if self._space is None:
            return self._fresh(items)
        digests_N = item_digests(items)
        unique_U, first_U, inverse_N = np.unique(digests_N, return_index=True, return_inverse=True)
        found_U, cached = self._read(unique_U)
        if found_U.all() and cached is not None:
            self.reused += len(items)
            return select_rows(cached, inverse_N)
        # In the items' order, so that batches are the same whatever the digests are.
        missing_V = np.flatnonzero(~found_U)[np.argsort(first_U[~found_U])]
        if self.policy == "only-cache":
            raise _not_cached([items[i] for i in first_U[missing_V]], len(items), self._space.folder)
        fresh = self._fresh([items[i] for i in first_U[missing_V]])
        self._space.add(unique_U[missing_V], fresh)
        self.reused += int(found_U[inverse_N].sum())
        joined = fresh if cached is None else EncodedItems.join([cached, fresh])
        place_U = np.empty(len(unique_U), dtype=np.int64)
        place_U[np.concatenate([np.flatnonzero(found_U), missing_V])] = np.arange(len(unique_U))
        return select_rows(joined, place_U[inverse_N])

    def require_cached(self, items: Sequence[Item]) -> None:
        """With policy `only-cache`, refuse before any work what the cache does not hold.

        Raises:
            DataError: items without an entry; says how many and names the first.
        """
        if self.policy != "only-cache" or self._space is None:
            return
        found_N = self._space.find(item_digests(items))
        if not found_N.all():
            raise _not_cached([items[i] for i in np.flatnonzero(~found_N).tolist()], len(items), self._space.folder)

    def flush(self) -> None:
        """Write what is new to the cache."""
        if self._space is not None:
            self._space.flush()

    def _read(self, digests_U: np.ndarray) -> tuple[np.ndarray, EncodedItems | None]:
        if self._space is None or self.policy == "always":
            return np.zeros(len(digests_U), dtype=bool), None
        return self._space.read(digests_U)

    def _fresh(self, items: Sequence[Item]) -> EncodedItems:
        """Encode items and check what comes back."""
        encoded = without_extras(self.encoder.encode(items, self.side, self.mode))
        embedding_ND = encoded.embedding_ND = np.asarray(encoded.embedding_ND, dtype=np.float32)
        wanted = (len(items), self.encoder.dimension)
        if embedding_ND.shape != wanted:
            raise NumericalError(f"encoder '{self.encoder.name}' returned {embedding_ND.shape}, not {wanted}")
        broken_N = ~np.isfinite(embedding_ND).all(1)
        if broken_N.any():
            raise NumericalError(
                f"encoder '{self.encoder.name}' gave {int(broken_N.sum())} of {len(items)} items an embedding with NaN "
                f"or Inf, first item '{items[int(broken_N.argmax())].key}': a rank among them would mean nothing"
            )
        return encoded


def _not_cached(missing: Sequence[Item], total: int, folder: Path) -> DataError:
    named = ", ".join(f"'{item.key}'" for item in missing[:_NAMED_IN_ERRORS])
    return DataError(
        f"{len(missing)} of {total} items are not in the embedding cache {folder}: {named}"
        f"{', ...' if len(missing) > _NAMED_IN_ERRORS else ''}. Set task.cache=only-missing to encode them"
    )
