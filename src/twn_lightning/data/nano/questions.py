"""How the queries of MMEB-nano come about: what is asked of what, what is right, and the thought that finds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from twn_lightning.data.nano import drawings, world
from twn_lightning.data.nano.digits import SHADES
from twn_lightning.data.nano.drawings import Answer
from twn_lightning.types import Item, Media

DIRECT, LOOKALIKE, STEPS = "direct", "lookalike", "steps"
VIDEO_GRID = (2, 4)
NAMED_SHADES = tuple(shade for shade in SHADES if shade)
PICTURE, VIDEO, PAGE = "Represent the picture.", "Represent the video.", "Represent the page."
STARTS = {"NanoCLS": 0, "NanoI2T": 8, "NanoVideoCLS": 0}
"""Tasks without a question: the cell that their arrows are followed from."""
ICON_SHARE = 0.3
"""Of what is shown alone, without arrows."""
TRAIL_SHARE = 0.25
"""Direct items without a question that are a grid whose arrows leave at once."""


@dataclass(frozen=True)
class Draft:
    """A query before it has a right candidate."""

    text: str
    media: tuple[Media, ...]
    target: str
    cot: str
    steps: int = 0
    instruction: str | None = None
    candidates: tuple[Item, ...] | None = None


def pick(rng: np.random.Generator, answers: Sequence[Answer]) -> Answer:
    return answers[int(rng.integers(len(answers)))]


def shown_answer(rng: np.random.Generator, kind: str) -> Answer:
    """What a single cell or clip shows."""
    if kind == LOOKALIKE:
        return pick(rng, drawings.coloured_digits(shaded=True))
    return pick(rng, drawings.icons() if rng.random() < ICON_SHARE else drawings.coloured_digits())


def describe(answer: Answer) -> str:
    """A cell or an icon in the words of a CoT, which has none for its shade."""
    if answer.digit is None:
        return f"one picture with a {answer.name}"
    return world.describe_cell(answer.name, str(answer.digit))


def shown_cot(answer: Answer, seen: str) -> str:
    """The CoT of a candidate that shows an answer: what is seen, then the answer; like a query's, without its shade."""
    return world.write_cot(seen, str(answer.plain))


def _labels(rng: np.random.Generator, split: str, task: str, kind: str, steps: int) -> Draft:
    """An image or a video without a question: what it shows, or where its arrows lead from a fixed cell."""
    video = task == "NanoVideoCLS"
    shape = VIDEO_GRID if video else world.GRID
    if kind == STEPS or (kind == DIRECT and rng.random() < TRAIL_SHARE):
        paths = world.exit_paths(steps, shape, STARTS[task])
        if not paths:
            raise ValueError(f"{task}: no way out takes {steps} steps")
        path = paths[rng.integers(len(paths))]
        scene = world.with_path(rng, world.sample_scene(rng, split, shape), path, leave=True)
        question = world.walk_question(scene, path, "exit")
        return Draft("", (show_scene(scene, rng, video),), question.answer, question.cot, steps)
    answer = shown_answer(rng, kind)
    media = (drawings.draw_clip if video else drawings.draw_picture)(answer, split, rng)
    cot = world.write_cot(f"{describe(answer)} nothing to follow", str(answer.plain))
    return Draft("", (media,), str(answer), cot)


def show_scene(scene: world.Scene, rng: np.random.Generator, video: bool) -> Media:
    return Media("video", drawings.drift(_moments(scene), rng)) if video else scene.image()


def _moments(scene: world.Scene) -> np.ndarray:
    """A video grid's columns as frames: uint8 (columns, rows * TILE, TILE, 3)."""
    cells = scene.cells()
    cells = cells.reshape(*scene.shape, *cells.shape[1:]).swapaxes(0, 1)
    return np.ascontiguousarray(cells.reshape(scene.shape[1], -1, *cells.shape[3:]))


def _chain(rng: np.random.Generator, answer: Answer, steps: int, read: str) -> tuple[str, Answer, str]:
    """Digits to add to an answer's, units only: how the text goes on, what comes out, and the thought."""
    assert answer.digit is not None
    total, asked, thought = answer.digit, [], []
    for letter, number in zip("abcdefgh", rng.integers(1, 10, steps).tolist(), strict=False):
        total = (total + number) % 10
        asked.append(f"{letter} plus {number}")
        thought.append(f"{letter} {number} {total}")
    return " ".join(asked), replace(answer, digit=total), " ".join([read, *(thought or ["nothing to add"])])


def _text(rng: np.random.Generator, split: str, task: str, kind: str, steps: int) -> Draft:
    """A text that names a picture, a video or a page, or a sum whose last figure completes the name."""
    page = task == "NanoDoc"
    if page:
        answer = pick(rng, drawings.pages(shaded=kind == LOOKALIKE))
    elif kind == STEPS:
        answer = pick(rng, drawings.coloured_digits())
    else:
        answer = shown_answer(rng, kind)
    if answer.digit is None:
        cot = world.write_cot(f"text says a picture with a {answer.name} nothing to add", answer.name)
        return Draft(answer.name, (), answer.name, cot)
    said = f"heading {answer.name} total {answer.digit}" if page else f"{answer.name} {answer.digit}"
    read = f"text says {'heading' if page else 'colour'} {answer.name} and number {answer.digit}"
    asked, result, thought = _chain(rng, answer, steps, read)
    text = " ".join(word for word in (answer.shade, said, asked) if word)
    return Draft(text, (), str(result), world.write_cot(thought, str(result.plain)), steps)


def _change(rng: np.random.Generator, split: str, task: str, kind: str, steps: int) -> Draft:
    """A picture and how the one looked for differs: its colour and digit, or only its shade."""
    shown = pick(rng, drawings.coloured_digits())
    media = (drawings.draw_picture(shown, split, rng),)
    if kind == LOOKALIKE:
        shade = str(rng.choice(NAMED_SHADES))
        cot = world.write_cot(f"{describe(shown)} nothing to add", str(shown))
        return Draft(shade, media, str(replace(shown, shade=shade)), cot)
    colour = str(rng.choice([name for name in world.COLOUR_NAMES if name != shown.name]))
    asked, result, thought = _chain(rng, shown, steps, describe(shown))
    result = replace(result, name=colour)
    return Draft(f"in {colour} {asked}".strip(), media, str(result), world.write_cot(thought, str(result)), steps)


def _grid(rng: np.random.Generator, split: str, task: str, kind: str, steps: int) -> Draft:
    """A question about a grid or a video."""
    video = task in ("NanoVideoQA", "NanoMR")
    scene = world.sample_scene(rng, split, VIDEO_GRID if video else world.GRID)
    draw = _same_class if task in ("NanoVG", "NanoMR") else _shade_of
    if kind == LOOKALIKE:
        scene, cell, text, target, cot = draw(rng, scene)
        instruction = None
    else:
        question, cell = _question(rng, scene, task, kind, steps)
        scene, text, target, cot = question.scene, question.text, question.answer, question.cot
        instruction = world.INSTRUCTIONS[question.task] if task == "NanoQA" else None
    draft = Draft(text, (show_scene(scene, rng, video),), target, cot, steps, instruction)
    if task == "NanoVG":
        return replace(draft, candidates=_crops(scene, cell))
    if task == "NanoMR":
        moments = _clips(scene, cell)
        return replace(draft, target=moments[0].content_hash(), candidates=moments)
    return _with_options(rng, draft) if task == "NanoVideoQA" else draft


def _question(
    rng: np.random.Generator, scene: world.Scene, task: str, kind: str, steps: int
) -> tuple[world.Question, int]:
    """A walk, a sum or a comparison of exactly so many steps, and the cell it ends in (0 for a sum)."""
    shape = scene.shape
    if kind == STEPS and task in ("NanoQA", "NanoVideoQA") and rng.random() < 0.3:
        if shape == world.GRID and (steps == world.MAX_STEPS or (steps == shape[1] - 1 and rng.random() < 0.5)):
            return world.largest_question(rng, scene, steps), 0
        if steps == shape[1] - 1:
            return world.sum_question(rng, scene), 0
    leave = rng.random() < (0.3 if kind == STEPS else 0.2)
    paths = world.exit_paths(steps, shape) if leave else world.simple_paths(steps, shape)
    path = paths[rng.integers(len(paths))]
    scene = world.with_path(rng, scene, path, leave)
    return world.walk_question(scene, path, "exit" if leave else "follow" if steps else "read"), path[-1]


def _shaded(rng: np.random.Generator, scene: world.Scene, cells: list[int]) -> tuple[world.Scene, list[str]]:
    """The scene with some cells in named shades, each its own; and those shades."""
    shades = np.zeros(len(scene.colours), dtype=np.int64)
    shades[cells] = rng.permutation([world.SHADE_NAMES.index(name) for name in NAMED_SHADES])[: len(cells)]
    return replace(scene, shades=shades), [world.SHADE_NAMES[shades[cell]] for cell in cells]


def _shade_of(rng: np.random.Generator, scene: world.Scene) -> tuple[world.Scene, int, str, str, str]:
    """Asks for a cell with its shade, while the thought only reads it."""
    cell = int(rng.integers(len(scene.colours)))
    scene, (shade,) = _shaded(rng, scene, [cell])
    question = world.walk_question(scene, (cell,), "read")
    return scene, cell, question.text.replace("at", "shade at"), f"{shade} {question.answer}", question.cot


def _same_class(rng: np.random.Generator, scene: world.Scene) -> tuple[world.Scene, int, str, str, str]:
    """Asks for the darker or lighter one of twins, of which the thought names what they share."""
    columns = scene.shape[1]
    cell, twin = rng.permutation(len(scene.colours))[:2].tolist()
    while scene.shape == VIDEO_GRID and cell % columns == twin % columns:  # twins of one moment have no right clip
        cell, twin = rng.permutation(len(scene.colours))[:2].tolist()
    fields = {}
    for name in ("digit_rows", "colours"):
        values = getattr(scene, name).copy()
        values[twin] = values[cell]
        fields[name] = values
    if scene.variants is not None:
        fields["variants"] = np.where(np.arange(len(scene.variants)) == twin, scene.variants[cell], scene.variants)
    scene, (shade, _) = _shaded(rng, replace(scene, **fields), [cell, twin])
    description = [world.ARROWS[arrow] for arrow in scene.arrows]
    cot = world.think_about(scene, description, "twins", [], scene.label(cell))
    return scene, cell, f"{shade} twin", f"{shade} {scene.label(cell)}", cot


def _crops(scene: world.Scene, cell: int) -> tuple[Item, ...]:
    """The cells of an image as candidates, one of them first."""
    crops = []
    for place, (name, pixels) in enumerate(zip(world.cell_names(scene.shape), scene.cells(), strict=True)):
        answer = Answer.parse(scene.label(place))
        cot = shown_cot(answer, f"{describe(answer)} {world.ARROWS[scene.arrows[place]]}")
        crops.append(Item(f"crop:{name}", PICTURE, "", (Media("image", pixels),), cot))
    return (crops[cell], *crops[:cell], *crops[cell + 1 :])


def _clips(scene: world.Scene, cell: int) -> tuple[Item, ...]:
    """The moments of a video as candidates, that of a cell first: clips of two frames."""
    clips = []
    for column, frame in enumerate(_moments(scene)):
        media = (Media("video", frame[None].repeat(2, axis=0)),)
        clips.append(Item(f"moment:{column + 1}", VIDEO, "", media, _moment_cot(scene, column)))
    column = cell % scene.shape[1]
    return (clips[column], *clips[:column], *clips[column + 1 :])


def _moment_cot(scene: world.Scene, column: int) -> str:
    """Colour, digit and arrow of a moment's cells, row by row behind its letter, then their colours and digits."""
    rows, columns = scene.shape
    labels = [scene.label(row * columns + column) for row in range(rows)]
    arrows = [world.ARROWS[scene.arrows[row * columns + column]] for row in range(rows)]
    seen = [f"{letter} {label} {arrow}" for letter, label, arrow in zip("abc", labels, arrows, strict=False)]
    return world.write_cot(" ".join(seen), " ".join(labels))


def _with_options(rng: np.random.Generator, draft: Draft) -> Draft:
    """Four options in the question, in random order: the right one, its near-duplicates or neighbours, others."""
    right = draft.target
    options = [right, *_distractors(rng, right)]
    order = rng.permutation(len(options)).tolist()
    lettered = {options[i]: f"{'ABCD'[place]}. {options[i]}" for place, i in enumerate(order)}
    text = " ".join([draft.text, *(lettered[options[i]] for i in order)])
    candidates = tuple(Item(lettered[option], "", option) for option in options)
    return replace(draft, text=text, candidates=candidates)


def _distractors(rng: np.random.Generator, right: str) -> list[str]:
    if right.isdigit():
        return [str(total) for total in rng.permutation([t for t in range(37) if str(t) != right])[:3]]
    answer = Answer.parse(right)
    others = [str(other) for other in drawings.coloured_digits() if other != answer.plain]
    drawn = [str(other) for other in rng.permutation(others)[:3]]
    if not answer.shade:
        return drawn
    twins = [str(replace(answer, shade=shade)) for shade in ("", *NAMED_SHADES) if shade != answer.shade]
    return [*twins, drawn[0]]


DRAW: Mapping[str, Callable[[np.random.Generator, str, str, str, int], Draft]] = {
    "NanoCLS": _labels,
    "NanoQA": _grid,
    "NanoT2I": _text,
    "NanoI2T": _labels,
    "NanoCIR": _change,
    "NanoVG": _grid,
    "NanoVideoCLS": _labels,
    "NanoVideoQA": _grid,
    "NanoVideoRET": _text,
    "NanoMR": _grid,
    "NanoDoc": _text,
}
"""Of each task: (rng, split, task, kind, steps) to a draft."""
