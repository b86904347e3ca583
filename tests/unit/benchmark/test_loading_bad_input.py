"""Bad rows: an error that names task, file and row, or a counted omission where that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.mmeb_files import annotation_path, write_image, write_jsonl
from tests.support.mmeb_fixtures import build_mirror
from twn_lightning.benchmark import EvalTask, get_task, load_task
from twn_lightning.benchmark.loading import resolve_task
from twn_lightning.errors import ConfigError, DataError

Change = Callable[[dict[str, Any]], None]
IMAGE, DOCUMENT = "OK-VQA", "ViDoRe_arxivqa"


def write_image_task(root: Path, changes: dict[int, Change]) -> None:
    """Three rows of a local image task, some of them spoilt."""
    rows: list[dict[str, Any]] = []
    for number in range(3):
        write_image(root / "media" / "image-tasks" / f"{number}.png")
        row: dict[str, Any] = {"qry_inst": "Answer:", "qry_text": "?", "qry_img_path": f"{number}.png"}
        rows.append(row | {"tgt_text": [f"yes {number}", "no"]})
    for number, change in changes.items():
        change(rows[number])
    write_jsonl(annotation_path(root, get_task(IMAGE), suffix=".jsonl"), rows)


def write_document_task(root: Path, **tables: list[dict[str, Any]]) -> None:
    """Two queries over three pages; a table given replaces the good one."""
    good = {
        "corpus": [{"corpus-id": page} for page in (10, 11, 12)],
        "queries": [{"query-id": n, "query": f"query {n}"} for n in (0, 1)],
        "qrels": [{"query-id": n, "corpus-id": 10 + n, "score": 1} for n in (0, 1)],
    }
    for page in (10, 11, 12):
        write_image(root / "media" / get_task(DOCUMENT).media / f"{page}.png")
    for subset, rows in (good | tables).items():
        write_jsonl(annotation_path(root, get_task(DOCUMENT), subset=subset, suffix=".jsonl"), rows)


def load(root: Path, name: str, on_error: Any = "raise") -> EvalTask:
    return load_task(name, root, root / "media", strict_counts=False, on_error=on_error)


def put(column: str, value: Any) -> Change:
    return lambda row: row.__setitem__(column, value)


BAD_ROWS: dict[str, tuple[Change, str]] = {
    "missing image": (put("qry_img_path", "gone.png"), r"image .*gone\.png does not exist"),
    "path leaving its root": (put("qry_img_path", "../../secret.png"), "leaves its root"),
    "absolute path": (put("qry_img_path", "/etc/passwd"), "leaves its root"),
    "empty path": (put("qry_img_path", ""), "is not the path of a media file"),
    "no candidates": (put("tgt_text", []), "candidate list is empty"),
    "empty candidate": (put("tgt_text", ["yes", ""]), "candidate has an empty key"),
    "empty label": (put("tgt_text", [" ", "no"]), "candidate has an empty key"),
    "candidates of a wrong type": (
        put("tgt_text", "yes"),
        "column 'tgt_text' must be a list of strings, got str 'yes'",
    ),
    "a candidate of a wrong type": (put("tgt_text", ["yes", 1]), "element 1 of column 'tgt_text' must be a string"),
    "text of a wrong type": (put("qry_inst", None), "column 'qry_inst' must be a string, got NoneType"),
    "missing column": (lambda row: row.pop("tgt_text"), "no column 'tgt_text'; there are: qry_img_path, qry_inst"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_image_row(case: str, tmp_path: Path) -> None:
    change, message = BAD_ROWS[case]
    write_image(tmp_path / "secret.png")
    write_image_task(tmp_path, {1: change})
    with pytest.raises(DataError, match=rf"task 'OK-VQA', .*test\.jsonl, line 2: .*{message}"):
        load(tmp_path, IMAGE)


@pytest.mark.parametrize("case", BAD_ROWS)
def test_skipping_leaves_the_bad_row_out_and_lists_it(case: str, tmp_path: Path) -> None:
    change, _ = BAD_ROWS[case]
    write_image_task(tmp_path, {1: change})
    task = load(tmp_path, IMAGE, on_error="skip")
    assert [query.key for query in task.queries] == ["OK-VQA/0", "OK-VQA/2"]
    assert task.labels == [("yes 0",), ("yes 2",)]
    assert [item.key for item in task.candidates] == ["yes 0", "no", "yes 2"]  # nothing of the skipped row is left
    assert len(task.skipped) == task.counts["skipped"] == 1
    assert "line 2: " in task.skipped[0]


def test_a_broken_line_is_skipped_too(tmp_path: Path) -> None:
    write_image_task(tmp_path, {})
    path = annotation_path(tmp_path, get_task(IMAGE), suffix=".jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-5], lines[2]]))
    with pytest.raises(DataError, match=r"test\.jsonl, line 2: this is not JSON"):
        load(tmp_path, IMAGE)
    assert len(load(tmp_path, IMAGE, on_error="skip").queries) == 2


def test_nothing_left_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    write_image_task(tmp_path, {number: put("tgt_text", []) for number in range(3)})
    with pytest.raises(
        DataError, match=r"no query was found in ziyjiang/MMEB_Test_Instruct.*\(3 rows skipped\).*line 1"
    ):
        load(tmp_path, IMAGE, on_error="skip")


def test_captions_and_paths_of_unequal_number(tmp_path: Path) -> None:
    row = {"qry_inst": "Find", "qry_text": "x", "tgt_inst": "", "tgt_text": ["a"], "tgt_img_path": ["0.png", "1.png"]}
    write_jsonl(annotation_path(tmp_path, get_task("WebQA"), suffix=".jsonl"), [row])
    with pytest.raises(DataError, match=r"line 1: 1 texts in tgt_text but 2 paths"):
        load(tmp_path, "WebQA")


def qrel(score: Any, page: Any = 11) -> dict[str, Any]:
    return {"query-id": 1, "corpus-id": page, "score": score}


GOOD_QREL = {"query-id": 0, "corpus-id": 10, "score": 1}
BAD_TABLES: dict[str, tuple[str, list[dict[str, Any]], str, list[str]]] = {
    "unknown page": ("qrels", [GOOD_QREL, qrel(1, 99), qrel(1)], "names? document '99', which the corpus", ["0", "1"]),
    "NaN": ("qrels", [GOOD_QREL, qrel(float("nan"))], "'score' must be a finite number, got nan", ["0"]),
    "infinity": ("qrels", [GOOD_QREL, qrel(float("inf"))], "'score' must be a finite number, got inf", ["0"]),
    "no number": ("qrels", [GOOD_QREL, qrel("1")], "'score' must be a finite number, got '1'", ["0"]),
    "page without id": ("qrels", [GOOD_QREL, qrel(1, None), qrel(1)], "'corpus-id' must be an id", ["0", "1"]),
    "query without qrels": ("qrels", [GOOD_QREL], "'ViDoRe_arxivqa/1' has no relevant candidate", ["0"]),
    "query with qrels of 0": ("qrels", [GOOD_QREL, qrel(0)], "'ViDoRe_arxivqa/1' has no relevant candidate", ["0"]),
    "repeated query": (
        "queries",
        [{"query-id": 0, "query": "first"}, {"query-id": "0", "query": "second"}],
        "query id 'ViDoRe_arxivqa/0' occurs a second time",
        ["0"],
    ),
    "empty query": (
        "queries",
        [{"query-id": 0, "query": "first"}, {"query-id": 1, "query": " "}],
        "the query has neither text nor media",
        ["0"],
    ),
    "repeated page": (
        "corpus",
        [{"corpus-id": 10}, {"corpus-id": 10}, {"corpus-id": 11}],
        "candidate id '10' occurs a second time",
        ["0", "1"],
    ),
    "page without image": ("corpus", [{"corpus-id": 10}, {"corpus-id": 77}, {"corpus-id": 11}], r"77\.png", ["0", "1"]),
    "page id that leaves the root": (
        "corpus",
        [{"corpus-id": 10}, {"corpus-id": "../x"}, {"corpus-id": 11}],
        "leaves its root",
        ["0", "1"],
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_triple(case: str, tmp_path: Path) -> None:
    subset, rows, message, left = BAD_TABLES[case]
    write_document_task(tmp_path, **{subset: rows})
    where = rf"task 'ViDoRe_arxivqa', .*{'queries' if 'has no relevant' in message else subset}/test\.jsonl, line 2: "
    with pytest.raises(DataError, match=where + f".*{message}"):
        load(tmp_path, DOCUMENT)
    task = load(tmp_path, DOCUMENT, on_error="skip")
    assert [query.key.partition("/")[2] for query in task.queries] == left
    assert task.counts["skipped"] == len(task.skipped) >= 1


def test_missing_annotations_are_never_skipped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ziyjiang/MMEB_Test_Instruct, subset OK-VQA, split test: nothing to read"):
        load(tmp_path, IMAGE, on_error="skip")


def task_row(**changes: Any) -> dict[str, Any]:
    """The task with the counts of `write_image_task`, as a row with a field of somebody else's."""
    return {"name": IMAGE, "num_queries": 3, "num_candidates": 2, "vlm2vec_v2_2b_score": 1.0} | changes


def test_counts_that_fit_the_table(tmp_path: Path) -> None:
    write_image_task(tmp_path, {})
    assert len(load_task(task_row(), tmp_path, tmp_path / "media").queries) == 3


def test_counts_that_do_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image_task(tmp_path, {2: put("tgt_text", ["a", "b", "c"])})
    with pytest.raises(DataError, match=r"found 3 queries, the table says 1000\..*strict_counts=False"):
        load_task(IMAGE, tmp_path, tmp_path / "media")
    with pytest.raises(DataError, match=r"found 2 to 3 candidates per query, the table says 2\..*strict_counts=False"):
        load_task(task_row(), tmp_path, tmp_path / "media")
    with caplog.at_level(logging.WARNING):
        task = load_task(task_row(candidates_note="by an audit"), tmp_path, tmp_path / "media")
    assert (task.counts["smallest_list"], task.counts["largest_list"]) == (2, 3)
    assert "found 2 to 3 candidates per query, the table says 2 (by an audit)" in caplog.text


def test_a_repeated_string_counts_as_listed(tmp_path: Path) -> None:
    write_image_task(tmp_path, {n: put("tgt_text", ["yes", "no", "no"]) for n in range(3)})
    task = load_task(task_row(num_candidates=3), tmp_path, tmp_path / "media")
    assert task.candidate_keys == [("yes", "no")] * 3


def test_rows_skipped_on_request_count_as_found(tmp_path: Path) -> None:
    write_image_task(tmp_path, {1: put("tgt_text", [])})
    assert len(load_task(task_row(), tmp_path, tmp_path / "media", on_error="skip").queries) == 2
    write_document_task(tmp_path, corpus=[{"corpus-id": 10}, {"corpus-id": 11}, {"corpus-id": 77}])
    row = {"name": DOCUMENT, "num_queries": 2, "num_candidates": 3}
    assert len(load_task(row, tmp_path, tmp_path / "media", on_error="skip").candidates) == 2
    with pytest.raises(DataError, match="found 2 candidates in the corpus, the table says 4"):
        load_task(row | {"num_candidates": 4}, tmp_path, tmp_path / "media", on_error="skip")


def test_rows_as_mappings() -> None:
    given = task_row(hf_subset="OK-VQA", target_instruction=None)
    task = resolve_task(given)
    assert (task.num_queries, task.media, task.parser) == (3, "image-tasks", "image_qa")
    triple = resolve_task({"name": DOCUMENT, "hf_subset": "queries+qrels+corpus"})
    assert triple == get_task(DOCUMENT)
    own = {key: getattr(get_task("MSVD"), key) for key in ("modality", "meta_task", "parser", "hf_repo", "hf_split")}
    own |= {"name": "Mine", "metric": "hit@1", "num_queries": 1, "eval_type": "global", "distribution": "OOD"}
    assert resolve_task(own).media == "video-tasks/frames/video_ret/Mine"
    assert resolve_task(own | {"modality": "visdoc"}).media == "visdoc-tasks/Mine"


def test_a_mapping_that_lacks_fields() -> None:
    with pytest.raises(ConfigError, match=r"a task row lacks .*hf_repo.*num_queries.*it has: name, parser"):
        resolve_task({"name": "Mine", "parser": "vidore"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name_or_row": "OKVQA"}, "unknown task 'OKVQA': did you mean 'OK-VQA'"),
        ({"protocol": "vlm"}, "unknown protocol 'vlm'"),
        ({"on_error": "ignore"}, "unknown on_error 'ignore'"),
        ({"name_or_row": {"name": "GQA", "parser": "image_q"}}, "unknown parser 'image_q': did you mean 'image_qa'"),
    ],
)
def test_unknown_names(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task(**({"name_or_row": IMAGE, "annotations_root": tmp_path, "media_root": tmp_path} | arguments))


def test_a_media_folder_that_leaves_the_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"field 'media': the path '\.\./x' leaves its root"):
        load_task(task_row(media="../x"), tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("task", "column"), [("Video-MME", "question_id"), ("EgoSchema", "question_idx"), ("ActivityNetQA", "question_id")]
)
def test_a_question_id_that_occurs_twice_is_an_error(tmp_path: Path, task: str, column: str) -> None:
    mirror = build_mirror(tmp_path, [task], queries=2)
    found = get_task(task)
    split = f"{found.hf_repo}/{found.hf_subset or 'default'}/{found.hf_split}"
    file = next(mirror.annotations_root.glob(f"{split}.*"))
    rows = pq.read_table(file).to_pylist()
    pq.write_table(pa.Table.from_pylist([rows[0], rows[1] | {column: rows[0][column]}]), file)
    with pytest.raises(DataError, match=rf"{task}.*occurs a second time"):
        load_task(task, mirror.annotations_root, mirror.media_root, strict_counts=False)


def test_arguments_that_are_no_task_or_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a task is its name"):
        load_task(7, tmp_path, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="media_root must be the folder"):
        load_task("MSVD", tmp_path, None)  # type: ignore[arg-type]
