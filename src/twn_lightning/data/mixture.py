"""Several corpora as one source: their rows interleaved in proportion to their weights, their tasks kept apart."""

from __future__ import annotations

import importlib
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from twn_lightning.data.corpus import PairColumns
from twn_lightning.data.file_corpus import FileCorpus
from twn_lightning.data.hard_negatives import read_hard_negatives
from twn_lightning.data.lazy import LazyRows
from twn_lightning.data.sources import Split, require_split
from twn_lightning.errors import ConfigError, DataError, unknown_name
from twn_lightning.settings import DataSettings, SourceSettings
from twn_lightning.types import Item, Pair, Side

CORPORA = {
    "colpali": "twn_lightning.data.sources.colpali:ColPali",
    "llava_hound": "twn_lightning.data.sources.llava_hound:LlavaHound",
    "mmeb_train": "twn_lightning.data.sources.mmeb_train:MmebTrain",
    "pairs": "twn_lightning.data.sources.pairs:UserPairs",
    "twn": "twn_lightning.data.sources.twn:TwnTrainingData",
    "ume_r1": "twn_lightning.data.sources.ume_r1:UmeR1",
    "visrag": "twn_lightning.data.sources.visrag:VisRAG",
}
TARGETS_PER_TASK = 1000
"""A task's candidates are the targets of the split's pairs, and further targets of the task up to this many."""


class MixturePairs(LazyRows[Pair]):
    """Rows of several corpora. A pair is built when it is indexed.

    Args:
        corpora: what the rows are of.
        corpus_N: which corpus each row is of.
        position_N: its position in that corpus's index.
        weights: how often each task is drawn; None: by its rows.
        mined: target hashes of mined hard negatives by query key.
    """

    def __init__(
        self,
        corpora: Sequence[FileCorpus],
        corpus_N: np.ndarray,
        position_N: np.ndarray,
        weights: Mapping[str, float] | None,
        mined: Mapping[str, Sequence[str]],
    ) -> None:
        self._corpora, self._corpus_N, self._position_N = corpora, corpus_N, position_N
        self._weights, self._mined = weights, mined

    def __len__(self) -> int:
        return len(self._corpus_N)

    def row(self, index: int) -> Pair:
        """The pair, read from its corpus."""
        corpus, position = self.place(index)
        return corpus.pair(position, self._mined)

    def place(self, row: int) -> tuple[FileCorpus, int]:
        """A row's corpus, and its position there."""
        return self._corpora[self._corpus_N[row]], int(self._position_N[row])

    def columns(self) -> PairColumns:
        """Tasks and target hashes of every row; CoTs are read from the files when they are asked for."""
        places = [self.place(row) for row in range(len(self))]
        return PairColumns(
            [corpus.index.tasks[position] for corpus, position in places],
            [corpus.index.target_hashes[position] for corpus, position in places],
            _Cots(places, Side.QUERY),
            _Cots(places, Side.CANDIDATE),
            self._weights,
        )


class _Cots(LazyRows["str | None"]):
    """One side's CoTs, read from the files."""

    def __init__(self, places: Sequence[tuple[FileCorpus, int]], side: Side) -> None:
        self._places, self._side = places, side

    def __len__(self) -> int:
        return len(self._places)

    def row(self, index: int) -> str | None:
        """The CoT, read from its file."""
        corpus, position = self._places[index]
        draft = corpus.draft(position)
        return draft.query.cot if self._side is Side.QUERY else draft.positive.cot


class Mixture:
    """What `data.sources` lists, or all of one corpus where `data.source` names it.

    An entry without a subset stands for all subsets of its corpus, which share its weight by their sizes. Weights
    decide how often a task's sub-batches are drawn, and which share of a limited number of pairs a corpus has.

    Args:
        settings: `source`, `sources`, the roots, the numbers of pairs.

    Raises:
        ConfigError: an entry listed twice, or an unknown corpus.
    """

    def __init__(self, settings: DataSettings) -> None:
        self.settings = settings
        self.name = settings.source
        entries = settings.sources if self.name == "mixture" else [SourceSettings(self.name)]
        self._corpora: list[FileCorpus] = []
        self._groups: list[tuple[float | None, list[int]]] = []
        """Weight of each entry, and its corpora."""
        for entry in entries:
            first = len(self._corpora)
            self._corpora += _corpora_of(entry, settings)
            self._groups.append((entry.weight, list(range(first, len(self._corpora)))))
        names = Counter(corpus.task for corpus in self._corpora)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise ConfigError(f"data.sources lists {', '.join(repeated)} more than once: leave one, with more weight")
        self._mined: Mapping[str, Sequence[str]] = {}
        if settings.hard_negatives_path is not None:
            self._mined = read_hard_negatives(Path(settings.hard_negatives_path))
        self._selected: dict[tuple[str, int], MixturePairs] = {}

    @property
    def tasks(self) -> list[str]:
        return sorted({task for corpus in self._corpora for task in corpus.tasks})

    def pairs(self, split: Split, count: int) -> MixturePairs:
        """Pairs of a split, at most `count`: each corpus gives its share, spread over its files.

        A smaller count gives a subset of what a larger one gives. Rows stay in the order of their files, interleaved.
        """
        require_split(self.name, split)
        if (split, count) not in self._selected:
            self._selected[split, count] = self._select(split, count)
        return self._selected[split, count]

    def _select(self, split: str, count: int) -> MixturePairs:
        positions = [np.flatnonzero(corpus.index.splits == split) for corpus in self._corpora]
        weights = self._corpus_weights([len(rows) for rows in positions])
        turn = [_turns(c.task, self.settings.seed, len(rows)) for c, rows in zip(self._corpora, positions, strict=True)]
        due_N = np.concatenate([(t + 0.5) / w for t, w in zip(turn, weights, strict=True)])
        corpus_N = np.repeat(np.arange(len(positions)), [len(rows) for rows in positions])
        place_N = np.concatenate([(np.arange(len(rows)) + 0.5) / max(len(rows), 1) for rows in positions])
        chosen = np.argsort(due_N, kind="stable")[:count]
        chosen = chosen[np.lexsort((corpus_N[chosen], place_N[chosen]))]
        position_N = np.concatenate(positions)[chosen]
        corpus_N = corpus_N[chosen]
        return MixturePairs(self._corpora, corpus_N, position_N, self._task_weights(corpus_N, position_N), self._mined)

    def _corpus_weights(self, sizes: Sequence[int]) -> list[float]:
        """Each corpus's share of its entry's weight; without weights, its size."""
        weights = [float(size) for size in sizes]
        for weight, members in self._groups:
            total = sum(sizes[i] for i in members)
            if weight is not None and total:
                for i in members:
                    weights[i] = weight * sizes[i] / total
        return [weight or 1.0 for weight in weights]

    def _task_weights(self, corpus_N: np.ndarray, position_N: np.ndarray) -> dict[str, float] | None:
        """Each task's share of its entry's weight, by the rows that it has there."""
        if any(weight is None for weight, _ in self._groups):
            return None
        weights: dict[str, float] = {}
        for weight, members in self._groups:
            rows = np.flatnonzero(np.isin(corpus_N, members))
            tasks = Counter(self._corpora[corpus_N[row]].index.tasks[position_N[row]] for row in rows)
            for task, size in tasks.items():
                weights[task] = weights.get(task, 0.0) + (weight or 0.0) * size / len(rows)
        return weights

    def candidates(self, split: Split, task: str) -> list[Item]:
        """Distinct targets of a task: those of the split's pairs, then others up to 1,000, of this split first.

        Targets of other splits are distractors: a classification task has hardly any of its own in a small split.

        Raises:
            DataError: no such task, or a target whose media cannot be found.
        """
        if task not in self.tasks:
            raise DataError(f"source '{self.name}': {unknown_name('task', task, self.tasks)}")
        targets: dict[str, tuple[FileCorpus, int]] = {}
        pairs = self.pairs(split, getattr(self.settings, f"{split}_pairs"))
        for corpus, position in map(pairs.place, range(len(pairs))):
            if corpus.index.tasks[position] == task:
                targets.setdefault(corpus.index.target_hashes[position], (corpus, position))
        for corpus in self._corpora:
            if task not in corpus.tasks:
                continue
            for position in np.argsort(corpus.index.splits != split, kind="stable").tolist():
                if len(targets) >= TARGETS_PER_TASK:
                    break
                if corpus.index.tasks[position] == task:
                    targets.setdefault(corpus.index.target_hashes[position], (corpus, position))
        return [corpus.target_item(position) for corpus, position in targets.values()]


def _corpora_of(entry: SourceSettings, settings: DataSettings) -> list[FileCorpus]:
    if entry.source not in CORPORA:
        raise ConfigError(f"data.sources: {unknown_name('source', entry.source, CORPORA)}")
    module, _, attribute = CORPORA[entry.source].partition(":")
    corpus: type[FileCorpus] = getattr(importlib.import_module(module), attribute)
    subsets = corpus.subsets(settings) if entry.subset is None else [entry.subset]
    if not subsets:
        raise DataError(
            f"source '{entry.source}': there is no subset below {settings.annotations_root or 'the hub repository'}. "
            "Check data.annotations_root"
        )
    return [corpus(replace(entry, subset=subset), settings) for subset in subsets]


def _turns(name: str, seed: int, size: int) -> np.ndarray:
    """In which order a corpus's rows are chosen: (size,), a permutation that depends on its name and the seed."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(size)
