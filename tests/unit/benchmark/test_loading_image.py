"""The five image schemas: what becomes instruction, text, media, key and label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.mmeb_files import annotation_path, write_image, write_parquet
from tests.support.mmeb_fixtures import CAPTIONED, MirrorPaths
from twn_lightning.benchmark import EvalTask, all_tasks, get_task, load_task
from twn_lightning.types import Item, Media, RankingItem


def load(name: str, root: Path, rows: list[dict[str, Any]], protocol: str = "vlm2vec") -> EvalTask:
    """A task of these rows; every image they name exists."""
    media = root / "media" / "image-tasks"
    for row in rows:
        for path in [*row.get("tgt_img_path", []), *([row["qry_img_path"]] if "qry_img_path" in row else [])]:
            write_image(media / path)
    write_parquet(annotation_path(root / "annotations", get_task(name)), rows)
    return load_task(name, root / "annotations", root / "media", protocol, strict_counts=False)


def image(root: Path, path: str) -> tuple[Media, ...]:
    return (Media("image", root / "media" / "image-tasks" / path),)


def text_row(**changes: Any) -> dict[str, Any]:
    row = {
        "qry_inst": "<|image_1|>\nRepresent the given image with the following question:\n",
        "qry_text": "What is 星? ",
        "qry_img_path": "OK-VQA/0.jpg",
        "tgt_text": ["yes", "no", " yes ", "no"],
    }
    return row | changes


def image_row(**changes: Any) -> dict[str, Any]:
    row = {
        "qry_inst": "<|image_1|> Find an image.\n",
        "qry_text": "a red car",
        "tgt_inst": "<|image_1|> Represent the given image: \n",
        "tgt_text": ["", ""],
        "tgt_img_path": ["T/a.jpg", "T/b.jpg"],
    }
    return row | changes


def test_image_and_text_to_text(tmp_path: Path) -> None:
    task = load("OK-VQA", tmp_path, [text_row()])
    instruction = "\nRepresent the given image with the following question:"
    assert task.queries == [Item("OK-VQA/0", instruction, "What is 星? \n", image(tmp_path, "OK-VQA/0.jpg"))]
    # Keys and texts are the strings as they are, and a string listed twice is one candidate.
    assert task.candidates == [Item("yes", "", "yes"), Item("no", "", "no"), Item(" yes ", "", " yes ")]
    assert task.items == [RankingItem(("yes",), None, ("yes", "no", " yes "))]
    assert dict(task.counts) == {
        "num_queries": 1,
        "num_candidates": 3,
        "smallest_list": 4,
        "largest_list": 4,
        "skipped": 0,
        "expected_queries": 1000,
        "expected_candidates": 1000,
    }


def test_candidates_of_several_rows_are_one_corpus(tmp_path: Path) -> None:
    task = load("ImageNet-1K", tmp_path, [text_row(), text_row(qry_text=None, tgt_text=["no", "cat"])])
    assert [item.key for item in task.candidates] == ["yes", "no", " yes ", "cat"]
    assert [item.text for item in task.queries] == ["What is 星? \n", ""]
    assert task.labels == [("yes",), ("no",)]
    assert task.candidate_keys == [("yes", "no", " yes "), ("no", "cat")]


def test_inner_line_ends_lose_the_space_before_them(tmp_path: Path) -> None:
    task = load("ScienceQA", tmp_path, [text_row(qry_text="a? \n(A) x \n(B) y \n")])
    assert task.queries[0].text == "a?\n(A) x\n(B) y\n\n"


@pytest.mark.parametrize("name", ["WebQA", "EDIS"])
def test_text_to_captioned_image_has_no_stray_image_token(name: str, tmp_path: Path) -> None:
    """The reference leaves an image token in these queries although they have no image."""
    rows = [
        image_row(tgt_text=["red", " blue \n"]),
        image_row(tgt_text=["other", ""], tgt_img_path=["T/b.jpg", "T/c.jpg"]),
    ]
    task = load(name, tmp_path, rows)
    assert task.queries[0] == Item(f"{name}/0", " Find an image.\n", "a red car\n")
    shown = "  Represent the given image:\n"
    assert task.candidates == [
        Item("T/a.jpg", shown, "red\n", image(tmp_path, "T/a.jpg")),
        Item("T/b.jpg", shown, " blue\n\n", image(tmp_path, "T/b.jpg")),  # the first caption counts
        Item("T/c.jpg", f"{shown} \n", "", image(tmp_path, "T/c.jpg")),
    ]
    assert task.items == [
        RankingItem(("T/a.jpg",), None, ("T/a.jpg", "T/b.jpg")),
        RankingItem(("T/b.jpg",), None, ("T/b.jpg", "T/c.jpg")),
    ]


def test_captions_are_left_out_where_the_first_is_blank(tmp_path: Path) -> None:
    task = load("VisDial", tmp_path, [image_row(tgt_text=[" ", "ignored"])])
    assert [item.text for item in task.candidates] == ["", ""]


def test_image_to_image_is_keyed_by_path_and_caption(tmp_path: Path) -> None:
    row = image_row(qry_img_path="Q/0.png", tgt_text=['"left man"', '"right man"'], tgt_img_path=["T/a.jpg", "T/a.jpg"])
    task = load("RefCOCO-Matching", tmp_path, [row])
    assert [item.key for item in task.candidates] == ["T/a.jpg:left man", "T/a.jpg:right man"]
    assert [item.text for item in task.candidates] == ['"left man"\n', '"right man"\n']
    assert task.queries[0].media == image(tmp_path, "Q/0.png")
    assert task.labels == [("T/a.jpg:left man",)]


def test_image_to_image_without_captions(tmp_path: Path) -> None:
    task = load("CIRR", tmp_path, [image_row(qry_img_path="Q/0.png", tgt_text=[])])
    assert [item.key for item in task.candidates] == ["T/a.jpg:", "T/b.jpg:"]


@pytest.mark.parametrize("name", ["WebQA", "CIRR"])
def test_qwen3_candidates_have_no_instruction(name: str, tmp_path: Path) -> None:
    rows = [image_row(tgt_text=["red", "blue"], qry_img_path="Q/0.png")]
    task = load(name, tmp_path, rows, protocol="qwen3")
    assert [(item.instruction, item.text) for item in task.candidates] == [("", "red"), ("", "blue")]
    assert task.queries[0].instruction == "Find an image."
    reference = load(name, tmp_path, rows)
    assert [replace(item, instruction="", text=item.text.strip()) for item in reference.candidates] == task.candidates


@pytest.mark.parametrize("name", [task.name for task in all_tasks() if task.modality == "image"])
def test_every_image_task_of_the_mirror(name: str, mirror: MirrorPaths) -> None:
    task = load_task(name, mirror.annotations_root, mirror.media_root, strict_counts=False)
    assert len(task.queries) == 4
    for number, (query, item) in enumerate(zip(task.queries, task.items, strict=True)):
        assert query.key == f"{name}/{number}"
        assert query.instruction.strip()
        assert "<|" not in query.instruction + query.text
        assert len(query.media) == (0 if task.task.parser == "image_t2i" else 1)
        assert item.candidate_keys is not None
        assert item.labels == item.candidate_keys[:1]
    to_image = task.task.parser in ("image_t2i", "image_i2i_vg")
    assert all(len(item.media) == to_image for item in task.candidates)
    assert all(bool(item.text) == (not to_image or name in CAPTIONED) for item in task.candidates)
