"""What the builder refuses of any parser, and what it takes over of a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twn_lightning.benchmark import get_protocol, get_task
from twn_lightning.benchmark.context import LoadContext, Row, split_instruction
from twn_lightning.benchmark.rows import RowBuilder
from twn_lightning.data.roots import MediaRoot
from twn_lightning.errors import DataError
from twn_lightning.types import Media, RankingItem

PICTURE = (Media("image", Path("a.png")),)


def builder(name: str = "GQA", on_error: Any = "raise", protocol: str = "vlm2vec", **changes: Any) -> RowBuilder:
    task = replace(get_task(name), **changes)
    return RowBuilder(LoadContext(task, get_protocol(protocol), None, MediaRoot("media"), on_error))


def row(index: int = 0, **values: Any) -> Row:
    return Row(index, f"task 'GQA', f.jsonl, line {index + 1}", values)


def add(rows: RowBuilder, index: int, candidates: list[str], labels: list[str], **options: Any) -> None:
    with rows.row(row(index)) as entry:
        for candidate in candidates:
            entry.candidate(candidate, candidate)
        entry.query("?", labels, **options)


def test_a_row_is_taken_over_as_a_whole_or_not_at_all() -> None:
    rows = builder(on_error="skip")
    with rows.row(row(0)) as entry:
        entry.candidate("yes", "yes")
        entry.query("?", ["yes"])
    with rows.row(row(1)) as entry:
        entry.candidate("lost", "lost")
        raise DataError("task 'GQA', f.jsonl, line 2: broken")
    with rows.row(row(2), is_query=False) as entry:
        entry.candidate("", "")
    made = rows.finish()
    assert [item.key for item in made.candidates] == ["yes"]
    assert [query.key for query in made.queries] == ["GQA/0"]
    assert (len(made.skipped), made.skipped_queries, made.list_sizes) == (2, 1, (1, 1))


def test_errors_that_are_no_data_errors_are_never_skipped() -> None:
    rows = builder(on_error="skip")
    with pytest.raises(ZeroDivisionError), rows.row(row()):
        _ = 1 / 0


def test_media_of_a_known_candidate_are_not_looked_up_again() -> None:
    calls: list[str] = []

    def look() -> tuple[Media, ...]:
        calls.append("looked")
        return PICTURE

    rows = builder()
    for index in range(3):
        with rows.row(row(index)) as entry:
            for _ in range(2):
                entry.candidate("picture", media=look)
            entry.query("?", ["picture"])
    made = rows.finish()
    assert calls == ["looked"]
    assert made.candidates[0].media == PICTURE
    assert {id(key) for item in made.items for key in item.candidate_keys or ()} == {id(made.candidates[0].key)}


def test_global_ranking_has_no_lists() -> None:
    rows = builder("MSVD")
    rows.candidate("v1", "one")
    rows.candidate("v1", "again")
    with rows.row(row()) as entry:
        entry.candidate("v2", "two")
        entry.query("?", ["v1", "v2"])
    made = rows.finish()
    assert [(item.key, item.text) for item in made.candidates] == [("v1", "one"), ("v2", "two")]
    assert (made.items, made.list_sizes) == ([RankingItem(("v1", "v2"))], None)


@pytest.mark.parametrize(
    ("name", "relevance", "expected"),
    [
        ("MSVD", None, None),
        ("MSVD", [1, 1.0], None),
        ("MSVD", [2, 1], (2.0, 1.0)),
        ("ViDoSeek-doc", [1, 1], (1.0, 1.0)),
    ],
)
def test_grades_are_kept_where_they_say_something(name: str, relevance: Any, expected: Any) -> None:
    rows = builder(name)
    rows.candidate("a", "a")
    rows.candidate("b", "b")
    add(rows, 0, [], ["a", "b"], relevance=relevance)
    assert rows.finish().items == [RankingItem(("a", "b"), expected)]


def test_of_a_label_named_twice_the_highest_grade_counts() -> None:
    rows = builder("MSVD")
    rows.candidate("a", "a")
    add(rows, 0, [], ["a", "a", "a"], relevance=[2, 3, 1])
    assert rows.finish().items == [RankingItem(("a",), (3.0,))]


@pytest.mark.parametrize("grade", [float("nan"), float("inf"), 0.0, -1.0])
def test_grades_must_be_numbers_above_zero(grade: float) -> None:
    rows = builder("ViDoSeek-doc")
    rows.candidate("a", "a")
    with pytest.raises(DataError, match=r"line 1: relevance of 'a' must be a number above 0"):
        add(rows, 0, [], ["a"], relevance=[grade])


def test_labels_and_grades_of_unequal_number() -> None:
    with pytest.raises(DataError, match="line 1: 2 labels but 1 grades"):
        add(builder(), 0, ["a", "b"], ["a", "b"], relevance=[1])


@pytest.mark.parametrize(("name", "scope"), [("GQA", "the query's 1 candidates"), ("MSVD", "the corpus")])
def test_a_label_outside_the_candidates(name: str, scope: str) -> None:
    rows = builder(name)
    with pytest.raises(DataError, match=rf"line 1: label 'b' of query '{name}/0' is not in {scope}"):
        add(rows, 0, ["a"], ["b"])


def test_a_local_label_must_be_among_the_querys_own() -> None:
    rows = builder()
    add(rows, 0, ["a"], ["a"])
    with pytest.raises(DataError, match="label 'a' of query 'GQA/1' is not in"):
        add(rows, 1, ["b"], ["a"])


def test_a_repeated_query_id() -> None:
    rows = builder("MSVD")
    rows.candidate("a", "a")
    add(rows, 0, [], ["a"], id="q7")
    with pytest.raises(DataError, match=r"line 2: query id 'MSVD/q7' occurs a second time"):
        add(rows, 1, [], ["a"], id="q7")


def test_empty_items() -> None:
    with pytest.raises(DataError, match="line 1: the query has neither text nor media"), builder().row(row()) as entry:
        entry.query(" ", ["a"])
    with pytest.raises(DataError, match="candidate 'a' has neither text nor media"), builder().row(row()) as entry:
        entry.candidate("a", " ")
    with pytest.raises(DataError, match="corpus: a candidate has an empty key"):
        builder().candidate("", "text")


def test_keys_and_texts_keep_their_outer_space() -> None:
    rows = builder()
    with rows.row(row()) as entry:
        entry.candidate(" a ", " a ", instruction=" find ")
        entry.query(" what? \n", [" a "], instruction=" look ")
    made = rows.finish()
    assert (made.queries[0].instruction, made.queries[0].text) == (" look ", " what? \n")
    assert (made.candidates[0].key, made.candidates[0].instruction, made.candidates[0].text) == (" a ", " find ", " a ")


def test_instructions_come_from_the_table_and_the_protocol() -> None:
    context, qwen3 = builder("WebQA").context, builder("WebQA", protocol="qwen3").context
    assert context.query_instruction == qwen3.query_instruction == "Find a Wikipedia image that answers this question:"
    assert context.target_instruction == "Represent the given Wikipedia image with related text information:"
    assert qwen3.target_instruction == ""


def test_the_qwen3_protocol_has_its_own_wordings() -> None:
    context, qwen3 = builder("MomentSeeker").context, builder("MomentSeeker", protocol="qwen3").context
    assert context.query_instruction == "Find the clip that corresponds to the given text:"
    assert qwen3.query_instruction == "Find the clip that corresponds to the given text."
    assert context.query_variant("image") == "Select the video clip that aligns with the given text and image:"
    assert qwen3.query_variant("image") == "Select the video clip that aligns with the given text and image."
    assert qwen3.query_variant("sound") == qwen3.query_instruction
    assert builder("MSVD").context.query_variant("image") == builder("MSVD").context.query_instruction
    reworded = builder("MomentSeeker", protocol="qwen3", qwen3_query_instruction_variants={}).context
    assert reworded.query_variant("image") == context.query_variant("image")


@pytest.mark.parametrize(
    ("template", "expected"),
    [(None, ""), ("Find: {text}", "Find:"), ('labeled as "{text}"', 'labeled as "{text}"'), ("Watch. ", "Watch. ")],
)
def test_instructions_lose_only_the_place_of_the_text(template: str | None, expected: str) -> None:
    assert split_instruction(template) == expected


def test_frames_of_the_protocol_or_all() -> None:
    assert builder("MSVD").context.num_frames == 8
    assert builder("MSVD", protocol="qwen3").context.num_frames == 64
    assert builder("MomentSeeker").context.num_frames is None


@pytest.mark.parametrize(("value", "expected"), [(3, 3), (3.0, 3), ("3", 3), ("-1", -1)])
def test_whole_numbers(value: Any, expected: int) -> None:
    assert row(n=value).integer("n") == expected


@pytest.mark.parametrize("value", [True, 1.5, "x", None, float("nan"), float("inf"), [1]])
def test_no_whole_numbers(value: Any) -> None:
    with pytest.raises(DataError, match=r"line 1: column 'n' must be a whole number"):
        row(n=value).integer("n")


@pytest.mark.parametrize(("value", "expected"), [(0, "0"), (-5, "-5"), ("a b", "a b"), (2**60, str(2**60))])
def test_ids(value: Any, expected: str) -> None:
    assert row(n=value).identifier("n") == expected


@pytest.mark.parametrize("value", [True, 1.0, " ", "", None])
def test_no_ids(value: Any) -> None:
    with pytest.raises(DataError, match=r"line 1: column 'n' must be an id"):
        row(n=value).identifier("n")


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(DataError, match=r"got int 1{57}\.\.\.$"):
        row(n=int("1" * 100)).text("n")
