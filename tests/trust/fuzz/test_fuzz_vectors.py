"""Embeddings in files, in the cache and in the search index: damaged ones are refused, whole ones found again."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.fuzz.broken_files import Edit, damaged
from tests.trust.fuzz.cases import check, examples, nothing_left
from tests.trust.fuzz.test_fuzz_media import EDITS
from tests.trust.fuzz.test_fuzz_rows import JSON
from twn_lightning.evaluation.embedding_files import (
    OutputPaths,
    file_digests,
    merge_npy,
    merge_parquet,
    part_table,
    read_embeddings,
    write_part,
    write_record,
)
from twn_lightning.evaluation.embedding_shards import read_digests, read_shard, write_shard
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.evaluation.index import Document, Hit, SearchIndex
from twn_lightning.evaluation.item_digest import DIGEST_TYPE
from twn_lightning.types import Item

NUMBERS = st.integers(-2, 2).map(float) | st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30])


@pytest.fixture(scope="module", autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left("stored vectors"):
        yield


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def put_back(path: Path) -> Iterator[bytes]:
    """A file's content, which it has again behind the block."""
    whole = path.read_bytes()
    try:
        yield whole
    finally:
        path.write_bytes(whole)


@st.composite
def unit_rows(draw: Any) -> np.ndarray:
    """Unit vectors, sometimes with one that is none, or of another width."""
    rows, width = draw(st.integers(0, 6)), draw(st.sampled_from([4, 4, 4, 3]))
    matrix = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(rows, width)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    if rows and draw(st.integers(0, 3)) == 0:
        matrix[draw(st.integers(0, rows - 1)), 0] = draw(NUMBERS)
    return matrix


@examples(60, 400)
@given(
    vectors=unit_rows(),
    queries=unit_rows(),
    k=st.integers(-1, 9),
    kind=st.sampled_from(["flat", "hnsw"]),
    twice=st.booleans(),
)
def test_search_equals_numpy(vectors: np.ndarray, queries: np.ndarray, k: int, kind: Any, twice: bool) -> None:
    documents = [Document(f"d{i // 2 if twice else i}", None, "", "") for i in range(len(vectors))]

    def search() -> list[list[Hit]]:
        index = SearchIndex.create(4, {"name": "made"}, kind)
        index.add(vectors, documents)
        return index.search(queries, k)

    def right(found: list[list[Hit]]) -> None:
        assert np.isfinite(vectors).all()
        assert np.isfinite(queries).all()
        scores = queries @ vectors.T
        for row, hits in zip(scores, found, strict=True):
            assert len(hits) == min(k, len(vectors))
            np.testing.assert_allclose([hit.score for hit in hits], np.sort(row)[::-1][:k], atol=1e-6)

    check("search index", f"{vectors} {queries} {k} {kind}", search, right)


@pytest.fixture(scope="module")
def index_folder(folder: Path) -> Path:
    vectors = np.eye(8, dtype=np.float32)
    index = SearchIndex.create(8, {"name": "made"})
    index.add(vectors, [Document(f"d{i}", f"{i}.png", f"text {i}", "0") for i in range(8)])
    index.save(folder / "index")
    return folder / "index"


@examples(80, 500)
@given(name=st.sampled_from(["index.json", "000001/index.faiss", "000001/documents.parquet"]), edits=EDITS)
def test_a_damaged_index_is_refused(index_folder: Path, name: str, edits: list[Edit]) -> None:
    path = index_folder / name

    def right(found: list[list[Hit]]) -> None:
        assert [hits[0].document.key for hits in found] == [f"d{i}" for i in range(8)]
        assert [hits[0].score for hits in found] == [1.0] * 8

    def load() -> list[list[Hit]]:
        return SearchIndex.load(index_folder).search(np.eye(8, dtype=np.float32), 1)

    with put_back(path) as whole:
        path.write_bytes(damaged(whole, edits))
        check("search index", f"{name} {edits}", load, right, names=index_folder.name)


@examples(60, 300)
@given(
    value=JSON,
    field=st.sampled_from([None, "generation", "kind", "dimension", "documents", "bytes", "encoder", "sha256"]),
)
def test_an_index_that_says_something_else(index_folder: Path, field: str | None, value: Any) -> None:
    path = index_folder / "index.json"

    def load() -> list[list[Hit]]:
        return SearchIndex.load(index_folder).search(np.eye(8, dtype=np.float32), 1)

    def right(found: list[list[Hit]]) -> None:
        assert [hits[0].document.key for hits in found] == [f"d{i}" for i in range(8)]

    with put_back(path) as whole:
        path.write_text(json.dumps(value if field is None else json.loads(whole) | {field: value}))
        check("search index", f"{field} {value}", load, right, names=index_folder.name)


@pytest.fixture(scope="module", params=["parquet", "npy"])
def embeddings(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, np.ndarray]:
    """A folder as `twn embed` leaves it."""
    paths = OutputPaths(folder / f"as_{request.param}")
    vectors = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    items = [Item(f"k{i}", "", f"text {i}") for i in range(9)]
    write_part(part_table(items, [None] * 9, EncodedItems(vectors), 4, []), paths.part(0))
    (merge_parquet if request.param == "parquet" else merge_npy)(paths, [paths.part(0)], 4)
    paths.part(0).unlink()
    paths.parts.rmdir()
    record = {"schema_version": 1, "status": "complete", "side": "query", "mode": "discriminative", "inputs": "0"}
    record |= {"encoder": {"dimension": 4}, "settings": {"format": request.param}, "sha256": file_digests(paths)}
    write_record(paths.record, record)
    return paths.folder, vectors


@examples(60, 300)
@given(number=st.integers(0, 2), edits=EDITS)
def test_damaged_embeddings_are_refused(embeddings: tuple[Path, np.ndarray], number: int, edits: list[Edit]) -> None:
    folder, vectors = embeddings
    files = sorted(folder.iterdir())
    path = files[number % len(files)]

    def right(found: Any) -> None:
        assert [row["key"] for row in found.rows] == [f"k{i}" for i in range(9)]
        np.testing.assert_array_equal(found.embedding_ND, vectors)

    with put_back(path) as whole:
        path.write_bytes(damaged(whole, edits))
        check("embedding files", f"{path.name} {edits}", lambda: read_embeddings(folder), right, names=folder.name)


@examples(60, 300)
@given(value=JSON, field=st.sampled_from([None, "schema_version", "status", "encoder", "settings", "inputs", "sha256"]))
def test_a_record_that_says_something_else(embeddings: tuple[Path, np.ndarray], field: str | None, value: Any) -> None:
    folder, vectors = embeddings
    path = folder / "embed.json"

    def right(found: Any) -> None:
        np.testing.assert_array_equal(found.embedding_ND, vectors)

    with put_back(path) as whole:
        path.write_text(json.dumps(value if field is None else json.loads(whole) | {field: value}))
        check("embedding files", f"{field} {value}", lambda: read_embeddings(folder), right, names=folder.name)


@examples(80, 500)
@given(edits=EDITS)
def test_a_damaged_cache_gives_nothing_or_what_was_written(folder: Path, edits: list[Edit]) -> None:
    """A damaged shard of the embedding cache is left out; its items are encoded again."""
    rng = np.random.default_rng(0)
    written = EncodedItems(
        rng.normal(size=(5, 4)).astype(np.float32),
        think_N=np.array([True, False, True, False, True]),
        probability_N=rng.random(5).astype(np.float32),
        tokens_N=np.arange(5),
        malformed_N=np.zeros(5, bool),
        cots=["a", None, "ü", "", "b"],
    )
    digests = np.array([bytes([65 + i]) * 16 for i in range(5)], DIGEST_TYPE)
    path = write_shard(folder / "cache", digests, written)
    path.write_bytes(damaged(path.read_bytes(), edits))

    def read() -> tuple[np.ndarray, EncodedItems | None]:
        return read_digests(path), read_shard(path)

    def right(found: tuple[np.ndarray, EncodedItems | None]) -> None:
        content = found[1]
        if content is not None:
            assert (found[0] == digests).all()
            assert content.cots == written.cots
            for name in ("embedding_ND", "think_N", "probability_N", "tokens_N", "malformed_N"):
                np.testing.assert_array_equal(getattr(content, name), getattr(written, name))
                assert getattr(content, name).dtype == getattr(written, name).dtype

    check("embedding cache", f"{edits}", read, right)
    path.unlink()
