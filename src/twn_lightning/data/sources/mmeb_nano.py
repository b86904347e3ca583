"""MMEB-nano as a pair source: eleven tasks evenly, direct, lookalike and multi-step items, with true CoTs.

Queries have one, and so have candidates that are shown; candidates that are words do not.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from twn_lightning.data.corpus import PairColumns
from twn_lightning.data.lazy import LazyRows
from twn_lightning.data.nano import tasks
from twn_lightning.data.nano.digits import SPLIT_SHARES
from twn_lightning.data.nano.tasks import DIRECT, LOOKALIKE, STEPS, NanoRow
from twn_lightning.data.sources import require_split
from twn_lightning.errors import DataError
from twn_lightning.settings import DataSettings
from twn_lightning.types import Item, Pair

KIND_SHARES = {DIRECT: 0.45, LOOKALIKE: 0.20, STEPS: 0.35}
STEP_SHARES = dict.fromkeys((1, 2, 3), 0.20 / 0.35 / 3) | dict.fromkeys((4, 5, 6, 7, 8), 0.15 / 0.35 / 5)
"""Among items that take steps. Where a task has no question of so many, it is asked one of its most."""


def draw_row(seed: list[int], split: str, task: str, key: str) -> NanoRow:
    """A row of a task, its kind and its steps by the shares above.

    Args:
        seed: decides everything.
        split: whose ingredients are used.
        task: one of `tasks.TASKS`.
        key: the query's; its kind is appended.
    """
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(list(KIND_SHARES), p=list(KIND_SHARES.values())))
    steps = int(rng.choice(list(STEP_SHARES), p=list(STEP_SHARES.values()))) if kind == STEPS else 0
    return tasks.sample_row(rng, split, task, kind, min(steps, tasks.MAX_STEPS[task]), f"{key}/{kind}")


class MMEBNanoPairs(LazyRows[Pair]):
    """Pairs of one split, drawn when they are asked for; tasks take turns.

    Args:
        split: whose ingredients are used.
        count: number of pairs.
        seed: a pair is a function of (seed, split, index).
    """

    def __init__(self, split: str, count: int, seed: int):
        require_split("mmeb_nano", split)
        self.split, self._count = split, count
        self._seed = [seed, list(SPLIT_SHARES).index(split)]

    def __len__(self) -> int:
        return self._count

    def row(self, index: int) -> Pair:
        """The pair, drawn now."""
        task = tasks.TASKS[index % len(tasks.TASKS)]
        row = draw_row([*self._seed, index], self.split, task, f"mmeb_nano/{self.split}/{index}")
        return Pair(row.query, self._positive(row), f"mmeb_nano/{task}", _target_hash(row), steps=row.steps)

    def _positive(self, row: NanoRow) -> Item:
        """As the row has it in the train split, and where it is a moment of its own; elsewhere the corpus's."""
        if row.task == "NanoMR":
            return replace(row.positive, key=f"moment:{row.target}")
        return row.positive if self.split == "train" else tasks.candidate(row.task, row.target, self.split)

    def columns(self) -> PairColumns:
        """Sources, hashes and CoTs of every row."""
        pairs = list(self)
        return PairColumns(
            [pair.source for pair in pairs],
            [pair.target_hash for pair in pairs],
            [pair.query.cot for pair in pairs],
            [pair.positive.cot for pair in pairs],
        )


def _target_hash(row: NanoRow) -> str:
    """Two drawings of one answer are the same target: the hash is of what is drawn, and of nothing but a moment."""
    drawn = row.target if row.task == "NanoMR" else tasks.candidate_key(row.task, row.target)
    return hashlib.sha256(f"mmeb_nano/{drawn}".encode()).hexdigest()[:16]


class MMEBNanoSource:
    """The world of the eleven tasks. Its splits share no digit image, drawing or typeface."""

    name = "mmeb_nano"

    def __init__(self, settings: DataSettings):
        self.settings = settings

    @property
    def tasks(self) -> list[str]:
        return [f"mmeb_nano/{task}" for task in tasks.TASKS]

    def pairs(self, split: str, count: int) -> MMEBNanoPairs:
        return MMEBNanoPairs(split, count, self.settings.seed)

    def candidates(self, split: str, task: str) -> list[Item]:
        """Every target of the task, one drawing each; of NanoMR the moments of the split's pairs."""
        name = task.removeprefix("mmeb_nano/")
        if name != "NanoMR":
            return tasks.corpus(split, name)
        count = getattr(self.settings, f"{split}_pairs")
        pairs = self.pairs(split, count)
        moments = {
            pair.positive.key: pair.positive
            for pair in (pairs[i] for i in range(tasks.TASKS.index(name), count, len(tasks.TASKS)))
        }
        if not moments:
            raise DataError(f"source 'mmeb_nano', split '{split}': data.{split}_pairs={count} holds no pair of {name}")
        return list(moments.values())
