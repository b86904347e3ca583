"""MMEB-nano: MMEB-V2's nine meta-tasks in miniature, eleven tasks whose every item has a known number of steps.

An item is of one of three kinds:

    direct      nothing to think about: the answer is what is shown or said (0 steps)
    lookalike   among the candidates are near-duplicates in another shade; a CoT names what they share (0 steps)
    steps       arrows to follow, digits to add: 1 to 8 steps

A video is a grid whose columns are moments: of 2 rows and 4 columns, it shows a column at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from twn_lightning.data.nano import drawings, world
from twn_lightning.data.nano.drawings import Answer
from twn_lightning.data.nano.questions import (
    DIRECT,
    DRAW,
    LOOKALIKE,
    PAGE,
    PICTURE,
    STEPS,
    VIDEO,
    VIDEO_GRID,
    describe,
    pick,
    show_scene,
    shown_answer,
    shown_cot,
)
from twn_lightning.types import Item

KINDS = (DIRECT, LOOKALIKE, STEPS)
DESCRIBE_VIDEO, DESCRIBE_PAGE = "Describe the video.", "Describe the page."
INSTRUCTIONS = {
    "NanoCLS": "Find the class of the image, follow arrows from a1.",
    "NanoQA": world.FIND_CELL,
    "NanoT2I": "Find the picture of the text.",
    "NanoI2T": "Find the caption of the image, follow arrows from c3.",
    "NanoCIR": "Find the picture after the change.",
    "NanoVG": "Find the part of the image.",
    "NanoVideoCLS": "Find the class of the video, follow arrows from a1.",
    "NanoVideoQA": "Find the option for the video.",
    "NanoVideoRET": "Find the video of the text.",
    "NanoMR": "Find the moment of the video.",
    "NanoDoc": "Find the page of the text.",
}
"""NanoQA has a second one, for sums: `world.FIND_NUMBER`."""
TARGET_INSTRUCTIONS = dict.fromkeys(("NanoT2I", "NanoCIR", "NanoVG"), PICTURE) | {
    "NanoVideoRET": VIDEO,
    "NanoMR": VIDEO,
    "NanoDoc": PAGE,
}
"""Of candidates that are shown; text candidates have none."""
SHOWN_AS = dict.fromkeys(("NanoT2I", "NanoCIR", "NanoVG"), "picture") | {"NanoVideoRET": "clip", "NanoDoc": "page"}
"""How an answer is drawn as a candidate; other tasks' are words."""
TASKS = tuple(INSTRUCTIONS)
OWN_LISTS = ("NanoVG", "NanoMR", "NanoVideoQA")
"""Tasks whose queries bring their own candidates."""
MAX_STEPS = dict.fromkeys(TASKS, world.MAX_STEPS) | dict.fromkeys(("NanoVideoCLS", "NanoVideoQA", "NanoMR"), 7)


@dataclass(frozen=True)
class NanoRow:
    """One row of a task."""

    task: str
    kind: str
    steps: int
    query: Item
    """With its true CoT."""
    positive: Item
    target: str
    """What is right, in words: rows of a task with equal targets have the same right candidate."""
    candidates: tuple[Item, ...] | None = None
    """The row's own candidates, the right one first (OWN_LISTS); None: the task's corpus."""


def sample_row(
    rng: np.random.Generator, split: str, task: str, kind: str, steps: int = 0, key: str = "query"
) -> NanoRow:
    """Draw a row.

    Args:
        rng: decides everything.
        split: whose digit images, drawings and fonts are used.
        task: one of TASKS.
        kind: one of KINDS.
        steps: of kind `steps`, 1 to MAX_STEPS[task].
        key: the query's.

    Raises:
        ValueError: steps that the kind or the task does not have.
    """
    if (kind == STEPS) != (1 <= steps <= MAX_STEPS[task]):
        raise ValueError(f"{task}, kind '{kind}': {steps} steps; '{STEPS}' takes 1 to {MAX_STEPS[task]}, others 0")
    draft = DRAW[task](rng, split, task, kind, steps)
    instruction = draft.instruction or INSTRUCTIONS[task]
    query = Item(key, instruction, draft.text, draft.media, cot=draft.cot)
    if draft.candidates is not None:
        return NanoRow(task, kind, draft.steps, query, draft.candidates[0], draft.target, draft.candidates)
    return NanoRow(task, kind, draft.steps, query, candidate(task, draft.target, split, rng), draft.target)


def candidate(task: str, target: str, split: str, rng: np.random.Generator | None = None) -> Item:
    """The right candidate of a target: words, or a drawing of them with its true CoT.

    Args:
        task: one of TASKS but those of OWN_LISTS that show parts of the query.
        target: as in `NanoRow`.
        split: whose ingredients are drawn.
        rng: of the drawing; None: the one of the task's corpus.
    """
    drawn_by = np.random.default_rng([ord(letter) for letter in target]) if rng is None or split != "train" else rng
    key, answer = candidate_key(task, target), Answer.parse(target)
    match SHOWN_AS.get(task):
        case "picture":
            picture = drawings.draw_picture(answer, split, drawn_by)
            return Item(key, PICTURE, "", (picture,), shown_cot(answer, describe(answer)))
        case "clip":
            clip = drawings.draw_clip(answer, split, drawn_by)
            return Item(key, VIDEO, "", (clip,), shown_cot(answer, describe(answer)))
        case "page":
            page, digits = drawings.draw_page(answer, split, drawn_by)
            return Item(key, PAGE, "", (page,), shown_cot(answer, _page_words(answer, digits)))
    return Item(key, "", target)


def _page_words(answer: Answer, digits: Sequence[int]) -> str:
    return f"heading {answer.name} {' '.join(map(str, digits))}"


@cache
def targets(task: str) -> tuple[str, ...]:
    """Every target of a task, in a fixed order; none of NanoMR, whose moments are told apart by what they show."""
    if task == "NanoMR":
        return ()
    if task == "NanoDoc":
        return tuple(map(str, [*drawings.pages(), *drawings.pages(shaded=True)]))
    found = list(map(str, [*drawings.coloured_digits(), *drawings.coloured_digits(shaded=True)]))
    if task in ("NanoCLS", "NanoI2T", "NanoT2I", "NanoVideoCLS", "NanoVideoRET"):
        found += map(str, drawings.icons())
    if task in ("NanoQA", "NanoVideoQA"):
        found += [str(total) for total in range(9 * max(world.SIZE, VIDEO_GRID[1]) + 1)]
    return tuple(found)


def corpus(split: str, task: str) -> list[Item]:
    """Every target of a task as a candidate, one drawing each; keys are unique."""
    return [candidate(task, target, split) for target in targets(task)]


def grades(task: str, target: str) -> dict[str, float]:
    """Relevance of the corpus by key: 2 for the right candidate, in NanoDoc 1 for other pages under its heading."""
    right = Answer.parse(target)
    if task != "NanoDoc":
        return {candidate_key(task, target): 2.0}
    related = [other for other in targets(task) if Answer.parse(other).name == right.name]
    return {candidate_key(task, other): 2.0 if other == target else 1.0 for other in related}


def candidate_key(task: str, target: str) -> str:
    """Key of a target's candidate."""
    return f"{SHOWN_AS.get(task, 'text')}:{target}"


def sample_caption(rng: np.random.Generator, split: str, kind: str) -> tuple[Item, str]:
    """What the backbone learns to see: a video grid, a page, a clip or a picture, and all that it shows.

    Args:
        rng: decides everything.
        split: whose ingredients are drawn.
        kind: `video`, `page`, `clip` or `picture`.
    """
    if kind == "video":
        scene = world.sample_scene(rng, split, VIDEO_GRID)
        return Item(kind, DESCRIBE_VIDEO, "", (show_scene(scene, rng, video=True),)), scene.caption()
    if kind == "page":
        answer = pick(rng, drawings.pages(shaded=rng.random() < 0.6))
        page, digits = drawings.draw_page(answer, split, rng)
        shade = f"{answer.shade} " if answer.shade else ""
        return Item(kind, DESCRIBE_PAGE, "", (page,)), f"{shade}{_page_words(answer, digits)}"
    answer = shown_answer(rng, LOOKALIKE if rng.random() < 0.5 else DIRECT)
    if kind == "clip":
        return Item(kind, DESCRIBE_VIDEO, "", (drawings.draw_clip(answer, split, rng),)), str(answer)
    return Item(kind, world.DESCRIBE, "", (drawings.draw_picture(answer, split, rng),)), str(answer)
