"""What is right for each query, read from lists of keys and checked: distinct labels with their grades."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from twn_lightning.errors import ConfigError, DataError, unknown_name

NdcgPairing = Literal["correct", "compat"]
MAX_GRADE = 1000.0
"""2^grade must stay a number."""


@dataclass(frozen=True)
class QueryLabels:
    """The distinct labels of one query."""

    keys: tuple[Hashable, ...]
    grades: tuple[float, ...]
    """The relevance of each key."""
    paired_grades: tuple[float, ...]
    """What NDCG takes for the relevance of each key: `grades`, unless the pairing is "compat"."""


def read_labels(query: int, labels: Any, relevance: Any, pairing: NdcgPairing) -> QueryLabels:
    """The labels of one query.

    Args:
        query: Index of the query, for messages.
        labels: Keys, or one key.
        relevance: Grades in the order of `labels`, a mapping from key to grade, or None: all 1.
        pairing: "correct", or "compat": grades go to the labels in the order of Python's set of the labels, as the
            reference evaluator has it, which depends on the hash seed unless the labels are integers.

    Returns:
        Distinct keys; a key that is listed twice has the higher of its grades.

    Raises:
        DataError: No label, no or too many grades, a grade that is NaN, infinite or negative.
        ConfigError: "compat" for unequal grades of labels that are not integers; unknown pairing.
    """
    if pairing not in ("correct", "compat"):
        raise ConfigError(unknown_name("ndcg_pairing", str(pairing), ("correct", "compat")))
    keys = as_keys(labels)
    if not keys:
        raise DataError(f"query {query} has no label: leave it out, its metrics are undefined")
    if relevance is None:
        distinct = tuple(dict.fromkeys(keys))
        ones = (1.0,) * len(distinct)
        return QueryLabels(distinct, ones, ones)
    grades = _grades(query, keys, labels, relevance)
    grade_of: dict[Hashable, float] = {}
    for key, grade in zip(keys, grades, strict=True):
        grade_of[key] = max(grade, grade_of.get(key, 0.0))
    distinct, correct = tuple(grade_of), tuple(grade_of.values())
    if pairing == "correct" or len(set(correct)) == 1:
        return QueryLabels(distinct, correct, correct)
    return QueryLabels(distinct, correct, _set_order_grades(query, keys, grades))


def as_keys(keys: Any) -> list[Hashable]:
    """Keys as a list: of a sequence, a set, an array or a tensor; one key stands for itself.

    Raises:
        DataError: a key that cannot be compared, such as a list or a dictionary.
    """
    if hasattr(keys, "tolist"):
        keys = keys.tolist()
    listed = list(keys) if isinstance(keys, (list, tuple, set, frozenset)) else [keys]
    try:
        frozenset(listed)
    except TypeError as error:
        raise DataError(f"keys must be texts or numbers, found {listed!r:.100} ({error})") from error
    return listed


def _grades(query: int, keys: Sequence[Hashable], labels: Any, relevance: Any) -> list[float]:
    """A checked grade for every key."""
    if isinstance(relevance, Mapping):
        ungraded = [key for key in keys if key not in relevance]
        if ungraded:
            raise DataError(f"query {query}: relevance has no grade for its label {ungraded[0]!r}")
        beside = [key for key, grade in relevance.items() if key not in keys and not grade <= 0]
        if beside:
            raise DataError(f"query {query}: relevance grades {beside[0]!r}, which is not among its labels")
        listed = [relevance[key] for key in keys]
    else:
        if isinstance(labels, (set, frozenset)):
            raise DataError(f"query {query}: labels are a set, which has no order to pair grades with; pass a list")
        listed = as_keys(relevance)
        if len(listed) != len(keys):
            raise DataError(f"query {query} has {len(keys)} labels but {len(listed)} relevance grades")
    for key, grade in zip(keys, listed, strict=True):
        if not hasattr(grade, "__float__"):
            raise DataError(f"query {query}: the relevance of label {key!r} is {grade!r}, which is not a number")
        if not math.isfinite(grade) or not 0 <= grade <= MAX_GRADE:
            raise DataError(
                f"query {query}: the relevance of label {key!r} is {grade}; it must be a number from 0 to {MAX_GRADE:g}"
            )
    return [float(grade) for grade in listed]


def _set_order_grades(query: int, keys: Sequence[Hashable], grades: Sequence[float]) -> tuple[float, ...]:
    """The grade that each key has once the keys, but not the grades, went through a Python set."""
    identifiers = []
    for key in keys:
        if not _is_integer(key):
            raise ConfigError(
                f"ndcg_pairing=compat needs integer labels, query {query} has {key!r}: the order of a set of strings "
                "changes from process to process, so the reference's scores cannot be reproduced; use correct"
            )
        identifiers.append(int(str(key)))
    order = list(set(identifiers))
    if len(order) != len(identifiers):
        raise DataError(
            f"query {query}: a label is listed twice, and ndcg_pairing=compat is undefined for graded duplicates "
            "(the reference evaluator refuses them)"
        )
    grade_of = dict(zip(order, grades, strict=True))
    return tuple(grade_of[identifier] for identifier in identifiers)


def _is_integer(key: Hashable) -> bool:
    digits = str(key).removeprefix("-")
    if isinstance(key, bool) or not (digits.isascii() and digits.isdigit()) or len(digits) > 100:
        return False
    return str(int(str(key))) == str(key)
