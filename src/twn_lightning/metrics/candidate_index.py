"""Which candidates each query ranks, as row numbers: keys are looked up once, and every bad key names its query."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twn_lightning.errors import DataError
from twn_lightning.metrics.query_labels import NdcgPairing, QueryLabels, as_keys, read_labels

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Query:
    """One query's task: rank these candidates, these are right."""

    index: int
    labels: QueryLabels
    label_rows: tuple[int, ...]
    """Candidate row of each label."""
    candidate_rows: Rows
    """Distinct rows in the order they are listed; one object shared by all queries that rank everything."""


class CandidateIndex:
    """Candidate keys to rows; of rows with the same key the first stands for all.

    Args:
        keys: One key for each of the C candidates.
    """

    def __init__(self, keys: Sequence[Any]) -> None:
        self.keys = as_keys(keys)
        self.row_of: dict[Hashable, int] = {}
        for row, key in enumerate(self.keys):
            self.row_of.setdefault(key, row)
        self.distinct_rows = np.fromiter(self.row_of.values(), dtype=np.int64, count=len(self.row_of))
        self._listed: Any = None
        self._listed_rows = self.distinct_rows

    def read(self, items: Iterable[Any], pairing: NdcgPairing) -> list[Query]:
        """Every query of a task, checked.

        Args:
            items: `RankingItem`s, or objects or mappings with the same fields.
            pairing: As in `ranking_metrics`.

        Raises:
            DataError: A label or candidate that is unknown, a label outside the query's own list, an empty list.
        """
        return [self._query(query, item, pairing) for query, item in enumerate(items)]

    def _query(self, query: int, item: Any, pairing: NdcgPairing) -> Query:
        labels = read_labels(query, _field(query, item, "labels"), _field(query, item, "relevance"), pairing)
        listed = _field(query, item, "candidate_keys")
        rows = self.distinct_rows if listed is None else self._rows(query, listed)
        unknown = [key for key in labels.keys if key not in self.row_of]
        if unknown:
            raise DataError(
                f"query {query}: its label {unknown[0]!r} is not among the {len(self.row_of)} candidates of the task"
            )
        label_rows = tuple(self.row_of[key] for key in labels.keys)
        if listed is not None:
            outside = [key for key, row in zip(labels.keys, label_rows, strict=True) if not (rows == row).any()]
            if outside:
                raise DataError(f"query {query}: its label {outside[0]!r} is not among its own {len(rows)} candidates")
        return Query(query, labels, label_rows, rows)

    def _rows(self, query: int, listed: Any) -> Rows:
        """The distinct rows of a list of keys. Queries often share one list object, which is then read once."""
        if listed is self._listed:
            return self._listed_rows
        keys = list(dict.fromkeys(as_keys(listed)))
        if not keys:
            raise DataError(f"query {query} has an empty candidate list: there is nothing to rank")
        try:
            rows = np.fromiter(map(self.row_of.__getitem__, keys), dtype=np.int64, count=len(keys))
        except KeyError as error:
            raise DataError(
                f"query {query}: its candidate {error.args[0]!r} is not among the {len(self.row_of)} candidates"
            ) from error
        self._listed, self._listed_rows = listed, rows
        return rows


def _field(query: int, item: Any, name: str) -> Any:
    """A field of a ranking item, whichever way it is given."""
    if isinstance(item, Mapping):
        value = item.get(name)
    else:
        value = getattr(item, name, None)
    if value is None and name == "labels":
        raise DataError(f"query {query}: its item ({type(item).__name__}) has no labels")
    return value
