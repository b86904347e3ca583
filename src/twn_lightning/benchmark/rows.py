"""Collects what a parser reads into an `EvalTask`'s lists, and checks it: the one home of the bad-input rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from twn_lightning.benchmark.context import LoadContext, Row
from twn_lightning.errors import DataError
from twn_lightning.types import Item, Media, RankingItem

MediaOf = tuple[Media, ...] | Callable[[], tuple[Media, ...]]
"""Media, or what finds them: called only for a candidate that is new, so that shared files are looked up once."""


@dataclass(frozen=True)
class TaskRows:
    """What a parser returns."""

    queries: list[Item]
    candidates: list[Item]
    """Distinct by key, the first occurrence of each."""
    items: list[RankingItem]
    """One per query, in order."""
    skipped: list[str]
    """Messages of the rows that `on_error="skip"` left out."""
    skipped_queries: int
    """How many of those were rows that stand for a query."""
    list_sizes: tuple[int, int] | None
    """Shortest and longest candidate list of a query as listed, duplicates included; None: global ranking."""


@dataclass
class RowEntry:
    """What one row adds; taken over as a whole when the row ends, or not at all. Made by `RowBuilder.row`."""

    _builder: RowBuilder
    _row: Row
    _query: tuple[Item, tuple[str, ...], tuple[float, ...]] | None = None
    _candidates: dict[str, Item] = field(default_factory=dict)
    _listed: list[str] = field(default_factory=list)

    def query(
        self,
        text: str,
        labels: Sequence[str],
        *,
        media: tuple[Media, ...] = (),
        instruction: str | None = None,
        relevance: Sequence[float] | None = None,
        id: str | None = None,
    ) -> None:
        """The row's query. At most one a row.

        Args:
            text: its own text, without instruction and media placeholders; kept to the letter.
            labels: keys of the right candidates; of one named twice the highest grade counts.
            media: its images or video, in the order the prompt shows them.
            instruction: None: the table's query instruction in the protocol's wording; kept to the letter.
            relevance: grade of each label, in the order of `labels`; None: all 1.
            id: unique among the queries; None: the row's position.

        Raises:
            DataError: neither text nor media, labels and grades of unequal number, or a grade that is not above 0.
        """
        context = self._builder.context
        if relevance is not None and len(relevance) != len(labels):
            raise DataError(f"{self._row.where}: {len(labels)} labels but {len(relevance)} grades")
        if not text.strip() and not media:
            raise DataError(f"{self._row.where}: the query has neither text nor media")
        key = f"{context.task.name}/{self._row.index if id is None else id}"
        chosen = context.query_instruction if instruction is None else instruction
        item = Item(key, chosen, text, media)
        grades: dict[str, float] = {}
        for label, grade in zip(labels, relevance or [1.0] * len(labels), strict=True):
            if not math.isfinite(grade) or grade <= 0:
                raise DataError(f"{self._row.where}: relevance of '{label}' must be a number above 0, got {grade}")
            grades[label] = max(float(grade), grades.get(label, 0.0))
        self._query = (item, tuple(grades), tuple(grades.values()))

    def candidate(
        self, key: str, text: str = "", *, media: MediaOf = (), instruction: str | None = None, unique: bool = False
    ) -> None:
        """A candidate of this row (local ranking: of its query; global: of the corpus). Known keys are not made again.

        Args:
            key: its identity; candidates with the same key are one, the first.
            text: its own text, without instruction; kept to the letter.
            media: as for `query`, or a function that returns them.
            instruction: None: the target instruction of table and protocol.
            unique: the key must be new, as for the ids of a corpus.

        Raises:
            DataError: blank key, an item without text and media, or a duplicate of a key that must be new.
        """
        known = key in self._candidates or key in self._builder.known
        if known and unique:
            raise DataError(f"{self._row.where}: candidate id '{key}' occurs a second time; ids must be unique")
        if not known:
            self._candidates[key] = self._builder.new_candidate(key, text, media, instruction, self._row.where)
        self._listed.append(key)

    def candidates(self, keys: Sequence[str], describe: Callable[[int], tuple[str, MediaOf, str | None]]) -> None:
        """Many candidates, such as the thousand that each query of a task lists: as `candidate` for one after another.

        Args:
            keys: their identities.
            describe: text, media and instruction of the candidate at a position of `keys`; asked for new ones only.

        Raises:
            DataError: as `candidate`.
        """
        own, known = self._candidates, self._builder.known
        for position in [place for place, key in enumerate(keys) if key not in known]:
            if (key := keys[position]) not in own:
                own[key] = self._builder.new_candidate(key, *describe(position), self._row.where)
        self._listed += keys


class RowBuilder:
    """Collects a task's items row by row.

    Args:
        context: what the parser was given.

    A parser does this::

        rows = RowBuilder(context)
        for row in context.rows():
            with rows.row(row) as entry:          # any DataError in here: raised, or counted with on_error="skip"
                entry.query(row.text("question"), labels=[...], media=(context.media.frames(...),))
                entry.candidate("A. yes", "yes")
        return rows.finish()

    For global ranking add the corpus before the queries that name it: labels are checked as each row ends.
    """

    def __init__(self, context: LoadContext) -> None:
        self.context = context
        self.known: dict[str, Item] = {}
        """The candidates so far, by key."""
        self._queries: dict[str, Item] = {}
        self._items: list[RankingItem] = []
        self._skipped: list[str] = []
        self._skipped_queries = 0
        self._list_sizes: list[int] = []

    @contextmanager
    def row(self, row: Row, *, is_query: bool = True) -> Iterator[RowEntry]:
        """Read one row: what is added inside is kept when the block ends well.

        Args:
            row: the row.
            is_query: the row stands for one query; False for rows of a corpus or of qrels.

        Raises:
            DataError: whatever is wrong with the row, unless the task is loaded with on_error="skip".
        """
        entry = RowEntry(self, row)
        try:
            yield entry
            self._take(entry)
        except DataError as error:
            if self.context.on_error == "raise":
                raise
            self._skipped.append(str(error))
            self._skipped_queries += is_query

    def candidate(self, key: str, text: str = "", *, media: MediaOf = (), instruction: str | None = None) -> None:
        """A candidate of the corpus that comes from no row, such as a class label; arguments as `RowEntry.candidate`.

        Raises:
            DataError: blank key, or an item without text and media.
        """
        if key not in self.known:
            where = self.context.where("corpus")
            self.known[key] = self.new_candidate(key, text, media, instruction, where)

    def new_candidate(self, key: str, text: str, media: MediaOf, instruction: str | None, where: str) -> Item:
        """A candidate item, checked but not yet taken in."""
        if not key.strip():
            raise DataError(f"{where}: a candidate has an empty key (empty text, path or id), got {key!r}")
        found = media() if callable(media) else media
        if not text.strip() and not found:
            raise DataError(f"{where}: candidate '{key}' has neither text nor media")
        chosen = self.context.target_instruction if instruction is None else instruction
        return Item(key, chosen, text, found)

    def finish(self) -> TaskRows:
        """The collected task.

        Raises:
            DataError: no query is left.
        """
        if not self._queries:
            first = f" The first: {self._skipped[0]}" if self._skipped else ""
            task = self.context.task
            where = f"{task.hf_repo}, subset {task.hf_subset or 'default'}, split {task.hf_split}"
            raise DataError(
                f"task '{task.name}': no query was found in {where} ({len(self._skipped)} rows skipped).{first}"
            )
        sizes = (min(self._list_sizes), max(self._list_sizes)) if self._list_sizes else None
        return TaskRows(
            list(self._queries.values()),
            list(self.known.values()),
            self._items,
            self._skipped,
            self._skipped_queries,
            sizes,
        )

    def _take(self, entry: RowEntry) -> None:
        """Check a finished row and take over what it adds."""
        if entry._query is not None:
            query, labels, relevance = entry._query
            keys = self._own_candidates(entry)
            self._check(entry, query, labels, keys)
            if keys is not None:
                self._list_sizes.append(len(entry._listed))
            self._queries[query.key] = query
            self._items.append(RankingItem(labels, self._grades(relevance), keys))
        self.known.update(entry._candidates)

    def _own_candidates(self, entry: RowEntry) -> tuple[str, ...] | None:
        """The query's own distinct candidates, as the very strings of their items; None for global ranking."""
        if self.context.task.eval_type == "global":
            return None
        if not entry._listed:
            raise DataError(f"{entry._row.where}: the candidate list is empty; a query needs candidates to rank")
        return tuple((self.known.get(key) or entry._candidates[key]).key for key in dict.fromkeys(entry._listed))

    def _check(self, entry: RowEntry, query: Item, labels: tuple[str, ...], keys: tuple[str, ...] | None) -> None:
        where = entry._row.where
        if query.key in self._queries:
            raise DataError(f"{where}: query id '{query.key}' occurs a second time; query ids must be unique")
        if not labels:
            raise DataError(f"{where}: query '{query.key}' has no relevant candidate (no label, or no qrels)")
        for label in labels:
            known = label in keys if keys is not None else label in self.known or label in entry._candidates
            if not known:
                scope = f"the query's {len(keys)} candidates" if keys is not None else "the corpus"
                raise DataError(f"{where}: label '{label}' of query '{query.key}' is not in {scope}")

    def _grades(self, relevance: tuple[float, ...]) -> tuple[float, ...] | None:
        """Grades where they say something: on graded tasks, or where one differs from 1."""
        return relevance if self.context.task.graded or any(grade != 1 for grade in relevance) else None
