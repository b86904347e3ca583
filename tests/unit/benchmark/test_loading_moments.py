"""Moment retrieval: clips from the folder layout, several positives, three kinds of query."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.mmeb_files import annotation_path, write_frames, write_image, write_jsonl
from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.benchmark.loading import load_task
from twn_lightning.benchmark.protocol import Protocol, get_protocol
from twn_lightning.benchmark.registry import get_task
from twn_lightning.errors import DataError


def write_rows(root: Path, name: str, *rows: dict[str, Any]) -> Path:
    """Annotations of a task, and its media folder."""
    write_jsonl(annotation_path(root / "annotations", get_task(name), suffix=".jsonl"), rows)
    return root / "media" / get_task(name).media


def load(root: Path, name: str, protocol: str | Protocol = "vlm2vec", **changes: Any) -> EvalTask:
    return load_task(name, root / "annotations", root / "media", protocol, strict_counts=False, **changes)


def write_moments(media: Path, stem: str, clips: tuple[str, ...]) -> None:
    write_frames(media / stem / "query", 12)
    for clip in clips:
        write_frames(media / stem / clip, 8)


@pytest.mark.parametrize("name", ["QVHighlight", "Charades-STA"])
def test_clips_come_from_the_videos_folder(tmp_path, name):
    media = write_rows(tmp_path, name, {"query": "Ein Mann öffnet die Tür.", "video_path": "videos/ab_60.0_210.0.mp4"})
    write_moments(media, "ab_60.0_210.0", ("negative_10", "positive", "negative_2"))
    (media / "ab_60.0_210.0" / "notes.txt").write_text("not a clip")
    loaded = load(tmp_path, name)
    (query,), (item,) = loaded.queries, loaded.items
    assert query.instruction == "Find the clip that corresponds to the described scene in the given video:"
    assert query.text == "Ein Mann öffnet die Tür."
    assert [path.name for path in query.media[0].content] == [f"frame_{n}.jpg" for n in (1, 2, 4, 5, 7, 8, 10, 12)]
    # Natural order, and keys that hold on any machine.
    keys = [f"ab_60.0_210.0/{clip}" for clip in ("negative_2", "negative_10", "positive")]
    assert item.candidate_keys == tuple(keys)
    assert item.labels == ("ab_60.0_210.0/positive",)
    assert [(c.key, c.instruction, c.text) for c in loaded.candidates] == [
        (key, "Understand the content of the provided video.", "") for key in keys
    ]
    assert {len(c.media[0].content) for c in loaded.candidates} == {8}


def test_clip_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    media = write_rows(tmp_path, "QVHighlight", {"query": "x", "video_path": "v.mp4"})
    write_moments(media, "v", ("b_2", "positive_1", "b_10", "a"))
    before = load(tmp_path, "QVHighlight").items
    iterdir, scandir = Path.iterdir, os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

    monkeypatch.setattr(os, "scandir", lambda path: Backwards(sorted(scandir(path), key=lambda e: e.name)[::-1]))
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(iterdir(self))[::-1]))
    assert load(tmp_path, "QVHighlight").items == before
    assert before[0].candidate_keys == ("v/a", "v/b_2", "v/b_10", "v/positive_1")


def test_the_mirrors_place_does_not_show_in_keys(tmp_path):
    items = []
    for root in (tmp_path / "one", tmp_path / "two"):
        media = write_rows(root, "QVHighlight", {"query": "x", "video_path": "v.mp4"})
        write_moments(media, "v", ("positive", "negative"))
        items.append(load(root, "QVHighlight").items)
    assert items[0] == items[1]


def test_every_positive_folder_is_right(tmp_path):
    media = write_rows(tmp_path, "QVHighlight", {"query": "x", "video_path": "v.mp4"})
    write_moments(media, "v", ("positive_1", "positive_2", "negative"))
    assert load(tmp_path, "QVHighlight").items[0].labels == ("v/positive_1", "v/positive_2")


def test_clips_and_the_query_may_be_raw_files(tmp_path):
    media = write_rows(tmp_path, "Charades-STA", {"query": "x", "video_path": "videos/v.mp4"})
    (media / "v").mkdir(parents=True)
    for file in ("v.mp4", "v/positive_1.mp4", "v/negative_1.webm"):
        (media / file).write_bytes(b"never decoded here")
    loaded = load(tmp_path, "Charades-STA")
    assert loaded.queries[0].media[0].content == media / "v.mp4"
    assert loaded.items[0].labels == ("v/positive_1",)
    assert [c.media[0].content for c in loaded.candidates] == [media / "v/negative_1.webm", media / "v/positive_1.mp4"]


def test_a_video_without_a_positive_clip_is_refused(tmp_path):
    """The reference would silently take the positive of the row before."""
    media = write_rows(tmp_path, "QVHighlight", *({"query": "x", "video_path": f"{v}.mp4"} for v in "ab"))
    write_moments(media, "a", ("positive", "negative"))
    write_moments(media, "b", ("negative_1", "negative_2"))
    with pytest.raises(DataError, match=r"(?s)'QVHighlight'.*jsonl, (line 2|row 1).*'b' has no clip named positive"):
        load(tmp_path, "QVHighlight")
    loaded = load(tmp_path, "QVHighlight", on_error="skip")
    assert [query.key for query in loaded.queries] == ["QVHighlight/0"]
    assert len(loaded.skipped) == 1
    assert len(loaded.candidates) == 2


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"query": "x"}, "no column 'video_path'"),
        ({"query": "x", "video_path": "elsewhere.mp4"}, "elsewhere does not exist"),
        ({"query": "x", "video_path": "...mp4"}, r"leaves|'\.\.'"),
        ({"query": "x", "video_path": "..mp4"}, "must name a file"),
        ({"query": "x", "video_path": ""}, "'video_path' must be"),
        ({"query": 3, "video_path": "v.mp4"}, "'query' must be a string"),
        ({"query": "x", "video_path": "empty.mp4"}, "empty/positive"),
    ],
)
def test_bad_moment_rows_are_refused(tmp_path, broken, message):
    media = write_rows(tmp_path, "QVHighlight", broken)
    write_moments(media, "v", ("positive", "negative"))
    write_moments(media, "empty", ("negative",))
    (media / "empty" / "positive").mkdir()
    with pytest.raises(DataError, match=rf"(?s)task 'QVHighlight'.*(line 1|row 0).*({message})"):
        load(tmp_path, "QVHighlight")


# --- MomentSeeker -----------------------------------------------------------------------------------------------------


def moment_row(query: str, source: str | None, positives: list[str], negatives: list[str]) -> dict[str, Any]:
    frames = {"positive_frames": positives, "negative_frames": negatives}
    return {"query": query, "input_frames": source} | {
        column: [{"output_path": path} for path in paths] for column, paths in frames.items()
    }


def write_clips(media: Path, count: int = 4) -> None:
    for clip in range(count):
        write_frames(media / "video_frames" / f"movie_{clip}", 11)


@pytest.mark.parametrize(
    ("source", "instruction", "files"),
    [
        ("", "Find the clip that corresponds to the given text:", None),
        (None, "Find the clip that corresponds to the given text:", None),
        ("q.jpg", "Select the video clip that aligns with the given text and image:", "query_q.jpg"),
        (
            "movie/q.mp4",
            "Find the clip that corresponds to the given sentence and video segment:",
            [f"video_frames/movie_q/frame_{number}.jpg" for number in range(1, 71)],
        ),
    ],
)
def test_momentseeker_asks_with_text_an_image_or_a_video(tmp_path, source, instruction, files):
    row = moment_row("最后发生了什么", source, ["movie/0.mp4"], ["movie/1.mp4"])
    media = write_rows(tmp_path, "MomentSeeker", row)
    write_clips(media)
    write_image(media / "query_q.jpg")
    write_frames(media / "video_frames" / "movie_q", 70)
    (query,) = load(tmp_path, "MomentSeeker").queries
    assert (query.instruction, query.text) == (instruction, "最后发生了什么")
    if files is None:
        assert query.media == ()
    elif isinstance(files, str):
        assert (query.media[0].kind, query.media[0].content) == ("image", media / files)
    else:
        assert query.media[0].content == tuple(media / file for file in files)


@pytest.mark.parametrize("protocol", ["vlm2vec", "qwen3"])
def test_momentseeker_has_several_positives_first_and_uses_all_frames(tmp_path, protocol):
    row = moment_row("x", "", ["movie/2.mp4", "movie/0.mp4", "movie/2.mp4"], ["movie/1.mp4", "movie/3.mp4"])
    write_clips(write_rows(tmp_path, "MomentSeeker", row))
    loaded = load(tmp_path, "MomentSeeker", protocol)
    assert loaded.items[0].labels == ("video_frames/movie_2", "video_frames/movie_0")
    assert loaded.items[0].candidate_keys == tuple(f"video_frames/movie_{clip}" for clip in (2, 0, 1, 3))
    target = "Understand the content of the provided video clip."
    assert {c.instruction for c in loaded.candidates} == {target if protocol == "vlm2vec" else ""}
    assert {len(c.media[0].content) for c in loaded.candidates} == {11}


def test_momentseeker_clips_may_be_raw_files(tmp_path):
    media = write_rows(tmp_path, "MomentSeeker", moment_row("x", "", ["movie/0.mp4"], ["movie/9.mp4"]))
    write_clips(media)
    (media / "movie").mkdir()
    (media / "movie/9.mp4").write_bytes(b"never decoded here")
    assert load(tmp_path, "MomentSeeker").candidates[1].media[0].content == media / "movie/9.mp4"


def test_older_versions_read_the_older_momentseeker(tmp_path):
    row = moment_row("x", "", ["movie/0.mp4"], ["movie/1.mp4"])
    path = annotation_path(tmp_path / "annotations", get_task("MomentSeeker"), repo="VLM2Vec/MomentSeeker_1k8")
    write_jsonl(path.with_suffix(".jsonl"), [row, row])
    write_clips(tmp_path / "media" / get_task("MomentSeeker").media)
    loaded = load(tmp_path, "MomentSeeker", get_protocol("vlm2vec", version="2.0.0"))
    assert len(loaded.queries) == 2
    assert loaded.task.num_queries == 1800


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive_frames": []}, "no relevant candidate"),
        ({"positive_frames": "movie/0.mp4"}, "'positive_frames' must be a list of clips, got str"),
        ({"negative_frames": [{"path": "a"}]}, "entry 0 of column 'negative_frames' has no 'output_path'"),
        ({"negative_frames": [{"output_path": "movie/8.mp4"}]}, "movie_8"),
        ({"input_frames": "missing.jpg"}, "query_missing.jpg does not exist"),
        ({"input_frames": "x/../../../y.jpg"}, r"leaves its root|'\.\.'|leaves"),
    ],
)
def test_bad_momentseeker_rows_are_refused(tmp_path, changes, message):
    row = moment_row("x", "", ["movie/0.mp4"], ["movie/1.mp4"]) | changes
    write_clips(write_rows(tmp_path, "MomentSeeker", row))
    with pytest.raises(DataError, match=rf"(?s)task 'MomentSeeker'.*(line 1|row 0).*({message})"):
        load(tmp_path, "MomentSeeker")


def test_a_row_without_input_frames_is_refused(tmp_path):
    row = moment_row("x", "", ["movie/0.mp4"], ["movie/1.mp4"])
    del row["input_frames"]
    write_clips(write_rows(tmp_path, "MomentSeeker", row))
    with pytest.raises(DataError, match="no column 'input_frames'"):
        load(tmp_path, "MomentSeeker")
