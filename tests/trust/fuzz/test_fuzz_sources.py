"""The benchmark's and the training corpora's annotations with one value spoilt: every schema, every column."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import corpora_fixtures
from tests.support.mmeb_fixtures import MirrorPaths, build_mirror
from tests.trust.fuzz.cases import check, examples, nothing_left
from tests.trust.fuzz.test_fuzz_rows import JSON, media_paths, release
from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.benchmark.loading import load_task
from twn_lightning.benchmark.parsers import PARSERS
from twn_lightning.benchmark.registry import all_tasks
from twn_lightning.data.mixture import Mixture
from twn_lightning.types import Item, Pair

TASKS = {task.parser: task.name for task in reversed(all_tasks())}
"""One task of each schema."""
HOSTILE = st.sampled_from(
    ["", " ", None, "../../../../etc/passwd", "/etc/passwd", "a/../../b.png", "\x00", "x" * 300, [], [""], [None], {},
     -1, 10**30, 1e308, math.nan, math.inf, True, ["../x.png"], [["nested"]], "caption " * 20_000, "Z", "\u202e"]
)  # fmt: skip
VALUES = HOSTILE | JSON


@pytest.fixture(scope="module", autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left("sources", release):
        yield


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """An annotation file's rows."""
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def holds_bytes(value: Any) -> bool:
    """Whether a value can be in no JSON file."""
    if isinstance(value, dict):
        return any(map(holds_bytes, value.values()))
    return isinstance(value, bytes)


def spoil(row: Any, value: Any, choice: random.Random) -> None:
    """Put a copy of a value in the place of one field, at any depth, or take the field away."""
    while True:
        places = list(row) if isinstance(row, dict) else list(range(len(row)))
        place = choice.choice(places)
        inner = row[place]
        if isinstance(inner, (dict, list)) and inner and choice.random() < 0.6:
            row = inner
        elif value == "take it away":
            del row[place]
            return
        else:
            row[place] = copy.deepcopy(value)
            return


class Spoilt:
    """A mirror of annotations of which one file at a time is written anew with a spoilt row, and then put back."""

    def __init__(self, annotations: Path) -> None:
        files = [path for path in sorted(annotations.rglob("*")) if path.suffix in (".json", ".jsonl", ".parquet")]
        known = {path: rows_of(path) for path in files}
        self.rows = {path: rows for path, rows in known.items() if rows and not any(map(holds_bytes, rows))}

    def write(self, path: Path, value: Any, choice: random.Random) -> tuple[Path, bytes]:
        """Spoil a row of a file. Returns the spoilt file, and the content of the one it stands for."""
        rows = json.loads(json.dumps(self.rows[path]))
        spoil(choice.choice(rows), value, choice)
        whole = path.read_bytes()
        path.unlink()
        spoilt = path.with_suffix(".jsonl") if path.suffix == ".parquet" else path
        text = json.dumps(rows) if spoilt.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        spoilt.write_text(text, encoding="utf-8")
        return spoilt, whole


@pytest.fixture(scope="module")
def mirror(folder: Path) -> MirrorPaths:
    return build_mirror(folder / "mmeb", TASKS.values())


@pytest.fixture(scope="module")
def benchmark(mirror: MirrorPaths) -> dict[str, Spoilt]:
    """The annotation files of each schema, apart."""
    return {
        parser: Spoilt(mirror.annotations_root / next(t for t in all_tasks() if t.name == name).hf_repo)
        for parser, name in TASKS.items()
    }


def sound_task(task: EvalTask, media_root: Path) -> None:
    """What every loaded task promises, whatever its files say."""
    corpus = {item.key for item in task.candidates}
    assert len(corpus) == len(task.candidates)
    assert len({query.key for query in task.queries}) == len(task.queries) == len(task.items)
    for item in task.items:
        assert item.labels
        assert set(item.labels) <= set(item.candidate_keys or corpus) <= corpus
        assert all(math.isfinite(grade) and grade > 0 for grade in item.relevance or ())
    for item in (*task.queries, *task.candidates):
        assert item.text.strip() or item.media
        inside_the_root(item, media_root)


def inside_the_root(item: Item, root: Path) -> None:
    for path in media_paths(item):
        assert os.path.realpath(path).startswith(os.path.realpath(root) + os.sep)
        assert path.is_file()


@pytest.mark.parametrize("parser", sorted(PARSERS))
@examples(8, 60)
@given(data=st.data(), value=VALUES | st.just("take it away"), seed=st.integers(0, 9999), skip=st.booleans())
def test_benchmark_rows(
    mirror: MirrorPaths, benchmark: dict[str, Spoilt], parser: str, data: Any, value: Any, seed: int, skip: bool
) -> None:
    name = TASKS[parser]
    path = data.draw(st.sampled_from(sorted(benchmark[parser].rows)))
    spoilt, whole = benchmark[parser].write(path, value, random.Random(seed))
    try:
        check(
            "benchmark",
            f"{name} {path.name} {value!r:.80} {seed}",
            lambda: load_task(
                name,
                mirror.annotations_root,
                mirror.media_root,
                strict_counts=False,
                on_error="skip" if skip else "raise",
            ),
            lambda task: sound_task(task, mirror.media_root),
            names=name,
        )
    finally:
        spoilt.unlink()
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def corpora(folder: Path) -> tuple[corpora_fixtures.Mirror, dict[str, Spoilt]]:
    """A mirror of the training corpora, and the files of each that JSON can hold."""
    mirror = corpora_fixtures.write_mirror(folder / "corpora")
    files = {}
    for name, write in corpora_fixtures.WRITERS.items():
        alone = folder / "alone" / name
        write(alone)
        names = [path.relative_to(alone) for path in Spoilt(alone).rows]
        shutil.rmtree(alone)
        spoilt = Spoilt(mirror.annotations)
        spoilt.rows = {
            path: rows for path, rows in spoilt.rows.items() if path.relative_to(mirror.annotations) in names
        }
        if spoilt.rows:
            files[name] = spoilt
    return mirror, files


@pytest.mark.parametrize("name", ["llava_hound", "mmeb_train", "pairs", "twn", "ume_r1"])
@examples(15, 80)
@given(data=st.data(), value=VALUES | st.just("take it away"), seed=st.integers(0, 9999))
def test_corpus_rows(
    corpora: tuple[corpora_fixtures.Mirror, dict[str, Spoilt]], name: str, data: Any, value: Any, seed: int
) -> None:
    mirror, files = corpora
    path = data.draw(st.sampled_from(sorted(files[name].rows)))
    spoilt, whole = files[name].write(path, value, random.Random(seed))

    def read() -> list[Pair]:
        mixture = Mixture(mirror.settings(name))
        pairs = list(mixture.pairs("train", 1000))
        columns = mixture.pairs("train", 1000).columns()
        assert [pair.query.cot for pair in pairs] == list(columns.query_cots)
        return pairs

    def right(pairs: list[Pair]) -> None:
        assert pairs
        for pair in pairs:
            assert pair.target_hash not in pair.negative_hashes
            for item in (pair.query, pair.positive, *pair.hard_negatives):
                assert item.text or item.media
                inside_the_root(item, mirror.media)

    try:
        check("corpora", f"{name} {path.name} {value!r:.80} {seed}", read, right, names=path.stem.split("-")[0])
    finally:
        spoilt.unlink()
        path.write_bytes(whole)


COLUMN_VALUES: list[Any] = [
    None,
    3,
    2.5,
    True,
    b"\xff\xfe",
    b"no image",
    ["a"],
    {"bytes": b"", "path": "x"},
    {"bytes": None, "path": None},
    "../x",
]


@examples(15, 80)
@given(column=st.sampled_from(["query", "image", "answer", "source"]), value=st.sampled_from(COLUMN_VALUES))
def test_tables_of_pages(folder: Path, column: str, value: Any) -> None:
    """A whole column of another type: a Parquet file has one type a column."""
    root = folder / "pages"
    rows = [
        {"query": f"What is {row}?", "image": corpora_fixtures.image_column(row), "answer": f"{row}", "source": "s"}
        for row in range(40)
    ]
    path = root / "annotations/vidore/colpali_train_set/default/train.parquet"
    path.unlink(missing_ok=True)
    corpora_fixtures.write_parquet(path, [row | {column: value} for row in rows])
    mirror = corpora_fixtures.Mirror(root / "annotations", root)

    def read() -> list[tuple[str, bytes, str]]:
        pairs = list(Mixture(mirror.settings("colpali")).pairs("train", 99))
        return [(pair.query.text, pair.query.media[0].content.read(), pair.positive.text) for pair in pairs]  # type: ignore[union-attr]

    def right(found: list[tuple[str, bytes, str]]) -> None:
        texts = [(row["query"], row["image"]["bytes"], row["answer"]) for row in rows]
        place = {"query": 0, "image": 1, "answer": 2}.get(column)
        if place is not None:
            texts = [(*text[:place], value, *text[place + 1 :]) for text in texts]  # type: ignore[misc]
        assert found
        assert set(found) <= set(texts)

    check("corpora", f"{column} {value!r}", read, right, names="colpali")


def test_numbers_of_other_types_are_refused_or_equal(mirror: MirrorPaths) -> None:
    """Ids in Parquet files may be any whole number; the same id must be the same key, whatever its type."""
    task = next(task for task in all_tasks() if task.parser == "vidore")
    repo = mirror.annotations_root / task.hf_repo
    files = [path for path in repo.rglob("*.parquet") if "qrels" in str(path)]
    tables = {path: pq.read_table(path) for path in files}
    for kind in (np.int8, np.int32, np.uint64, np.float64):
        for path, table in tables.items():
            places = [i for i, name in enumerate(table.column_names) if name.endswith("-id")]
            changed = table
            for place in places:
                values = np.array(table.column(place).to_pylist(), dtype=kind)
                changed = changed.set_column(place, table.column_names[place], [values])
            path.unlink()
            pq.write_table(changed, path)
        check(
            "benchmark",
            f"ids as {kind.__name__}",
            lambda: load_task(task.name, mirror.annotations_root, mirror.media_root, strict_counts=False),
            lambda found: sound_task(found, mirror.media_root),
            names=task.name,
        )
    for path, table in tables.items():
        path.unlink()
        pq.write_table(table, path)
