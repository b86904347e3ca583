"""The cached embeddings of one identity: append-only shards in a folder, and an index of them in memory.

    <space>/identity.json
    <space>/<time>-<process>-<random>.safetensors    shards: append-only, written whole, the newest row wins

Memory: an index of 24 bytes an entry, a few shards, and what is not yet flushed; never the embeddings of a corpus.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from twn_lightning.evaluation.embedding_shards import (
    SUFFIX,
    merge_rows,
    read_digests,
    read_shard,
    select_rows,
    without_extras,
    write_shard,
)
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.evaluation.item_digest import DIGEST_TYPE
from twn_lightning.json_object import write_json

FLUSH_ROWS = 512
FLUSH_SECONDS = 20.0
"""A killed process loses at most this much work, and small batches do not make thousands of small files."""

_OPEN_SHARDS = 2


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
            digests_N: of the items.

        Returns:
            Which have one, bool (N,), and those entries in order; None where there are none.
        """
        shard_N, row_N = self._locate(digests_N)
        parts = []
        for shard in np.unique(shard_N[shard_N >= 0]):
            rows = np.flatnonzero(shard_N == shard)
            content = self._open(self._shards[shard])
            if content is None:
                self._drop(int(shard))
                return self.read(digests_N)
            parts.append((rows, select_rows(content, row_N[rows])))
        if not parts:
            return np.zeros(len(digests_N), dtype=bool), None
        return shard_N >= 0, merge_rows(parts)

    def add(self, digests_N: np.ndarray, encoded: EncodedItems) -> None:
        """Keep entries until `flush` writes them, together with later ones."""
        if not self._pending:
            self._pending_since = time.monotonic()
        self._pending.append((digests_N, without_extras(encoded)))

    def due(self) -> bool:
        """Whether what was added is enough, or old enough, to be written."""
        rows = sum(len(digests) for digests, _ in self._pending)
        return rows >= FLUSH_ROWS or (rows > 0 and time.monotonic() - self._pending_since >= FLUSH_SECONDS)

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
