"""What every corpus needs before training: CoT normalisation and filters, columns of a pair sequence, hash splits."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

from twn_lightning.data.lazy import LazyRows
from twn_lightning.errors import DataError
from twn_lightning.types import Item, Pair, Side

ThinkSides = Literal["query", "candidate", "both"]

ANSWER_CLOSE = "</answer>"
COT_FORMAT = re.compile(r"<think>(?P<think>.+?)</think>\s*<answer>(?P<answer>.+?)</answer>", re.DOTALL)
COT_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
REPEATED_NGRAM = 8
"""A CoT is repetitive when some run of this many words ..."""
MAX_NGRAM_REPEATS = 3
"""... occurs more often than this."""
LABEL_WORDS = 8
"""A text target without media and of at most this many words is label-like: it needs no CoT."""

SPLIT_SHARES: Mapping[str, float] = {
    "train": 0.90,
    "rl": 0.04,
    "gate": 0.03,
    "calibration": 0.01,
    "val": 0.01,
    "test": 0.01,
}
"""Share of the *targets* in each split, for sources without splits of their own. `train` is for SFT."""


@dataclass(frozen=True)
class PairColumns:
    """What batching and filtering need of every row, without decoding media."""

    sources: list[str]
    target_hashes: list[str]
    query_cots: Sequence[str | None]
    """May be read from the files as they are asked for, as may `candidate_cots`."""
    candidate_cots: Sequence[str | None]
    weights: Mapping[str, float] | None = None
    """How often each source is drawn, relative to the others; None: in proportion to its rows."""


@runtime_checkable
class HasColumns(Protocol):
    """A lazy pair sequence that knows its columns without building the pairs (images, above all)."""

    def columns(self) -> PairColumns: ...


def columns_of(pairs: Sequence[Pair]) -> PairColumns:
    """The columns of a pair sequence: its own where it offers them, else every pair is read once."""
    if isinstance(pairs, HasColumns):
        return pairs.columns()
    rows = [(pair.source, pair.target_hash, pair.query.cot, pair.positive.cot) for pair in pairs]
    sources, hashes, query_cots, candidate_cots = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [])
    return PairColumns(sources, hashes, query_cots, candidate_cots)


class RowView(LazyRows[Any]):
    """Some rows of a sequence whose elements are made when they are asked for.

    Args:
        values: the whole sequence.
        rows: which of its rows, in order.
    """

    def __init__(self, values: Sequence[Any], rows: Sequence[int]) -> None:
        self._values, self._rows = values, rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Any:
        """The element, asked of the whole sequence."""
        return self._values[self._rows[index]]


@dataclass
class FilterReport:
    """How many rows were read, kept, and dropped for which reason."""

    total: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        return f"kept {self.kept} of {self.total} pairs" + (f"; dropped: {reasons}" if reasons else "")


class PairSubset(LazyRows[Pair]):
    """Some rows of a pair sequence, still lazy, with their columns at hand.

    Args:
        pairs: the whole sequence.
        rows: which of its rows, in order.
        columns: the columns of the whole sequence.
    """

    def __init__(self, pairs: Sequence[Pair], rows: Sequence[int], columns: PairColumns) -> None:
        self._pairs, self._rows = pairs, rows
        self._columns = PairColumns(
            [columns.sources[r] for r in rows],
            [columns.target_hashes[r] for r in rows],
            _taken(columns.query_cots, rows),
            _taken(columns.candidate_cots, rows),
            columns.weights,
        )

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Pair:
        """The pair, asked of the whole sequence."""
        return self._pairs[self._rows[index]]

    def columns(self) -> PairColumns:
        """The columns of these rows."""
        return self._columns


def _taken(values: Sequence[str | None], rows: Sequence[int]) -> Sequence[str | None]:
    return [values[row] for row in rows] if isinstance(values, list) else RowView(values, rows)


def target_digest(text: str, media: Sequence[str]) -> str:
    """The target hash of an item whose media are known by name: equal text and equal names are the same target.

    Reading every file of a corpus to hash its content would take hours, so a source names a file by its scheme and its
    path below the scheme's root (`mmeb_train://MSCOCO/1.jpg`): two sources that mean one file agree, and so do two
    machines. Copies of a file under two names count as two targets. Without media this is `Item.content_hash`.

    Args:
        text: the item's text; case and runs of white space do not count.
        media: names of its images and videos, in order.
    """
    normalised = " ".join(text.lower().split())
    return hashlib.sha256("\x1f".join([normalised, *media]).encode()).hexdigest()[:16]


def normalise_cot(text: str) -> str:
    """The CoT up to and including its first `</answer>`, without surrounding space; text that has none is unchanged."""
    stripped = text.strip()
    end = stripped.find(ANSWER_CLOSE)
    return stripped if end < 0 else stripped[: end + len(ANSWER_CLOSE)]


def cot_problem(text: str, count_tokens: Callable[[str], int], max_tokens: int) -> str | None:
    """Why a CoT is not fit for training: "format", "repetition" or "length"; None when it is.

    Args:
        text: a normalised CoT.
        count_tokens: length of a text in the backbone's tokens.
        max_tokens: the longest CoT to keep.

    Reference: docs/method.md, section 3; the format is UME-R1's.
    """
    match = COT_FORMAT.fullmatch(text)
    well_formed = match is not None and all(match[part].strip() for part in ("think", "answer"))
    if not well_formed or any(text.count(tag) != 1 for tag in COT_TAGS):
        return "format"
    if is_repetitive(text):
        return "repetition"
    return "length" if count_tokens(text) > max_tokens else None


def is_repetitive(text: str) -> bool:
    """Whether a CoT says some run of `REPEATED_NGRAM` words more than `MAX_NGRAM_REPEATS` times."""
    words = text.split()
    runs = Counter(tuple(words[i : i + REPEATED_NGRAM]) for i in range(len(words) - REPEATED_NGRAM + 1))
    return bool(runs) and max(runs.values()) > MAX_NGRAM_REPEATS


def filter_cots(
    pairs: Sequence[Pair], think_sides: ThinkSides, count_tokens: Callable[[str], int], max_tokens: int
) -> tuple[PairSubset, FilterReport]:
    """Drop pairs whose CoT is malformed, repetitive or too long on a side that thinks.

    A CoT that is *missing* is not dropped here: the collator reports it with the item's name, because a corpus without
    CoTs would otherwise shrink to nothing in silence.

    Args:
        pairs: the rows, possibly lazy.
        think_sides: the sides whose CoT is trained on.
        count_tokens: length of a text in the backbone's tokens.
        max_tokens: the longest CoT to keep.

    Returns:
        The kept pairs, still lazy, and the counts.
    """
    columns = columns_of(pairs)
    sides = [
        (side, cots)
        for side, cots in ((Side.QUERY, columns.query_cots), (Side.CANDIDATE, columns.candidate_cots))
        if thinks(side, think_sides)
    ]
    problem = lru_cache(maxsize=65_536)(lambda text: cot_problem(normalise_cot(text), count_tokens, max_tokens))
    report = FilterReport(total=len(pairs))
    rows = []
    for row in range(len(pairs)):
        found = {f"{side.value} {reason}" for side, cots in sides if (text := cots[row]) and (reason := problem(text))}
        if found:
            report.dropped[min(found)] += 1
        else:
            rows.append(row)
    report.kept = len(rows)
    return PairSubset(pairs, rows, columns), report


def thinks(side: Side, think_sides: ThinkSides) -> bool:
    """Whether inputs of a side may think."""
    return think_sides in (side.value, "both")


def is_label_like(item: Item) -> bool:
    """Whether a target is a short text without media, which needs no CoT (docs/method.md, section 3)."""
    return not item.media and len(item.text.split()) <= LABEL_WORDS


def split_by_hash(target_hash: str, shares: Mapping[str, float] = SPLIT_SHARES) -> str:
    """The split a target belongs to, for sources that bring no splits of their own.

    The rule: the first 8 bytes of SHA-256("split:" + target_hash) as a fraction of 2^64 fall into one of consecutive
    intervals, in the order and with the shares given. All pairs of one target land in one split, whatever the source,
    the seed or the machine, so the gate and RL meet no target that SFT has seen.

    Args:
        target_hash: the pair's target hash.
        shares: share of the targets by split, in order; they sum to 1.

    Returns:
        A key of `shares`.

    Raises:
        ValueError: shares that do not sum to 1.
    """
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"split shares must sum to 1, these sum to {sum(shares.values()):.6f}: {dict(shares)}")
    fraction = int.from_bytes(hashlib.sha256(f"split:{target_hash}".encode()).digest()[:8], "big") / 2**64
    bound = 0.0
    for name, share in shares.items():
        bound += share
        if fraction < bound:
            return name
    return name


def require_pairs(pairs: Sequence[Pair], source: str, split: str, report: FilterReport | None = None) -> None:
    """Refuse an empty dataset.

    Raises:
        DataError: no pairs; names the source and the split, and says what the filters dropped.
    """
    if len(pairs):
        return
    if report is not None and report.total:
        raise DataError(
            f"source '{source}', split '{split}': no pair is left after filtering ({report}). "
            "Raise data.max_cot_tokens, change data.think_sides, or check the corpus's CoT format"
        )
    raise DataError(
        f"source '{source}', split '{split}' has 0 pairs. Set data.{split}_pairs above 0, or check the files it reads"
    )
