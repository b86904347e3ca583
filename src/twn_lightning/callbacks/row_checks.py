"""Whether training sees the rows it should: the batches of the sampler, and nothing of what is held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from twn_lightning import checks
from twn_lightning.data.corpus import PairColumns, columns_of
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.data.sampler import SameSourceSampler
from twn_lightning.data.sources import Split
from twn_lightning.errors import DataError
from twn_lightning.stages.base import TWNStage
from twn_lightning.stages.labelled_split import ShuffledRows
from twn_lightning.stages.routing_gate_training import RoutingGateTraining
from twn_lightning.types import ContrastiveBatch, Pair

HELD_OUT: tuple[Split, ...] = ("val", "test")
MOST_HELD_OUT, MOST_COMPARED = 256, 1024
"""Pairs whose contents are read: the first of each held-out split, and training pairs of the same targets."""


def trained_pairs(data: TWNDataModule) -> Sequence[Pair]:
    """The pairs that stage 1 or 3 draws its batches from."""
    return data.pairs("train" if data.stage == "sft" else "rl")


class BatchRows:
    """What every batch must hold: the rows that the sampler gives for its number.

    Args:
        stage: of the run, which trains on pairs or, as the gate does, on numbered rows.
    """

    def __init__(self, stage: TWNStage) -> None:
        self._sampler: SameSourceSampler | ShuffledRows
        self._columns: PairColumns | None = None
        if isinstance(stage, RoutingGateTraining):
            self._sampler = stage.rows
        else:
            self._sampler = stage.data.train_dataloader().sampler
            self._columns = columns_of(trained_pairs(stage.data))

    def check(self, batch: ContrastiveBatch | list[int], number: int) -> None:
        """Compare a batch's rows, or their sources and targets, with what it should hold.

        Args:
            batch: of this rank.
            number: training batches before it.

        Raises:
            CheckError: other rows; says whose they are where that can be told.
        """
        if isinstance(batch, list) != (self._columns is None):  # the second of two phases, on stored rows
            return
        found = batch if isinstance(batch, list) else [(pair.source, pair.target_hash) for pair in batch.pairs]
        if found == self._expected(number):
            return
        nearby = [other for other in range(max(0, number - 8), number + 9) if other < len(self._sampler)]
        origin = next((f"those of batch {other + 1}" for other in nearby if found == self._expected(other)), "others")
        checks.report(
            "batch_rows",
            f"batch {number + 1} does not hold the {len(self._expected(number))} rows that seed {self._sampler.seed} "
            f"gives it but {origin} ({len(found)} rows): samples are repeated or dropped. Resume from the last "
            "checkpoint; with data.num_workers=0 the rows are read in this process",
        )

    def _expected(self, number: int) -> list[Any]:
        rows, columns = self._sampler.rank_rows(number), self._columns
        return rows if columns is None else [(columns.sources[row], columns.target_hashes[row]) for row in rows]


def check_duplicates(data: TWNDataModule) -> None:
    """Report held-out pairs that are training pairs too: the same content of query and positive.

    Only pairs of the same target are read, so this costs nothing where the splits share no target, and a bounded
    number of reads where they do. What cannot be read is left to those who need it.

    Args:
        data: of the run.
    """
    splits = [data.source.pairs(split, getattr(data.data, f"{split}_pairs")) for split in HELD_OUT]
    keys = [_keys(pairs)[:MOST_HELD_OUT] for pairs in splits]
    trained = trained_pairs(data)
    wanted = set(chain(*keys))
    rows = [row for row, key in enumerate(_keys(trained)) if key in wanted][:MOST_COMPARED]
    known = {digest: pair.query.key for digest, pair in _read(trained, rows)}
    shared = {(digest[0], digest[-1]) for digest in known}
    twins = [
        (pair, known[digest])
        for pairs, listed in zip(splits, keys, strict=True)
        for digest, pair in _read(pairs, [row for row, key in enumerate(listed) if key in shared])
        if digest in known
    ]
    if twins:
        pair, twin = twins[0]
        checks.report(
            "duplicates",
            f"{len(twins)} of {sum(map(len, keys))} held-out pairs are training pairs too, first '{pair.query.key}' of "
            f"{pair.source} (in training: '{twin}'), so held-out scores flatter the model. Remove them from the "
            "training files, or split by content",
        )


def _keys(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """Source and target hash of every pair; no media are read."""
    columns = columns_of(pairs)
    return list(zip(columns.sources, columns.target_hashes, strict=True))


def _read(pairs: Sequence[Pair], rows: Iterable[int]) -> Iterator[tuple[tuple[str, ...], Pair]]:
    """Digests of the contents of some pairs, and the pairs; without those whose media cannot be read."""
    for row in rows:
        with suppress(DataError, OSError):
            pair = pairs[row]
            yield (pair.source, pair.query.instruction, pair.query.content_hash(), pair.target_hash), pair
