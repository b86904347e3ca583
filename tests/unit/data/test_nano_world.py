"""The nano world: its answers checked by walking the grid again, its splits disjoint, its CoTs of even length."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from twn_lightning.data.nano import world
from twn_lightning.data.nano.digits import SPLIT_SHARES, digit_rows, load_digits, render_cells
from twn_lightning.data.nano.vocabulary import build_tokenizer
from twn_lightning.data.sources.nano import STEP_SHARES, NanoPairs, NanoSource
from twn_lightning.settings import DataSettings

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
COMBINATIONS = [
    *[("read", 0), ("picture", 0), ("sum", 2), ("largest", 2), ("largest", 8)],
    *[(task, steps) for task in ("follow", "picture") for steps in range(1, 9)],
    *[("exit", steps) for steps in range(9)],
]


def cells_of(cot: str) -> dict[str, str]:
    """The scene description of a CoT, three rows behind their letters: cell name -> arrow or digit."""
    words = cot.split()[1:13]
    assert words[0::4] == ["a", "b", "c"]
    return dict(zip(world.CELLS, [word for i, word in enumerate(words) if i % 4], strict=True))


def steps_of(cot: str) -> list[str]:
    """What stands between the description and the end of the thought, without its first word."""
    return cot.split(" </think>")[0].split()[14:]


def walk(arrows: dict[str, str], start: str, steps: int | None) -> list[str]:
    """Follow arrows for `steps` moves, or until one leaves the grid; the cells on the way, the first included."""
    row, column, moves, path = "abc".index(start[0]), int(start[1]) - 1, 0, [start]
    while steps is None or moves < steps:
        down, right = MOVES[arrows[f"{'abc'[row]}{column + 1}"]]
        if not (0 <= row + down < 3 and 0 <= column + right < 3):
            break
        row, column, moves = row + down, column + right, moves + 1
        path.append(f"{'abc'[row]}{column + 1}")
    return path


@pytest.mark.parametrize(("task", "steps"), COMBINATIONS)
def test_every_answer_follows_from_the_scene(task: str, steps: int) -> None:
    for seed in range(25):
        question = world.sample_question(np.random.default_rng(seed), "val", task, steps)
        words, scene = question.text.split(), question.scene
        labels = {name: scene.label(i) for i, name in enumerate(world.CELLS)}
        assert question.steps == steps
        if task == "sum":
            row = "abc".index(words[-1])
            digits = scene.digits[3 * row : 3 * row + 3]
            assert question.answer == str(int(digits.sum()))
            assert steps_of(question.cot) == [str(n) for i in range(3) for n in (digits[i], digits[: i + 1].sum())]
        elif task == "largest":
            top = 0 if words[-1] == "grid" else 3 * "abc".index(words[-1])
            rows = range(9) if words[-1] == "grid" else range(top, top + 3)
            first = next(i for i in rows if scene.digits[i] == max(scene.digits[j] for j in rows))
            assert question.answer == scene.label(first)
            assert steps_of(question.cot)[-2:] == [world.CELLS[first], str(scene.digits[first])]
            assert len(steps_of(question.cot)) == 2 * len(rows)
        else:
            arrows = cells_of(question.cot)
            assert list(arrows.values()) == [["up", "down", "left", "right"][a] for a in scene.arrows]
            path = walk(arrows, words[1], None if task == "exit" else steps)
            assert len(path) == steps + 1
            assert question.answer == labels[path[-1]]
            counted = steps and task != "exit"
            left = [[cell, str(steps - i)] if counted else [cell] for i, cell in enumerate(path)]
            assert steps_of(question.cot) == [word for pair in left for word in pair]
        assert question.cot.endswith(f"<answer> {question.answer} </answer>")


def test_no_digit_image_is_in_two_splits() -> None:
    rows = {split: set(np.concatenate(digit_rows(split)).tolist()) for split in SPLIT_SHARES}
    for first, second in itertools.combinations(rows, 2):
        assert not rows[first] & rows[second], (first, second)
    assert sum(map(len, rows.values())) == len(load_digits()[1]) == 1797
    assert all(len(digits) >= 5 for split in SPLIT_SHARES for digits in digit_rows(split))


def test_pairs_are_a_function_of_seed_and_index_and_draw_the_mixture() -> None:
    pairs = NanoPairs("test", 4000, 0)
    steps = np.array([pairs._question(i).steps for i in range(0, 4000, 4)])
    assert abs((steps == 0).mean() - STEP_SHARES[0]) < 0.05
    assert abs((steps >= 4).mean() - 0.20) < 0.05
    again = NanoPairs("test", 4000, 0)[17]
    assert again.query.content_hash() == pairs[17].query.content_hash()
    assert NanoPairs("test", 4000, 1)[17].query.content_hash() != again.query.content_hash()
    assert pairs.columns().query_cots[17] == again.query.cot


def test_a_cot_without_steps_is_not_much_shorter() -> None:
    cots = NanoPairs("test", 1000, 0).columns().query_cots
    steps = np.array([q.steps for q in (NanoPairs("test", 1000, 0)._question(i) for i in range(1000))])
    tokens = np.array([len(build_tokenizer()(cot)["input_ids"]) for cot in cots])
    assert tokens[steps == 0].mean() / tokens[steps > 0].mean() >= 0.7


def test_every_positive_is_a_candidate_of_its_task() -> None:
    source = NanoSource(DataSettings())
    corpora = {task: [c.key for c in source.candidates("test", task)] for task in source.tasks}
    assert all(len(keys) == len(set(keys)) for keys in corpora.values())
    assert all(pair.positive.key in corpora[pair.source] for pair in source.pairs("test", 300))


def test_the_tokenizer_knows_every_word_of_the_world() -> None:
    tokenizer = build_tokenizer()
    rng = np.random.default_rng(0)
    for task, steps in COMBINATIONS:
        question = world.sample_question(rng, "train", task, steps)
        for text in (question.text, question.cot, question.scene.caption(), world.INSTRUCTIONS[task]):
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


def test_a_question_of_an_impossible_length_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 2 steps, not 5"):
        world.sample_question(np.random.default_rng(0), "train", "sum", 5)


def test_pictures_of_one_answer_differ_in_their_digit_only() -> None:
    first, second = (world.picture_candidate("red 7", "train", variant) for variant in (0, 1))
    assert first.key != second.key
    corner = render_cells(digit_rows("train")[7][:1], np.array([0]), None)[0][0, 0]
    assert (first.media[0].content[0, 0] == corner).all()
