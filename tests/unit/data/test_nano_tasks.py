"""MMEB-nano: answers found again from the query, near-duplicates that differ in shade alone, the pair source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.data.collate import ContrastiveCollator
from twn_lightning.data.corpus import COT_FORMAT
from twn_lightning.data.nano import drawings, tasks, world
from twn_lightning.data.nano.drawings import Answer
from twn_lightning.data.nano.questions import NAMED_SHADES, STARTS, VIDEO_GRID
from twn_lightning.data.nano.tasks import DIRECT, KINDS, LOOKALIKE, MAX_STEPS, OWN_LISTS, STEPS, TASKS, sample_row
from twn_lightning.data.nano.vocabulary import build_tokenizer
from twn_lightning.data.sources import get_source
from twn_lightning.data.sources.mmeb_nano import KIND_SHARES
from twn_lightning.settings import DataSettings
from twn_lightning.types import Item, Pair

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
VIDEO_TASKS = ("NanoVideoCLS", "NanoVideoQA", "NanoMR")
ARROW_TASKS = ("NanoCLS", "NanoI2T", "NanoQA", "NanoVG", *VIDEO_TASKS)
CHAIN_TASKS = ("NanoT2I", "NanoVideoRET", "NanoDoc", "NanoCIR")
SEEDS = range(20)


def rows(task: str, kind: str, steps: int = 0, split: str = "test") -> list[tasks.NanoRow]:
    return [sample_row(np.random.default_rng([seed, steps]), split, task, kind, steps) for seed in SEEDS]


def parts(item: Item) -> tuple[str, str]:
    """What an item's CoT thinks, and what it answers."""
    match = COT_FORMAT.fullmatch(item.cot or "")
    assert match, f"{item.key}: {item.cot}"
    return match["think"].strip(), match["answer"].strip()


def thought(row: tasks.NanoRow) -> list[str]:
    return parts(row.query)[0].split()


def concluded(row: tasks.NanoRow) -> str:
    return parts(row.query)[1]


def walk(arrows: dict[str, str], start: str, moves: int | None) -> list[str]:
    """Follow arrows for some moves, or until one leaves the grid."""
    path = [start]
    while moves is None or len(path) <= moves:
        row, column = path[-1][0], int(path[-1][1])
        down, right = MOVES[arrows[path[-1]]]
        following = f"{chr(ord(row) + down)}{column + right}"
        if following not in arrows:
            break
        path.append(following)
    return path


@pytest.mark.parametrize("task", ARROW_TASKS)
def test_arrows_lead_to_the_answer(task: str) -> None:
    grid = VIDEO_GRID if task in VIDEO_TASKS else world.GRID
    for steps in range(1, MAX_STEPS[task] + 1):
        for row in rows(task, STEPS, steps):
            words = thought(row)
            assert row.steps == steps
            if "path" not in words:  # a sum or a comparison, which the tests of the grids walk again
                assert {"total", "best"} & set(words)
                continue
            described = words[: words.index("path")]
            arrows = dict(zip(world.cell_names(grid), (w for w in described if w in MOVES), strict=True))
            asked = row.query.text.split()
            start = world.cell_names(grid)[STARTS[task]] if task in STARTS else asked[1]
            path = walk(arrows, start, None if task in STARTS or "leave" in asked else steps)
            assert len(path) == steps + 1
            assert [word for word in words[words.index("path") + 1 :] if word in arrows] == path
            if row.task != "NanoMR":
                assert concluded(row) == row.target


@pytest.mark.parametrize("task", CHAIN_TASKS)
def test_figures_add_up_to_the_answer(task: str) -> None:
    for steps in range(1, MAX_STEPS[task] + 1):
        for row in rows(task, STEPS, steps):
            words = row.query.text.split()
            first = words.index("a")
            added = [int(words[i + 1]) for i, word in enumerate(words) if word == "plus"]
            read = thought(row)
            assert len(added) == steps
            total = int(read[read.index("number") + 1]) + sum(added)
            assert Answer.parse(row.target).digit == total % 10
            assert Answer.parse(row.target).name in words[:first]
            assert concluded(row) == row.target


@pytest.mark.parametrize("task", TASKS)
def test_a_lookalike_s_thought_names_what_near_duplicates_share(task: str) -> None:
    for row in rows(task, LOOKALIKE):
        assert row.steps == 0
        if task != "NanoMR":
            right = Answer.parse(row.target)
            assert right.shade in NAMED_SHADES
            assert concluded(row) == str(right.plain)
            keys = [c.key for c in row.candidates] if row.candidates else [tasks.candidate_key(task, row.target)]
            assert row.positive.key in keys
        else:
            assert not set(concluded(row).split()) & set(NAMED_SHADES)


def test_near_duplicates_differ_in_shade_alone() -> None:
    def drawn(draw: Callable[..., Any], name: str) -> list[Any]:
        return [draw(Answer(name, 4, shade), "val", np.random.default_rng(0)) for shade in NAMED_SHADES]

    dark, light = drawn(drawings.draw_cell, "red")
    assert dark.mean() < light.mean()
    np.testing.assert_allclose(ink_of(dark), ink_of(light), atol=0.05)
    (dark_page, dark_digits), (light_page, light_digits) = drawn(drawings.draw_page, "petal")
    assert dark_digits == light_digits
    assert dark_page.content.mean() < light_page.content.mean()


def test_twins_share_colour_and_handwriting() -> None:
    for row in rows("NanoVG", LOOKALIKE):
        assert row.candidates is not None
        ink = [ink_of(c.media[0].content) for c in row.candidates]
        assert sum(np.abs(found - ink[0]).max() < 0.05 for found in ink) == 2


def ink_of(cell: np.ndarray) -> np.ndarray:
    """How much ink covers each pixel above the arrow, whatever the ground."""
    ground = cell[0, 0].astype(float)
    channel = int(ground.argmin())
    return (cell[:17, :17, channel] - ground[channel]) / (255 - ground[channel])


@pytest.mark.parametrize("task", TASKS)
def test_every_prompt_and_thought_is_in_the_vocabulary(task: str) -> None:
    tokenizer = build_tokenizer()
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    for kind in KINDS:
        for row in rows(task, kind, 4 if kind == STEPS else 0, "train"):
            for item in (row.query, row.positive, *(row.candidates or ())):
                assert unknown not in tokenizer(f"{item.instruction} {item.text} {item.cot or ''}")["input_ids"]


@pytest.mark.parametrize("task", tasks.SHOWN_AS)
def test_a_shown_candidate_s_thought_names_what_is_drawn(task: str) -> None:
    for target in tasks.targets(task)[::7]:
        answer = Answer.parse(target)
        think, concludes = parts(tasks.candidate(task, target, "test"))
        assert concludes == str(answer.plain)
        if task == "NanoDoc":
            _, digits = drawings.draw_page(answer, "test", np.random.default_rng([ord(letter) for letter in target]))
            assert think == f"heading {answer.name} {' '.join(map(str, digits))}"
            assert digits[-1] == answer.digit
        elif answer.digit is None:
            assert think == f"one picture with a {answer.name}"
        else:
            assert think == f"one cell with colour {answer.name} and number {answer.digit}"


@pytest.mark.parametrize("task", ["NanoVG", "NanoMR"])
@pytest.mark.parametrize("kind", [DIRECT, LOOKALIKE])
def test_thoughts_of_a_query_s_own_candidates_are_of_its_scene(task: str, kind: str) -> None:
    """Each cell's arrow is told by both sides; the cell asked for is what the right candidate shows."""
    for row in rows(task, kind):
        arrows_of_scene = [word for word in thought(row) if word in MOVES]
        assert row.candidates is not None
        found = {}
        for candidate in row.candidates:
            place = candidate.key.partition(":")[2]
            arrows = [word for word in parts(candidate)[0].split() if word in MOVES]
            cells = [place] if task == "NanoVG" else [f"{letter}{place}" for letter in "ab"]
            found |= dict(zip(cells, arrows, strict=True))
        grid = VIDEO_GRID if task == "NanoMR" else world.GRID
        assert [found[name] for name in world.cell_names(grid)] == arrows_of_scene
        concludes = parts(row.positive)[1]
        assert concluded(row) in concludes if task == "NanoMR" else concluded(row) == concludes


def test_candidates_that_are_words_have_no_thought() -> None:
    for task in set(TASKS) - set(tasks.SHOWN_AS) - {"NanoVG", "NanoMR"}:
        for row in rows(task, DIRECT):
            assert all(item.cot is None for item in (row.positive, *(row.candidates or ())))


def test_own_lists_hold_the_right_candidate_first_and_no_other_one() -> None:
    for task in OWN_LISTS:
        for row in rows(task, DIRECT):
            assert row.candidates is not None
            assert row.candidates[0] == row.positive
            keys = [candidate.key for candidate in row.candidates]
            assert len(set(keys)) == len(keys) == {"NanoVG": 9, "NanoMR": 4, "NanoVideoQA": 4}[task]


def test_a_page_is_graded_above_other_pages_under_its_heading() -> None:
    grades = tasks.grades("NanoDoc", "dark petal 4")
    assert grades["page:dark petal 4"] == 2
    assert grades["page:petal 4"] == grades["page:petal 9"] == 1
    assert len(grades) == 30
    assert all("petal" in key for key in grades)


def test_a_kind_refuses_steps_it_does_not_have() -> None:
    for kind, steps in ((DIRECT, 1), (LOOKALIKE, 2), (STEPS, 0), (STEPS, 9)):
        with pytest.raises(ValueError, match="steps"):
            sample_row(np.random.default_rng(0), "val", "NanoQA", kind, steps)


def test_source_is_deterministic_lazy_and_complete() -> None:
    settings = DataSettings(source="mmeb_nano", gate_pairs=330)
    source = get_source("mmeb_nano", settings)
    columns, pairs = source.pairs("gate", 330).columns(), list(source.pairs("gate", 330))
    for i, (pair, again) in enumerate(zip(pairs, get_source("mmeb_nano", settings).pairs("gate", 330), strict=True)):
        assert pair.query.key == again.query.key
        assert pair.query.content_hash() == again.query.content_hash()
        assert (pair.source, pair.target_hash, pair.query.cot, pair.positive.cot) == (
            columns.sources[i],
            columns.target_hashes[i],
            columns.query_cots[i],
            columns.candidate_cots[i],
        )
    assert set(columns.sources) == set(source.tasks)
    for task in source.tasks:
        keys = [item.key for item in source.candidates("gate", task)]
        assert len(set(keys)) == len(keys)
        assert {pair.positive.key for pair in pairs if pair.source == task} <= set(keys)


def test_a_pair_does_not_depend_on_how_many_are_asked_for() -> None:
    source = get_source("mmeb_nano", DataSettings(source="mmeb_nano"))
    few, many = source.pairs("test", 40), source.pairs("test", 400)
    assert [p.query.content_hash() for p in few] == [p.query.content_hash() for p in many[:40]]


def test_rows_are_the_ones_that_results_were_measured_on() -> None:
    """A change of the world changes every number measured on it; this digest is of words, not of pixels."""
    pairs = get_source("mmeb_nano", DataSettings(source="mmeb_nano")).pairs("test", 110)
    words = [
        [pair.query.key, pair.query.instruction, pair.query.text, pair.query.cot, pair.steps, *target_words(pair)]
        for pair in pairs
    ]
    assert hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16] == "6d8cad45e9901abf"


def target_words(pair: Pair) -> list[str]:
    """A moment is named by its pixels, all others by what they show."""
    return [] if pair.source == "mmeb_nano/NanoMR" else [pair.positive.key, pair.target_hash]


@pytest.mark.parametrize("world_name", ["mmeb_nano", "nano"])
def test_candidates_think_where_both_sides_do(world_name: str, processor: PromptProcessor) -> None:
    """Shown candidates bring their CoT into the batch, words an empty row; without think_sides=both none is read."""
    pairs = list(get_source(world_name, DataSettings(source=world_name)).pairs("train", 66))
    cots = ContrastiveCollator(processor, "both")(pairs).candidate_cots
    assert cots is not None
    by_hash = {pair.target_hash: pair.positive for pair in reversed(pairs)}
    order = dict.fromkeys(pair.target_hash for pair in pairs)
    for row, digest in enumerate(order):
        assert bool(cots.closed_B[row]) == bool(by_hash[digest].media)
    assert ContrastiveCollator(processor, "query")(pairs).candidate_cots is None


def test_kinds_come_in_their_shares() -> None:
    pairs = get_source("mmeb_nano", DataSettings(source="mmeb_nano")).pairs("test", 1100)
    kinds = [pair.query.key.rsplit("/", 1)[1] for pair in pairs]
    for kind, share in KIND_SHARES.items():
        assert abs(kinds.count(kind) / len(kinds) - share) < 0.05
    assert all((pair.steps == 0) == (kind != STEPS) for pair, kind in zip(pairs, kinds, strict=True))
