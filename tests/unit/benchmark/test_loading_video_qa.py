"""Questions about videos: exact texts, keys and labels in each parser's format; bad rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.task_mirror import Mirror
from twn_lightning.benchmark.loading import load_task
from twn_lightning.benchmark.parsers.video_qa import MVBENCH_FOLDERS
from twn_lightning.benchmark.registry import get_task
from twn_lightning.errors import DataError

QUESTION = (
    "Given a video and a question, select the most accurate answer from the provided candidates. "
    "Return only the exact text of your chosen answer. Question: "
)
FIRST = "(line 1|row 0)"
"""The first row of a .jsonl file, in messages."""


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return Mirror(tmp_path)


VIDEOMME = {
    "videoID": "vid", "question": "What is it?", "options": ["A. A cat.", "B. 3.5 dogs.", "C. U.S.", "D. ..."],
    "answer": "B", "question_id": "1-1", "domain": "d", "sub_category": "s",
}  # fmt: skip


def test_videomme_lists_options_below_the_question_and_ranks_their_bare_texts(mirror):
    mirror.frames("Video-MME", "vid")
    mirror.write("Video-MME", [VIDEOMME])
    loaded = mirror.load("Video-MME")
    assert loaded.queries[0].instruction == QUESTION
    assert loaded.queries[0].text == "What is it?\nA. A cat.\nB. 3.5 dogs.\nC. U.S.\nD. ..."
    assert loaded.items[0].labels == ("B. 3.5 dogs.",)
    assert loaded.items[0].candidate_keys == tuple(VIDEOMME["options"])
    # An option of nothing but dots keeps its letter: an empty candidate could not be embedded.
    assert [c.text for c in loaded.candidates] == ["A cat", "3.5 dogs", "U.S", "D. ..."]


def test_options_are_cut_at_the_first_dot_and_blank(mirror):
    """Where there is none, the reference would keep the last character alone."""
    mirror.frames("Video-MME", "vid")
    mirror.write("Video-MME", [VIDEOMME | {"options": ["Mr. Fox", "B.two", "C. Mr. Fox. "]}])
    assert [c.text for c in mirror.load("Video-MME").candidates] == ["Fox", "B.two", "Mr. Fox"]


EGOSCHEMA = {
    "question_idx": "5", "video_idx": "vid", "question": "What did c do?", "answer": "2",
    "option": ["A. C walks.", "B. C runs.", "C. C éats."],
}  # fmt: skip


def test_egoschema_joins_question_and_options_as_the_reference_does(mirror):
    mirror.frames("EgoSchema", "vid")
    mirror.write("EgoSchema", [EGOSCHEMA])
    loaded = mirror.load("EgoSchema")
    assert loaded.queries[0].instruction == QUESTION
    assert loaded.queries[0].text == "What did c do?A. C walks. B. C runs. C. C éats."
    assert loaded.items[0].labels == ("C. C éats.",)
    assert [(c.key, c.text) for c in loaded.candidates] == [
        ("A. C walks.", "C walks"), ("B. C runs.", "C runs"), ("C. C éats.", "C éats")
    ]  # fmt: skip


NEXTQA = {
    "video": 4740931975, "question": "why is he there", "answer": 1, "qid": 6, "type": "CW",
    "a0": "rest", "a1": "play", "a2": "eat", "a3": "play", "a4": "dance",
}  # fmt: skip
NEXTQA_TEXT = "why is he there\nOptions:\n(A) rest\n(B) play\n(C) eat\n(D) play\n(E) dance"


def test_egoschema_puts_a_blank_before_the_options_in_the_qwen3_protocol(mirror):
    mirror.frames("EgoSchema", "vid")
    mirror.write("EgoSchema", [EGOSCHEMA])
    loaded = mirror.load("EgoSchema", "qwen3")
    assert loaded.queries[0].instruction == QUESTION.removesuffix(" Question: ")
    assert loaded.queries[0].text == "What did c do? A. C walks. B. C runs. C. C éats."


def test_nextqa_shows_letters_but_ranks_bare_options(mirror):
    mirror.frames("NExTQA", "4740931975")
    mirror.write("NExTQA", [NEXTQA])
    loaded = mirror.load("NExTQA")
    assert (loaded.queries[0].instruction, loaded.queries[0].text) == (QUESTION, NEXTQA_TEXT)
    assert loaded.items[0].labels == ("play",)
    assert loaded.items[0].candidate_keys == ("rest", "play", "eat", "dance")
    assert loaded.counts["largest_list"] == 5


def test_nextqa_candidates_have_letters_in_the_qwen3_protocol(mirror):
    mirror.frames("NExTQA", "4740931975")
    mirror.write("NExTQA", [NEXTQA])
    loaded = mirror.load("NExTQA", "qwen3")
    assert loaded.queries[0].text == NEXTQA_TEXT
    assert loaded.items[0].candidate_keys == ("(A) rest", "(B) play", "(C) eat", "(D) play", "(E) dance")
    assert loaded.items[0].labels == ("(B) play", "(D) play")  # the same answer twice: right under both letters


def test_activitynetqa_asks_yes_or_no(mirror):
    mirror.frames("ActivityNetQA", "v_abc-1")
    mirror.write(
        "ActivityNetQA", [{"video_name": "abc-1", "question": "is it red", "answer": "no", "question_id": "x"}]
    )
    loaded = mirror.load("ActivityNetQA")
    assert (loaded.queries[0].instruction, loaded.queries[0].text) == (QUESTION, "is it red? (A) yes; (B) no.")
    assert loaded.items[0].labels == ("no",)
    assert loaded.items[0].candidate_keys == ("yes", "no")


def mvbench_row(**changes: Any) -> dict[str, Any]:
    row = {"video": "a.mp4", "question": "How often?", "candidates": ["1", "2", "3"], "answer": "3"}
    return row | changes


def test_mvbench_reads_its_subsets_in_the_references_order(mirror):
    for subset in ("state_change", "action_sequence"):
        mirror.frames("MVBench", f"{subset}/a.mp4")
        mirror.write("MVBench", [mvbench_row(question=f"{subset}?")], subset=subset)
    loaded = mirror.load("MVBench")
    assert [query.key for query in loaded.queries] == ["MVBench/action_sequence/0", "MVBench/state_change/0"]
    assert loaded.queries[0].instruction == QUESTION
    assert loaded.queries[0].text == "action_sequence?\nOptions:\n(A) 1\n(B) 2\n(C) 3"
    assert loaded.queries[0].media[0].content[0].parts[-3:-1] == ("action_sequence", "a.mp4")
    assert loaded.items[0].labels == ("(C) 3",)
    assert [(c.key, c.text) for c in loaded.candidates] == [(f"({x}) {n}", f"({x}) {n}") for x, n in ("A1", "B2", "C3")]


def test_mvbench_may_be_one_file_and_its_videos_in_the_folders_of_its_release(mirror):
    file = mirror.media / get_task("MVBench").media / "star/Charades_v1_480/a.mp4"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"never decoded here")
    mirror.write("MVBench", [mvbench_row(subset="object_interaction")])
    assert mirror.load("MVBench").queries[0].media[0].content == file
    mirror.write("MVBench", [mvbench_row(subset="object_interactoin")])
    with pytest.raises(DataError, match=r"row 0.*'object_interactoin': did you mean 'object_interaction'"):
        mirror.load("MVBench")


def test_mvbench_missing_subsets_are_named_and_counted(mirror, caplog):
    mirror.frames("MVBench", "action_count/a.mp4")
    mirror.write("MVBench", [mvbench_row()], subset="action_count")
    mirror.load("MVBench")
    assert len(MVBENCH_FOLDERS) == 20
    assert "19 of 20 subsets" in caplog.text
    with pytest.raises(DataError, match="found 1 queries, the table says 4000"):
        load_task("MVBench", mirror.annotations, mirror.media)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("Video-MME", VIDEOMME | {"answer": "E"}, "'E' points outside the 4 options"),
        ("Video-MME", VIDEOMME | {"answer": "b"}, "must be the letter of an option.*'b'"),
        ("Video-MME", VIDEOMME | {"options": ["x"][:0]}, "options is empty"),
        ("Video-MME", {k: v for k, v in VIDEOMME.items() if k != "options"}, "no column 'options'; there are: answer"),
        ("NExTQA", NEXTQA | {"answer": 5}, "5 points outside the 5 options"),
        ("NExTQA", NEXTQA | {"answer": -1}, "-1 points outside the 5 options"),
        ("NExTQA", NEXTQA | {"a2": " "}, "empty key"),
        ("EgoSchema", {"video_idx": "vid", "question": "?", "option": ["A. a"], "answer": "one"}, "whole number"),
        (
            "EgoSchema",
            {"video_idx": "vid", "question": "?", "option": ["A. a"], "answer": "1"},
            "outside the 1 options",
        ),
        ("ActivityNetQA", {"video_name": "id", "question": "?", "answer": "maybe"}, "unknown answer 'maybe'"),
        ("MVBench", mvbench_row(subset="action_count", answer="4"), "'4' is not among the candidates"),
        ("MVBench", mvbench_row(subset="action_count", candidates=[""][:0]), "candidate list is empty"),
    ],
)
def test_bad_rows_are_refused_with_task_file_and_row_or_skipped(mirror, name, row, message):
    for folder in ("vid", "4740931975", "v_id", "action_count/a.mp4"):
        mirror.frames(name, folder)
    mirror.write_lines(name, [row])
    with pytest.raises(DataError, match=rf"(?s)task '{name}'.*{get_task(name).hf_split}\.jsonl, {FIRST}.*{message}"):
        mirror.load(name)
    with pytest.raises(DataError, match=r"no query was found in .*\(1 rows skipped\)"):
        mirror.load(name, on_error="skip")
