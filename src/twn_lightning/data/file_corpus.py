"""A corpus of pairs in files: rows are parsed when they are asked for, splits follow target hashes."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np

from twn_lightning.data.corpus import split_by_hash
from twn_lightning.data.drafts import ItemDraft, MediaFinder, PairDraft
from twn_lightning.data.records import Records, read_records
from twn_lightning.errors import ConfigError, DataError, unknown_name
from twn_lightning.settings import DataSettings, SourceSettings
from twn_lightning.types import Item, Pair

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusIndex:
    """What splitting and batching need of every usable row."""

    rows: np.ndarray
    """Row numbers, int64 (N,); rows without content and rows of other subsets are left out."""
    tasks: list[str]
    target_hashes: list[str]
    splits: np.ndarray
    """Name of each row's split (N,)."""


class FileCorpus(ABC):
    """The pairs of one entry of `data.sources`: one set of files with one schema.

    A subclass says where its rows are and what they mean. A row becomes a pair of the task `<source>/<subset>`; its
    query's key is the task and the row, its positive's the task and the target hash.

    Args:
        entry: which subset, split and how many rows.
        settings: roots, frames, hard negatives.
    """

    name: ClassVar[str]
    repo: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns that the files must have."""

    def __init__(self, entry: SourceSettings, settings: DataSettings) -> None:
        self.entry, self.settings = entry, settings
        self.find = MediaFinder(settings)
        # Columns of both sides are read row by row, one after the other.
        self._last_draft = lru_cache(maxsize=4)(self._parsed)

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes get everything but the cache, which cannot be pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_last_draft"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._last_draft = lru_cache(maxsize=4)(self._parsed)

    @classmethod
    def subsets(cls, settings: DataSettings) -> Sequence[str | None]:
        """The subsets that an entry without one stands for, each a corpus of its own."""
        return (None,)

    @abstractmethod
    def open(self) -> Records:
        """The rows."""

    @abstractmethod
    def parse(self, row: Mapping[str, Any], where: str) -> PairDraft | None:
        """A row's pair; None for a row of another subset.

        Raises:
            DataError: fields that are missing or of the wrong type; names the row.
        """

    @property
    def task(self) -> str:
        """Name of its task, and prefix of its keys."""
        name = f"{self.name}/{self.entry.subset}" if self.entry.subset else self.name
        return f"{name}:{self.entry.split}" if self.entry.split else name

    @cached_property
    def tasks(self) -> list[str]:
        """Names of its tasks: one, unless its rows name theirs."""
        return sorted(set(self.index.tasks))

    @cached_property
    def records(self) -> Records:
        """The rows, opened once.

        Raises:
            DataError: no files, no rows, or missing columns.
        """
        records = self.open()
        if not len(records):
            paths = ", ".join(str(file.path) for file in records.files)
            raise DataError(f"source '{self.task}': {paths} has no rows. Fetch it again, or leave the source out")
        records.require(self.columns, f"source '{self.task}'")
        return records

    @cached_property
    def index(self) -> CorpusIndex:
        """Every row's task, target hash and split: one pass over the files, which looks up no media.

        Raises:
            DataError: a row that cannot be parsed, or no usable row.
        """
        rows, tasks, hashes = [], [], []
        empty = 0
        for row, draft in self._drafts():
            if draft.empty:
                empty += 1
                continue
            rows.append(row)
            tasks.append(draft.task)
            hashes.append(draft.positive.target_hash())
        if empty:
            logger.warning("source '%s': %d rows without query or positive are left out", self.task, empty)
        if not rows:
            count = len(self.records)
            raise DataError(f"source '{self.task}': none of {count} rows is a pair of it; {empty} of them are empty")
        return CorpusIndex(np.array(rows), tasks, hashes, self.split_rows(np.array(rows), hashes))

    def split_rows(self, rows: np.ndarray, target_hashes: Sequence[str]) -> np.ndarray:
        """The split of each row; by target hash where the corpus brings no splits."""
        found = {target_hash: split_by_hash(target_hash) for target_hash in set(target_hashes)}
        return np.array([found[target_hash] for target_hash in target_hashes])

    def _drafts(self) -> Iterator[tuple[int, PairDraft]]:
        """Usable rows in order, at most `cap` of them."""
        taken = 0
        for number, row in enumerate(self.records):
            draft = self.parse(row, self.where(number))
            if draft is None:
                continue
            yield number, draft
            taken += 1
            if taken == self.entry.cap:
                return

    def where(self, row: int) -> str:
        """Source, file and row, for messages."""
        return f"source '{self.task}', {self.records.source(row)}"

    def draft(self, position: int) -> PairDraft:
        """The pair at a position of the index, its media not looked up."""
        return self._last_draft(int(self.index.rows[position]))

    def _parsed(self, row: int) -> PairDraft:
        draft = self.parse(self.records[row], self.where(row))
        assert draft is not None, "rows of other subsets are not in the index"
        return draft

    def pair(self, position: int, mined: Mapping[str, Sequence[str]] | None = None) -> Pair:
        """The pair at a position of the index.

        Args:
            position: of the index.
            mined: target hashes of mined hard negatives by query key; the row's own come first.

        Raises:
            DataError: media that are missing or leave their root.
        """
        draft, where = self.draft(position), self.where(int(self.index.rows[position]))
        key = f"{draft.task}/{self.index.rows[position]}"
        target_hash = self.index.target_hashes[position]
        negatives = {negative.target_hash(): negative for negative in draft.negatives if not negative.empty}
        for mined_hash in (mined or {}).get(key, ()):
            negatives.setdefault(mined_hash, self._target(mined_hash, where))
        negatives.pop(target_hash, None)
        kept = dict(list(negatives.items())[: self.settings.hard_negatives])
        return Pair(
            self.find.item(draft.query, key, where),
            self.find.item(draft.positive, f"{draft.task}/{target_hash}", where),
            draft.task,
            target_hash,
            tuple(self.find.item(negative, f"{draft.task}/{hash_}", where) for hash_, negative in kept.items()),
            negative_hashes=tuple(kept),
        )

    def _target(self, target_hash: str, where: str) -> ItemDraft:
        position = self._positions.get(target_hash)
        if position is None:
            raise DataError(
                f"{where}: the mined hard negative {target_hash} is no target of this source. Mine again from the "
                "same data settings"
            )
        return self.draft(position).positive

    @cached_property
    def _positions(self) -> dict[str, int]:
        """The first position of every target."""
        positions: dict[str, int] = {}
        for position, target_hash in enumerate(self.index.target_hashes):
            positions.setdefault(target_hash, position)
        return positions

    def target_item(self, position: int) -> Item:
        """The positive of a pair, as a candidate."""
        draft, where = self.draft(position), self.where(int(self.index.rows[position]))
        return self.find.item(draft.positive, f"{draft.task}/{self.index.target_hashes[position]}", where)


def require_subset(source: str, subset: str | None, known: Sequence[str]) -> str:
    """A subset that exists.

    Raises:
        ConfigError: it does not; lists what exists with the nearest match.
    """
    if subset is None or subset not in known:
        raise ConfigError(f"data.sources, source '{source}': {unknown_name('subset', str(subset), known)}")
    return subset


def read_corpus(settings: DataSettings, repo: str, subset: str | None, split: str) -> Records:
    """`read_records` below the configured root."""
    return read_records(settings.annotations_root, repo, subset, split)
