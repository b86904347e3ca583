"""What the packaged backbones are pretrained on: captions of all that it will see, and CoTs of at most 3 steps."""

from __future__ import annotations

import numpy as np

from twn_lightning.data.nano import tasks, world
from twn_lightning.types import Item

CURRICULA = ("grids", "mmeb_nano")
CAPTION_KINDS = ("video", "page", "clip", "picture")
CAPTIONS = {"grid": 0.4, "video": 0.3, "page": 0.2, "clip": 0.1}
"""What captions are of in mmeb_nano."""
GRID_SHARE = 0.25
"""Share of the questions that are `grids`' in mmeb_nano; the others are drawn evenly over its tasks."""
MAX_STEPS = 3
COT_STEPS: dict[str, tuple[int, ...]] = {
    "read": (0,),
    "follow": (1, 2, 3),
    "exit": (0, 1, 2, 3),
    "picture": (0, 1, 2, 3),
    "sum": (2,),
    "largest": (2,),
}
"""Tasks are drawn evenly, then their steps."""


def sample_rows(
    rng: np.random.Generator, count: int, split: str = "train", curriculum: str = "mmeb_nano"
) -> list[tuple[Item, str]]:
    """Half captions, half CoTs of at most MAX_STEPS steps, in turn: (prompt item, response)."""
    grids = curriculum == "grids"
    rows: list[tuple[Item, str]] = []
    for i in range(count):
        if i % 2 == 0:
            kind = "grid" if grids else str(rng.choice(list(CAPTIONS), p=list(CAPTIONS.values())))
            rows.append(grid_caption(rng, split) if kind == "grid" else tasks.sample_caption(rng, split, kind))
        elif grids or rng.random() < GRID_SHARE:
            task = str(rng.choice(world.TASKS))
            question = world.sample_question(rng, split, task, int(rng.choice(COT_STEPS[task])))
            rows.append((world.query_item(question, str(i)), question.cot))
        else:
            rows.append(sample_task_cot(rng, split, str(rng.choice(tasks.TASKS))))
    return rows


def sample_task_cot(rng: np.random.Generator, split: str, task: str) -> tuple[Item, str]:
    """A query of MMEB-nano and its CoT; half of them take steps."""
    kind = str(rng.choice([tasks.STEPS, tasks.STEPS, tasks.DIRECT, tasks.LOOKALIKE]))
    steps = int(rng.integers(1, MAX_STEPS + 1)) if kind == tasks.STEPS else 0
    query = tasks.sample_row(rng, split, task, kind, steps).query
    assert query.cot is not None
    return query, query.cot


def grid_caption(rng: np.random.Generator, split: str) -> tuple[Item, str]:
    """A grid, and colour, digit and arrow of every cell."""
    scene = world.sample_scene(rng, split)
    return Item("grid", world.DESCRIBE, "", (scene.image(),)), scene.caption()


def sample_pictures(
    rng: np.random.Generator, count: int, split: str = "train", curriculum: str = "mmeb_nano"
) -> list[tuple[Item, str]]:
    """Single cells, every other one with an arrow: the vision tower learns to read before it has to look around.

    In mmeb_nano those without an arrow come in shades, or are icons.
    """
    names = world.answers("read")
    rows: list[tuple[Item, str]] = []
    for i in range(count):
        if i % 2 == 0:
            cell, caption = world.sample_cell(rng, split)
            rows.append((Item(str(i), world.DESCRIBE, "", (cell,)), caption))
        elif curriculum == "grids":
            name = names[rng.integers(len(names))]
            rows.append((world.picture_candidate(name, split, int(rng.integers(1 << 30))), name))
        else:
            rows.append(tasks.sample_caption(rng, split, "picture"))
    return rows
