"""Visual documents: qrels to labels and grades, pages that stay in their table."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.support.mmeb_files import IMAGE_TYPE, annotation_path, image_bytes, write_image, write_parquet
from tests.support.mmeb_fixtures import MirrorPaths
from twn_lightning.benchmark import EvalTask, all_tasks, get_protocol, get_task, load_task
from twn_lightning.benchmark.parsers.visdoc import short_name
from twn_lightning.data.record_files import StoredImage

NAME = "ViDoRe_arxivqa"
PROMPT = "Find a document image that matches the given query:"


def write_triple(
    root: Path, qrels: list[tuple[Any, Any, Any]], *, name: str = NAME, queries: Any = (0, 1), pages: Any = (10, 11, 12)
) -> None:
    corpus = [{"corpus-id": page, "image": {"bytes": image_bytes(n), "path": None}} for n, page in enumerate(pages)]
    tables = {
        "corpus": corpus,
        "queries": [{"query-id": query, "query": f"query {query}"} for query in queries],
        "qrels": [dict(zip(("query-id", "corpus-id", "score"), row, strict=True)) for row in qrels],
    }
    for subset, rows in tables.items():
        types = {"image": IMAGE_TYPE} if subset == "corpus" else None
        write_parquet(annotation_path(root, get_task(name), subset=subset), rows, types)


def load(root: Path, name: str = NAME, **options: Any) -> EvalTask:
    return load_task(name, root, root / "media", strict_counts=False, **options)


def test_labels_and_pages(tmp_path: Path) -> None:
    write_triple(tmp_path, [(0, 11, 1), (1, 10, 1), (1, 12, 1)])
    task = load(tmp_path)
    assert [(q.key, q.instruction, q.text) for q in task.queries] == [
        (f"{NAME}/0", PROMPT, "query 0"),
        (f"{NAME}/1", PROMPT, "query 1"),
    ]
    assert task.labels == [("11",), ("10", "12")]
    assert task.relevance == [None, None]
    assert task.candidate_keys == [None, None]
    assert [page.key for page in task.candidates] == ["10", "11", "12"]
    for number, page in enumerate(task.candidates):
        assert page.instruction == "Understand the content of the provided document image."
        content = page.media[0].content
        assert isinstance(content, StoredImage)
        assert content.read() == image_bytes(number)


def test_zero_scores_are_dropped_and_of_repeats_the_highest_counts(tmp_path: Path) -> None:
    write_triple(tmp_path, [(0, 11, 1), (0, 11, 3), (0, 11, 2), (0, 12, 0), (0, 10, -1), (0, 99, 0), (1, 10, 1)])
    task = load(tmp_path)
    assert task.labels == [("11",), ("10",)]
    assert task.relevance == [(3.0,), None]


def test_graded_tasks_keep_their_grades(tmp_path: Path) -> None:
    write_triple(tmp_path, [(0, 11, 2.0), (0, 10, 3.0), (1, 12, 1.0)], name="ViDoSeek-doc")
    task = load(tmp_path, "ViDoSeek-doc")
    assert task.labels == [("11", "10"), ("12",)]
    assert task.relevance == [(2.0, 3.0), (1.0,)]


def test_string_ids_meet_integer_ids(tmp_path: Path) -> None:
    write_triple(tmp_path, [("0", "11", 1), ("1", "10", 1)])
    assert load(tmp_path).labels == [("11",), ("10",)]


def test_qrels_of_queries_that_are_not_asked_are_left_out(tmp_path: Path) -> None:
    write_triple(tmp_path, [(0, 11, 1), (1, 10, 1), (7, 12, 1)])
    assert len(load(tmp_path).queries) == 2


def test_pages_as_files(tmp_path: Path) -> None:
    write_triple(tmp_path, [(0, 11, 1), (1, 10, 1)])
    write_parquet(annotation_path(tmp_path, get_task(NAME), subset="corpus"), [{"corpus-id": 10}, {"corpus-id": 11}])
    files = [write_image(tmp_path / "media" / get_task(NAME).media / f"{page}.png") for page in (10, 11)]
    assert [page.media[0].content for page in load(tmp_path).candidates] == files


def test_visrag_pages_have_shortened_names(tmp_path: Path) -> None:
    name, page = "VisRAG_SlideVQA", "slide" * 20 + ".v2.jpg"
    digest = hashlib.md5(page.encode()).hexdigest()[:8]
    assert short_name(page) == f"{('slide' * 20)[:50]}_{digest}.jpg"
    assert short_name("a.png") == f"a_{hashlib.md5(b'a.png').hexdigest()[:8]}.png"
    write_triple(tmp_path, [("q", page, 1)], name=name, queries=["q"], pages=[page])
    write_parquet(annotation_path(tmp_path, get_task(name), subset="corpus"), [{"corpus-id": page}])
    file = write_image(tmp_path / "media" / get_task(name).media / short_name(page))
    task = load(tmp_path, name)
    assert (task.candidates[0].key, task.candidates[0].media[0].content) == (page, file)
    assert task.labels == [(page,)]


def test_qwen3_pages_have_no_instruction(tmp_path: Path) -> None:
    write_triple(tmp_path, [(0, 11, 1), (1, 10, 1)])
    task = load(tmp_path, protocol="qwen3")
    assert {page.instruction for page in task.candidates} == {""}
    assert {query.instruction for query in task.queries} == {"Find a document image that matches the given query."}


def test_the_version_decides_the_repository(tmp_path: Path) -> None:
    """Page-level labels changed in version 2.1."""
    name = "ViDoSeek-page"
    write_triple(tmp_path, [(0, 11, 1), (1, 10, 1)], name=name)
    fixed = tmp_path / "VLM2Vec" / "ViDoSeek-page-fixed"
    fixed.rename(fixed.with_name("ViDoSeek-page"))
    old = load(tmp_path, name, protocol=get_protocol("vlm2vec", version="2.0.1"))
    assert old.task.hf_repo == "VLM2Vec/ViDoSeek-page"
    assert len(old.queries) == 2


@pytest.mark.parametrize("name", [task.name for task in all_tasks() if task.modality == "visdoc"])
def test_every_document_task_of_the_mirror(name: str, mirror: MirrorPaths) -> None:
    task = load_task(name, mirror.annotations_root, mirror.media_root, strict_counts=False)
    assert (len(task.queries), len(task.candidates)) == (4, 7)
    assert all(len(page.media) == 1 for page in task.candidates)
    several = task.task.graded or task.task.meta_task == "ViDoRe-V2"
    assert all((len(labels) > 1) == several for labels in task.labels)
    grades = (3.0, 2.0, 2.0) if task.task.graded else None
    assert task.relevance == [grades] * 4
