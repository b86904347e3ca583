"""Scenes, questions, answers and true chains of thought.

A scene is a grid, 3 x 3 unless another shape is asked for: every cell has a colour, a handwritten digit and an arrow.
Cells are named by row and column, a1 to c3.
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
    SHADES,
    VARIANTS,
    digit_rows,
    join_cells,
    load_digits,
    render_cells,
)
from twn_lightning.types import Item, Media

SIZE = 3
GRID = (SIZE, SIZE)
COLOUR_NAMES = tuple(COLOURS)
SHADE_NAMES = tuple(SHADES)
MAX_STEPS = SIZE * SIZE - 1
TASKS = ("read", "follow", "exit", "sum", "largest", "picture")
MOVES = {0: (-1, 0), 1: (1, 0), 2: (0, -1), 3: (0, 1)}
FIND_CELL = "Find the cell."
FIND_NUMBER = "Find the number."
FIND_PICTURE = "Find the picture of the cell."
ANSWER = "Represent the answer."
PICTURE = "Represent the picture."
DESCRIBE = "Describe the grid."


def cell_names(shape: tuple[int, int]) -> tuple[str, ...]:
    """Names of a grid's cells, row-major: a1, a2, ..."""
    return tuple(f"{'abc'[row]}{column + 1}" for row in range(shape[0]) for column in range(shape[1]))


CELLS = cell_names(GRID)


@dataclass(frozen=True)
class Scene:
    """Cells in row-major order."""

    digit_rows: np.ndarray
    colours: np.ndarray
    arrows: np.ndarray
    variants: np.ndarray | None = None
    """Which perturbed copy of each digit is drawn; None outside the train split."""
    shades: np.ndarray | None = None
    """Indices into SHADES; None: every colour as it is."""
    shape: tuple[int, int] = GRID
    """Rows and columns."""

    @property
    def digits(self) -> np.ndarray:
        return load_digits()[1][self.digit_rows]

    def label(self, cell: int) -> str:
        """Colour and digit of a cell, without its shade."""
        return f"{COLOUR_NAMES[self.colours[cell]]} {self.digits[cell]}"

    def cells(self) -> np.ndarray:
        """Pixels of every cell: uint8 (cells, TILE, TILE, 3)."""
        return render_cells(self.digit_rows, self.colours, self.arrows, self.variants, self.shades)

    def image(self) -> Media:
        return Media("image", join_cells(self.cells(), *self.shape))

    def caption(self) -> str:
        """Colour, digit and arrow of every cell: what the backbone is pretrained to write."""
        return " ".join(f"{self.label(i)} {ARROWS[self.arrows[i]]}" for i in range(len(self.arrows)))


@dataclass(frozen=True)
class Question:
    """A question about a scene, with its answer, its true number of steps and the words of its reasoning."""

    scene: Scene
    task: str
    text: str
    answer: str
    steps: int
    cot: str


def _neighbour(cell: int, arrow: int, shape: tuple[int, int]) -> int | None:
    rows, columns = shape
    row, column = cell // columns + MOVES[arrow][0], cell % columns + MOVES[arrow][1]
    return row * columns + column if 0 <= row < rows and 0 <= column < columns else None


@cache
def simple_paths(length: int, shape: tuple[int, int] = GRID) -> tuple[tuple[int, ...], ...]:
    """All self-avoiding walks of `length` moves in the grid."""
    if length == 0:
        return tuple((cell,) for cell in range(shape[0] * shape[1]))
    longer = []
    for path in simple_paths(length - 1, shape):
        for arrow in MOVES:
            step = _neighbour(path[-1], arrow, shape)
            if step is not None and step not in path:
                longer.append((*path, step))
    return tuple(longer)


@cache
def exit_paths(length: int, shape: tuple[int, int] = GRID, start: int | None = None) -> tuple[tuple[int, ...], ...]:
    """Self-avoiding walks, all or those from one cell, that end on the border, where an arrow can leave the grid."""
    return tuple(
        path
        for path in simple_paths(length, shape)
        if start in (None, path[0]) and any(_neighbour(path[-1], arrow, shape) is None for arrow in MOVES)
    )


def _arrow_between(cell: int, step: int, shape: tuple[int, int]) -> int:
    return next(a for a in MOVES if _neighbour(cell, a, shape) == step)


def sample_scene(rng: np.random.Generator, split: str, shape: tuple[int, int] = GRID) -> Scene:
    """A random scene whose digit images come from one split only."""
    count = shape[0] * shape[1]
    digits = rng.integers(0, 10, count)
    bank = digit_rows(split)
    rows = np.array([bank[d][rng.integers(len(bank[d]))] for d in digits])
    colours, arrows = rng.integers(0, len(COLOURS), count), rng.integers(0, len(ARROWS), count)
    variants = rng.integers(0, VARIANTS, count) if split == "train" else None
    return Scene(rows, colours, arrows, variants, shape=shape)


def sample_cell(rng: np.random.Generator, split: str) -> tuple[Media, str]:
    """One random cell with its arrow, and its caption."""
    scene, cell = sample_scene(rng, split), int(rng.integers(SIZE * SIZE))
    one = slice(cell, cell + 1)
    variant = None if scene.variants is None else scene.variants[one]
    pixels = render_cells(scene.digit_rows[one], scene.colours[one], scene.arrows[one], variant)[0]
    return Media("image", pixels), f"{scene.label(cell)} {ARROWS[scene.arrows[cell]]}"


def with_path(rng: np.random.Generator, scene: Scene, path: tuple[int, ...], leave: bool) -> Scene:
    """The scene with arrows laid along a path; with `leave`, the last arrow points out of the grid."""
    arrows = scene.arrows.copy()
    for cell, step in pairwise(path):
        arrows[cell] = _arrow_between(cell, step, scene.shape)
    if leave:
        arrows[path[-1]] = rng.choice([a for a in MOVES if _neighbour(path[-1], a, scene.shape) is None])
    return replace(scene, arrows=arrows)


def write_cot(thought: str, answer: str) -> str:
    """A chain of thought in the format of docs/method.md."""
    return f"<think> {thought} </think><answer> {answer} </answer>"


def describe_cell(colour: str, digit: str) -> str:
    """A cell in the words of a CoT, which has none for its shade."""
    return f"one cell with colour {colour} and number {digit}"


def think_about(scene: Scene, description: Sequence[str], word: str, steps: Sequence[str], answer: str) -> str:
    """A CoT about a scene: one word of every cell, row by row behind its letter, then the steps, then the answer."""
    rows, columns = scene.shape
    described = [f"{'abc'[r]} {' '.join(description[r * columns : (r + 1) * columns])}" for r in range(rows)]
    return write_cot(" ".join([*described, word, *steps]), answer)


def walk_question(scene: Scene, path: tuple[int, ...], task: str) -> Question:
    """`read` a cell, `follow` arrows for a number of steps, or follow them until they `exit`, along a path laid."""
    names, steps, leave = cell_names(scene.shape), len(path) - 1, task == "exit"
    if leave:
        text = f"start {names[path[0]]} follow until you leave"
    else:
        text = f"start {names[path[0]]} follow {steps}" if steps else f"at {names[path[0]]}"
    answer = scene.label(path[-1])
    walk = [names[cell] for cell in path]
    if steps and not leave:
        walk = [f"{cell} {steps - walked}" for walked, cell in enumerate(walk)]
    cot = think_about(scene, [ARROWS[a] for a in scene.arrows], "path", walk, answer)
    return Question(scene, task, text, answer, steps, cot)


def sum_question(rng: np.random.Generator, scene: Scene) -> Question:
    """The sum of a row's digits, a step for every digit after the first."""
    columns = scene.shape[1]
    row = int(rng.integers(scene.shape[0]))
    digits = scene.digits[row * columns : (row + 1) * columns]
    totals = np.cumsum(digits)
    running = [f"{digit} {total}" for digit, total in zip(digits, totals, strict=True)]
    cot = think_about(scene, [str(d) for d in scene.digits], "total", running, str(totals[-1]))
    return Question(scene, "sum", f"sum of row {'abc'[row]}", str(totals[-1]), columns - 1, cot)


def sample_question(rng: np.random.Generator, split: str, task: str, steps: int) -> Question:
    """A question of a task that needs exactly `steps` steps.

    Raises:
        ValueError: the task has no question of that many steps.
    """
    scene = sample_scene(rng, split)
    if task == "sum":
        if steps != SIZE - 1:
            raise ValueError(f"a sum of a row takes {SIZE - 1} steps, not {steps}")
        return sum_question(rng, scene)
    if task == "largest":
        return largest_question(rng, scene, steps)
    paths = exit_paths(steps) if task == "exit" else simple_paths(steps)
    path = paths[rng.integers(len(paths))]
    return walk_question(with_path(rng, scene, path, task == "exit"), path, task)


def largest_question(rng: np.random.Generator, scene: Scene, steps: int) -> Question:
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
    cot = think_about(scene, [str(d) for d in scene.digits], "best", running, answer)
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
    return Item(f"picture:{answer}:{variant}", PICTURE, "", (Media("image", pixels),), picture_cot(answer))


def picture_cot(answer: str) -> str:
    """The true CoT of a picture of an answer."""
    return write_cot(describe_cell(*answer.split()), answer)


def answers(task: str) -> list[str]:
    """Every answer a task can have, in a fixed order."""
    if task == "sum":
        return [str(total) for total in range(9 * SIZE + 1)]
    return [f"{colour} {digit}" for colour in COLOUR_NAMES for digit in range(10)]
