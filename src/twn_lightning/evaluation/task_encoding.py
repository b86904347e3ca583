"""One side of a task, encoded over all ranks into a file on disk: memory does not grow with the corpus.

Shape letters: N items, D embedding width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from twn_lightning.errors import DataError
from twn_lightning.evaluation.adaptive_cache import AdaptiveCachedEncoder
from twn_lightning.evaluation.embedding_cache import CachedEncoder
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.evaluation.ranks import failing_together, gather_on_first
from twn_lightning.evaluation.shared_thinking import think_together
from twn_lightning.strategy import gather_objects, rank, world_size
from twn_lightning.types import Item

OnError = Literal["raise", "skip"]


@dataclass
class TaskSide:
    """The embeddings of one side, on the first rank; on the others just their own share."""

    embedding_ND: np.ndarray
    """float32, mapped from an unnamed file that is gone when this is."""
    think_N: np.ndarray
    probability_N: np.ndarray
    """NaN where there is no gate."""
    tokens_N: np.ndarray
    malformed_N: np.ndarray
    failed: dict[int, str] = field(default_factory=dict)
    """Why an item could not be encoded, by row (`on_error="skip"`); its embedding is 0."""
    reused: int = 0
    """Items found in the cache."""

    @classmethod
    def empty(cls, count: int, dimension: int, folder: Path) -> TaskSide:
        """Room for items, on the disk of `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            embedding_ND = np.memmap(file, np.float32, mode="w+", shape=(count, dimension))
        return cls(
            embedding_ND,
            np.zeros(count, dtype=bool),
            np.full(count, np.nan, dtype=np.float32),
            np.zeros(count, dtype=np.int64),
            np.zeros(count, dtype=bool),
        )

    def write(self, rows: Sequence[int], encoded: EncodedItems) -> None:
        """Take in some items."""
        self.embedding_ND[rows] = encoded.embedding_ND
        for name in ("think_N", "probability_N", "tokens_N", "malformed_N"):
            value = getattr(encoded, name)
            if value is not None:
                getattr(self, name)[rows] = value

    def read(self, rows: Sequence[int]) -> EncodedItems:
        """Some items, to send them to another rank."""
        return EncodedItems(
            np.asarray(self.embedding_ND[rows]),
            think_N=self.think_N[rows],
            probability_N=self.probability_N[rows],
            tokens_N=self.tokens_N[rows],
            malformed_N=self.malformed_N[rows],
        )


def _unheard(items: int) -> None:
    """For a caller that does not listen."""


def encode_side(
    encoder: CachedEncoder,
    items: Sequence[Item],
    *,
    folder: Path,
    chunk_size: int,
    on_error: OnError = "raise",
    started: Callable[[int], None] = _unheard,
    progress: Callable[[int], None] = _unheard,
) -> TaskSide:
    """Encode items, each rank its chunks, and collect them on the first rank.

    Equal items are encoded once. Chunks lie on a grid that does not depend on ranks or on what is cached: with one rank
    or two, straight or resumed, the encoder sees the same batches. Except that several ranks share the CoTs of adaptive
    embeddings out (`shared_thinking`), so that these are the same on any number of ranks up to rounding.

    Args:
        encoder: of this side and mode.
        items: the same on every rank; at least one.
        folder: on a disk with room for the embeddings.
        chunk_size: items handed to the encoder at once.
        on_error: `skip` notes items whose media cannot be read in `failed`.
        started: called with the number of distinct items that are this rank's share.
        progress: called with the number of them done, after each chunk.

    Raises:
        DataError: an item that cannot be read, or is missing under policy `only-cache`; on every rank.
        NumericalError: an embedding that is not finite; on every rank.
    """
    side = TaskSide.empty(len(items), encoder.encoder.dimension, folder)
    first_N = first_of_equal(items)
    distinct = np.flatnonzero(first_N == np.arange(len(items))).tolist()
    chunks = [distinct[start : start + chunk_size] for start in range(0, len(distinct), chunk_size)]
    mine = chunks[rank() :: world_size()]
    started(sum(map(len, mine)))
    reused_before = encoder.reused
    encoder.refresh()
    held = None
    if world_size() > 1 and encoder.policy == "only-missing" and isinstance(encoder, AdaptiveCachedEncoder):
        held = think_together(encoder, items, mine, progress, skip_errors=on_error == "skip")
        progress = _unheard
    with failing_together():
        encoder.require_cached([items[i] for chunk in mine for i in chunk])
        try:
            for chunk in mine:
                for rows, encoded in _encode_chunk(encoder, items, chunk, on_error, side.failed):
                    side.write(rows, encoded)
                progress(len(chunk))
        finally:
            encoder.flush()
    side.reused = sum(gather_objects(encoder.reused - reused_before if held is None else held))
    side.failed = {row: why for failed in gather_objects(side.failed) for row, why in sorted(failed.items())}
    if world_size() > 1:
        _collect(side, chunks)
    _repeat(side, first_N, chunk_size)
    return side


def first_of_equal(items: Sequence[Item]) -> np.ndarray:
    """For each item the first row with the same instruction, text and media, by reference: no file is read."""
    first: dict[object, int] = {}
    return np.array([first.setdefault(_reference(item), row) for row, item in enumerate(items)], dtype=np.int64)


def _reference(item: Item) -> object:
    media = []
    for medium in item.media:
        content: object = medium.content
        if isinstance(medium.content, np.ndarray):
            content = medium.digest()
        elif not isinstance(medium.content, (Path, tuple)):
            content = medium.content.name
        media.append((medium.kind, content))
    return item.instruction, item.text, tuple(media)


def _repeat(side: TaskSide, first_N: np.ndarray, chunk_size: int) -> None:
    """Give items that equal an earlier one what that one has."""
    repeated = np.flatnonzero(first_N != np.arange(len(first_N)))
    for start in range(0, len(repeated), chunk_size):
        rows = repeated[start : start + chunk_size]
        side.write(rows.tolist(), side.read(first_N[rows].tolist()))
    side.failed |= {row: side.failed[first] for row in repeated.tolist() if (first := int(first_N[row])) in side.failed}


def _collect(side: TaskSide, chunks: Sequence[list[int]]) -> None:
    """Bring the other ranks' chunks to the first rank, one chunk of each rank at a time."""
    for start in range(0, len(chunks), world_size()):
        own = start + rank()
        share = None if own >= len(chunks) else (chunks[own], side.read(chunks[own]))
        for other, part in enumerate(gather_on_first(share)):
            if other > 0 and part is not None:
                side.write(*part)


def _encode_chunk(
    encoder: CachedEncoder, items: Sequence[Item], rows: list[int], on_error: OnError, failed: dict[int, str]
) -> Iterator[tuple[list[int], EncodedItems]]:
    """A chunk's rows and their embeddings; where items may be skipped, halves of it until the broken ones are alone."""
    try:
        yield rows, encoder.encode([items[i] for i in rows])
    except DataError as error:
        if on_error == "raise" or encoder.policy == "only-cache":
            raise
        if len(rows) == 1:
            failed[rows[0]] = str(error)
            return
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            yield from _encode_chunk(encoder, items, half, on_error, failed)
