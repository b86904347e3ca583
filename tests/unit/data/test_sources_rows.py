"""What each corpus makes of a row, and what it says of rows that it cannot read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.corpora_fixtures import (
    ROWS,
    WRITERS,
    Mirror,
    hound_row,
    mmeb_row,
    rl_row,
    twn_row,
    ume_row,
    write,
    write_mirror,
    write_parquet,
)
from twn_lightning.data.sources import SPLITS, get_source, twn
from twn_lightning.data.sources.ume_r1 import normalise_ume_cot
from twn_lightning.errors import DataError
from twn_lightning.settings import SourceSettings
from twn_lightning.types import Pair

Row = dict[str, Any]


def pair_of(mirror: Mirror, entry: SourceSettings, row: int) -> Pair:
    """The pair that a row of the files has become, whatever its split."""
    source = get_source("mixture", mirror.settings(sources=[entry], hard_negatives=2))
    pairs = [pair for split in SPLITS for pair in source.pairs(split, 1000)]
    return next(pair for pair in pairs if pair.query.key.endswith(f"/{row}"))


def test_mmeb_train(mirror: Mirror) -> None:
    pair = pair_of(mirror, SourceSettings("mmeb_train", "HatefulMemes"), 3)
    assert (pair.query.text, pair.positive.text) == ("Say what this is.", "thing 3")
    assert [m.content for m in pair.query.media] == [mirror.media / "mmeb_train/images/coco/3.png"]
    assert [item.text for item in pair.hard_negatives] == ["thing 4"]
    pair = pair_of(mirror, SourceSettings("mmeb_train", "MSCOCO_t2i"), 3)
    assert pair.query.media == ()
    assert pair.positive.text == "Represent the given image."
    assert [m.content for m in pair.hard_negatives[0].media] == [mirror.media / "mmeb_train/images/coco/4.png"]


def test_llava_hound(mirror: Mirror) -> None:
    find = pair_of(mirror, SourceSettings("llava_hound", "caption_to_video"), 3)
    assert find.query.instruction == "Find a video that contains the following visual content:"
    assert (find.query.text, find.query.media) == ("A thing of kind 3 moves.", ())
    assert find.positive.instruction == "Understand the content of the provided video:"
    assert find.positive.media[0].kind == "video"
    describe = pair_of(mirror, SourceSettings("llava_hound", "video_to_caption"), 3)
    assert (describe.query.instruction, describe.query.text) == ("", "What happens?")
    assert (describe.query.media, describe.positive.text) == (find.positive.media, "A thing of kind 3 moves.")
    answer = pair_of(mirror, SourceSettings("llava_hound", "qa"), 3)
    assert answer.query.instruction == "Answer a question based on the content of a video."
    assert (answer.query.media, answer.positive.text) == (find.positive.media, "A thing of kind 3 moves.")


def test_colpali_and_visrag_pair_pages_their_own_way(mirror: Mirror) -> None:
    pair = pair_of(mirror, SourceSettings("colpali"), 3)
    assert (pair.query.text, len(pair.query.media), pair.positive.text) == ("What is 3?", 1, "thing 3")
    known = pair_of(mirror, SourceSettings("visrag", "in_domain"), 2)
    assert known.query.instruction.startswith("This query is related to retrieving a relevant chart")
    assert (known.query.text, known.query.media) == ("Where is 2?", ())
    assert known.positive.instruction == "A statistical chart comparing values or analyzing trends."
    assert (known.positive.text, len(known.positive.media)) == ("", 1)
    other = pair_of(mirror, SourceSettings("visrag", "synthetic"), 3)
    assert (other.query.instruction, other.positive.instruction) == ("", "")
    assert other.target_hash == known.target_hash, "rows 2 and 3 have one page, by its bytes"


def test_twn(mirror: Mirror) -> None:
    pair = pair_of(mirror, SourceSettings("twn", "ChartQA"), 3)
    assert pair.query.text == "Say what this is."
    assert pair.query.cot == pair.positive.cot == "<think>I see row 3.</think><answer>thing 3</answer>"
    assert [m.content for m in pair.query.media] == [mirror.media / "mmeb_train/images/coco/3.png"]
    assert [item.text for item in pair.hard_negatives] == ["thing 4", "thing 5"]
    assert pair_of(mirror, SourceSettings("twn", "Video"), 3).query.media[0].kind == "video"


def test_twn_brings_its_own_rl_split(mirror: Mirror) -> None:
    source = get_source("mixture", mirror.settings(sources=[SourceSettings("twn")]))
    by_split = {split: {pair.query.key for pair in source.pairs(split, 1000)} for split in SPLITS}
    assert by_split["rl"] == {f"twn/ChartQA/{row}" for row in range(8)}, (
        "by row number, and by data_id where there is none"
    )
    assert not by_split["rl"] & by_split["train"]
    assert sum(map(len, by_split.values())) == 2 * ROWS


def test_ume_r1(mirror: Mirror) -> None:
    pair = pair_of(mirror, SourceSettings("ume_r1"), 2)
    assert (pair.source, pair.query.text, pair.positive.text) == ("ume_r1/MSCOCO_t2i", "Find it.", "thing 2")
    assert [m.content for m in pair.query.media] == [mirror.media / "ume_r1/images/coco/2.png"]
    assert pair.positive.media == (), "the blank image is left out"
    assert pair.query.cot == "<think>I see 2.</think><answer>thing 2</answer>"
    video = pair_of(mirror, SourceSettings("ume_r1", "llavahound_qa"), 3)
    assert [m.kind for m in video.query.media] == ["video"]


@pytest.mark.parametrize(
    ("said", "cot"),
    [
        ("<think>\na\n</think><answer>b\n<gen_emb>", "<think>a</think><answer>b</answer>"),
        ("<think>a</think>\nb<gen_emb> tail", "<think>a</think><answer>b</answer>"),
        ("<think>a</think><answer>b</answer><gen_emb>", "<think>a</think><answer>b</answer>"),
        ("x<think>a</think><|begin_of_box|>b<|end_of_box|>", "<think>a</think><answer>b</answer>"),
        ("<think>never closed <gen_emb>", "<think>never closed <gen_emb>"),
        ("", ""),
    ],
)
def test_ume_cots_are_normalised(said: str, cot: str) -> None:
    assert normalise_ume_cot(said) == cot


def without(row: Row, *path: str) -> Row:
    *outer, last = path
    node = row
    for name in outer:
        node = node[name]
    del node[last]
    return row


def changed(row: Row, value: Any, *path: str) -> Row:
    *outer, last = path
    node: Any = row
    for name in outer:
        node = node[name]
    node[last] = value
    return row


TWN, UME, HOUND = (
    "zhanglx/TWN-training-data/sft/ChartQA.json",
    "zhibinlan/UME-sft-train/default/train.json",
    ("ShareGPTVideo/train_video_and_instruction/video_instruction/train/sft/video_caption_300k.jsonl"),
)
BAD_ROWS: list[tuple[str, str, Callable[[], Row], str]] = [
    (
        "twn",
        TWN,
        lambda: without(twn_row(1, False), "pos"),
        "lacks one of pos, positive, target, candidate; its fields are",
    ),
    (
        "twn",
        TWN,
        lambda: changed(twn_row(1, False), {"words": "x"}, "query"),
        "'query' has no text.*its fields are words",
    ),
    ("twn", TWN, lambda: changed(twn_row(1, False), "http://a/b.png", "query", "image"), "unknown media scheme 'http'"),
    ("twn", TWN, lambda: changed(twn_row(1, False), "coco/1.png", "query", "image"), "is not a media URI such as"),
    (
        "twn",
        TWN,
        lambda: changed(twn_row(1, False), 3, "query", "text"),
        "the text of 'query' must be text, this is int",
    ),
    (
        "twn",
        TWN,
        lambda: without(without(twn_row(1, False), "query", "cot"), "pos", "cot"),
        "no CoT under any of cot, .*; the row has data_info, query, pos, neg, its query has text, image",
    ),
    ("ume_r1", UME, lambda: without(ume_row(2), "qry", "conversations"), "'qry': the row lacks conversations"),
    (
        "ume_r1",
        UME,
        lambda: changed(ume_row(2), "x", "qry"),
        "'qry' must be a conversation with its media, this is str",
    ),
    ("ume_r1", UME, lambda: changed(ume_row(2), "bot", "qry", "conversations", 0, "from"), "neither from human nor"),  # type: ignore[arg-type]
    ("llava_hound", HOUND, lambda: changed(hound_row(1), [], "conversations"), "must hold a question and an answer"),
    ("llava_hound", HOUND, lambda: changed(hound_row(1), 5, "video"), "'video' must be text, this is int"),
]


@pytest.mark.parametrize(("name", "file", "row", "message"), BAD_ROWS)
def test_bad_rows_are_named(tmp_path: Path, name: str, file: str, row: Callable[[], Row], message: str) -> None:
    mirror = write_mirror_of(tmp_path, name)
    path = mirror.annotations / file
    lines = [json.dumps(good) for good in good_rows(path)[:1]] + [json.dumps(row())]
    write(path, "\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]")
    place = "line 2" if path.suffix == ".jsonl" else "row 1"
    with pytest.raises(DataError, match=rf"(?s)source '{name}.*{path.name}, {place}.*{message}"):
        get_source("mixture", mirror.settings(name)).pairs("train", 5)


def write_mirror_of(root: Path, name: str) -> Mirror:
    twn._rl_index.cache_clear()
    WRITERS[name](root / "annotations")
    return Mirror(root / "annotations", root / "media")


def good_rows(path: Path) -> list[Row]:
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def test_files_that_are_empty_or_of_another_schema(tmp_path: Path) -> None:
    mirror = write_mirror_of(tmp_path, "mmeb_train")
    entry = [SourceSettings("mmeb_train", "NIGHTS")]
    path = mirror.annotations / "TIGER-Lab/MMEB-train/NIGHTS/original.jsonl"
    write(path, "")
    with pytest.raises(DataError, match=r"source 'mmeb_train/NIGHTS': .*original\.jsonl has no rows"):
        get_source("mixture", mirror.settings(sources=entry)).pairs("train", 5)
    write(path, json.dumps({"query": "x", "image": "y"}))
    with pytest.raises(
        DataError, match=r"NIGHTS.*lacks the columns qry, qry_image_path, pos_text, pos_image_path; it has"
    ):
        get_source("mixture", mirror.settings(sources=entry)).pairs("train", 5)
    write(path, json.dumps({**mmeb_row(0, False), "pos_text": " "}))
    with pytest.raises(DataError, match="none of 1 rows is a pair of it; 1 of them are empty"):
        get_source("mixture", mirror.settings(sources=entry)).pairs("train", 5)


def test_rows_without_content_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = write_mirror_of(tmp_path, "mmeb_train")
    rows = [mmeb_row(row, False) for row in range(20)]
    rows[4]["pos_text"], rows[7]["qry"], rows[7]["qry_image_path"] = "", "<|image_1|>\n", ""
    write_parquet(mirror.annotations / "TIGER-Lab/MMEB-train/NIGHTS/original.parquet", rows)
    source = get_source("mixture", mirror.settings(sources=[SourceSettings("mmeb_train", "NIGHTS")], media_root=None))
    kept = [row for corpus in source._corpora for row in corpus.index.rows.tolist()]  # type: ignore[attr-defined]
    assert kept == [row for row in range(20) if row not in (4, 7)]
    assert "2 rows without query or positive are left out" in caplog.text


@pytest.mark.parametrize("index", [ROWS, "id60", -1, None])
def test_an_rl_row_that_names_nothing(tmp_path: Path, index: Any) -> None:
    mirror = write_mirror_of(tmp_path, "twn")
    path = write(
        mirror.annotations / "zhanglx/TWN-training-data/rl/rl.json", json.dumps([{**rl_row(0), "data_index": index}])
    )
    with pytest.raises(DataError, match=rf"{path.name}, row 0: data_index {index!r} is neither a row nor a data_id of"):
        get_source("mixture", mirror.settings("twn")).pairs("train", 5)


def test_media_that_leave_their_root(tmp_path: Path) -> None:
    mirror = write_mirror(tmp_path)
    row = changed(twn_row(0, False), "mmeb_train://../../secret.png", "query", "image")
    write(mirror.annotations / TWN, json.dumps([row]))
    write(mirror.annotations / "zhanglx/TWN-training-data/rl/rl.json", "[]")
    twn._rl_index.cache_clear()
    source = get_source("mixture", mirror.settings(sources=[SourceSettings("twn", "ChartQA")]))
    pairs = [source.pairs(split, 5) for split in SPLITS]
    with pytest.raises(DataError, match=r"source 'twn/ChartQA', .*ChartQA\.json, row 0: the path .* leaves its root"):
        [list(found) for found in pairs]
