"""MMEB-nano's files: what the parsers read from them is what the nano world drew, to the token and to the pixel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from twn_lightning.backbone.media import load_image, load_video
from twn_lightning.backbone.packaged import packaged_backbone
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.benchmark import EvalTask, load_task
from twn_lightning.benchmark.nano_mirror import (
    GroundTruth,
    MirrorPaths,
    draw_rows,
    load_mirror,
    mirror_folder,
    read_ground_truth,
    write_mirror,
)
from twn_lightning.benchmark.nano_rows import TaskWriter, split_options
from twn_lightning.benchmark.registry import NANO_SUITE, SUITE, all_tasks, get_task, meta_tasks, select_tasks
from twn_lightning.data.nano.drawings import Answer
from twn_lightning.data.nano.tasks import INSTRUCTIONS, OWN_LISTS, TARGET_INSTRUCTIONS, TASKS, NanoRow, corpus, targets
from twn_lightning.data.nano.vocabulary import build_tokenizer
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.types import Item

ROWS = 20
SEED = 3


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> MirrorPaths:
    return write_mirror(tmp_path_factory.mktemp("nano") / "mirror", ROWS * len(TASKS), SEED)


@pytest.fixture(scope="module")
def loaded(mirror: MirrorPaths) -> dict[str, EvalTask]:
    return {task.name: task for task in load_mirror(mirror, all_tasks(NANO_SUITE), "nano")}


@pytest.fixture(scope="module")
def processor() -> PromptProcessor:
    """With the world's own tokenizer: the packaged backbone's may be that of another world."""
    return PromptProcessor(build_tokenizer(), PromptProcessor.from_folder(packaged_backbone("nano")).patches)


def rows_of(name: str) -> list[NanoRow]:
    return draw_rows(name, ROWS, SEED, "test")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_table_is_that_of_the_world() -> None:
    tasks = {task.name: task for task in all_tasks(NANO_SUITE)}
    assert tuple(tasks) == TASKS
    assert " ".join(meta_tasks(NANO_SUITE)) == "I-CLS I-QA I-RET I-VG V-CLS V-QA V-RET V-MR VisDoc"
    for name, task in tasks.items():
        assert (task.query_instruction or "").removesuffix(" {text}") == INSTRUCTIONS[name]
        assert task.target_instruction == TARGET_INSTRUCTIONS.get(name)
        assert task.metric == ("ndcg_linear@5" if task.modality == "visdoc" else "hit@1")
        if name not in (*OWN_LISTS, "NanoVideoRET"):
            assert task.num_candidates == len(targets(name))


def test_suites_share_no_task_and_are_selected_apart() -> None:
    assert not {task.name for task in all_tasks(SUITE)} & set(TASKS)
    assert get_task("NanoQA") == get_task("NanoQA", NANO_SUITE)
    assert [task.name for task in select_tasks(["I-RET", "visdoc"], NANO_SUITE)] == [
        "NanoT2I",
        "NanoI2T",
        "NanoCIR",
        "NanoDoc",
    ]
    with pytest.raises(ConfigError, match="NanoQA"):
        select_tasks(["NanoQA"])
    with pytest.raises(ConfigError, match="unknown suite 'mmeb': did you mean"):
        all_tasks("mmeb")


@pytest.mark.parametrize("name", TASKS)
def test_loaded_items_are_the_rows_to_the_token_and_the_pixel(
    name: str, loaded: dict[str, EvalTask], processor: PromptProcessor
) -> None:
    task = loaded[name]
    rows = rows_of(name)
    candidates = {item.key: item for item in task.candidates}
    right = [candidates[item.labels[int(np.argmax(item.relevance or [1]))]] for item in task.items]
    assert [query.key for query in task.queries] == [f"{name}/{number}" for number in range(ROWS)]
    assert_same(processor, task.queries, [row.query for row in rows])
    assert_same(processor, right, [row.positive for row in rows])


@pytest.mark.parametrize("name", [name for name in TASKS if name != "NanoVideoRET"])
def test_candidates_are_the_corpus_or_the_rows_own(
    name: str, loaded: dict[str, EvalTask], processor: PromptProcessor
) -> None:
    task, rows = loaded[name], rows_of(name)
    if name not in OWN_LISTS:
        everything = {item.key for item in task.candidates}
        assert all(item.candidate_keys is None or set(item.candidate_keys) == everything for item in task.items)
        assert_same(processor, *(sorted(items, key=content) for items in (task.candidates, corpus("test", name))))
        return
    known = {item.key: item for item in task.candidates}
    for item, row in zip(task.items, rows, strict=True):
        shown = [known[key] for key in item.candidate_keys or ()]
        assert sorted(map(content, shown)) == sorted({content(own) for own in row.candidates or ()})


def content(item: Item) -> str:
    """What an item shows, whether its pixels are in memory or in files."""
    pixels = [
        load_image(media, item.key) if media.kind == "image" else load_video(media, item.key, 8).frames
        for media in item.media
    ]
    return item.text + "".join(array.tobytes().hex() for array in pixels)


def assert_same(processor: PromptProcessor, first: list[Item], second: list[Item]) -> None:
    """Word for word, white space aside, which the tokenizer of nano does not see; token for token; pixel for pixel."""
    assert [processor.render(item).split() for item in first] == [processor.render(item).split() for item in second]
    one, other = processor(first), processor(second)
    assert processor.tokenizer.unk_token_id not in one.input_ids_BL
    for name in ("input_ids_BL", "pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"):
        found, wanted = getattr(one, name), getattr(other, name)
        assert (found is None) == (wanted is None)
        assert found is None or torch.equal(found, wanted)


def test_a_page_has_grade_2_and_others_under_its_heading_grade_1(loaded: dict[str, EvalTask]) -> None:
    for item, row in zip(loaded["NanoDoc"].items, rows_of("NanoDoc"), strict=True):
        assert sorted(item.relevance or ()) == [1.0] * 29 + [2.0]
        pages = [Answer.parse(targets("NanoDoc")[int(key)]) for key in item.labels]
        assert {page.name for page in pages} == {Answer.parse(row.target).name}


def test_lookalike_videos_have_their_near_duplicates_in_the_corpus() -> None:
    rows = draw_rows("NanoVideoRET", 60, SEED, "test")
    shown = {row.target for row in rows}
    asked = [Answer.parse(row.target) for row in rows if row.kind == "lookalike"]
    assert len(asked) == 12
    for answer in asked:
        assert any(Answer.parse(other) != answer and Answer.parse(other).plain == answer.plain for other in shown)


def test_the_truth_about_every_row(mirror: MirrorPaths) -> None:
    truths = read_ground_truth(mirror)
    assert len(truths) == ROWS * len(TASKS)
    row = rows_of("NanoMR")[7]
    assert truths["NanoMR/7"] == GroundTruth(row.kind, row.steps, row.target, row.query.cot)
    for name in TASKS:
        kinds = Counter(truths[f"{name}/{number}"].kind for number in range(ROWS))
        assert kinds == {"direct": 9, "lookalike": 4, "steps": 7}


def test_steps_have_their_shares_up_to_what_a_task_can_ask() -> None:
    steps = Counter(row.steps for row in draw_rows("NanoT2I", 400, 0, "test"))
    assert steps[0] == 260
    assert all(26 <= steps[count] <= 27 for count in (1, 2, 3))
    assert all(steps[count] == 12 for count in (4, 5, 6, 7, 8))
    steps = Counter(row.steps for row in draw_rows("NanoMR", 400, 0, "test"))
    assert steps[7] == 24
    assert steps[8] == 0


def test_equal_arguments_give_equal_bytes(mirror: MirrorPaths, tmp_path: Path) -> None:
    again = write_mirror(tmp_path / "again", dict.fromkeys(TASKS, ROWS), SEED)
    assert files_of(again.root) == files_of(mirror.root)
    other = write_mirror(tmp_path / "other", {"NanoT2I": ROWS}, SEED + 1)
    assert other.ground_truth.read_bytes() != mirror.ground_truth.read_bytes()
    assert other.queries == {"NanoT2I": ROWS}


def test_a_whole_mirror_is_used_again_and_no_other_one(mirror: MirrorPaths) -> None:
    heard: list[int] = []
    assert write_mirror(mirror.root, ROWS * len(TASKS), SEED, progress=heard.append) == mirror
    assert not heard
    with pytest.raises(DataError, match="another seed"):
        write_mirror(mirror.root, ROWS * len(TASKS), SEED + 1)
    with pytest.raises(DataError, match="another queries"):
        write_mirror(mirror.root, ROWS * len(TASKS) + 1, SEED)
    with pytest.raises(DataError, match=r"no mirror of MMEB-nano: it has no mirror\.json"):
        write_mirror(mirror.media_root, ROWS, SEED)


def test_the_folder_is_named_by_what_the_mirror_follows_from(tmp_path: Path) -> None:
    folders = [mirror_folder(tmp_path, 22, 0), mirror_folder(tmp_path, 33, 0), mirror_folder(tmp_path, 22, 1)]
    assert len({*folders, mirror_folder(tmp_path, 22, 0, "val")}) == 4
    assert mirror_folder(tmp_path, dict.fromkeys(TASKS, 2), 0) == folders[0]


def test_what_is_interrupted_is_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, calls = TaskWriter.add, iter(range(100))

    def interrupted(self: TaskWriter, row: NanoRow) -> None:
        if next(calls) == 14:
            raise KeyboardInterrupt
        add(self, row)

    with monkeypatch.context() as patched:
        patched.setattr(TaskWriter, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_mirror(tmp_path / "mirror", 22, 0)
    assert list(tmp_path.iterdir()) == []
    heard: list[int] = []
    write_mirror(tmp_path / "mirror", 22, 0, progress=heard.append)
    assert sum(heard) == 22


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (9, r"got NanoMR: 0, NanoDoc: 0\. Set data\.test_pairs"),
        ({"NanoQA": 1001, "NanoVideoCLS": 1001}, r"at most 1,000.*got NanoVideoCLS: 1001\."),
        ({}, "got no task"),
    ],
)
def test_numbers_that_no_mirror_can_have(queries: dict[str, int] | int, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write_mirror(tmp_path / "mirror", queries, 0)
    with pytest.raises(ConfigError, match="did you mean 'NanoQA'"):
        write_mirror(tmp_path / "mirror", {"NanoQS": 2}, 0)


def test_other_splits_are_drawn_from_other_ingredients(tmp_path: Path) -> None:
    test, val = (write_mirror(tmp_path / split, {"NanoT2I": 2}, 0, split).media_root for split in ("test", "val"))
    assert not set(files_of(test).values()) & set(files_of(val).values())


def test_the_real_loader_checks_the_counts(mirror: MirrorPaths) -> None:
    with pytest.raises(DataError, match=f"found {ROWS} queries, the table says 91"):
        load_task("NanoQA", mirror.annotations_root, mirror.media_root)


def test_options_are_taken_apart() -> None:
    assert split_options("at a1 A. dark red 4 B. 7") == ["at a1", "A. dark red 4", "B. 7"]
