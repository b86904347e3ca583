"""All video tasks from a mirror; classification and retrieval: exact texts, keys, labels and frames; bad rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.mmeb_video_fixtures import write_video, write_video_task
from tests.support.task_mirror import Mirror
from twn_lightning.benchmark.loading import load_task
from twn_lightning.benchmark.parsers.video_classification import class_labels
from twn_lightning.benchmark.registry import get_task, select_tasks
from twn_lightning.errors import ConfigError, DataError

TARGET = "Understand the content of the provided video."


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return Mirror(tmp_path)


def frame_numbers(item: Any) -> list[int]:
    (video,) = item.media
    assert video.kind == "video"
    return [int(path.stem.removeprefix("frame_")) for path in video.content]


# --- all tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [task.name for task in select_tasks(["video"])])
@pytest.mark.parametrize("protocol", ["vlm2vec", "qwen3"])
def test_every_video_task_loads_from_a_mirror_in_its_schema(mirror, name, protocol):
    task = get_task(name)
    write_video_task(task, mirror.annotations, mirror.media, 4, np.random.default_rng(0))
    loaded = mirror.load(name, protocol)
    assert len(loaded.queries) == len(loaded.items) == 4
    assert len({query.key for query in loaded.queries}) == 4
    keys = {candidate.key for candidate in loaded.candidates}
    assert len(keys) == len(loaded.candidates)
    for item in loaded.items:
        assert set(item.labels) <= set(item.candidate_keys or keys)
        assert (item.candidate_keys is None) == (task.eval_type == "global")
    instruction = "" if protocol == "qwen3" else (task.target_instruction or "")
    assert {candidate.instruction for candidate in loaded.candidates} == {instruction}


def test_a_raw_video_is_taken_where_there_is_no_frame_folder(mirror):
    pytest.importorskip("av")
    write_video(mirror.media / get_task("MSVD").media / "clip.avi")
    mirror.write("MSVD", [{"video_id": "clip", "video": "clip.avi", "caption": ["a dog"]}])
    (video,) = mirror.load("MSVD").candidates[0].media
    assert video.content == mirror.media / "video-tasks/frames/video_ret/MSVD/clip.avi"


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".webm"])
def test_raw_videos_may_have_any_of_four_extensions(mirror, suffix):
    folder = mirror.media / get_task("SmthSmthV2").media
    folder.mkdir(parents=True)
    (folder / f"7{suffix}").write_bytes(b"never decoded here")
    mirror.write("SmthSmthV2", [{"video_id": "7", "pos_text": "a", "neg_text": ["a", "b"]}])
    assert mirror.load("SmthSmthV2").queries[0].media[0].content == folder / f"7{suffix}"


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "protocol", "expected"),
    [
        (9, "vlm2vec", [1, 2, 3, 4, 5, 6, 7, 9]),
        (8, "vlm2vec", [1, 2, 3, 4, 5, 6, 7, 8]),
        (64, "vlm2vec", [1, 10, 19, 28, 37, 46, 55, 64]),
        (5, "vlm2vec", [1, 2, 3, 4, 5]),
        (12, "qwen3", list(range(1, 13))),
    ],
)
def test_samples_frames_evenly_in_natural_order(mirror, frames, protocol, expected):
    mirror.frames("MSR-VTT", "video1", frames)
    mirror.write("MSR-VTT", [{"video_id": "video1", "video": "video1.mp4", "caption": "a dog"}])
    assert frame_numbers(mirror.load("MSR-VTT", protocol).candidates[0]) == expected


def test_an_empty_frame_folder_is_an_error_that_names_task_row_and_folder(mirror):
    (mirror.media / get_task("HMDB51").media / "b").mkdir(parents=True)
    mirror.frames("HMDB51", "a")
    mirror.write("HMDB51", [{"video_id": "a", "pos_text": "wave"}, {"video_id": "b", "pos_text": "wave"}])
    with pytest.raises(DataError, match=r"(?s)task 'HMDB51'.*row 1.*HMDB51/b"):
        mirror.load("HMDB51")
    assert len(mirror.load("HMDB51", on_error="skip").skipped) == 1


@pytest.mark.parametrize("video_id", ["missing", "../K700/a", "/etc"])
def test_videos_that_are_missing_or_outside_the_root_are_refused(mirror, video_id):
    mirror.frames("HMDB51", "a")
    mirror.frames("K700", "a")
    mirror.write("HMDB51", [{"video_id": video_id, "pos_text": "wave"}])
    with pytest.raises(DataError, match="task 'HMDB51'"):
        mirror.load("HMDB51")


# --- classification ---------------------------------------------------------------------------------------------------


def test_label_lists_have_the_published_sizes_and_spelling():
    sizes = {name: (len(labels), len(set(labels))) for name, labels in class_labels().items()}
    assert sizes == {"K700": (700, 700), "HMDB51": (51, 51), "UCF101": (101, 101), "Breakfast": (10, 10)}
    assert "ride_bike" in class_labels()["HMDB51"]
    assert "PlayingDaf" in class_labels()["UCF101"]
    assert class_labels()["K700"][0] == "waiting_in_line"
    assert "massaging_person's_head" in class_labels()["K700"]
    assert class_labels()["Breakfast"] == [
        "pancake", "cereal", "sandwich", "scrambledegg", "friedegg", "coffee", "milk", "tea", "juice", "salad"
    ]  # fmt: skip


def test_classification_ranks_the_whole_label_list(mirror):
    mirror.frames("UCF101", "v_Drumming_g01_c01")
    mirror.write("UCF101", [{"video_id": "v_Drumming_g01_c01", "pos_text": "Drumming"}])
    loaded = mirror.load("UCF101")
    (query,), (item,) = loaded.queries, loaded.items
    assert query.instruction == "What activities or sports are being performed by the person in the video?"
    assert query.text == ""
    assert frame_numbers(query) == [1, 2, 3, 4, 5, 6, 7, 9]
    assert item.labels == ("Drumming",)
    assert item.candidate_keys is None
    assert [(c.key, c.text, c.instruction) for c in loaded.candidates] == [
        (label, label, "") for label in class_labels()["UCF101"]
    ]


def test_a_class_outside_the_list_is_refused(mirror):
    mirror.frames("Breakfast", "a")
    mirror.write("Breakfast", [{"video_id": "a", "pos_text": "porridge"}])
    with pytest.raises(DataError, match=r"(?s)'Breakfast'.*row 0.*'porridge'"):
        mirror.load("Breakfast")


def test_a_classification_task_needs_a_label_list(mirror):
    row = {"name": "Kinetics", "parser": "video_classification", "modality": "video", "meta_task": "V-CLS"}
    row |= {"hf_repo": "VLM2Vec/K", "hf_split": "test", "metric": "hit@1", "num_queries": 1, "eval_type": "global"}
    with pytest.raises(ConfigError, match=r"label list.*'Kinetics'"):
        load_task(row | {"distribution": "OOD"}, mirror.annotations, mirror.media)


def test_ssv2_takes_the_rows_own_labels_and_the_first_thousand_rows(mirror):
    mirror.frames("SmthSmthV2", "74225")
    labels = ["Closing something", "Burying something in something"]
    row = {"video_id": 74225, "pos_text": labels[1], "neg_text": labels}
    mirror.write("SmthSmthV2", [row] * 1001)
    loaded = mirror.load("SmthSmthV2")
    assert len(loaded.queries) == 1000
    instruction = "What actions or object interactions are being performed by the person in the video?"
    assert (loaded.queries[0].instruction, loaded.queries[0].text) == (instruction, "")
    assert loaded.items[0].labels == (labels[1],)
    assert loaded.items[0].candidate_keys == tuple(labels)
    assert [(c.key, c.text) for c in loaded.candidates] == [(label, label) for label in labels]


def test_an_ssv2_label_outside_the_rows_list_is_refused(mirror):
    mirror.frames("SmthSmthV2", "7")
    mirror.write("SmthSmthV2", [{"video_id": "7", "pos_text": "c", "neg_text": ["a", "b"]}])
    with pytest.raises(DataError, match=r"(?s)'SmthSmthV2'.*row 0.*label 'c'"):
        mirror.load("SmthSmthV2")


# --- retrieval --------------------------------------------------------------------------------------------------------

RETRIEVAL = [
    ("MSR-VTT", {"video_id": "v1", "video": "v1.mp4", "caption": "ein Hund läuft"}, "v1",
     "Find a video that contains the following visual content:"),
    ("MSVD", {"video_id": "v1", "video": "v1.avi", "caption": ["ein Hund läuft", "b"]}, "v1",
     "Find the video snippet that corresponds to the given summary:"),
    ("DiDeMo", {"video": "test/x/v.1.mp4", "caption": "ein Hund läuft"}, "v.1",
     "Find a video that includes the following described scenes:"),
    ("YouCook2", {"id": "v1_0", "video_path": "val/113/v1.mp4", "sentence": "ein Hund läuft"}, "v1_0",
     "Find a video that demonstrates the following action while making a recipe:"),
    ("VATEX", {"videoID": "v1", "enCap": ["ein Hund läuft", "b"]}, "v1",
     "Select a video that fits the description provided:"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "key", "instruction"), RETRIEVAL, ids=[case[0] for case in RETRIEVAL])
def test_retrieval_pairs_a_caption_with_its_video(mirror, name, row, key, instruction):
    mirror.frames(name, key)
    mirror.write(name, [row])
    loaded = mirror.load(name)
    (query,), (candidate,), (item,) = loaded.queries, loaded.candidates, loaded.items
    assert (query.instruction, query.text, query.media) == (instruction, "ein Hund läuft", ())
    assert (candidate.key, candidate.instruction, candidate.text) == (key, TARGET, "")
    assert frame_numbers(candidate) == [1, 2, 3, 4, 5, 6, 7, 9]
    assert (item.labels, item.candidate_keys, item.relevance) == ((key,), None, None)
    assert mirror.load(name, "qwen3").candidates[0].instruction == ""


@pytest.mark.parametrize(
    ("name", "row", "file"),
    [
        ("YouCook2", {"id": "v1_0", "video_path": "val/113/v1.webm", "sentence": "x"}, "v1.webm"),
        ("DiDeMo", {"video": "test/v1.mov", "caption": "x"}, "v1.mov"),
        ("VATEX", {"videoID": "v1", "enCap": ["x"]}, "v1.mp4"),
    ],
)
def test_retrieval_looks_for_the_file_that_the_row_names(mirror, name, row, file):
    path = mirror.media / get_task(name).media / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"never decoded here")
    mirror.write(name, [row])
    assert mirror.load(name).candidates[0].media[0].content == path


def test_two_captions_of_one_video_share_a_candidate(mirror):
    mirror.frames("MSR-VTT", "v1")
    mirror.write("MSR-VTT", [{"video_id": "v1", "video": "v1.mp4", "caption": text} for text in ("a", "b")])
    loaded = mirror.load("MSR-VTT")
    assert [query.text for query in loaded.queries] == ["a", "b"]
    assert [candidate.key for candidate in loaded.candidates] == ["v1"]


def test_an_empty_list_of_captions_is_refused(mirror):
    mirror.frames("VATEX", "v1")
    mirror.write_lines("VATEX", [{"videoID": "v1", "enCap": []}])
    with pytest.raises(DataError, match=r"(line 1|row 0).*'enCap' is an empty list"):
        mirror.load("VATEX")
