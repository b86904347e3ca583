"""`twn search`: results against brute force, documents added and replaced, crashes, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_encoder import FakeEncoder, vector
from PIL import Image

from twn_lightning.cli import main
from twn_lightning.data.nano import world
from twn_lightning.data.sources.nano import NanoSource
from twn_lightning.errors import CheckpointError, ConfigError, DataError, NumericalError
from twn_lightning.evaluation import index_files
from twn_lightning.evaluation.embed import EmbedSettings, embed_inputs
from twn_lightning.evaluation.embedding_files import read_embeddings
from twn_lightning.evaluation.index import Document, SearchIndex
from twn_lightning.evaluation.inputs import Inputs
from twn_lightning.evaluation.search import (
    add_stored,
    discard_work,
    embed_documents,
    encoder_record,
    search_items,
    stored_record,
)
from twn_lightning.settings import DataSettings
from twn_lightning.types import EmbeddingMode, Item, Side

DOCUMENTS = EmbedSettings(Side.CANDIDATE, EmbeddingMode.DISCRIMINATIVE, batch_size=4)


def unit(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def documents(count: int, start: int = 0) -> list[Document]:
    return [Document(f"d{i}", f"d{i}.png", f"text {i}", f"{i:x}") for i in range(start, start + count)]


def made(kind: str = "flat", count: int = 50) -> SearchIndex:
    index = SearchIndex.create(16, {"name": "fake"}, kind)  # type: ignore[arg-type]
    index.add(unit(count), documents(count))
    return index


def texts(*values: str) -> Inputs:
    inputs = Inputs("texts")
    for value in values:
        inputs.add(Item(f"{value}.txt", "", value), f"{value}.txt")
    return inputs


def test_flat_search_equals_brute_force() -> None:
    vectors, queries = unit(50), unit(7, seed=1)
    found = made().search(queries, k=5)
    scores = queries @ vectors.T
    for row, hits in enumerate(found):
        best = np.argsort(-scores[row], kind="stable")[:5]
        assert [hit.document.key for hit in hits] == [f"d{i}" for i in best]
        assert [hit.score for hit in hits] == pytest.approx(scores[row][best].tolist(), abs=1e-6)


def test_hnsw_finds_most_of_the_same() -> None:
    vectors, queries = unit(2000), unit(50, seed=1)
    exact, approximate = (SearchIndex.create(16, {}, kind) for kind in ("flat", "hnsw"))  # type: ignore[arg-type]
    for index in (exact, approximate):
        index.add(vectors, documents(2000))
    pairs = zip(exact.search(queries), approximate.search(queries), strict=True)
    shared = [len({h.document.key for h in a} & {h.document.key for h in b}) for a, b in pairs]
    assert np.mean(shared) > 9.5


def test_equal_scores_keep_the_order_of_adding() -> None:
    index = SearchIndex.create(16, {})
    index.add(np.repeat(unit(1), 5, axis=0), documents(5))
    assert [hit.document.key for hit in index.search(unit(1))[0]] == ["d0", "d1", "d2", "d3", "d4"]


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_documents_are_added_later_and_replaced(kind: str, tmp_path: Path) -> None:
    made(kind, 30).save(tmp_path)
    index = SearchIndex.load(tmp_path)
    index.add(unit(5, seed=2), documents(5, start=30))
    with pytest.raises(DataError, match=r"2 of 3 keys are in the index already, 'd33' for one; pass --replace"):
        index.add(unit(3, seed=3), documents(3, start=33))
    assert len(index) == 35
    newer = [Document("d7", "new.png", "newer")]
    assert index.add(unit(1, seed=4), newer, replace=True) == 1
    index.save(tmp_path)
    again = SearchIndex.load(tmp_path)
    assert len(again) == 35
    assert again.search(unit(1, seed=4), k=1)[0][0].document == newer[0]
    assert "d7.png" not in {hit.document.path for hit in again.search(unit(50)[7:8], k=35)[0]}
    assert again.search(unit(5, seed=2)[2:3], k=1)[0][0].document.key == "d32"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["000002", "index.json"]


@pytest.mark.parametrize("name", ["write_index", "documents", "commit"])
def test_a_crash_while_saving_leaves_the_earlier_index(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(count=10).save(tmp_path)
    index = SearchIndex.load(tmp_path)
    index.add(unit(3, seed=2), documents(3, start=10))

    def crash(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        where = {
            "write_index": (index_files.faiss(), "write_index"),
            "documents": (index_files.pq, "write_table"),
            "commit": (index_files, "write_json"),
        }[name]
        patched.setattr(*where, crash)
        with pytest.raises(KeyboardInterrupt):
            index.save(tmp_path)
    assert len(SearchIndex.load(tmp_path)) == 10
    index.save(tmp_path)
    assert len(SearchIndex.load(tmp_path)) == 13
    assert not (tmp_path / "000001").exists()


def test_a_damaged_index_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no search index there"):
        SearchIndex.load(tmp_path)
    made().save(tmp_path)
    rows = tmp_path / "000001" / "documents.parquet"
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-9])
    with pytest.raises(CheckpointError, match=rf"has {len(whole) - 9} bytes, expected {len(whole)}"):
        SearchIndex.load(tmp_path)
    rows.unlink()
    with pytest.raises(CheckpointError, match=r"documents\.parquet is missing"):
        SearchIndex.load(tmp_path)
    state = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**state, "schema_version": 9}))
    with pytest.raises(CheckpointError, match="schema version 9, this release reads 1"):
        SearchIndex.load(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({**state, "generation": "../1"}))
    with pytest.raises(CheckpointError, match="'generation' must be int"):
        SearchIndex.load(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(CheckpointError, match="is broken"):
        SearchIndex.load(tmp_path)


@pytest.mark.parametrize("name", ["index.faiss", "documents.parquet"])
def test_a_changed_byte_is_noticed_where_digests_are_kept(name: str, tmp_path: Path) -> None:
    made().save(tmp_path)
    path, state = tmp_path / "000001" / name, tmp_path / "index.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    with pytest.raises(CheckpointError, match=rf"{name} is damaged \(its content is not what was saved\)"):
        SearchIndex.load(tmp_path)
    path.write_bytes(whole)
    older = json.loads(state.read_text())
    del older["sha256"]
    state.write_text(json.dumps(older))
    assert len(SearchIndex.load(tmp_path)) == 50


def test_two_writers_do_not_lose_documents(tmp_path: Path) -> None:
    made(count=3).save(tmp_path)
    first, second = SearchIndex.load(tmp_path), SearchIndex.load(tmp_path)
    for start, index in ((3, first), (4, second)):
        index.add(unit(1, seed=start), documents(1, start=start))
    first.save(tmp_path)
    with pytest.raises(CheckpointError, match="another process has changed it"):
        second.save(tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda rows: rows[:, :8], DataError, r"shape \(4, 8\) do not fit: expected 4 rows of width 16"),
        (lambda rows: rows[:3], DataError, r"shape \(3, 16\)"),
        (lambda rows: rows * 2, DataError, r"'d0' has norm 2\.0000"),
        (lambda rows: np.where(np.arange(64).reshape(4, 16) == 20, np.nan, rows), NumericalError, "of 'd1' is not"),
    ],
)
def test_bad_embeddings_are_not_added(change: Any, error: type[Exception], message: str) -> None:
    index = SearchIndex.create(16, {})
    with pytest.raises(error, match=message):
        index.add(change(unit(4)), documents(4))
    assert len(index) == 0


def test_bad_requests() -> None:
    with pytest.raises(ConfigError, match="unknown kind of index 'flatt': did you mean 'flat'"):
        SearchIndex.create(16, {}, "flatt")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has no documents"):
        SearchIndex.create(16, {}).search(unit(1))
    with pytest.raises(ConfigError, match="k must be at least 1"):
        made().search(unit(1), k=0)
    with pytest.raises(DataError, match="key 'd1' is there twice"):
        SearchIndex.create(16, {}).add(unit(2), documents(1, start=1) * 2)
    assert len(made(count=3).search(unit(1), k=10)[0]) == 3


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"twn_lightning\[search\]"):
        SearchIndex.create(16, {})


def test_queries_of_the_same_encoder_think_where_it_does(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    stored, work = embed_documents(encoder, texts("a bird", "a hard one"), tmp_path, DOCUMENTS)
    index = SearchIndex.create(8, stored_record(stored))
    add_stored(index, stored)
    index.save(tmp_path)
    discard_work(tmp_path)
    assert not work.exists()
    loaded = SearchIndex.load(tmp_path)
    items = [Item("q0", "", "a bird"), Item("q1", "", "a hard one")]
    plain, hard = search_items(loaded, encoder, items, EmbeddingMode.ADAPTIVE, k=1)
    assert (plain.think, plain.probability, plain.cot) == (False, 0.25, None)
    assert (hard.think, hard.probability) == (True, 0.75)
    assert hard.cot is not None
    assert plain.hits[0].document.path == "a bird.txt"
    assert plain.hits[0].score == pytest.approx(1, abs=1e-6)
    with pytest.raises(ConfigError, match="version: index one, the query encoder two"):
        search_items(loaded, FakeEncoder("two"), items, EmbeddingMode.ADAPTIVE)
    with pytest.raises(ConfigError, match="has no mode 'generative'"):
        search_items(loaded, encoder, items, EmbeddingMode.GENERATIVE)


def test_embeddings_of_another_encoder_are_not_added(tmp_path: Path) -> None:
    index = SearchIndex.create(8, encoder_record(FakeEncoder(), Side.CANDIDATE, EmbeddingMode.DISCRIMINATIVE))
    for name, encoder, settings in (
        ("version", FakeEncoder("two"), DOCUMENTS),
        ("mode", FakeEncoder(), EmbedSettings(Side.CANDIDATE, EmbeddingMode.ADAPTIVE)),
    ):
        embed_inputs(encoder, texts("a"), tmp_path / name, settings)
        with pytest.raises(ConfigError, match=f"{name}: index"):
            add_stored(index, read_embeddings(tmp_path / name))


def test_an_interrupted_build_goes_on(tmp_path: Path) -> None:
    inputs = texts(*"abcdefghij")
    with pytest.raises(KeyboardInterrupt):
        embed_documents(FakeEncoder(fail_after=1), inputs, tmp_path, DOCUMENTS)
    second = FakeEncoder()
    stored, _ = embed_documents(second, inputs, tmp_path, DOCUMENTS)
    assert second.encoded == [f"{name}.txt" for name in "efghij"]
    assert np.array_equal(stored.embedding_ND, np.stack([vector(b"one" + name.encode()) for name in "abcdefghij"]))


def test_the_command_builds_adds_and_queries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = NanoSource(DataSettings()).candidates("test", "nano/picture")
    for name, chosen in (("first", pictures[:8]), ("second", pictures[8:10])):
        (tmp_path / name).mkdir()
        for item in chosen:
            Image.fromarray(item.media[0].content).save(tmp_path / name / f"{item.key.split(':')[1]}.png")
    index, flags = str(tmp_path / "index"), ["--instruction", world.PICTURE]
    assert main(["search", "build", index, str(tmp_path / "first"), *flags]) == 0
    assert main(["search", "add", index, str(tmp_path / "second"), *flags]) == 0
    assert "2 documents added, 0 replaced, 10 in all" in capsys.readouterr().out
    first = sorted((tmp_path / "first").iterdir())[0]
    query = ["search", "query", index, "--image", str(first), *flags]
    assert main([*query, "--mode", "discriminative", "--k", "3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["think"] is False
    assert answer["results"][0]["path"] == first.name
    assert answer["results"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert main([*query, "--threshold", "0", "--max-new-tokens", "4"]) == 0
    printed = capsys.readouterr().out
    assert "the query thought (gate " in printed
    assert first.name in printed
    assert main(["search", "query", index]) == 2
    assert "needs --text, --image or both" in capsys.readouterr().err
    assert main(["search", "query", index, "--text", "x", "--max-frames", "3"]) == 2
    assert "processor: index" in capsys.readouterr().err
    assert main(["search", "build", index, str(tmp_path / "first")]) == 2
    assert "holds an index" in capsys.readouterr().err
    assert main(["search", "query", str(tmp_path), "--text", "x"]) == 2
    assert "no search index there" in capsys.readouterr().err
