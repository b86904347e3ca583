"""Same-source sub-batches, as a pure function of (seed, step): exact resume needs one integer.

Every source is an endless stream of its rows: pass after pass, each row once a pass, shuffled anew, equal targets
spread apart. A global batch takes `batch_size / rows_per_source` sub-batches from the streams, each from one source,
sources in proportion to their weights, or to their sizes where there are none. What a pass leaves over (fewer rows than
a sub-batch) opens the source's next sub-batch, so no row is lost and none is repeated within a pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from twn_lightning.errors import CheckpointError, ConfigError, DataError

_SCHEDULE_STREAM = -1
_QUOTA_UNITS = 1 << 20
"""Parts of a row that quotas count in: whole numbers, so that every machine draws the same."""


class SameSourceSampler(Sampler[list[int]]):
    """Row indices of one rank, step by step.

    Args:
        sources: source name of each row.
        target_hashes: target hash of each row; sub-batches prefer distinct targets.
        batch_size: rows of a global batch, over all ranks.
        rows_per_source: rows of a same-source sub-batch, over all ranks; at most `batch_size` are used.
        max_steps: batches in all; iterating ends there.
        weights: how often each source's sub-batches are drawn, relative to the others; None: by the rows it has.
        seed: seed of every shuffle.
        rank: this process.
        world_size: number of processes; each takes a slice of every sub-batch.

    Raises:
        DataError: no rows, or a source without a weight above 0.
        ConfigError: sizes that do not divide each other.
    """

    def __init__(
        self,
        sources: Sequence[str],
        target_hashes: Sequence[str],
        *,
        batch_size: int,
        rows_per_source: int,
        max_steps: int,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not len(sources):
            raise DataError("cannot draw batches from 0 rows")
        self.rows_per_source = min(rows_per_source, batch_size)
        _check_sizes(batch_size, self.rows_per_source, world_size)
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.step = 0
        """Batches handed to training so far: the whole state."""
        self._names, source_N = np.unique(np.asarray(sources, dtype=str), return_inverse=True)
        _, target_N = np.unique(np.asarray(target_hashes, dtype=str), return_inverse=True)
        self._rows = [np.flatnonzero(source_N == s) for s in range(len(self._names))]
        self._targets = [target_N[rows] for rows in self._rows]
        self._quotas = self._quotas_of(weights)
        self._fingerprint = _fingerprint(sources, target_hashes, weights)
        # Streams are read forward, so two passes of each are enough.
        self._order = lru_cache(maxsize=2 * len(self._names))(self._shuffled)
        self._schedule = lru_cache(maxsize=2)(self._shuffled_schedule)

    def __len__(self) -> int:
        return self.max_steps

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's rows from `self.step` on. `self.step` is moved by whoever consumes the batches, not here."""
        for step in range(self.step, self.max_steps):
            yield self.rank_rows(step)

    def rank_rows(self, step: int) -> list[int]:
        """This rank's slice of every sub-batch of a step."""
        return [row for part in self.sub_batches(step) for row in part[self.rank :: self.world_size]]

    def sub_batches(self, step: int) -> list[list[int]]:
        """The same-source sub-batches of a step's global batch."""
        per_batch = self.batch_size // self.rows_per_source
        return [self._sub_batch(step * per_batch + i) for i in range(per_batch)]

    def _sub_batch(self, position: int) -> list[int]:
        source, turn = self._turn(position)
        start = turn * self.rows_per_source
        size = len(self._rows[source])
        passes = [divmod(p, size) for p in range(start, start + self.rows_per_source)]
        return [int(self._order(source, epoch)[offset]) for epoch, offset in passes]

    def _turn(self, position: int) -> tuple[int, int]:
        """Which source the sub-batch at a position of the global stream comes from, and its number there."""
        # Whole sub-batches of a source are rounded down, so this estimate is never too late.
        epoch = position * self.rows_per_source * _QUOTA_UNITS // sum(self._quotas)
        while self._turns_before(epoch + 1).sum() <= position:
            epoch += 1
        before = self._turns_before(epoch)
        schedule = self._schedule(epoch)
        offset = position - int(before.sum())
        source = int(schedule[offset])
        return source, int(before[source]) + int((schedule[:offset] == source).sum())

    def _turns_before(self, epoch: int) -> np.ndarray:
        """Whole sub-batches of each source within the first `epoch` epochs, each of as many rows as there are."""
        return np.array([epoch * quota // (self.rows_per_source * _QUOTA_UNITS) for quota in self._quotas])

    def _quotas_of(self, weights: Mapping[str, float] | None) -> list[int]:
        """Rows that each source gives to an epoch, in `_QUOTA_UNITS`: its own size, or its share of all rows."""
        sizes = [len(rows) for rows in self._rows]
        if weights is None:
            return [size * _QUOTA_UNITS for size in sizes]
        missing = [str(name) for name in self._names if weights.get(name, 0) <= 0]
        if missing:
            raise DataError(f"sources without a weight above 0: {', '.join(missing)}. Weigh every source, or none")
        total = sum(weights[name] for name in self._names)
        return [max(1, int(sum(sizes) * _QUOTA_UNITS * (weights[name] / total))) for name in self._names]

    def _shuffled_schedule(self, epoch: int) -> np.ndarray:
        """The sources of one epoch's sub-batches, in random order."""
        turns = self._turns_before(epoch + 1) - self._turns_before(epoch)
        return self._generator(_SCHEDULE_STREAM, epoch).permutation(np.repeat(np.arange(len(turns)), turns))

    def _shuffled(self, source: int, epoch: int) -> np.ndarray:
        """One pass over a source."""
        order = spread_targets(self._targets[source], self.rows_per_source, self._generator(source, epoch))
        return self._rows[source][order]

    def _generator(self, stream: int, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream - _SCHEDULE_STREAM, epoch])

    def state_dict(self) -> dict[str, Any]:
        """The number of consumed batches, and what it is a number of."""
        return {
            "step": self.step,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "rows_per_source": self.rows_per_source,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that were consumed. The number of ranks may differ.

        Raises:
            CheckpointError: the state belongs to other rows, another seed or other batch sizes.
        """
        mine = self.state_dict()
        changed = [key for key in mine if key != "step" and mine[key] != state.get(key)]
        if changed:
            found = ", ".join(f"{key} {state.get(key)} in the checkpoint, {mine[key]} now" for key in changed)
            raise CheckpointError(
                f"the data position cannot be restored, because the data is not the same: {found}. "
                "Resume with the data settings of the checkpoint's run"
            )
        self.step = int(state["step"])


def spread_targets(target_N: np.ndarray, window: int, generator: np.random.Generator) -> np.ndarray:
    """A random order in which equal targets lie about `window` rows apart wherever their number allows it.

    A target with c of N rows gets one slot in every N / c rows. Within its slots a rare target moves freely; one that
    is as frequent as once a window keeps an even beat; one still more frequent must repeat within windows, and does so
    evenly rather than at the end of the pass.

    Args:
        target_N: integer target of each row.
        window: rows that should have distinct targets.
        generator: source of randomness.

    Returns:
        A permutation of the N rows.
    """
    total = len(target_N)
    order = generator.permutation(total)
    by_target = order[np.argsort(target_N[order], kind="stable")]
    _, first, inverse, count = np.unique(
        target_N[by_target], return_index=True, return_inverse=True, return_counts=True
    )
    occurrence = np.arange(total) - first[inverse]
    freedom = np.clip(1 - window * count / total, 0, 1)
    beat = (1 - freedom) * generator.random(len(count))
    key = (occurrence + beat[inverse] + freedom[inverse] * generator.random(total)) / count[inverse]
    return by_target[np.argsort(key, kind="stable")]


def _check_sizes(batch_size: int, rows_per_source: int, world_size: int) -> None:
    problems = []
    if batch_size < 1 or rows_per_source < 1:
        problems.append(
            f"stage.batch_size {batch_size} and data.rows_per_source_global {rows_per_source} must be at least 1"
        )
    elif batch_size % rows_per_source:
        problems.append(
            f"stage.batch_size {batch_size} is not a multiple of data.rows_per_source_global {rows_per_source}; "
            f"set it to {max(1, round(batch_size / rows_per_source)) * rows_per_source}"
        )
    if rows_per_source % world_size:
        problems.append(
            f"a same-source sub-batch of {rows_per_source} rows does not divide among {world_size} ranks; set "
            f"data.rows_per_source_global to a multiple of {world_size}"
        )
    if problems:
        raise ConfigError(problems)


def _fingerprint(sources: Sequence[str], target_hashes: Sequence[str], weights: Mapping[str, float] | None) -> str:
    """Digest of the rows' sources and targets, in order, and of the weights."""
    digest = hashlib.sha256()
    for source, target in zip(sources, target_hashes, strict=True):
        digest.update(f"{source}\x1f{target}\x1e".encode())
    for source, weight in sorted((weights or {}).items()):
        digest.update(f"{source}\x1f{weight}\x1d".encode())
    return digest.hexdigest()[:16]
