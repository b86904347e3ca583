"""A tiny offline MMEB-V2: annotations of all 78 tasks in their exact schemas, with media, in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.support.mmeb_files import (
    IMAGE_TYPE,
    Rows,
    annotation_path,
    odd_images,
    write_dataset_folder,
    write_image,
    write_jsonl,
    write_parquet,
    write_shards,
)
from tests.support.mmeb_video_fixtures import write_video_task
from twn_lightning.benchmark.parsers.visdoc import short_name
from twn_lightning.benchmark.registry import BenchmarkTask, all_tasks, get_task

CANDIDATES = 5
DUPLICATES = ("ChartQA", "Visual7W")
"""Tasks whose lists hold a string twice."""
CAPTIONED = ("WebQA", "EDIS", "OVEN", "RefCOCO-Matching")
"""Tasks whose image candidates have text."""
TABLES = {"VisualNews_i2t": "jsonl", "MSCOCO_i2t": "shards", "GQA": "folder", "MMLongBench-doc": "shards"}
"""Tasks whose annotations are no single parquet file."""
PAGES_AS_FILES = ("ViDoRe_tabfquad", "VisRAG_SlideVQA")
"""Documents whose corpus has no image column."""
IMAGE_PLACEHOLDER = "<|image_1|>"


@dataclass(frozen=True)
class MirrorPaths:
    """The two roots of an offline mirror."""

    annotations_root: Path
    media_root: Path


def build_mirror(root: Path, tasks: Iterable[str] | None = None, queries: int = 4, seed: int = 0) -> MirrorPaths:
    """Write a mirror.

    Args:
        root: an empty folder; gets `annotations/` and `media/`.
        tasks: names; None: all 78.
        queries: of each task; counts differ from the table's, so load with strict_counts=False.
        seed: of what is random in the video fixtures.

    Returns:
        The roots.
    """
    paths = MirrorPaths(root / "annotations", root / "media")
    rng = np.random.default_rng(seed)
    for task in all_tasks() if tasks is None else map(get_task, tasks):
        if task.modality == "image":
            _write_image_task(task, paths, queries)
        elif task.modality == "visdoc":
            _write_document_task(task, paths, queries)
        else:
            write_video_task(task, paths.annotations_root, paths.media_root, queries, rng)
    return paths


def write_table(path: Path, rows: Rows, form: str = "parquet", types: dict[str, pa.DataType] | None = None) -> None:
    """Rows as one of parquet, jsonl, shards, folder; `path` is that of the parquet file."""
    if form == "jsonl":
        write_jsonl(path.with_suffix(".jsonl"), rows)
    elif form == "shards":
        write_shards(path, rows, 2, types)
    elif form == "folder":
        write_dataset_folder(path.with_suffix(""), rows, types)
    else:
        write_parquet(path, rows, types)


def _write_image_task(task: BenchmarkTask, paths: MirrorPaths, queries: int) -> None:
    folder = paths.media_root / task.media
    rows = []
    for number in range(queries):
        row: dict[str, object] = {
            "qry_inst": f"{IMAGE_PLACEHOLDER}\n{(task.query_instruction or '').removesuffix('{text}').strip()}",
            "qry_text": "" if task.meta_task == "I-CLS" else f"What is at № {number}, près de l'étoile 星? ",
        }
        if task.parser != "image_t2i":
            row["qry_img_path"] = f"{task.name}/query_{number}.png"
            write_image(folder / f"{task.name}/query_{number}.png", number)
        elif task.name not in CAPTIONED:
            row["qry_inst"] = (task.query_instruction or "").removesuffix("{text}").strip()
        if task.parser in ("image_t2i", "image_i2i_vg"):
            row |= _image_candidates(task, folder, number)
        else:
            row["tgt_text"] = _text_candidates(task, number)
        rows.append(row)
    write_table(annotation_path(paths.annotations_root, task), rows, TABLES.get(task.name, "parquet"))


def _text_candidates(task: BenchmarkTask, number: int) -> list[str]:
    """The right one first; classes are the same in every row, answers are not."""
    if task.meta_task == "I-CLS":
        classes = [f"{task.name} class {k}" for k in range(min(CANDIDATES, task.num_candidates or CANDIDATES))]
        turn = number % len(classes)
        return [*classes[turn:], *classes[:turn]]
    answers = [f"answer {number}: größer, 大きい", *(f"distractor {number}-{k}" for k in range(1, CANDIDATES))]
    return [*answers, answers[0], answers[1]] if task.name in DUPLICATES else answers


def _image_candidates(task: BenchmarkTask, folder: Path, number: int) -> dict[str, object]:
    """The right image first; neighbouring rows share images, and RefCOCO-Matching has two objects in each."""
    per_image = 2 if task.name == "RefCOCO-Matching" else 1
    names = [f"{task.name}/candidate_{number + k // per_image}.jpg" for k in range(CANDIDATES)]
    for k, name in enumerate(names):
        write_image(folder / name, number + k)
    instruction = (task.target_instruction or "").removesuffix("{text}").strip()
    captions = [f'"object {k} in {name}"' if task.name in CAPTIONED else "" for k, name in enumerate(names)]
    return {"tgt_inst": f"{IMAGE_PLACEHOLDER} {instruction}\n", "tgt_text": captions, "tgt_img_path": names}


def _write_document_task(task: BenchmarkTask, paths: MirrorPaths, queries: int) -> None:
    pages = [_page(task, number) for number in range(queries + 3)]
    corpus: list[dict[str, object]] = [{"corpus-id": page} for page in pages]
    types: dict[str, pa.DataType] = {}
    for number, (page, row) in enumerate(zip(pages, corpus, strict=True)):
        if task.name in PAGES_AS_FILES:
            name = short_name(str(page)) if task.parser == "visrag" else f"{page}.png"
            write_image(paths.media_root / task.media / name, number)
        else:
            encoded = odd_images()
            row["image"] = {"bytes": encoded[number % len(encoded)], "path": None}
            types["image"] = IMAGE_TYPE
    rows: list[dict[str, object]] = []
    for number in range(queries):
        rows.append({"query-id": _query(task, number), "query": f"Où est la courbe № {number} de 東京?"})
        if task.meta_task == "ViDoRe-V2":
            rows[-1]["language"] = ("english", "french")[number % 2]
    subsets = {"corpus": corpus, "queries": rows, "qrels": _qrels(task, pages, queries)}
    for subset, table in subsets.items():
        form = TABLES.get(task.name, "jsonl" if task.name == "ViDoRe_tabfquad" else "parquet")
        form = "folder" if (task.name, subset) == ("ViDoSeek-doc", "corpus") else form
        path = annotation_path(paths.annotations_root, task, subset=subset)
        write_table(path, table, form, types if subset == "corpus" else None)


def _page(task: BenchmarkTask, number: int) -> int | str:
    """VisRAG's ids are file names, some of them long; the others are integers that start anywhere."""
    return f"{'a long name ' * 6}{number}.jpg" if task.parser == "visrag" else 120 + number


def _query(task: BenchmarkTask, number: int) -> int | str:
    return f"query-{number}" if task.parser == "visrag" else number


def _qrels(task: BenchmarkTask, pages: list[int | str], queries: int) -> list[dict[str, object]]:
    """Several positives in ViDoRe-V2, grades 2 and 3 in graded tasks; also what is to be passed over: 0, repeats."""
    rows = []
    for number in range(queries):
        grades = {pages[number]: 3 if task.graded else 1, pages[number + 1]: 0}
        if task.graded:
            grades |= {pages[number + 1]: 2, pages[number + 2]: 2}
        elif task.meta_task == "ViDoRe-V2":
            grades[pages[number + 1]] = 1
        for page, score in grades.items():
            rows.append({"query-id": _query(task, number), "corpus-id": page, "score": score})
        rows.append({"query-id": _query(task, number), "corpus-id": pages[number], "score": 1})
    return rows
