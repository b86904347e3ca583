"""The nano world as a pair source: six tasks, half of the pairs without steps, true CoTs on queries and pictures."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

from twn_lightning.data.corpus import PairColumns
from twn_lightning.data.lazy import LazyRows
from twn_lightning.data.nano import world
from twn_lightning.data.nano.digits import SPLIT_SHARES
from twn_lightning.data.sources import require_split
from twn_lightning.settings import DataSettings
from twn_lightning.types import Item, Pair

STEP_SHARES = {0: 0.50} | dict.fromkeys((1, 2, 3), 0.30 / 3) | dict.fromkeys((4, 5, 6, 7, 8), 0.20 / 5)
"""50 % of the pairs need no step, 30 % need 1 to 3, 20 % need 4 to 8."""
TASK_SHARES: dict[int, dict[str, float]] = {
    0: {"read": 0.70, "picture": 0.25, "exit": 0.05},
    2: {"follow": 0.40, "picture": 0.15, "exit": 0.15, "sum": 0.15, "largest": 0.15},
    8: {"follow": 0.40, "picture": 0.20, "exit": 0.20, "largest": 0.20},
}
OTHER_TASK_SHARES = {"follow": 0.55, "picture": 0.20, "exit": 0.25}
PICTURE_VARIANTS = 16
"""How many drawings of one answer the training pairs meet; the other splits' corpora hold one."""


@cache
def _answer_hash(task: str, answer: str) -> str:
    """Two drawings of the same answer are the same target, so the hash is of what is drawn."""
    kind = "picture" if task == "picture" else "text"
    return hashlib.sha256(f"nano/{kind}/{answer}".encode()).hexdigest()[:16]


class NanoPairs(LazyRows[Pair]):
    """Pairs of one split: tasks and steps are drawn at once, scenes are drawn when a pair is asked for.

    Args:
        split: which digit images may be used.
        count: number of pairs.
        seed: pairs are a function of (seed, split, count, index).
    """

    def __init__(self, split: str, count: int, seed: int):
        require_split("nano", split)
        self.split = split
        self._seed = [seed, list(SPLIT_SHARES).index(split)]
        rng = np.random.default_rng([*self._seed, count])
        self._steps = rng.choice(list(STEP_SHARES), size=count, p=list(STEP_SHARES.values()))
        self._tasks = [_draw_task(rng, int(steps)) for steps in self._steps]

    def __len__(self) -> int:
        return len(self._tasks)

    def row(self, index: int) -> Pair:
        """The pair, drawn now."""
        question = self._question(index)
        task = question.task
        query = world.query_item(question, f"nano/{self.split}/{index}")
        if task == "picture":
            variant = index % PICTURE_VARIANTS if self.split == "train" else 0
            positive = world.picture_candidate(question.answer, self.split, variant)
        else:
            positive = world.text_candidate(question.answer)
        return Pair(query, positive, f"nano/{task}", _answer_hash(task, question.answer), steps=question.steps)

    def _question(self, index: int) -> world.Question:
        rng = np.random.default_rng([*self._seed, index, 1])
        return world.sample_question(rng, self.split, self._tasks[index], int(self._steps[index]))

    def columns(self) -> PairColumns:
        """Sources, hashes and CoTs of every row, without drawing an image."""
        questions = [self._question(i) for i in range(len(self))]
        return PairColumns(
            [f"nano/{q.task}" for q in questions],
            [_answer_hash(q.task, q.answer) for q in questions],
            [q.cot for q in questions],
            [world.picture_cot(q.answer) if q.task == "picture" else None for q in questions],
        )


def _draw_task(rng: np.random.Generator, steps: int) -> str:
    shares = TASK_SHARES.get(steps, OTHER_TASK_SHARES)
    return str(rng.choice(list(shares), p=list(shares.values())))


class NanoSource:
    """The packaged world. Digit images of its six splits are disjoint, so no query of one split is in another."""

    name = "nano"

    def __init__(self, settings: DataSettings):
        self.settings = settings

    @property
    def tasks(self) -> list[str]:
        return [f"nano/{task}" for task in world.TASKS]

    def pairs(self, split: str, count: int) -> NanoPairs:
        return NanoPairs(split, count, self.settings.seed)

    def candidates(self, split: str, task: str) -> list[Item]:
        """The task's whole corpus: 60 coloured digits as text or as pictures, or the 28 possible sums."""
        name = task.removeprefix("nano/")
        if name == "picture":
            return [world.picture_candidate(answer, split) for answer in world.answers(name)]
        return [world.text_candidate(answer) for answer in world.answers(name)]
