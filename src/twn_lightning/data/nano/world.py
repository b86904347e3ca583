"""Scenes, questions, answers and true chains of thought.

A scene is a 3 x 3 grid: every cell has a colour, a handwritten digit and an arrow. Cells are named a1 to c3.
A question needs a known number of steps; its CoT is a scene description of fixed length, then the steps, then the
answer, so a 0-step CoT is not much shorter than a long one. A step is the cell reached; where arrows are counted, also
how many are left; in a sum the digit and the total so far; in a comparison the best cell so far and its digit. Every
word then follows from the words before it and one look at the description: without the countdown, fine-tuning unlearns
to count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np

from twn_lightning.data.nano.digits import (
    ARROWS,
    COLOURS,
    VARIANTS,
    digit_rows,
    join_cells,
    load_digits,
    render_cells,
)
from twn_lightning.types import Item, Media

SIZE = 3
CELLS = tuple(f"{r}{c}" for r in "abc" for c in "123")
COLOUR_NAMES = tuple(COLOURS)
MAX_STEPS = SIZE * SIZE - 1
TASKS = ("read", "follow", "exit", "sum", "largest", "picture")
MOVES = {0: (-1, 0), 1: (1, 0), 2: (0, -1), 3: (0, 1)}
FIND_CELL = "Find the cell."
FIND_NUMBER = "Find the number."
FIND_PICTURE = "Find the picture of the cell."
ANSWER = "Represent the answer."
PICTURE = "Represent the picture."
DESCRIBE = "Describe the grid."


@dataclass(frozen=True)
class Scene:
    """Nine cells in row-major order."""

    digit_rows: np.ndarray
    colours: np.ndarray
    arrows: np.ndarray
    variants: np.ndarray | None = None
    """Which perturbed copy of each digit is drawn; None outside the train split."""

    @property
    def digits(self) -> np.ndarray:
        return load_digits()[1][self.digit_rows]

    def label(self, cell: int) -> str:
        return f"{COLOUR_NAMES[self.colours[cell]]} {self.digits[cell]}"

    def image(self) -> Media:
        cells = render_cells(self.digit_rows, self.colours, self.arrows, self.variants)
        return Media("image", join_cells(cells, SIZE))

    def caption(self) -> str:
        """Colour, digit and arrow of every cell: what the backbone is pretrained to write."""
        return " ".join(f"{self.label(i)} {ARROWS[self.arrows[i]]}" for i in range(SIZE * SIZE))


@dataclass(frozen=True)
class Question:
    """A question about a scene, with its answer, its true number of steps and the words of its reasoning."""

    scene: Scene
    task: str
    text: str
    answer: str
    steps: int
    cot: str


def _neighbour(cell: int, arrow: int) -> int | None:
    row, column = cell // SIZE + MOVES[arrow][0], cell % SIZE + MOVES[arrow][1]
    return row * SIZE + column if 0 <= row < SIZE and 0 <= column < SIZE else None


@cache
def _simple_paths(length: int) -> tuple[tuple[int, ...], ...]:
    """All self-avoiding walks of `length` moves in the grid."""
    if length == 0:
        return tuple((cell,) for cell in range(SIZE * SIZE))
    longer = []
    for path in _simple_paths(length - 1):
        for arrow in MOVES:
            step = _neighbour(path[-1], arrow)
            if step is not None and step not in path:
                longer.append((*path, step))
    return tuple(longer)


@cache
def _exit_paths(length: int) -> tuple[tuple[int, ...], ...]:
    """Self-avoiding walks that end on the border, where an arrow can leave the grid."""
    return tuple(p for p in _simple_paths(length) if any(_neighbour(p[-1], a) is None for a in MOVES))


def _arrow_between(cell: int, step: int) -> int:
    return next(a for a in MOVES if _neighbour(cell, a) == step)


def sample_scene(rng: np.random.Generator, split: str) -> Scene:
    """A random scene whose digit images come from one split only."""
    digits = rng.integers(0, 10, SIZE * SIZE)
    bank = digit_rows(split)
    rows = np.array([bank[d][rng.integers(len(bank[d]))] for d in digits])
    colours, arrows = rng.integers(0, len(COLOURS), SIZE * SIZE), rng.integers(0, len(ARROWS), SIZE * SIZE)
    variants = rng.integers(0, VARIANTS, SIZE * SIZE) if split == "train" else None
    return Scene(rows, colours, arrows, variants)


def sample_cell(rng: np.random.Generator, split: str) -> tuple[Media, str]:
    """One random cell with its arrow, and its caption."""
    scene, cell = sample_scene(rng, split), int(rng.integers(SIZE * SIZE))
    one = slice(cell, cell + 1)
    variant = None if scene.variants is None else scene.variants[one]
    pixels = render_cells(scene.digit_rows[one], scene.colours[one], scene.arrows[one], variant)[0]
    return Media("image", pixels), f"{scene.label(cell)} {ARROWS[scene.arrows[cell]]}"


def _with_path(rng: np.random.Generator, scene: Scene, path: tuple[int, ...], leave: bool) -> Scene:
    """The scene with arrows laid along a path; with `leave`, the last arrow points out of the grid."""
    arrows = scene.arrows.copy()
    for cell, step in pairwise(path):
        arrows[cell] = _arrow_between(cell, step)
    if leave:
        arrows[path[-1]] = rng.choice([a for a in MOVES if _neighbour(path[-1], a) is None])
    return replace(scene, arrows=arrows)


def _think(description: Sequence[str], word: str, steps: Sequence[str], answer: str) -> str:
    """The description is read row by row, each behind its letter."""
    rows = [f"{'abc'[r]} {' '.join(description[r * SIZE : (r + 1) * SIZE])}" for r in range(SIZE)]
    return f"<think> {' '.join(rows)} {word} {' '.join(steps)} </think><answer> {answer} </answer>"


def sample_question(rng: np.random.Generator, split: str, task: str, steps: int) -> Question:
    """A question of a task that needs exactly `steps` steps.

    Raises:
        ValueError: the task has no question of that many steps.
    """
    scene = sample_scene(rng, split)
    if task == "sum":
        return _sum_question(rng, scene, steps)
    if task == "largest":
        return _largest_question(rng, scene, steps)
    leave = task == "exit"
    paths = _exit_paths(steps) if leave else _simple_paths(steps)
    path = paths[rng.integers(len(paths))]
    scene = _with_path(rng, scene, path, leave)
    start = CELLS[path[0]]
    if leave:
        text = f"start {start} follow until you leave"
    else:
        text = f"start {start} follow {steps}" if steps else f"at {start}"
    answer = scene.label(path[-1])
    description = [ARROWS[a] for a in scene.arrows]
    walk = [CELLS[cell] for cell in path]
    if steps and not leave:
        walk = [f"{cell} {steps - walked}" for walked, cell in enumerate(walk)]
    return Question(scene, task, text, answer, steps, _think(description, "path", walk, answer))


def _sum_question(rng: np.random.Generator, scene: Scene, steps: int) -> Question:
    if steps != SIZE - 1:
        raise ValueError(f"a sum of a row takes {SIZE - 1} steps, not {steps}")
    row = int(rng.integers(SIZE))
    digits = scene.digits[row * SIZE : (row + 1) * SIZE]
    totals = np.cumsum(digits)
    running = [f"{digit} {total}" for digit, total in zip(digits, totals, strict=True)]
    cot = _think([str(d) for d in scene.digits], "total", running, str(totals[-1]))
    return Question(scene, "sum", f"sum of row {'abc'[row]}", str(totals[-1]), steps, cot)


def _largest_question(rng: np.random.Generator, scene: Scene, steps: int) -> Question:
    if steps not in (SIZE - 1, MAX_STEPS):
        raise ValueError(f"the largest of a row takes {SIZE - 1} steps, of the grid {MAX_STEPS}, not {steps}")
    row = int(rng.integers(SIZE))
    cells = range(row * SIZE, (row + 1) * SIZE) if steps == SIZE - 1 else range(SIZE * SIZE)
    best, running = cells[0], []
    for cell in cells:
        best = cell if scene.digits[cell] > scene.digits[best] else best
        running.append(f"{CELLS[best]} {scene.digits[best]}")
    where = f"row {'abc'[row]}" if steps == SIZE - 1 else "grid"
    answer = scene.label(best)
    cot = _think([str(d) for d in scene.digits], "best", running, answer)
    return Question(scene, "largest", f"largest in {where}", answer, steps, cot)


INSTRUCTIONS = dict.fromkeys(TASKS, FIND_CELL) | {"sum": FIND_NUMBER, "picture": FIND_PICTURE}


def query_item(question: Question, key: str) -> Item:
    """The question as a query, with its true CoT."""
    media = (question.scene.image(),)
    return Item(key, INSTRUCTIONS[question.task], question.text, media, cot=question.cot)


def text_candidate(answer: str) -> Item:
    return Item(f"text:{answer}", ANSWER, answer)


def picture_candidate(answer: str, split: str, variant: int = 0) -> Item:
    """A single cell without its arrow: the answer as an image, drawn with a digit image of the split."""
    colour, digit = answer.split()
    rows = digit_rows(split)[int(digit)]
    seed = [COLOUR_NAMES.index(colour), int(digit), variant]
    row = rows[np.random.default_rng(seed).integers(len(rows))]
    pixels = render_cells(np.array([row]), np.array([COLOUR_NAMES.index(colour)]), None)[0]
    return Item(f"picture:{answer}:{variant}", PICTURE, "", (Media("image", pixels),))


def answers(task: str) -> list[str]:
    """Every answer a task can have, in a fixed order."""
    if task == "sum":
        return [str(total) for total in range(9 * SIZE + 1)]
    return [f"{colour} {digit}" for colour in COLOUR_NAMES for digit in range(10)]
